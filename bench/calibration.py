"""What `pbe-fast scan` sees of small models that are benign, and of some that are not.

    python -m bench.calibration runs/calibration --images ../gtsrb32 ../cifar10

Trains small models on four data sets, scans each with the images that it was trained on, and keeps
the statistics of the verdict.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bench.attacks import BENIGN
from bench.study import Case, DataSet, prepare, run_case
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.data import MANIFEST_NAME, Manifest, Sample, ShardReader, write_shards
from pbe_fast.data.converters import read_image_folder
from pbe_fast.randomness import permutation
from pbe_fast.train import MODEL_NAME
from pipelines._console import progress_bars

SIGNS = {"badnets": {"patch_size": 8}}
DATA = {
    "signs10": DataSet("signs10", 10, 300, 50, epochs=8, batch_size=32, attacks=SIGNS),
    "signs20": DataSet("signs20", 20, 150, 25, epochs=8, batch_size=32, attacks=SIGNS),
    "gtsrb43": DataSet("gtsrb43", 43, epochs=8, batch_size=32),
    "cifar10": DataSet("cifar10", 10, epochs=10, batch_size=64),
}
SOURCES = {"gtsrb43": ("gtsrb32", 90, 10), "cifar10": ("cifar10", 450, 50)}
PER_CLASS = {"signs10": 60, "signs20": 30, "gtsrb43": 20, "cifar10": 60}


def some_of(folder: Path, out: Path, per_class: int, seed: int) -> None:
    """Shards of so many random images of each class of an image folder."""
    if (out / MANIFEST_NAME).exists():
        return
    names, samples = read_image_folder(folder)
    kept: dict[int, list[Sample]] = {}
    for sample in samples:
        kept.setdefault(sample.label, []).append(sample)
    chosen = [
        images[int(i)]
        for label, images in kept.items()
        for i in permutation(len(images), seed, "calibration", label)[:per_class]
    ]
    order = permutation(len(chosen), seed, "order")
    write_shards((chosen[int(i)] for i in order), out, classes=names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--data", nargs="*", default=list(DATA))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--attacks", nargs="*", default=[BENIGN])
    parser.add_argument("--modes", nargs="*", default=["all_to_one"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder.resolve()
    with progress_bars(Console()) as progress:
        for name in options.data:
            data = DATA[name]
            shards = None
            if name in SOURCES:
                source, train_count, test_count = SOURCES[name]
                shards = folder / f"{name}-clean"
                some_of(options.images / source / "train", shards / "train", train_count, 0)
                some_of(options.images / source / "test", shards / "test", test_count, 0)
            shards = prepare(folder, data, shards)
            for seed in options.seeds:
                for attack in options.attacks:
                    for mode in options.modes if attack != BENIGN else [""]:
                        case = Case(attack, mode, seed=seed) if mode else Case(BENIGN, seed=seed)
                        progress.say(f"{name} {case.name}")
                        run_case(folder, shards, data, case, "cpu", progress)
                        here = folder / data.name / case.name
                        poisoned = here / "poisoned"
                        values = {
                            "model.checkpoint": here / "model" / MODEL_NAME,
                            "data.train": poisoned if poisoned.exists() else shards / "train",
                            "scan.per_class": PER_CLASS[name],
                            "device": "cpu",
                        }
                        scan(load_config(ScanConfig, values=values), here / "scan", progress)


if __name__ == "__main__":
    main()
