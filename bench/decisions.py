"""What Sieve's decisions cost by themselves, up to the size of ImageNet, without any training.

    python -m bench.decisions
    python -m bench.decisions --classes 100 --modes all_to_all --out /tmp/decisions.json

Activations are drawn: classes are Gaussians, of which a few directions have most of the spread, and
a trigger adds the same to each triggered image, a tenth of the set. What the models of the rounds
say is drawn, too. The decisions are the real ones: the split, and the verdicts after rounds 0, 1
and 2. Activations are in memory as they are in a run, 1,024 numbers of 2 bytes an image. Each size
runs in a process of its own, whose peak memory is counted. What limits it are products of matrices
of the size of a class' activations, a class at a time, and eigenvectors.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bench._setup import apart, facts, process_mib, write_json
from pbe_fast.config import SieveConfig
from pbe_fast.erase import Place, Selection, Sieve
from pbe_fast.erase.split import split_classes
from pbe_fast.randomness import numpy_generator

CLASSES = [100, 1_000]
PER_CLASS = 1_281
COLUMNS = 1_024
MODES = ["all_to_one", "all_to_all"]
RATE = 0.1
ACCURACY = (0.7, 0.85, 0.9)  # of the models of the rounds; of ImageNet few images are known

Drawn = tuple[npt.NDArray[np.float16], npt.NDArray[np.int64], npt.NDArray[np.int64]]
T = TypeVar("T")


def draw_set(classes: int, mode: str) -> Drawn:
    """Activations ``(N, 1024)``, the labels ``(N,)`` that came with them, and the true ones."""
    random = numpy_generator(0, "decisions", classes, mode)
    truth = np.repeat(np.arange(classes), PER_CLASS)
    labels = truth.copy()
    triggered = random.random(len(truth)) < RATE
    labels[triggered] = 0 if mode == "all_to_one" else (truth[triggered] + 1) % classes
    middles = random.standard_normal((classes, COLUMNS), np.float32)
    spread = random.standard_normal((COLUMNS, COLUMNS), np.float32)
    spread *= 6 * np.linspace(1, 0.05, COLUMNS, dtype=np.float32)[:, None] ** 2 / COLUMNS**0.5
    trigger = 1.5 * random.standard_normal(COLUMNS, np.float32)
    features = np.empty((len(truth), COLUMNS), np.float16)
    for label in range(classes):
        here = np.flatnonzero(truth == label)
        rows = random.standard_normal((len(here), COLUMNS), np.float32) @ spread + middles[label]
        led = triggered[here]
        rows[led] += trigger + 0.7 * middles[labels[here[led]]]
        features[here] = rows
    return features, labels, truth


def drawn_outcome(
    labels: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], classes: int, round_: int
) -> npt.NDArray[np.float32]:
    """``(N, 2)``, the loss and the prediction of each image, by a model without a backdoor."""
    random = numpy_generator(0, "outcome", round_)
    wrong = random.random(len(truth)) > ACCURACY[round_]
    shown = np.where(wrong, random.integers(classes, size=len(truth)), truth)
    losses = random.random(len(truth)) * np.where(shown == labels, 0.1, 3.0)
    return np.stack([losses, shown], 1).astype(np.float32)


def run_one(classes: int, mode: str) -> dict[str, Any]:
    """All decisions of one data set; in a process of its own."""
    features, labels, truth = draw_set(classes, mode)
    seconds: dict[str, float] = {}
    cores: dict[str, float] = {}

    def timed(name: str, call: Callable[[], T]) -> T:
        began, used = time.perf_counter(), time.process_time()
        result = call()
        seconds[name], cores[name] = time.perf_counter() - began, time.process_time() - used
        return result

    before = process_mib("VmHWM")
    split = timed("split", lambda: split_classes(features, labels))
    sieve = Sieve(labels, classes, split, lambda: features, SieveConfig(), 0)
    place = Place(0, "score", sieve.first())
    # The model of round 2 has the backdoor still, or there would be nothing to decide.
    for round_, judge in enumerate((sieve.judged, sieve.judged_again, sieve.judged_more)):
        outcome = drawn_outcome(labels, labels if round_ == 2 else truth, classes, round_)
        selection: Selection | None = timed(f"round {round_}", lambda: judge(outcome, place))  # noqa: B023
        assert selection is not None
        place = Place(round_ + 1, "score", selection.ids, labels=selection.labels)
        if round_ == 1:
            suspects = sieve.classes.untrusted(place)
    poisoned = labels != truth
    return {
        "samples": len(labels),
        "classes": classes,
        "mode": mode,
        "apart": len(split.classes),
        "precision": float(poisoned[suspects].mean()),
        "recall": float(suspects[poisoned].mean()),
        "seconds": seconds,
        "core_seconds": cores,
        "activations_mib": features.nbytes / 2**20,
        "mib_before": before,
        "mib": process_mib("VmHWM"),
    }


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="*", default=CLASSES)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--out", type=Path, default=Path("bench/results/decisions.json"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.classes[0], options.modes[0])))
        return
    rows = []
    for classes in options.classes:
        for mode in options.modes:
            arguments = ["--one", "--classes", str(classes), "--modes", mode]
            rows.append(apart("bench.decisions", *arguments))
    write_json(options.out, {**facts("cpu"), "runs": rows})


if __name__ == "__main__":
    main()
