"""What a scan sees of benign models, on which its verdict is measured, and of infected ones.

    python -m bench.calibration runs/calibration --images IMAGES
    python -m bench.calibration runs/calibration --images IMAGES --only benign --seeds 0 1
    python -m bench.calibration runs/calibration --table

Small models (PreActResNet-18 of width 8) on four data sets: drawn signs of 10 and 20 classes, 100
photographs of each of the 43 classes of GTSRB, and 400 of each class of CIFAR-10. ``IMAGES`` holds
the last two as image folders, ``gtsrb32`` and ``cifar10``. Each is scanned with the images that it
was trained on (``pbe-fast scan``). What the benign ones show is kept where the verdict finds it,
``pbe_fast/analysis/benign.json``, and all with what the verdict says in
``bench/results/scan_calibration.json``; there a benign model is judged by the others. Everything is
a run directory below the folder, and what is finished is not done again.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench._setup import facts, write_json
from bench.attacks import BENIGN, CELLS, TARGET
from bench.study import Case, DataSet, prepare, run_case
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, read_predictions
from pbe_fast.analysis.verdict import judge
from pbe_fast.data import MANIFEST_NAME, Sample, write_shards
from pbe_fast.data.converters import read_image_folder
from pbe_fast.progress import Progress
from pbe_fast.randomness import permutation
from pbe_fast.train import MODEL_NAME
from pipelines._console import progress_bars

__all__ = ["DATA", "PLAIN", "cases", "clean_shards", "collect", "reference", "some_of"]

WIDTH = 8
PLAIN = {"precision": "float32", "memory_format": "channels_last"}  # nothing that is measured
FAST = {"batch_size": 32, "lr": 0.03, "data.augment": "none", **PLAIN}
SIGNS = {"badnets": {"patch_size": 8}}  # as in the study
DATA = {
    "signs10": DataSet("signs10", 10, 400, 50, 10, WIDTH, attacks=SIGNS, training=FAST),
    "signs20": DataSet("signs20", 20, 200, 25, 10, WIDTH, attacks=SIGNS, training=FAST),
    "gtsrb43": DataSet("gtsrb43", 43, 0, 0, 10, WIDTH, training=FAST),
    "cifar10": DataSet("cifar10", 10, 0, 0, 10, WIDTH, training=FAST),
}
SOURCES = {"gtsrb43": ("gtsrb32", 100, 10), "cifar10": ("cifar10", 400, 50)}


def some_of(images: Path, out: Path, per_class: int) -> None:
    """Shards of so many random images of each class of an image folder, where not there yet."""
    if (out / MANIFEST_NAME).exists():
        return
    names, samples = read_image_folder(images)
    kept: dict[int, list[Sample]] = {}
    for sample in samples:
        kept.setdefault(sample.label, []).append(sample)
    chosen = [
        of_class[i]
        for label, of_class in kept.items()
        for i in permutation(len(of_class), 0, "calibration", label)[:per_class]
    ]
    write_shards((chosen[i] for i in permutation(len(chosen), 0, "order")), out, classes=names)


def cases(seeds: list[int]) -> Iterator[tuple[DataSet, Case]]:
    """Every benign model, and of the first seed the infected ones.

    Without Input-aware, whose generators take longer than all else.
    """
    for seed in seeds:
        for data in DATA.values():
            yield data, Case(BENIGN, seed=seed)
    for data in DATA.values():
        for mode in ("all_to_one", "all_to_all"):
            for attack in CELLS:
                if attack not in (BENIGN, "input_aware"):
                    yield data, Case(attack, mode, seed=min(seeds))


def clean_shards(folder: Path, images: Path | None, data: DataSet) -> Path:
    """The clean images of a data set, made where missing."""
    if data.name not in SOURCES:
        return prepare(folder, data, None)
    shards = folder / f"{data.name}-clean"
    source, train, test = SOURCES[data.name]
    for split, count in (("train", train), ("test", test)):
        if images is not None:
            some_of(images / source / split, shards / split, count)
    return shards


def run(folder: Path, shards: Path, data: DataSet, case: Case, progress: Progress) -> None:
    """Train and scan one model."""
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


def right(case: str, mode: str | None, targets: tuple[int, ...]) -> bool:
    """Whether a verdict says of a model what was done to it."""
    attack, *plan, _ = case.split("-")
    if attack == BENIGN:
        return mode is None
    return mode == plan[0] and (mode != "all_to_one" or targets == (TARGET,))


def main() -> None:
    """Parse the command line, train and scan what is missing, and keep what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, help="folder of gtsrb32 and cifar10")
    parser.add_argument("--only", nargs="*", default=[""], help="cases with this in DATA/CASE")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="collect alone, run nothing")
    parser.add_argument("--out", type=Path, default=Path("bench/results/scan_calibration.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder.resolve()
    if not options.table:
        if options.images is None:
            parser.error("--images is needed: a folder with gtsrb32 and cifar10")
        with progress_bars(Console()) as progress:
            for data, case in cases(options.seeds):
                name = f"{data.name}/{case.name}"
                if any(word in name for word in options.only):
                    progress.say(name)
                    shards = clean_shards(folder, options.images, data)
                    run(folder, shards, data, case, progress)
    benign = reference(folder)
    place = Path(str(files("pbe_fast.analysis").joinpath("benign.json")))
    write_json(place, {"rows": benign})
    content = {**facts("cpu"), "rows": collect(folder, benign)}
    content["command"] = "python -m bench.calibration runs/calibration --images IMAGES"
    write_json(options.out, content)


if __name__ == "__main__":
    main()
