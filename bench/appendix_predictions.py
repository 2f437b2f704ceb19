"""Where adversarial examples go (appendix B): its figures, and every model of a study.

    python -m bench.appendix_predictions runs/study
    python -m bench.appendix_predictions runs/study --data gtsrb --shards runs/gtsrb

Models are scanned on clean test images (``pbe-fast scan --no-split``), and what falls to the label
that the attacker wants, all-to-one or all-to-all, is kept beside what an even spread would give.
The command scans the models of a folder of :mod:`bench.study`, trains nothing, and keeps what the
file says of others. :mod:`bench.appendix` does the settings of Figures B.1 to B.3, each with a
benign model beside it: WaNet on all 43 classes of GTSRB, WaNet and Blend at 224x224 (on drawn
signs, where the paper has ten classes of ImageNet), and Blend with two pictures on CIFAR-10. Models
at 32x32 are made like those of :mod:`bench.calibration`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from bench._setup import keep_rows
from bench.appendix_features import LARGE, LARGE_NAME, large_model, place
from bench.attacks import BENIGN, TARGET
from bench.calibration import DATA as SMALL
from bench.calibration import PLAIN
from bench.study import Case, options_parser, run_case
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, read_predictions
from pbe_fast.progress import Progress
from pbe_fast.train import MODEL_NAME
from pipelines._console import progress_bars

__all__ = [
    "FIGURES",
    "OUT",
    "Figure",
    "figure_row",
    "keep",
    "make",
    "measure",
    "to_next",
    "to_target",
]

Share = dict[str, float]
OUT = Path("bench/results/appendix_predictions.json")


def to_target(found: Predictions, target: int) -> list[Share]:
    """Where an all-to-one attacker wants them: of the images of other labels, those given it.

    Returns:
        for each size of the perturbations ``share``, and ``expected``, if the examples that leave
        their label were spread evenly.
    """
    return _shares(found.share[:, target], found.expected[:, target])


def to_next(found: Predictions) -> list[Share]:
    """Where an all-to-all attacker wants them: of all images, those given the next label."""
    classes = np.arange(len(found.classes))
    wanted = found.counts[:, classes, (classes + 1) % len(classes)].sum(1)
    return _shares(wanted / len(found.labels), found.success / (len(classes) - 1))


def _shares(shares: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> list[Share]:
    pairs = zip(shares.tolist(), expected.tolist(), strict=True)
    return [{"share": share, "expected": evenly} for share, evenly in pairs]


def measure(
    data: str, case: Path, test: Path, per_class: int, device: str, progress: Progress, **more: Any
) -> dict[str, Any]:
    """Scan one model on clean test images, so many of a class; its row."""
    values = {
        "model.checkpoint": case / "model" / MODEL_NAME,
        "data.train": test,
        "scan.per_class": per_class,
        "split": False,
        "device": device,
        **more,
    }
    scan(load_config(ScanConfig, values=values), case / "scan-test", progress)
    found = read_predictions(case / "scan-test" / PREDICTIONS_NAME)
    sizes: list[dict[str, Any]] = []
    places = zip(found.eps_255, to_target(found, TARGET), to_next(found), strict=True)
    for size, (eps, target, following) in enumerate(places):
        label = found.largest(size, 1)[0]
        sizes.append(
            {
                "eps_255": eps,
                "success": float(found.success[size]),
                "target": target,
                "next": following,
                "largest": {"label": label, "share": float(found.share[size, label])},
            }
        )
    row = {"data": data, "case": case.name, "images": len(found.labels)}
    return {**row, "acc": found.accuracy, "sizes": sizes}


class Figure(NamedTuple):
    """One heat map of the appendix: what the model was trained on, and its attack."""

    figure: str
    data: str
    attack: str


FIGURES = (
    *(Figure("B.1", "gtsrb43", attack) for attack in ("wanet", BENIGN)),
    *(Figure("B.2", LARGE_NAME, attack) for attack in ("wanet", "blend", BENIGN)),
    *(Figure("B.3", "cifar10", attack) for attack in ("blend", BENIGN)),
    Figure("B.3", "cifar10dog", "blend"),  # the second picture
)
_DOG = replace(SMALL["cifar10"], name="cifar10dog", attacks={"blend": {"picture": "dog"}})


def make(one: Figure, folder: Path, device: str, progress: Progress) -> Path:
    """The folder of its model, which is trained where it is missing."""
    if one.data == LARGE_NAME:
        large_model(folder, one.attack, device, progress)
    else:
        data = {**SMALL, _DOG.name: _DOG}[one.data]
        run_case(folder, _shards(one, folder), data, Case(one.attack), device, progress)
    return place(folder, one.data, one.attack)


def figure_row(one: Figure, folder: Path, device: str, progress: Progress) -> dict[str, Any]:
    """Scan its model with 500 test images, or 100 large ones."""
    case = make(one, folder, device, progress)
    large = one.data == LARGE_NAME
    classes = 10 if large else SMALL[_data(one)].classes
    more: dict[str, Any] = {**PLAIN, **({"data.image_size": LARGE} if large else {})}
    count = (100 if large else 500) // classes
    row = measure(one.data, case, _shards(one, folder) / "test", count, device, progress, **more)
    trained = json.loads((case / "model" / "metrics.json").read_text(encoding="utf-8"))
    return {**row, "figure": one.figure, "test": trained["test"]}


def _data(one: Figure) -> str:
    return one.data.removesuffix("dog")


def _shards(one: Figure, folder: Path) -> Path:
    return folder / f"{_data(one)}-clean"


def keep(rows: Sequence[dict[str, Any]], out: Path, device: str) -> None:
    """Write rows beside those that the file has of other models."""
    commands = (
        "bench.appendix runs/appendix --images IMAGES",
        "bench.appendix_predictions runs/study",
    )
    keep_rows(out, "rows", rows, ("data", "case"), device, commands)


def _cases(folder: Path) -> Iterator[Path]:
    for model in sorted(folder.glob(f"*/model/{MODEL_NAME}")):
        yield model.parent.parent


def main() -> None:
    """Parse the command line, scan, and keep the rows."""
    parser = options_parser(__doc__, out=OUT)
    parser.add_argument("--per-class", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, data = options.folder.resolve(), options.data
    test = (options.shards or folder / f"{data}-clean") / "test"
    rows = []
    with progress_bars(Console()) as progress:
        for case in _cases(folder / data):
            progress.say(f"{data}/{case.name}")
            rows.append(measure(data, case, test, options.per_class, options.device, progress))
    keep(rows, options.out, options.device)


if __name__ == "__main__":
    main()
