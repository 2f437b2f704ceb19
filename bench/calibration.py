"""What a scan sees of benign models, on which its verdict is measured, and of infected ones.

:mod:`bench.appendix` runs this. Small models (PreActResNet-18 of width 8) on four data sets: drawn
signs of 10 and 20 classes, up to 100 photographs of each of the 43 classes of GTSRB, and 400 of
each class of CIFAR-10. GTSRB's are whole tracks, as the photographs of one physical sign look like
a kind of their own. Each model is scanned with the images that it was trained on (``pbe-fast
scan``). What the benign ones show is kept where the verdict finds it,
``pbe_fast/analysis/benign.json``, once all of them were scanned, and all with what the verdict says
in ``bench/results/scan_calibration.json``; there a benign model is judged by the others.

Their classes are of like sizes, and not all data are. Beside them stand benign models of the study
on a third of GTSRB, which are well trained and whose classes are as unequal as that data set's::

    python -m bench.calibration --benign runs/study/gtsrb_third/benign-{0,1,2}

Models that the verdict was not made with are its test, in ``bench/results/scan_checks.json``::

    python -m bench.calibration runs/study/gtsrb_third/*
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench._setup import keep_rows, merged, rows_in, write_json
from bench.attacks import BENIGN, TARGET
from bench.study import DATA as STUDIED
from bench.study import Case, DataSet, prepare, run_case
from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, read_predictions
from pbe_fast.analysis.verdict import judge
from pbe_fast.data import MANIFEST_NAME, Sample, write_shards
from pbe_fast.data.converters import read_image_folder
from pbe_fast.progress import Progress
from pbe_fast.randomness import permutation
from pbe_fast.run_directory import RunDirectory
from pbe_fast.train import MODEL_NAME
from pipelines._console import progress_bars

__all__ = [
    "CHECKS",
    "DATA",
    "OUT",
    "PLAIN",
    "cases",
    "clean_shards",
    "collect",
    "keep",
    "keep_reference",
    "keep_verdicts",
    "reference",
    "run",
    "scan_case",
]

OUT = Path("bench/results/scan_calibration.json")
CHECKS = Path("bench/results/scan_checks.json")

WIDTH = 8
PLAIN = {"precision": "float32", "memory_format": "channels_last"}  # nothing that is measured
FAST = {"batch_size": 32, "lr": 0.03, "data.augment": "none", **PLAIN}
# The patch as in the study; generators that train for less of the steps, to be quick.
SIGNS = {"badnets": {"patch_size": 8}, "input_aware": {"generator_steps": 200}}
DATA = {
    "signs10": DataSet("signs10", 10, 400, 50, 7, width=WIDTH, attacks=SIGNS, training=FAST),
    "signs20": DataSet("signs20", 20, 200, 25, 7, width=WIDTH, attacks=SIGNS, training=FAST),
    "gtsrb43": DataSet("gtsrb43", 43, 0, 0, 7, width=WIDTH, training=FAST),
    "cifar10": DataSet("cifar10", 10, 0, 0, 7, width=WIDTH, training=FAST),
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
    scan_case(folder / data.name / case.name, progress)


def scan_case(here: Path, progress: Progress) -> None:
    """Scan the model of a case with the images that it was trained on."""
    trained = RunDirectory(here / "model").read_config() or {"data": {}}
    poisoned = here / "poisoned"
    clean = here.parents[1] / f"{here.parent.name}-clean" / "train"
    values = {
        "model.checkpoint": here / "model" / MODEL_NAME,
        "data.train": poisoned if poisoned.exists() else clean,
        "data.image_size": trained["data"].get("image_size"),
        "device": "cpu",
        **PLAIN,
    }
    scan(load_config(ScanConfig, values=values), here / "scan", progress)


def reference(cases: Iterable[Path]) -> list[dict[str, Any]]:
    """The strongest evidence of each kind in every benign model among these cases."""
    rows = []
    for here in cases:
        if here.name.startswith(BENIGN):
            found = read_predictions(here / "scan" / PREDICTIONS_NAME)
            scores = {one.kind: one.score for one in judge(found, []).strongest}
            rows.append({"data": here.parent.name, "case": here.name, "scores": scores})
    return rows


def collect(cases: Iterable[Path], benign: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the verdict says of models that were scanned, with and without clusters."""
    rows = []
    for here in cases:
        data, case = here.parent.name, here.name
        trained = json.loads((here / "model" / "metrics.json").read_text("utf-8"))
        others = [row for row in benign if (row["data"], row["case"]) != (data, case)]
        found = read_predictions(here / "scan" / PREDICTIONS_NAME)
        row = {"data": data, "case": case, **trained["test"], "images": len(found.labels)}
        for name, one in (("verdict", found), ("flows_alone", found.without_clusters())):
            verdict = judge(one, [other["scores"] for other in others])
            row[name] = asdict(verdict) | {"evidence": [asdict(e) for e in verdict.strongest]}
            row[name]["right"] = right(data, case, verdict.mode, verdict.targets)
        # Of the models of its own kind, one is always the highest.
        strangers = [other["scores"] for other in others if other["data"] != data]
        row["beyond_other_data"] = judge(found, strangers).p_value * (1 + len(strangers)) < 1.5
        rows.append(row)
    return rows


def keep(folder: Path, out: Path) -> None:
    """Write what was seen of all models, and the benign ones for the verdict; nothing of a part."""
    wanted = [folder / data.name / case.name for data, case in cases()]
    missing = sum(not (here / "scan" / PREDICTIONS_NAME).exists() for here in wanted)
    if missing:
        print(f"{missing} of {len(wanted)} models are not scanned; {out.name} stays as it is")
        return
    keep_reference(wanted)
    keep_verdicts(wanted, out)


def keep_reference(cases: Iterable[Path]) -> None:
    """Write the benign models among these for the verdict, beside those that it has of others."""
    place = _benign_file()
    write_json(place, {"rows": merged(rows_in(place), reference(cases), "data", "case")})


def keep_verdicts(cases: Iterable[Path], out: Path) -> None:
    """Write what the verdict says of these models, beside the others that the file has."""
    rows = collect(cases, rows_in(_benign_file()))
    commands = (
        "bench.appendix runs/appendix --images IMAGES",
        "bench.calibration [--benign] runs/study/gtsrb_third/*",
    )
    keep_rows(out, "rows", rows, ("data", "case"), "cpu", commands)


def _benign_file() -> Path:
    return Path(str(files("pbe_fast.analysis").joinpath("benign.json")))


def right(data: str, case: str, mode: str | None, targets: tuple[int, ...]) -> bool:
    """Whether a verdict says of a model what was done to it."""
    attack, *plan = case.split("-")
    if attack == BENIGN:
        return mode is None
    wanted = plan[0] if plan else "all_to_one"
    target = STUDIED[data].target if data in STUDIED else TARGET
    return mode == wanted and (mode != "all_to_one" or targets == (target,))


def main() -> None:
    """Parse the command line, scan, and keep what is said."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, nargs="+", help="folders with a 'model' each")
    parser.add_argument(
        "--benign", action="store_true", help="take them for the verdict, and not for its test"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = {(row["data"], row["case"]) for row in rows_in(_benign_file())}
    cases = [case.resolve() for case in options.cases]
    if not options.benign:  # those cannot test it
        cases = [case for case in cases if (case.parent.name, case.name) not in known]
    if options.benign and not all(case.name.startswith(BENIGN) for case in cases):
        parser.error("--benign takes benign models alone")
    with progress_bars(Console()) as progress:
        for case in cases:
            progress.say(f"{case.parent.name}/{case.name}")
            scan_case(case, progress)
    if options.benign:
        keep_reference(cases)
    keep_verdicts(cases, OUT if options.benign else CHECKS)


if __name__ == "__main__":
    main()
