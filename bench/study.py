"""Every method against every attack: infected models from nothing, purified, in one table.

    python -m bench.study runs/study                                 on drawn signs
    python -m bench.study runs/study --data gtsrb --shards runs/gtsrb
    python -m bench.study runs/study --data gtsrb_third --shards runs/gtsrb
    python -m bench.study runs/study --data gtsrb_third_rare --shards runs/gtsrb --only all_to_one
    python -m bench.study runs/study --data cifar10 --shards runs/cifar10 --device cuda
    python -m bench.study runs/study --ray auto                      cells side by side on a cluster
    python -m bench.study runs/study --table                         collects, runs nothing
    python -m bench.study runs/study --table --add                   beside what was there

A *case* is an infected model: data, attack, mode, poison rate and seed; a *cell* is what one method
makes of it. Each is a run directory below the folder, so a study goes on where it stopped, and what
is finished is not done again. The methods are the project's own and the baselines of
:mod:`bench.baselines`, which get the clean images that AFT gets. ``--only`` takes a part of the
cases by their names, such as ``badnets`` or ``all_to_all-0.1-1``.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console

from bench._setup import draw, facts, merged, rows_in, write_json
from bench.attacks import BENIGN, CELLS, CLEAN_FRACTION, TARGET, WIDTH
from bench.attacks import METHODS as ALL_METHODS
from bench.baselines import BASELINES
from bench.baselines.run import erase
from pbe_fast import PoisonConfig, PurifyConfig, TrainConfig, load_config, poison, purify, train
from pbe_fast._files import sha256_file
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest
from pbe_fast.data.shards import Sample, ShardReader, write_shards
from pbe_fast.progress import Progress, Silent
from pbe_fast.randomness import numpy_generator
from pbe_fast.train import MODEL_NAME
from pbe_fast.triggers.poisoning import ATTACK_NAME, TRUTH_NAME
from pipelines._console import progress_bars

__all__ = [
    "DATA",
    "METHODS",
    "MODES",
    "Case",
    "DataSet",
    "added",
    "cases",
    "collect",
    "options_parser",
    "run_case",
    "run_cell",
]

METHODS: dict[str, dict[str, Any]] = {
    **{name: ALL_METHODS[name] for name in ("aft", "pbe", "sieve")},
    # The ablation of Sieve.
    "sieve_no_split": {"method": "sieve", "sieve.split": False},
    "sieve_no_relabel": {"method": "sieve", "sieve.relabel": False},
    "sieve_no_adversary": {"method": "sieve", "sieve.adversarial_epochs": 0},
    "sieve_no_second_look": {"method": "sieve", "sieve.second_look": False},
    "sieve_no_witnesses": {"method": "sieve", "sieve.witnesses": False},
    "sieve_no_more_rounds": {"method": "sieve", "sieve.more_rounds": 0},
    **{name: {} for name in BASELINES},  # which have their settings in their own files
}
MODES = ("all_to_one", "all_to_all")
SIZE = 32  # of all images
DEFAULT_METHODS = ("aft", "pbe", "sieve", *BASELINES)
_LISTED = ("suspect", "undecided", "auroc", "precision", "recall")  # of the list of suspects


@dataclass(frozen=True)
class DataSet:
    """What models are trained on: drawn signs, so many a class, or shards that lie elsewhere.

    Attributes:
        epochs: of training, but for WaNet, which needs twice as many.
        width: of the PreActResNet-18, whose full width is 64; None for other models.
        model: what is trained.
        attacks: settings of attacks that need others here than GTSRB's.
        training: other settings of the training.
        every: so many-th training image is taken, in the order of their keys.
        whole: a class of which all are.
        wrong: share of the training labels that are not the true ones.
        wrong_step: how far from the true label those are; None: any other label.
        clean_fraction: of the clean training images, for methods that need some.
        target: the label that all-to-one attacks want.
        noise: standard deviation of what is added to every pixel of the drawn signs, of 255.
    """

    name: str
    classes: int
    train_per_class: int = 0
    test_per_class: int = 0
    epochs: int = 8
    _: KW_ONLY
    width: int | None = WIDTH
    model: str = "builtin:preact_resnet18"
    attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1
    whole: int | None = None
    wrong: float = 0.0
    wrong_step: int | None = None
    clean_fraction: float = CLEAN_FRACTION
    target: int = TARGET
    noise: float = 0.0


# The photographs are tracks of 30 that hardly differ. A third of each, and as many clean images as
# 5 % of all, on a narrower network, with a third of the steps for Input-aware's generators: a
# model in minutes on a core.
_THIRD = DataSet(
    "gtsrb_third",
    43,
    epochs=16,
    width=8,
    attacks={"input_aware": {"generator_steps": 500}},
    every=3,
    clean_fraction=0.15,
)
DATA = {
    # A patch of 3 pixels is not learned from 6,000 images (ASR 1.1 %), one of 5 with one of two
    # seeds (100 and 2.2 %): crops cut off up to 4.
    "signs": DataSet("signs", 10, 600, 100, epochs=16, attacks={"badnets": {"patch_size": 8}}),
    # Another network, four times as wide where it ends.
    "signs_resnet18": DataSet(
        "signs_resnet18",
        10,
        600,
        100,
        epochs=24,
        model="torchvision:resnet18",
        width=None,
        attacks={"badnets": {"patch_size": 8}},
    ),
    # Label noise without any poison: one label in ten is any other, or always the next.
    "signs_noise": DataSet("signs_noise", 10, 600, 100, epochs=16, wrong=0.1),
    "signs_noise_next": DataSet(
        "signs_noise_next", 10, 600, 100, epochs=16, wrong=0.1, wrong_step=1
    ),
    # As hard as CIFAR-10: a model that is often wrong, of whose classes few fall apart.
    "signs_hard": DataSet(
        "signs_hard", 10, 600, 100, epochs=16, attacks={"badnets": {"patch_size": 8}}, noise=90
    ),
    "gtsrb": DataSet("gtsrb", 43),
    "gtsrb_third": _THIRD,
    # A target with 70 images of its own, beside 1,300 poisoned ones, as with ImageNet's classes.
    "gtsrb_third_rare": replace(_THIRD, name="gtsrb_third_rare", target=0),
    # A class that is as much larger than the others without any poison.
    "gtsrb_third_large": replace(_THIRD, name="gtsrb_third_large", whole=2),
    "gtsrb_third_noise": replace(_THIRD, name="gtsrb_third_noise", wrong=0.1),
    "cifar10": DataSet("cifar10", 10, epochs=30, width=64),  # for a GPU
    # For a CPU. Few photographs, and harder ones than signs: a model that is often wrong.
    "cifar10_third": DataSet(
        "cifar10_third", 10, epochs=20, width=16, every=3, clean_fraction=0.15
    ),
}


@dataclass(frozen=True)
class Case:
    """An infected model, or with the attack ``benign`` one that is not."""

    attack: str
    mode: str = "all_to_one"
    rate: float = 0.1
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.attack == BENIGN:
            return f"{BENIGN}-{self.seed}"
        return f"{self.attack}-{self.mode}-{self.rate:g}-{self.seed}"


def cases(seeds: Iterable[int] = range(3)) -> Iterator[Case]:
    """All of the study: five attacks in two modes, benign models, and other poison rates."""
    for seed in seeds:
        yield Case(BENIGN, seed=seed)
        for mode in MODES:
            for attack in CELLS:
                if attack != BENIGN:
                    yield Case(attack, mode, seed=seed)
        for attack in ("badnets", "blend"):
            for rate in (0.01, 0.05, 0.2):
                yield Case(attack, rate=rate, seed=seed)


def prepare(folder: Path, data: DataSet, shards: Path | None) -> Path:
    """The folder of shards without poison.

    Drawn where none is given, and thinned, mislabelled or made noisy where that is wanted.
    """
    if data.wrong:
        clean = prepare(folder, replace(data, wrong=0.0), shards)
        noisy = folder / f"{data.name}-mislabelled"
        mislabel(clean / "train", noisy / "train", data.wrong, data.wrong_step)
        thin(clean / "test", noisy / "test", 1)
        return noisy
    made = folder / f"{data.name}-clean"
    if shards is not None:
        if data.every == 1:
            return shards
        thin(shards / "train", made / "train", data.every, data.whole)
        thin(shards / "test", made / "test", 1)
        return made
    per_class = {"train": data.train_per_class, "test": data.test_per_class}
    draw(made, data.classes, SIZE, per_class)
    if not data.noise:
        return made
    noisy = folder / f"{data.name}-noisy"
    for split in per_class:
        add_noise(made / split, noisy / split, data.noise)
    return noisy


def thin(source: Path, target: Path, every: int, whole: int | None = None) -> None:
    """A copy of shards with every so many-th image, where it is not there yet.

    Args:
        whole: a class of which all images are taken.
    """
    manifest = Manifest.load(source)
    by_key = np.argsort(manifest.keys.to_numpy(zero_copy_only=False))
    of_whole = np.flatnonzero(manifest.labels == (-1 if whole is None else whole))
    _copy(manifest, target, np.union1d(by_key[::every], of_whole), manifest.labels)


def mislabel(source: Path, target: Path, share: float, step: int | None) -> None:
    """A copy of shards with a share of wrong labels, drawn at random, where it is not there yet.

    Args:
        step: from the true label to the wrong one; None: any.
    """
    manifest, random = Manifest.load(source), np.random.default_rng(0)
    wrong = random.random(len(manifest)) < share
    steps = random.integers(1, manifest.num_classes, len(manifest)) if step is None else step
    labels = np.where(wrong, (manifest.labels + steps) % manifest.num_classes, manifest.labels)
    _copy(manifest, target, np.arange(len(manifest)), labels)


def add_noise(source: Path, target: Path, deviation: float) -> None:
    """A copy of shards with Gaussian noise on every pixel, where it is not there yet.

    Folders of other names get other noise, so that training images tell nothing of test images.
    """
    manifest, random = Manifest.load(source), numpy_generator(0, "noise", source.name)

    def noisy(image: bytes) -> bytes:
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float64)
        pixels = pixels + random.normal(0, deviation, pixels.shape)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    _copy(manifest, target, np.arange(len(manifest)), manifest.labels, noisy)


def _copy(
    manifest: Manifest,
    target: Path,
    ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.integer],
    change: Callable[[bytes], bytes] = bytes,
) -> None:
    """Some images of a data set, with these labels of all.

    Args:
        change: what becomes of each encoded image.
    """
    if (target / MANIFEST_NAME).exists():
        return
    reader = ShardReader(manifest)
    samples = (
        Sample.copied(manifest.keys[i].as_py(), change(reader.read(i)), int(labels[i]))
        for i in ids.tolist()
    )
    write_shards(samples, target, classes=manifest.classes)


def run_case(
    folder: Path, shards: Path, data: DataSet, case: Case, device: str, progress: Progress
) -> None:
    """Poison and train."""
    here = folder / data.name / case.name
    here.mkdir(parents=True, exist_ok=True)
    infected = case.attack != BENIGN
    cell = CELLS[case.attack]
    if infected and not (here / "poisoned" / TRUTH_NAME).exists():
        values = {
            "attack": case.attack,
            "mode": case.mode,
            "target": data.target,
            "rate": case.rate,
            "seed": case.seed,
            "device": device,
            **cell.settings,
            **data.attacks.get(case.attack, {}),
        }
        plan = PoisonConfig.model_validate(values)
        poison(shards / "train", here / "poisoned", plan, progress=progress, overwrite=True)
    values = {
        **_data(here, shards, infected),
        "model.name": data.model,
        "epochs": data.epochs * cell.epochs // CELLS[BENIGN].epochs,
        "seed": case.seed,
        "device": device,
        **({} if data.width is None else {"model.options.width": data.width}),
        **data.training,
    }
    train(load_config(TrainConfig, values=values), here / "model", progress)


def run_cell(
    folder: Path,
    shards: Path,
    data: DataSet,
    case: Case,
    method: str,
    device: str,
    progress: Progress,
) -> None:
    """Purify by one method."""
    here = folder / data.name / case.name
    infected = case.attack != BENIGN
    values = {
        **_data(here, shards, infected),
        **METHODS[method],
        "model.checkpoint": here / "model" / MODEL_NAME,
        "data.truth": here / "poisoned" / TRUTH_NAME if infected else None,
        "seed": case.seed,
        "device": device,
    }
    if method in BASELINES or values["method"] == "aft":
        values |= {"data.clean": shards / "train", "data.clean_fraction": data.clean_fraction}
    config = load_config(PurifyConfig, values=values)
    if method in BASELINES:
        erase(config, method, here / method, progress)
    else:
        purify(config, here / method, progress)


def _data(here: Path, shards: Path, infected: bool) -> dict[str, Any]:
    return {
        "data.train": here / "poisoned" if infected else shards / "train",
        "data.test": shards / "test",
        "data.image_size": SIZE,
        "data.attack": here / "poisoned" / ATTACK_NAME if infected else None,
        "curve_samples": 0,
    }


def collect(folder: Path, data: DataSet) -> list[dict[str, Any]]:
    """What the finished cells say: ACC, ASR, DER, how well suspects are told, seconds.

    And of each round how many poisoned images were trained with their label, and in the end of how
    many labels it is said that a backdoor leads to them, or that they are wrong.
    """
    here = folder / data.name
    models = {
        file.parents[1]: sha256_file(file)[:16] for file in here.glob(f"*/model/{MODEL_NAME}")
    }
    rows = []
    for file in sorted(here.glob("*/*/metrics.json")):
        method = file.parent.name
        if method not in METHODS:
            continue
        metrics = json.loads(file.read_text(encoding="utf-8"))
        before, after = metrics["infected"], metrics["purified"]
        row = {
            "case": file.parent.parent.name,
            "method": method,
            "model": models[file.parents[1]],
            "infected": {key: before[key] for key in ("acc", "asr") if key in before},
            "purified": {key: after[key] for key in ("acc", "asr") if key in after},
            "seconds": sum(metrics["seconds"].values()),
        }
        if "asr" in after:
            row["der"] = der(before, after)
        row |= {key: said for key, said in metrics.get("suspects", {}).items() if key in _LISTED}
        subsets = [facts["subset_poisoned"] for facts in metrics["rounds"]
                   if "subset_poisoned" in facts]  # fmt: skip
        row |= {"subset_poisoned": subsets} if subsets else {}
        if "backdoor" in metrics:
            row["found"] = metrics["backdoor"]["found"]
            labels = ("labels", "mislabelled")  # the second is not there in older runs
            row |= {key: len(metrics["backdoor"].get(key, ())) for key in labels}
        rows.append(row)
    return rows


def added(kept: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several folders in one table; of a cell that is in both, the new one.

    A case that was trained again is another model: what was kept of it cannot stand beside the new
    rows and goes.
    """
    models = {row["case"]: row["model"] for row in rows}
    kept = [row for row in kept if models.get(row["case"], row.get("model")) == row.get("model")]
    return merged(kept, rows, "case", "method")


def der(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Defense effectiveness rating, as BackdoorBench has it: 1 if ASR falls by 1 and ACC by 0."""
    fall = {key: max(0.0, before[key] - after[key]) for key in ("acc", "asr")}
    return (fall["asr"] - fall["acc"] + 1) / 2


def _run(
    folder: Path, shards: Path, data: DataSet, chosen: Sequence[Case], methods: Sequence[str],
    device: str,
) -> None:  # fmt: skip
    with progress_bars(Console()) as progress:
        for case in chosen:
            progress.say(case.name)
            run_case(folder, shards, data, case, device, progress)
            for method in methods:
                run_cell(folder, shards, data, case, method, device, progress)


def _run_on_ray(
    folder: Path, shards: Path, data: DataSet, chosen: Sequence[Case], methods: Sequence[str],
    device: str, threads: int, address: str,
) -> None:  # fmt: skip
    """A task for each case, and one for each of its cells after it."""
    import ray

    from pipelines.fleet import FleetOptions, connected

    gpus = 1 if device.startswith("cuda") else 0

    @ray.remote(num_cpus=threads, num_gpus=gpus)
    def task(case: Case, method: str | None, _: Any = None) -> str:
        torch.set_num_threads(threads)
        if method is None:
            run_case(folder, shards, data, case, device, Silent())
        else:
            run_cell(folder, shards, data, case, method, device, Silent())
        return f"{case.name} {method or 'trained'}"

    where = None if address == "local" else address
    with connected(FleetOptions(workers=1, cpus=threads, address=where)):
        running = []
        for case in chosen:
            model = task.remote(case, None)
            running += [model, *(task.remote(case, method, model) for method in methods)]
        total = len(running)
        while running:
            done, running = ray.wait(running)
            print(f"{total - len(running)} of {total}: {ray.get(done[0])}", flush=True)


def options_parser(
    description: str | None, *, device: str = "cpu", out: Path | None = None
) -> argparse.ArgumentParser:
    """For a command about the folder of a study, with what all of them take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("--data", choices=DATA, default="signs")
    parser.add_argument("--shards", type=Path, help="clean shards, in 'train' and 'test'")
    parser.add_argument("--device", default=device)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of each piece of work"
    )
    default = out or "bench/results/study_DATA.json"
    parser.add_argument("--out", type=Path, default=out, help=f"default: {default}")
    return parser


def main() -> None:
    """Parse the command line, run what is not there yet, and write what there is."""
    parser = options_parser(__doc__, device="auto")
    parser.add_argument("--only", nargs="*", default=[""], help="cases with this in their names")
    parser.add_argument("--methods", choices=METHODS, nargs="*", default=DEFAULT_METHODS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ray", help="local, auto, or a cluster's address")
    parser.add_argument("--table", action="store_true", help="collect alone, run nothing")
    parser.add_argument(
        "--add", action="store_true", help="keep what the file says of cells that are not here"
    )
    options = parser.parse_args()
    data = DATA[options.data]
    if options.shards is None and not data.train_per_class and not options.table:
        parser.error(f"--data {data.name} needs --shards")
    torch.set_num_threads(options.threads)
    if not options.table:
        folder = options.folder.resolve()
        shards = prepare(folder, data, options.shards and options.shards.resolve())
        chosen = [c for c in cases(options.seeds) if any(word in c.name for word in options.only)]
        work = (folder, shards, data, chosen, options.methods, options.device)
        if options.ray is None:
            _run(*work)
        else:
            _run_on_ray(*work, options.threads, options.ray)
    out = options.out or Path("bench/results") / f"study_{data.name}.json"
    rows = collect(options.folder, data)
    if options.add and out.exists():
        kept = rows_in(out)
        rows = added(kept, rows)
        cells = [{(row["case"], row["method"]) for row in some} for some in (kept, rows)]
        for case, method in sorted(cells[0] - cells[1]):
            print(f"{out}: {method} of {case} goes, as the model was trained again")
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    write_json(out, {**facts("cuda" if on_gpu else "cpu"), "rows": rows})


if __name__ == "__main__":
    main()
