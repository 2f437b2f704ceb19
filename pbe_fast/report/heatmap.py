"""A heat map of true class against predicted class, as SVG for a page and as files.

In a page it is written by hand, as it is rectangles and a few words: the colours are the page's
variables with a fallback, as in :mod:`.figures`, and every cell says in words what it stands for.
The files are drawn by matplotlib, as those of all other pictures. Both follow one layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pbe_fast.report._drawing import Drawing
from pbe_fast.report._svg import CLEAN, FONT_SIZE, GRID, INK, MUTED, WIDTH, clean_text, style

__all__ = ["heat_map", "heat_map_drawing"]

_LEFT, _TOP, _RIGHT, _BOTTOM = 50.0, 40.0, 8.0, 8.0
_NUMBERED = 12  # up to so many classes, numbers stand in the cells
_STRONGEST = 0.6  # of a cell's ink, where a number must be legible on it
_FAINTEST = 0.04
_OUTLINE = 0.75


@dataclass(frozen=True)
class _Cell:
    """A square with ink: where it is, how much ink it has, and what it stands for."""

    x: float
    y: float
    ink: float
    words: str


@dataclass(frozen=True)
class _Word:
    """A text; ``anchor`` is its start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str
    muted: bool = False


@dataclass(frozen=True)
class _Layout:
    """What a heat map consists of, in CSS pixels from the top left corner."""

    classes: int
    side: float  # of one cell
    cells: list[_Cell]
    words: list[_Word]

    @property
    def height(self) -> float:
        return _TOP + self.side * self.classes + _BOTTOM


def heat_map(counts: npt.NDArray[np.integer], names: Sequence[str], *, label: str) -> str:
    """Each row's shares as the ink of its cells, and in few classes as percent too.

    Args:
        counts: ``(K, K)``, rows by the images' label, columns by the predicted one.
        names: of the classes, any text; the axes show the first word, such as a number.
        label: what the picture shows, for those who cannot see it; any text.

    Returns:
        One ``<svg>`` element as text, for a page. Same numbers, same text.
    """
    laid = _lay_out(counts, names)
    side = laid.side
    lines = [
        f'<rect x="{cell.x:.2f}" y="{cell.y:.2f}" width="{side:.2f}" height="{side:.2f}" '
        f'fill="var(--figure-clean,{CLEAN})" fill-opacity="{cell.ink:.3f}">'
        f"<title>{_safe(cell.words)}</title></rect>"
        for cell in laid.cells
    ]
    # Marks where an example has kept its image's label.
    lines += [
        f'<rect x="{_LEFT + i * side:.2f}" y="{_TOP + i * side:.2f}" width="{side:.2f}" '
        f'height="{side:.2f}" fill="none" stroke="var(--figure-grid,{GRID})" '
        f'stroke-width="{_OUTLINE:g}"/>'
        for i in range(laid.classes)
    ]
    whole = side * laid.classes
    lines.append(
        f'<rect x="{_LEFT}" y="{_TOP}" width="{whole:.2f}" height="{whole:.2f}" fill="none" '
        f'stroke="var(--figure-grid,{GRID})"/>'
    )
    lines += [_text(word) for word in laid.words]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {laid.height:.2f}" '
        f'width="100%" role="img" aria-label="{_safe(label)}" '
        f'style="fill:currentColor;overflow:visible"><title>{_safe(label)}</title>'
        f"{''.join(lines)}</svg>"
    )


def heat_map_drawing(
    counts: npt.NDArray[np.integer], names: Sequence[str], *, label: str
) -> Drawing:
    """The picture of :func:`heat_map`, with the same arguments, for files of its own."""
    laid = _lay_out(counts, names)
    with style():
        figure = Figure(figsize=(WIDTH / 72, laid.height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(laid.height, 0)
        axes.add_collection(
            PolyCollection(
                [_corners(cell.x, cell.y, laid.side) for cell in laid.cells],
                facecolors=[(CLEAN, cell.ink) for cell in laid.cells],
                linewidths=0,
                antialiaseds=False,  # else a seam shows between two cells
            ),
            autolim=False,
        )
        whole = laid.side * laid.classes
        squares = [(_LEFT + i * laid.side, _TOP + i * laid.side, laid.side, _OUTLINE)
                   for i in range(laid.classes)]  # fmt: skip
        for x, y, side, width in [*squares, (_LEFT, _TOP, whole, 1.0)]:
            axes.add_patch(
                Rectangle((x, y), side, side, facecolor="none", edgecolor=GRID, linewidth=width)
            )
        for word in laid.words:
            axes.text(
                word.x,
                word.y,
                clean_text(word.text),
                ha={"start": "left", "middle": "center", "end": "right"}[word.anchor],
                va="center_baseline",
                fontsize=FONT_SIZE,
                color=MUTED if word.muted else INK,
            )
        return Drawing(figure, label)


def _lay_out(counts: npt.NDArray[np.integer], names: Sequence[str]) -> _Layout:
    classes = len(names)
    side = (WIDTH - _LEFT - _RIGHT) / classes
    totals = counts.sum(1)
    numbered = classes <= _NUMBERED
    cells, words = [], []
    for row, column in np.argwhere(counts).tolist():
        value = float(counts[row, column] / totals[row])
        x, y = _LEFT + column * side, _TOP + row * side
        # By the root in small cells, where a tenth of a row would hardly be seen.
        ink = value * _STRONGEST if numbered else value**0.5
        said = (
            f"label {names[row]}, predicted {names[column]}: "
            f"{counts[row, column]:,} of {totals[row]:,}"
        )
        cells.append(_Cell(x, y, max(ink, _FAINTEST), said))
        if numbered and round(100 * value):
            words.append(_Word(x + side / 2, y + side / 2, f"{100 * value:.0f}", "middle"))
    for index in range(0, classes, 1 if classes <= 20 else 5):
        middle = (index + 0.5) * side
        short = (names[index].split() or [""])[0][:5]
        words.append(_Word(_LEFT - 6, _TOP + middle, short, "end", muted=True))
        words.append(_Word(_LEFT + middle, _TOP - 10, short, "middle", muted=True))
    words.append(_Word(_LEFT, 12, "predicted label →", "start"))
    words.append(_Word(0, _TOP - 10, "↓ true", "start"))
    return _Layout(classes, side, cells, words)


def _corners(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def _text(word: _Word) -> str:
    colour = f' fill="var(--figure-muted,{MUTED})"' if word.muted else ""
    return (
        f'<text x="{word.x:.2f}" y="{word.y:.2f}" dy="0.35em" text-anchor="{word.anchor}" '
        f'font-size="{FONT_SIZE:g}" aria-hidden="true"{colour}>{_safe(word.text)}</text>'
    )


def _safe(text: str) -> str:
    return escape(clean_text(text), quote=True)
