"""Appendix A in numbers: every claim in random settings, the witnesses, the sweeps.

    python -m bench.theory

writes ``bench/results/theory.json`` and ``docs/theory.png``; about three minutes on one core.
``python -m bench.docs`` makes the tables of docs/theory.md from it.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pbe_fast.analysis.linear import (
    Problem,
    Setting,
    analyse,
    ascend,
    claims_of,
    draw,
    problem,
    refutations,
    sweep,
    sweep_figure,
    untargeted,
)
from pbe_fast.randomness import numpy_generator
from pbe_fast.run_directory import versions

__all__ = ["measure", "random_problem"]

RESULT = Path(__file__).parent / "results" / "theory.json"
FIGURE = Path(__file__).parent.parent / "docs" / "theory.png"
DELTA = 0.05
SETTINGS = 2000
_ASCENTS = 10  # one setting of so many is given to the adversary, too


def random_problem(rng: np.random.Generator) -> Problem:
    """A small problem: unequal classes, some of them empty, few dimensions, any ell from 0 to n_l.

    |P| is 0.001 to 30 and lambda 1e-6 to 30, by their logarithms; examples of a class are all the
    same, near each other, or anywhere.
    """
    classes, m = int(rng.integers(2, 6)), int(rng.integers(1, 7))
    n = int(rng.integers(classes, 30))
    labels = rng.integers(0, classes, n)
    target = int(rng.integers(classes))
    labels[0], labels[-1] = target, (target + 1) % classes
    axes = np.linalg.qr(rng.standard_normal((m + 2, m + 1)))[0]
    centres = rng.standard_normal((classes, m))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    around = rng.choice([0, 0.01, 0.3, 1, 3]) * rng.standard_normal((n, m))
    points = (centres[labels] + around) @ axes[:, :m].T
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    chosen = (labels == target) & (rng.random(n) < rng.choice([0, 0.2, 0.5, 1]))
    return problem(
        points, labels, axes[:, :m], 10 ** rng.uniform(-3, 1.5) * axes[:, m], chosen,
        target=target, classes=classes, lam=10 ** rng.uniform(-6, 1.5),
    )  # fmt: skip


def survey(settings: int) -> dict[str, Any]:
    """How often each claim applies, and how often the numbers contradict it."""
    rng = numpy_generator(0, "theory")
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"applies": 0, "refuted": 0, "holds": 0, "settings": 0}
    )
    furthest = 0.0
    for index in range(settings):
        a = analyse(random_problem(rng), 10 ** rng.uniform(-3, 0))
        furthest = max(furthest, a.benign.distance, a.infected.distance)
        measured = ascend(a).along if index % _ASCENTS == 0 else None
        for found in claims_of(a, measured):
            row = rows[found.name, found.form]
            row["statement"], row["premise"] = found.statement, found.is_premise
            row["settings"] += 1
            row["applies"] += found.premises is not False
            row["refuted"] += found.refuted
            row["holds"] += found.holds
    return {
        "settings": settings,
        "furthest": furthest,
        "claims": [{"name": name, "form": form} | row for (name, form), row in rows.items()],
    }


def answers() -> list[dict[str, Any]]:
    """Where untargeted examples go, in the infected and in the benign model."""
    rows = []
    for triggered in (10, 50):
        a = analyse(draw(Setting(triggered=triggered)), DELTA)
        for delta in (0.2, 0.5, 1.0):
            rows.append(
                {"triggered": triggered, "delta": delta, "aimed": a.share}
                | {
                    name: asdict(untargeted(a.task, solution.weights, delta))
                    for name, solution in (("infected", a.infected), ("benign", a.benign))
                }
            )
    return rows


def measure(settings: int = SETTINGS, say: Callable[[str], None] = lambda _: None) -> None:
    """Everything, with so many random settings; writes the JSON and the figure."""
    points = sweep(Setting(), DELTA, say=say)
    say(f"{settings:,} random settings")
    found = [
        {"witness": witness.name, "delta": witness.delta} | dict(claim.as_dict())
        for witness, claim in refutations()
    ]
    content = {
        "command": "python -m bench.theory",
        "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "torch")},
        "base": asdict(Setting()) | {"delta": DELTA},
        "survey": survey(settings),
        "witnesses": found,
        "untargeted": answers(),
        "sweep": {name: [asdict(p) for p in row] for name, row in points.items()},
    }
    RESULT.write_text(json.dumps(_short(content), indent=1, allow_nan=False) + "\n")
    FIGURE.write_bytes(sweep_figure(points)[1])


def _short(value: Any) -> Any:
    """Floats with seven digits: the last ones depend on the processor."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Appendix A in numbers.")
    parser.add_argument("--settings", type=int, default=SETTINGS, help="of the survey")
    measure(parser.parse_args().settings, Console().print)


if __name__ == "__main__":
    main()
