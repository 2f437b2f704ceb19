"""Where adversarial examples go (appendix B), for every model of a study.

    python -m bench.appendix_predictions runs/study
    python -m bench.appendix_predictions runs/study --data gtsrb --shards runs/gtsrb --add

Each model of the study's folder is scanned on clean test images (``pbe-fast scan``, in the folder
``scan`` of its case), and what falls to the label that the attacker wants, all-to-one or
all-to-all, is kept beside what an even spread would give it. Nothing is trained:
:mod:`bench.study` makes the models. ``--add`` keeps what the file says of cases that are not in the
folder.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from bench._setup import facts, write_json
from bench.attacks import TARGET
from bench.study import DATA
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, read_predictions
from pbe_fast.progress import Progress
from pbe_fast.train import MODEL_NAME
from pipelines._console import progress_bars

__all__ = ["measure", "to_next", "to_target"]

Share = dict[str, float]


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
    scan(config, case / "scan", progress)
    found = read_predictions(case / "scan" / PREDICTIONS_NAME)
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


def _cases(folder: Path) -> Iterator[Path]:
    for model in sorted(folder.glob(f"*/model/{MODEL_NAME}")):
        yield model.parent.parent


def main() -> None:
    """Parse the command line, scan, and keep the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of bench.study")
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
    with progress_bars(Console()) as progress:
        for case in _cases(options.folder / options.data):
            progress.say(case.name)
            values = {
                "model.checkpoint": case / "model" / MODEL_NAME,
                "data.train": shards / "test",
                "scan.per_class": options.per_class,
                "device": options.device,
            }
            row = measure(case, load_config(ScanConfig, values=values), progress)
            rows[options.data, case.name] = {"data": options.data, **row}
    content = {**facts(options.device), "rows": [rows[name] for name in sorted(rows)]}
    content["command"] = content["command"].replace("runs/bench", "runs/study")
    write_json(options.out, content)


if __name__ == "__main__":
    main()
