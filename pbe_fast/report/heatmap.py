"""A heat map of true class against predicted class, as SVG text.

Written by hand, as it is rectangles and a few words: the colours are the page's variables with a
fallback, as in :mod:`.figures`, and every cell says in words what it stands for.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from pbe_fast.report._svg import CLEAN, FONT_SIZE, GRID, MUTED, WIDTH, clean_text

__all__ = ["heat_map"]

_LEFT, _TOP, _RIGHT, _BOTTOM = 50.0, 40.0, 8.0, 8.0
_NUMBERED = 12  # up to so many classes, numbers stand in the cells
_STRONGEST = 0.6  # of a cell's ink, where a number must be legible on it


def heat_map(counts: npt.NDArray[np.integer], names: Sequence[str], *, label: str) -> str:
    """Each row's shares as the ink of its cells, and in few classes as percent too.

    Args:
        counts: ``(K, K)``, rows by the images' label, columns by the predicted one.
        names: of the classes, any text; the axes show the first word, such as a number.
        label: what the picture shows, for those who cannot see it; any text.

    Returns:
        One ``<svg>`` element as text. Same numbers, same text.
    """
    classes = len(names)
    cell = (WIDTH - _LEFT - _RIGHT) / classes
    height = _TOP + cell * classes + _BOTTOM
    totals = counts.sum(1)
    numbered = classes <= _NUMBERED
    lines = []
    for row, column in np.argwhere(counts).tolist():
        value = counts[row, column] / totals[row]
        x, y = _LEFT + column * cell, _TOP + row * cell
        # By the root in small cells, where a tenth of a row would hardly be seen.
        ink = value * _STRONGEST if numbered else value**0.5
        words = (
            f"label {names[row]}, predicted {names[column]}: "
            f"{counts[row, column]:,} of {totals[row]:,}"
        )
        lines.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{cell:.2f}" height="{cell:.2f}" '
            f'fill="var(--figure-clean,{CLEAN})" fill-opacity="{max(ink, 0.04):.3f}">'
            f"<title>{_safe(words)}</title></rect>"
        )
        if numbered and round(100 * value):
            lines.append(_text(x + cell / 2, y + cell / 2, f"{100 * value:.0f}", "middle"))
    lines += [_own(_LEFT + i * cell, _TOP + i * cell, cell) for i in range(classes)]
    side = cell * classes
    lines.append(
        f'<rect x="{_LEFT}" y="{_TOP}" width="{side:.2f}" height="{side:.2f}" fill="none" '
        f'stroke="var(--figure-grid,{GRID})"/>'
    )
    every = 1 if classes <= 20 else 5
    for index in range(0, classes, every):
        middle = (index + 0.5) * cell
        short = (names[index].split() or [""])[0][:5]
        lines.append(_text(_LEFT - 6, _TOP + middle, short, "end", muted=True))
        lines.append(_text(_LEFT + middle, _TOP - 10, short, "middle", muted=True))
    lines.append(_text(_LEFT, 12, "predicted label →", "start"))
    lines.append(_text(0, _TOP - 10, "↓ true", "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:.2f}" '
        f'width="100%" role="img" aria-label="{_safe(label)}" '
        f'style="fill:currentColor;overflow:visible"><title>{_safe(label)}</title>'
        f"{''.join(lines)}</svg>"
    )


def _own(x: float, y: float, cell: float) -> str:
    """Marks where an example has kept its image's label."""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{cell:.2f}" height="{cell:.2f}" fill="none" '
        f'stroke="var(--figure-grid,{GRID})" stroke-width="0.75"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, *, muted: bool = False) -> str:
    colour = f' fill="var(--figure-muted,{MUTED})"' if muted else ""
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" dy="0.35em" text-anchor="{anchor}" '
        f'font-size="{FONT_SIZE:g}" aria-hidden="true"{colour}>{_safe(text)}</text>'
    )


def _safe(text: str) -> str:
    return escape(clean_text(text), quote=True)
