"""How many labels the model of Sieve's round 0 sees in classes that it did not learn.

    python -m bench.left_out runs/study/gtsrb_third/benign-[01] runs/study/gtsrb_third_rare/*
    python -m bench.left_out runs/study/gtsrb_third_large/benign-0 runs/study/cifar10_third/benign-0

A class that is much larger than the others is left out of round 0, and called poisoned where its
images then show many labels (``pbe_fast/erase/sieve.py``). How many a clean class shows is measured
here: benign models of :mod:`bench.study` are taken through round 0 six times, each time without
another sixth of the classes. Of infected models those classes are told that Sieve leaves out by
itself. Kept in ``bench/results/left_out.json``; a run takes about a minute of a CPU's core.
"""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console

from bench._setup import keep_rows
from bench.attacks import BENIGN
from bench.study import DATA
from pbe_fast import PurifyConfig, load_config, purify
from pbe_fast.erase import Place, Selection, Sieve
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.left_out import judge_swollen
from pbe_fast.progress import Progress, StoppedError
from pbe_fast.randomness import permutation
from pipelines._console import progress_bars

__all__ = ["OUT", "measure", "parts_of"]

OUT = Path("bench/results/left_out.json")
COMMAND = (
    "bench.left_out runs/study/gtsrb_third_rare/* runs/study/gtsrb_third/benign-[01] "
    "runs/study/gtsrb_third_large/benign-0 runs/study/cifar10_third/benign-0"
)
PARTS = 6  # of the classes of a benign model; each is left out of one run


def measure(case: Path, leave_out: list[int], progress: Progress) -> list[dict[str, Any]]:
    """Round 0 of a model; a row for each class that it left out as a whole.

    Args:
        case: with the run directory ``sieve``, whose configuration is taken.
        leave_out: classes, beside those that Sieve leaves out by itself.
    """
    found: list[dict[str, Any]] = []

    class Watched(Sieve):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self._whole = self._whole | set(leave_out)

        def judged(self, outcome: Scores, place: Place) -> Selection:
            space = self._space()
            for label in sorted(self._whole):
                facts = judge_swollen(self.classes, label, space, outcome)[2]
                del facts["poisoned"]  # by the limit of the day
                found.append(facts)
            raise StoppedError("nothing more is wanted.")

    without = ["data.test=null", "data.attack=null", "data.truth=null"]
    config = load_config(PurifyConfig, case / "sieve" / "config.yaml", without)
    watched = patch.object(sys.modules[purify.__module__], "Sieve", Watched)
    with TemporaryDirectory() as folder, watched, suppress(StoppedError):
        purify(config, Path(folder) / "run", progress)
    name = {"data": case.parent.name, "case": case.name}
    return [{**name, **facts, "drawn": facts["label"] in leave_out} for facts in found]


def parts_of(case: Path) -> list[list[int]]:
    """What is left out of each run of a case: of a benign one every class once."""
    if not case.name.startswith(BENIGN):
        return [[]]
    order = permutation(DATA[case.parent.name].classes, 0, "left out")
    return [sorted(part.tolist()) for part in np.array_split(order, PARTS)]


def main() -> None:
    """Parse the command line, measure, and keep what is said."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, nargs="+", help="folders of the study")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with progress_bars(Console()) as progress:
        for case in options.cases:
            for index, leave_out in enumerate(parts_of(case)):
                progress.say(f"{case}: without {leave_out}")
                rows += [{**row, "part": index} for row in measure(case, leave_out, progress)]
    keys = ("data", "case", "part", "label")
    keep_rows(OUT, "rows", rows, keys, "cpu", [COMMAND])


if __name__ == "__main__":
    main()
