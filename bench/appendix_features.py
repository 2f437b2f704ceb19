"""The settings of the appendix's Figures 5, 6 and 7: features of adversarial and triggered images.

    python -m bench.appendix_features runs/appendix
    python -m bench.appendix_features runs/appendix --study runs/study --gtsrb runs/gtsrb

Figure 5 is WaNet and Figure 6 BadNets at 32x32, on CIFAR-10, and Figure 7 is Blend at 224x224, on
ImageNet-1K. Here the images are drawn signs in both sizes, with Blend at 32x32 besides; a user's
own images are what ``pbe-fast features`` is for. ``--study`` takes models at 32x32 from a folder of
:mod:`bench.study`, and ``--gtsrb`` measures those of :mod:`bench.attacks`, too; both are only read,
and what is not there is trained below the first folder. Each setting is a run of ``pbe-fast
features`` in ``features-...`` there, with its pictures.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench._setup import draw, facts, write_json
from bench.attacks import BENIGN, TARGET
from bench.study import DATA, Case, prepare, run_case
from pbe_fast import FeaturesConfig, PoisonConfig, TrainConfig, load_config, poison, train
from pbe_fast.analysis.features import measure_features
from pbe_fast.progress import Progress
from pbe_fast.train import MODEL_NAME
from pbe_fast.triggers.poisoning import ATTACK_NAME, TRUTH_NAME
from pipelines._console import progress_bars

__all__ = ["FIGURES", "LARGE", "Setting", "large_model", "measure", "settings"]

FIGURES = {"wanet": "5", "badnets": "6", "blend": "7"}
CLASSES = 10
LARGE = 224
# Pixels, epochs, learning rate, batch: most of it where a step costs least. The poisoned images
# are those at 224, brought to the size; Blend's picture outlives that, as it is smooth.
STAGES = ((64, 14, 0.05, 32), (128, 5, 0.03, 32), (LARGE, 3, 0.02, 32))
PER_CLASS = {"train": 120, "test": 40}
ARCHITECTURE = "timm:resnet10t"
LARGE_ATTACKS = {"wanet": {"strength": 2.0 * LARGE / 32}}  # moves as large a part of the image


def large_model(folder: Path, attack: str, device: str, progress: Progress) -> Path:
    """The folder of a model at 224x224 on drawn signs, with its trigger; made where missing."""
    clean = folder / f"signs-{LARGE}-clean"
    draw(clean, CLASSES, LARGE, PER_CLASS)
    here = folder / f"signs-{LARGE}" / attack
    infected = attack != BENIGN
    if infected and not (here / "poisoned" / TRUTH_NAME).exists():
        plan = PoisonConfig.model_validate(
            {
                "attack": attack,
                "target": TARGET,
                "image_size": LARGE,
                "device": device,
                **LARGE_ATTACKS.get(attack, {}),
            }
        )
        poison(clean / "train", here / "poisoned", plan, progress=progress, overwrite=True)
    start: Path | None = None
    for size, epochs, lr, batch in STAGES:
        last = size == LARGE
        values: dict[str, Any] = {
            "data.train": here / "poisoned" if infected else clean / "train",
            "data.test": clean / "test" if last else None,
            "data.attack": here / "poisoned" / ATTACK_NAME if last and infected else None,
            "data.image_size": size,
            "data.augment": "none",
            "model.name": ARCHITECTURE,
            "model.checkpoint": start,
            "epochs": epochs,
            "batch_size": batch,
            "lr": lr,
            "device": device,
            "curve_samples": 0,
        }
        out = here / ("model" if last else f"model-{size}")
        train(load_config(TrainConfig, values=values), out, progress)
        start = out / MODEL_NAME
    return here


class Setting(NamedTuple):
    """What is compared: an attack on a data set, its model and a benign one, and images."""

    name: str
    data: str
    size: int
    attack: str
    infected: Path
    benign: Path
    trigger: Path
    test: Path

    @property
    def figure(self) -> str | None:
        """Of the appendix, whose setting this is."""
        drawn = self.data == "signs" and (self.size == LARGE) == (self.attack == "blend")
        return FIGURES[self.attack] if drawn else None


def settings(
    folder: Path, study: Path | None, gtsrb: Path | None, device: str, progress: Progress
) -> Iterator[Setting]:
    """All of them; what a study does not have is trained as the study would, below ``folder``."""
    signs = DATA["signs"]
    shards = prepare(folder, signs, study / "signs-clean" if study else None)

    def case(name: str) -> Path:
        wanted = Case(name)
        kept = study / signs.name / wanted.name if study else folder / "none"
        whole = (kept / "model" / MODEL_NAME).exists() and (
            name == BENIGN or (kept / "poisoned" / ATTACK_NAME).exists()
        )
        if whole:
            return kept
        run_case(folder, shards, signs, wanted, device, progress)
        return folder / signs.name / wanted.name

    def setting(data: str, size: int, attack: str, here: Path, benign: Path, test: Path) -> Setting:
        name = f"{data}-{size}-{attack}"
        model, trigger = here / "model" / MODEL_NAME, here / "poisoned" / ATTACK_NAME
        return Setting(name, data, size, attack, model, benign, trigger, test)

    benign = case(BENIGN) / "model" / MODEL_NAME
    for attack in FIGURES:
        yield setting("signs", 32, attack, case(attack), benign, shards / "test")
    for attack in FIGURES if gtsrb else ():
        assert gtsrb is not None
        yield Setting(
            f"gtsrb-32-{attack}", "gtsrb", 32, attack, gtsrb / f"model-{attack}" / MODEL_NAME,
            gtsrb / f"model-{BENIGN}" / MODEL_NAME, gtsrb / f"poisoned-{attack}" / ATTACK_NAME,
            gtsrb / "test",
        )  # fmt: skip
    here, other = (large_model(folder, attack, device, progress) for attack in ("blend", BENIGN))
    test = folder / f"signs-{LARGE}-clean" / "test"
    yield setting("signs", LARGE, "blend", here, other / "model" / MODEL_NAME, test)


def measure(
    one: Setting, folder: Path, images: int, device: str, progress: Progress
) -> dict[str, Any]:
    """Compare features, in a run directory; what the table needs of it."""
    values = {
        "model.checkpoint": one.infected,
        "benign": one.benign,
        "data.test": one.test,
        "data.attack": one.trigger,
        "images": images,
        "device": device,
        "memory_format": "contiguous",  # so that nothing depends on a measured choice
    }
    config = load_config(FeaturesConfig, values=values)
    found = measure_features(config, folder / f"features-{one.name}", progress)
    return {
        "setting": one.name,
        "figure": one.figure,
        "data": one.data,
        "size": one.size,
        "attack": one.attack,
        "model": found["model"],
        "adversary": found["adversary"],
        "images": found["images"],
        "labels": found["labels"],
        "layers": found["layers"],
        "claims": found["claims"],
        "pairs": found["pairs"],
    }


def main() -> None:
    """Parse the command line, train what is missing, compare, and keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path, help="a folder of bench.study, which is only read")
    parser.add_argument("--gtsrb", type=Path, help="a folder of bench.attacks, which is only read")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("bench/results/appendix_features.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with progress_bars(Console()) as progress:
        for one in settings(options.folder, options.study, options.gtsrb, options.device, progress):
            progress.say(one.name)
            rows.append(measure(one, options.folder, options.images, options.device, progress))
    content = {**facts(options.device), "settings": rows}
    # Without the paths of a machine.
    plain = {
        "runs/bench": "runs/appendix",
        options.study: "runs/study",
        options.gtsrb: "runs/gtsrb",
    }
    for path, word in plain.items():
        content["command"] = f"{content['command']} ".replace(f" {path} ", f" {word} ").strip()
    write_json(options.out, content)


if __name__ == "__main__":
    main()
