"""The settings of the appendix's Figures 5, 6 and 7: features of adversarial and triggered images.

    python -m bench.appendix_features runs/study
    python -m bench.appendix_features runs/study --data gtsrb --shards runs/gtsrb

Figure 5 is WaNet and Figure 6 BadNets at 32x32, on CIFAR-10, and Figure 7 is Blend at 224x224, on
ImageNet-1K. :mod:`bench.appendix` does the first two on small models of CIFAR-10, and the third on
drawn signs, with more of these in both sizes; a user's own images are what ``pbe-fast features`` is
for. The command measures the same three attacks on models of a folder of :mod:`bench.study`, trains
nothing, and keeps what the file says of others. Each setting is a run of ``pbe-fast features``,
with its pictures.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench._setup import draw, keep_rows
from bench.attacks import BENIGN, TARGET
from bench.calibration import PLAIN
from bench.study import Case, options_parser
from pbe_fast import FeaturesConfig, PoisonConfig, TrainConfig, load_config, poison, train
from pbe_fast.analysis.features import measure_features
from pbe_fast.progress import Progress
from pbe_fast.train import MODEL_NAME
from pbe_fast.triggers.poisoning import ATTACK_NAME, TRUTH_NAME
from pipelines._console import progress_bars

__all__ = [
    "FIGURES",
    "LARGE",
    "LARGE_NAME",
    "OUT",
    "Setting",
    "keep",
    "large_model",
    "large_shards",
    "measure",
    "place",
    "settings",
]

OUT = Path("bench/results/appendix_features.json")

FIGURES = {"wanet": "5", "badnets": "6", "blend": "7"}
CLASSES = 10
LARGE = 224
LARGE_NAME = f"signs-{LARGE}"
# Pixels, epochs, learning rate, batch: most of it where a step costs least, and WaNet twice as long
# there. The poisoned images are those at 224, brought to the size; Blend's picture and WaNet's warp
# outlive that, as they are smooth.
STAGES = ((64, 14, 0.05, 32), (128, 3, 0.03, 32), (LARGE, 1, 0.02, 32))
PER_CLASS = {"train": 120, "test": 40}
ARCHITECTURE = "timm:test_resnet"  # timm's smallest, of 0.4 million weights
LARGE_ATTACKS = {"wanet": {"strength": 2.0 * LARGE / 32}}  # moves as large a part of the image


def large_shards(folder: Path) -> Path:
    """Drawn signs of 224x224, made where missing."""
    clean = folder / f"{LARGE_NAME}-clean"
    draw(clean, CLASSES, LARGE, PER_CLASS)
    return clean


def large_model(folder: Path, attack: str, device: str, progress: Progress) -> Path:
    """The folder of a model at 224x224 on drawn signs, with its trigger; made where missing."""
    clean = large_shards(folder)
    here = place(folder, LARGE_NAME, attack)
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
        twice = 2 if attack == "wanet" and size == STAGES[0][0] else 1
        values: dict[str, Any] = {
            "data.train": here / "poisoned" if infected else clean / "train",
            "data.test": clean / "test" if last else None,
            "data.attack": here / "poisoned" / ATTACK_NAME if last and infected else None,
            "data.image_size": size,
            "data.augment": "none",
            "model.name": ARCHITECTURE,
            "model.checkpoint": start,
            "epochs": twice * epochs,
            "batch_size": batch,
            "lr": lr,
            "device": device,
            "curve_samples": 0,
            **PLAIN,
        }
        out = here / ("model" if last else f"model-{size}")
        train(load_config(TrainConfig, values=values), out, progress)
        start = out / MODEL_NAME
    return here


def place(folder: Path, data: str, attack: str) -> Path:
    """The folder of a model."""
    return folder / data / (attack if data == LARGE_NAME else Case(attack).name)


class Setting(NamedTuple):
    """What is compared: an attack's model and a benign one, both below a folder, and images."""

    data: str
    attack: str
    folder: Path
    test: Path

    @property
    def size(self) -> int:
        """Of the images, in pixels."""
        return LARGE if self.data == LARGE_NAME else 32

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.data.removesuffix(f'-{LARGE}')}-{self.size}-{self.attack}"

    @property
    def figure(self) -> str | None:
        """Of the appendix, whose setting this is, or is nearest to."""
        of_figure = {"wanet": "cifar10", "badnets": "cifar10", "blend": LARGE_NAME}
        return FIGURES[self.attack] if self.data == of_figure[self.attack] else None

    def case(self, attack: str) -> Path:
        """The folder of a model."""
        return place(self.folder, self.data, attack)


def settings(folder: Path) -> Iterator[Setting]:
    """Those of :mod:`bench.appendix`."""
    for data, attacks in (
        ("cifar10", ("wanet", "badnets")),
        ("signs10", ("badnets", "blend")),
        (LARGE_NAME, ("wanet", "blend")),
    ):
        for attack in attacks:
            yield Setting(data, attack, folder, folder / f"{data}-clean" / "test")


def measure(one: Setting, images: int, device: str, progress: Progress) -> dict[str, Any]:
    """Compare features, in a run directory; what the table needs of it."""
    values = {
        "model.checkpoint": one.case(one.attack) / "model" / MODEL_NAME,
        "benign": one.case(BENIGN) / "model" / MODEL_NAME,
        "data.test": one.test,
        "data.attack": one.case(one.attack) / "poisoned" / ATTACK_NAME,
        "images": images,
        "device": device,
        **PLAIN,
    }
    config = load_config(FeaturesConfig, values=values)
    found = measure_features(config, one.folder / f"features-{one.name}", progress)
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


def keep(rows: Sequence[dict[str, Any]], out: Path, device: str) -> None:
    """Write rows beside those that the file has of other settings."""
    commands = (
        "bench.appendix runs/appendix --images IMAGES",
        "bench.appendix_features runs/study",
    )
    keep_rows(out, "settings", rows, ("setting",), device, commands)


def main() -> None:
    """Parse the command line, compare what a study has, and keep the rows."""
    parser = options_parser(__doc__, out=OUT)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, data = options.folder.resolve(), options.data
    test = (options.shards or folder / f"{data}-clean") / "test"
    rows = []
    with progress_bars(Console()) as progress:
        for attack in FIGURES:
            one = Setting(data, attack, folder, test)
            models = (one.case(name) / "model" / MODEL_NAME for name in (attack, BENIGN))
            if all(model.exists() for model in models):
                progress.say(one.name)
                rows.append(measure(one, options.images, options.device, progress))
    keep(rows, options.out, options.device)


if __name__ == "__main__":
    main()
