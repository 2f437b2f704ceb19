"""What a scan sees of benign models, on which its verdict is measured, and of infected ones.

:mod:`bench.appendix` runs this. Small models (PreActResNet-18 of width 8) on four data sets: drawn
signs of 10 and 20 classes, up to 100 photographs of each of the 43 classes of GTSRB, and 400 of
each class of CIFAR-10. GTSRB's are whole tracks, as the photographs of one physical sign look like
a kind of their own. Each model is scanned with the images that it was trained on (``pbe-fast
scan``). What the benign ones show is kept where the verdict finds it,
``pbe_fast/analysis/benign.json``, once all of them were scanned, and all with what the verdict says
in ``bench/results/scan_calibration.json``; there a benign model is judged by the others.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench._setup import facts, write_json
from bench.attacks import BENIGN, TARGET
from bench.study import Case, DataSet, prepare, run_case
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, read_predictions
from pbe_fast.analysis.verdict import judge
from pbe_fast.data import MANIFEST_NAME, Sample, write_shards
from pbe_fast.data.converters import read_image_folder
from pbe_fast.progress import Progress
from pbe_fast.randomness import permutation
from pbe_fast.train import MODEL_NAME

__all__ = ["DATA", "OUT", "PLAIN", "cases", "clean_shards", "collect", "keep", "reference", "run"]

OUT = Path("bench/results/scan_calibration.json")

WIDTH = 8
PLAIN = {"precision": "float32", "memory_format": "channels_last"}  # nothing that is measured
FAST = {"batch_size": 32, "lr": 0.03, "data.augment": "none", **PLAIN}
# The patch as in the study; generators that train for less of the steps, to be quick.
SIGNS = {"badnets": {"patch_size": 8}, "input_aware": {"generator_steps": 200}}
DATA = {
    "signs10": DataSet("signs10", 10, 400, 50, 7, WIDTH, attacks=SIGNS, training=FAST),
    "signs20": DataSet("signs20", 20, 200, 25, 7, WIDTH, attacks=SIGNS, training=FAST),
    "gtsrb43": DataSet("gtsrb43", 43, 0, 0, 7, WIDTH, training=FAST),
    "cifar10": DataSet("cifar10", 10, 0, 0, 7, WIDTH, training=FAST),
}
SEEDS = range(5)  # of the benign models, of each data set
INFECTED = (
    *(("signs10", attack, "all_to_one") for attack in ("badnets", "blend", "sig", "input_aware")),
    *(("signs10", attack, "all_to_all") for attack in ("badnets", "blend")),
    *(("gtsrb43", attack, "all_to_one") for attack in ("badnets", "blend", "wanet")),
    ("gtsrb43", "badnets", "all_to_all"),
    ("cifar10", "blend", "all_to_one"),
)
SOURCES = {"gtsrb43": ("gtsrb32", 100, 10), "cifar10": ("cifar10", 400, 50)}
TRACKED = {"gtsrb43": 3}  # made of tracks, of which every third photograph is taken


def some_of(images: Path, out: Path, per_class: int, every: int | None = None) -> None:
    """Shards of so many random images of each class of an image folder, where not there yet.

    Args:
        every: take tracks as they are, and of a track each so many-th image (one is called
            ``TRACK_NUMBER``). Without, images are drawn one by one.
    """
    if (out / MANIFEST_NAME).exists():
        return
    names, samples = read_image_folder(images)
    tracks: dict[int, dict[str, list[Sample]]] = {}
    for sample in samples:
        track = sample.key if every is None else sample.key.rpartition("_")[0]
        tracks.setdefault(sample.label, {}).setdefault(track, []).append(sample)
    chosen: list[Sample] = []
    for label, of_class in tracks.items():
        in_order = list(of_class)
        drawn = [in_order[i] for i in permutation(len(in_order), 0, "calibration", label)]
        chosen += [one for name in drawn for one in of_class[name][::every]][:per_class]
    write_shards((chosen[i] for i in permutation(len(chosen), 0, "order")), out, classes=names)


def cases() -> Iterator[tuple[DataSet, Case]]:
    """Every benign model, and the infected ones."""
    for seed in SEEDS:
        for data in DATA.values():
            yield data, Case(BENIGN, seed=seed)
    for name, attack, mode in INFECTED:
        yield DATA[name], Case(attack, mode)


def clean_shards(folder: Path, images: Path, data: DataSet) -> Path:
    """The clean images of a data set, made where missing.

    Args:
        images: image folders ``gtsrb32`` and ``cifar10`` are in it.
    """
    if data.name not in SOURCES:
        return prepare(folder, data, None)
    shards = folder / f"{data.name}-clean"
    source, train, test = SOURCES[data.name]
    some_of(images / source / "train", shards / "train", train, TRACKED.get(data.name))
    some_of(images / source / "test", shards / "test", test)
    return shards


def run(folder: Path, shards: Path, data: DataSet, case: Case, progress: Progress) -> None:
    """Train and scan one model, in a run directory each; what is finished is not done again."""
    run_case(folder, shards, data, case, "cpu", progress)
    here = folder / data.name / case.name
    values = {
        "model.checkpoint": here / "model" / MODEL_NAME,
        "data.train": shards / "train" if case.attack == BENIGN else here / "poisoned",
        "device": "cpu",
        **PLAIN,
    }
    scan(load_config(ScanConfig, values=values), here / "scan", progress)


def reference(folder: Path) -> list[dict[str, Any]]:
    """The strongest evidence of each kind in every benign model that was scanned."""
    rows = []
    for file in sorted(folder.glob(f"*/{BENIGN}-*/scan/{PREDICTIONS_NAME}")):
        scores = {one.kind: one.score for one in judge(read_predictions(file), []).strongest}
        rows.append({"data": file.parts[-4], "case": file.parts[-3], "scores": scores})
    return rows


def collect(folder: Path, benign: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the verdict says of every model that was scanned, with and without clusters."""
    rows = []
    for file in sorted(folder.glob(f"*/*/scan/{PREDICTIONS_NAME}")):
        data, case = file.parts[-4], file.parts[-3]
        trained = json.loads((file.parents[1] / "model" / "metrics.json").read_text("utf-8"))
        others = [row for row in benign if (row["data"], row["case"]) != (data, case)]
        found = read_predictions(file)
        row = {"data": data, "case": case, **trained["test"], "images": len(found.labels)}
        for name, one in (("verdict", found), ("flows_alone", found.without_clusters())):
            verdict = judge(one, [other["scores"] for other in others])
            row[name] = asdict(verdict) | {"evidence": [asdict(e) for e in verdict.strongest]}
            row[name]["right"] = right(case, verdict.mode, verdict.targets)
        rows.append(row)
    return rows


def keep(folder: Path, out: Path) -> None:
    """Write what was seen of all models, and the benign ones for the verdict; nothing of a part."""
    wanted = [folder / data.name / case.name / "scan" / PREDICTIONS_NAME for data, case in cases()]
    missing = sum(not file.exists() for file in wanted)
    if missing:
        print(f"{missing} of {len(wanted)} models are not scanned; {out.name} stays as it is")
        return
    benign = reference(folder)
    place = Path(str(files("pbe_fast.analysis").joinpath("benign.json")))
    write_json(place, {"rows": benign})
    content = {**facts("cpu"), "rows": collect(folder, benign)}
    content["command"] = "python -m bench.appendix runs/appendix --images IMAGES"
    write_json(out, content)


def right(case: str, mode: str | None, targets: tuple[int, ...]) -> bool:
    """Whether a verdict says of a model what was done to it."""
    attack, *plan, _ = case.split("-")
    if attack == BENIGN:
        return mode is None
    return mode == plan[0] and (mode != "all_to_one" or targets == (TARGET,))
