"""Where adversarial examples go (appendix B): its figures, and every model of a study.

    python -m bench.appendix_predictions runs/calibration --figures --images IMAGES --add
    python -m bench.appendix_predictions runs/study
    python -m bench.appendix_predictions runs/study --data gtsrb --shards runs/gtsrb --add

Models are scanned on clean test images (``pbe-fast scan --no-split``), and what falls to the label
that the attacker wants, all-to-one or all-to-all, is kept beside what an even spread would give.
``--figures`` does the settings of Figures B.1 to B.3, each with a benign model beside it, and
trains what is missing: WaNet on all 43 classes of GTSRB, WaNet and Blend at 224x224 (on drawn
signs, where the paper has ten classes of ImageNet), and Blend with two pictures on CIFAR-10. Models
at 32x32 are those of :mod:`bench.calibration`, whose ``IMAGES`` and folder it takes. Otherwise the
models of the folder of a :mod:`bench.study` are scanned, and nothing is trained. ``--add`` keeps
what the file says of others.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from bench._setup import facts, write_json
from bench.appendix_features import LARGE, large_model
from bench.attacks import BENIGN, TARGET
from bench.calibration import DATA as SMALL
from bench.calibration import clean_shards
from bench.study import DATA, Case, run_case
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, read_predictions
from pbe_fast.progress import Progress
from pbe_fast.train import MODEL_NAME
from pipelines._console import progress_bars

__all__ = ["Figure", "figures", "measure", "to_next", "to_target"]

Share = dict[str, float]
FIGURES = ("B.1", "B.2", "B.3")


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


def measure(case: Path, config: ScanConfig, progress: Progress) -> dict[str, Any]:
    """Scan one model; its row."""
    scan(config, case / "scan-test", progress)
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
    return {"case": case.name, "images": len(found.labels), "acc": found.accuracy, "sizes": sizes}


class Figure(NamedTuple):
    """One heat map of the appendix: a model, and clean images to scan it with."""

    figure: str
    data: str
    case: Path
    shards: Path
    per_class: int


def figures(
    folder: Path, wanted: Sequence[str], images: Path | None, device: str, progress: Progress
) -> Iterator[Figure]:
    """The settings of some of :data:`FIGURES`; models that are missing are trained."""
    dog = replace(SMALL["cifar10"], name="cifar10dog", attacks={"blend": {"picture": "dog"}})
    small = {
        "gtsrb43": (SMALL["gtsrb43"], "B.1", ("wanet", BENIGN)),
        "cifar10": (SMALL["cifar10"], "B.3", ("blend", BENIGN)),
        "cifar10dog": (dog, "B.3", ("blend",)),
    }
    for name, (data, figure, attacks) in small.items():
        if figure not in wanted:
            continue
        shards = clean_shards(folder, images, SMALL[name.removesuffix("dog")])
        for attack in attacks:
            run_case(folder, shards, data, Case(attack), device, progress)
            here = folder / name / Case(attack).name
            yield Figure(figure, name, here, shards / "test", 500 // data.classes)
    for attack in ("wanet", "blend", BENIGN) if "B.2" in wanted else ():
        here = large_model(folder, attack, device, progress)
        test = folder / f"signs-{LARGE}-clean" / "test"
        yield Figure("B.2", f"signs-{LARGE}", here, test, 10)


def _cases(folder: Path) -> Iterator[Path]:
    for model in sorted(folder.glob(f"*/model/{MODEL_NAME}")):
        yield model.parent.parent


def main() -> None:
    """Parse the command line, scan, and keep the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of bench.study")
    parser.add_argument(
        "--figures", nargs="*", choices=FIGURES, help="settings of appendix B; alone: all of them"
    )
    parser.add_argument("--images", type=Path, help="folder of gtsrb32 and cifar10")
    parser.add_argument("--data", choices=DATA, default="signs")
    parser.add_argument("--shards", type=Path, help="clean shards, in 'train' and 'test'")
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--add", action="store_true", help="keep rows of cases that are not here")
    parser.add_argument("--out", type=Path, default=Path("bench/results/appendix_predictions.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shards = options.shards or options.folder / f"{options.data}-clean"
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if options.add and options.out.exists():
        kept = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
        rows = {(row["data"], row["case"]): row for row in kept}

    def row(
        data: str, case: Path, test: Path, per_class: int, progress: Progress, **more: Any
    ) -> None:
        progress.say(f"{data}/{case.name}")
        values = {
            "model.checkpoint": case / "model" / MODEL_NAME,
            "data.train": test,
            "scan.per_class": per_class,
            "split": False,
            "device": options.device,
            **more,
        }
        config = load_config(ScanConfig, values=values)
        rows[data, case.name] = {"data": data, **measure(case, config, progress)}

    folder = options.folder.resolve()
    with progress_bars(Console()) as progress:
        if options.figures is not None:
            wanted = options.figures or FIGURES
            for one in figures(folder, wanted, options.images, options.device, progress):
                size = {"data.image_size": LARGE} if one.figure == "B.2" else {}
                row(one.data, one.case, one.shards, one.per_class, progress, **size)
                trained = json.loads((one.case / "model" / "metrics.json").read_text("utf-8"))
                rows[one.data, one.case.name] |= {"figure": one.figure, "test": trained["test"]}
        else:
            for case in _cases(folder / options.data):
                row(options.data, case, shards / "test", options.per_class, progress)
    commands = ["python -m bench.appendix_predictions runs/calibration --figures --images IMAGES"]
    commands.append("python -m bench.appendix_predictions runs/study")
    content = {**facts(options.device), "rows": [rows[name] for name in sorted(rows)]}
    content["command"] = "; ".join(commands)
    write_json(options.out, content)


if __name__ == "__main__":
    main()
