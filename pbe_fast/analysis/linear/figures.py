"""The picture of a sweep: the share along the trigger, and what Theorem 1 says of it."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pbe_fast.analysis.linear.sweeps import Point
from pbe_fast.report._svg import CLEAN, GRID, MUTED, POISON, style

__all__ = ["sweep_figure"]

_INK = "#222222"
_TITLES = {
    "triggered": "triggered examples, ℓ",
    "patch": "length of the patch, |P|",
    "lam": "regularisation, λ",
    "classes": "classes, K",
}
_DASHES = {"corrected": (0, (5, 2)), "with_n": (0, (1, 1.5)), "printed": (0, (5, 1.5, 1, 1.5))}
_COLOURS = {"corrected": POISON, "with_n": MUTED, "printed": MUTED}


def sweep_figure(points: Mapping[str, Sequence[Point]]) -> tuple[str, bytes]:
    """Four panels, one for each number that was varied.

    Lines: the share by (15), the adversary's ascent, and the bound of Theorem 1 as corrected, with
    1/n, and as printed. A bound's marks are full where its premises hold and hollow elsewhere.

    Returns:
        an SVG file as text and a PNG file; the same points give the same bytes.
    """
    with style():
        figure = Figure(figsize=(8.6, 6.4), dpi=90, facecolor="white")
        figure.subplots_adjust(0.09, 0.09, 0.985, 0.88, wspace=0.14, hspace=0.3)
        panels = figure.subplots(2, 2).flat
        for axes, (name, found) in zip(panels, points.items(), strict=True):
            _panel(axes, _TITLES[name], found, log=name != "classes")
        figure.supylabel("share of r along P, |r⊥| / |r|", color=_INK, fontsize=12.5)
        figure.legend(handles=_handles(), loc="upper center", ncols=3, frameon=False, fontsize=10.5)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _panel(axes: Axes, title: str, points: Sequence[Point], *, log: bool) -> None:
    x = [point.value for point in points]
    axes.plot(x, [point.share for point in points], color=CLEAN, lw=2)
    axes.plot(x, [p.measured for p in points], color=_INK, ls="", marker="x", ms=6, mew=1.4)
    for name, dash in _DASHES.items():
        colour = _COLOURS[name]
        y = [getattr(point, name) for point in points]
        axes.plot(x, y, color=colour, lw=1.6, ls=dash)
        for applies, face in ((True, colour), (False, "white")):
            some = [i for i, p in enumerate(points) if getattr(p, f"{name}_premises") is applies]
            marks = [x[i] for i in some], [y[i] for i in some]
            axes.plot(*marks, color=colour, marker="o", ms=4.5, ls="", markerfacecolor=face)
    if log:
        axes.set_xscale("log")
        steps = (1.0, 2.0, 5.0) if x[-1] < 1000 * x[0] else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1)
    axes.set_xlabel(title, color=_INK)
    axes.grid(True, axis="y", color=GRID, lw=0.8, alpha=0.45)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=10.5)


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color=CLEAN, lw=2, label="by (15)"),
        Line2D([], [], color=_INK, marker="x", ls="", label="the adversary's ascent"),
        Line2D([], [], color=MUTED, marker="o", mfc="white", ls="", label="premises do not hold"),
        Line2D([], [], color=POISON, ls=_DASHES["corrected"], label="corrected bound"),
        Line2D([], [], color=MUTED, ls=_DASHES["with_n"], label="printed bound with 1/n"),
        Line2D([], [], color=MUTED, ls=_DASHES["printed"], label="printed bound"),
    ]
