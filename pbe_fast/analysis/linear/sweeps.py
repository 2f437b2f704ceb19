"""How the share of the perturbation along the trigger grows with ell, |P|, lambda and K."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pbe_fast.analysis.linear.ascent import ascend
from pbe_fast.analysis.linear.perturbation import bounds
from pbe_fast.analysis.linear.quantities import analyse
from pbe_fast.analysis.linear.setting import LARGEST, Setting, draw

__all__ = ["SWEPT", "Point", "sweep"]

SWEPT = {"triggered": "ell", "patch": "|P|", "lam": "lambda", "classes": "K"}
_POINTS = 9


@dataclass(frozen=True)
class Point:
    """One setting of a sweep.

    Attributes:
        value: of what is swept.
        share: |r_perp| / |r| by (15).
        measured: the same of the adversary's ascent on (9).
        printed, with_n, corrected: Theorem 1's bound in each form.
        printed_premises, with_n_premises, corrected_premises: whether it applies.
    """

    value: float
    share: float
    measured: float
    printed: float
    with_n: float
    corrected: float
    printed_premises: bool
    with_n_premises: bool
    corrected_premises: bool


def sweep(
    base: Setting, delta: float, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[Point]]:
    """Vary one number of ``base`` at a time.

    Args:
        delta: the radius of (8).
        say: told which number is varied.

    Returns:
        for each name of :data:`SWEPT` its points, by growing value.

    Raises:
        ConfigError: ``base`` is impossible.
    """
    draw(base)
    found = {}
    for name, values in _grids(base).items():
        say(f"sweep of {SWEPT[name]}: {len(values)} settings")
        found[name] = [
            _point(replace(base, **{name: value}), value, delta)  # type: ignore[arg-type]  # by name
            for value in values
        ]
    return found


def _grids(base: Setting) -> dict[str, list[int] | list[float]]:
    most = -(-base.examples // base.classes)
    counts = np.geomspace(1, most, min(_POINTS, most)).round().astype(int)
    # As many classes as leave the target class its triggered examples.
    most_classes = min(12, LARGEST // (base.subspace + 1))
    largest = max(base.classes, min(most_classes, base.examples // max(base.triggered, 1)))
    classes = np.linspace(2, largest, min(_POINTS, largest - 1)).round().astype(int)
    return {
        "triggered": sorted({int(count) for count in counts}),
        "patch": [float(base.patch * 10**power) for power in np.linspace(-1, 1, _POINTS)],
        "lam": [float(base.lam * 10**power) for power in np.linspace(-3, 1, _POINTS)],
        "classes": sorted({int(count) for count in classes}),
    }


def _point(setting: Setting, value: float, delta: float) -> Point:
    a = analyse(draw(setting), delta)
    right = bounds(a)
    return Point(
        value=value,
        share=a.share,
        measured=ascend(a).along / delta,
        printed=right.printed,
        with_n=right.with_n,
        corrected=right.corrected,
        printed_premises=right.printed_premises,
        with_n_premises=right.with_n_premises,
        corrected_premises=right.corrected_premises,
    )
