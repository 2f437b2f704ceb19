"""What the pictures of a report have in common: ticks, round boundaries, names, thinning."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pbe_fast.report._svg import FONT_SIZE, HEIGHT, INK, MUTED, WIDTH

__all__ = [
    "above",
    "epoch_ticks",
    "legend",
    "mark_rounds",
    "spans_decades",
    "spread",
    "starts",
    "thin",
]

_MAX_NAMED_ROUNDS = 8


def starts(lengths: Mapping[int, float]) -> dict[int, float]:
    """Where each round begins on the shared axis."""
    found: dict[int, float] = {}
    reached = 0.0
    for number, length in sorted(lengths.items()):
        found[number] = reached
        reached += length
    return found


def epoch_ticks(axes: Axes, unit: str) -> None:
    """Whole numbers along the x axis, and its name."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(unit, color=INK, labelpad=6)


def mark_rounds(
    axes: Axes,
    lengths: Mapping[int, float],
    begins: Mapping[int, float],
    end: float,
    *,
    named: bool = True,
) -> None:
    """A dotted line where a round begins, and its number above its part of the axis."""
    if len(lengths) < 2:
        return
    for number, start in begins.items():
        if start > 0:
            axes.axvline(start, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
        if named and len(lengths) <= _MAX_NAMED_ROUNDS:
            roomy = lengths[number] / end > 0.17
            axes.annotate(
                f"round {number}" if roomy else f"{number}",
                ((start + lengths[number] / 2) / end, 1),
                xycoords="axes fraction",
                xytext=(0, 12),
                textcoords="offset points",
                ha="center",
                va="center",
                color=MUTED,
                fontsize=FONT_SIZE,
            )


def above(axes: Axes, text: str) -> None:
    """The name of the y axis, upright, where reading begins."""
    axes.annotate(
        text,
        (0, 1),
        xycoords=("figure fraction", "axes fraction"),
        xytext=(0, 20),
        textcoords="offset points",
        va="center",
        color=MUTED,
        fontsize=FONT_SIZE,
    )


def legend(axes: Axes, handles: Sequence[Line2D | Patch]) -> None:
    """What the marks mean, above the axes at the right."""
    figure_area = axes.figure.transFigure
    axes.legend(
        handles=list(handles),
        loc="center right",
        bbox_to_anchor=(1 - 14 / WIDTH, axes.get_position().y1 + 20 / HEIGHT),
        bbox_transform=figure_area,
        ncols=len(handles),
        frameon=False,
        fontsize=FONT_SIZE,
        labelcolor=INK,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.8,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def spread(values: Sequence[float], low: float) -> list[float]:
    """Heights for two labels at ``values`` that do not lie on each other; share of the axis."""
    apart = 0.085 * (1.0 - low)
    if len(values) < 2 or abs(values[0] - values[1]) >= apart:
        return list(values)
    middle = min(max(sum(values) / 2, low + apart / 2), 1.0 - apart / 2)
    upper = 0 if values[0] >= values[1] else 1
    return [middle + apart / 2 if i == upper else middle - apart / 2 for i in range(2)]


def thin(
    points: Sequence[tuple[float, float]], bucket: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of ``bucket`` neighbours at a time; what is not finite stays a gap."""
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table[~np.isfinite(table)] = np.nan
    cuts = np.arange(0, len(table), bucket)
    sizes = np.diff(np.append(cuts, len(table)))
    means = np.add.reduceat(table, cuts, axis=0) / sizes[:, None]
    return means[:, 0], means[:, 1]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a log scale shows more; outliers at both ends do not decide."""
    high, low = np.percentile(values, [98, 2])
    return bool(high > 60 * low)
