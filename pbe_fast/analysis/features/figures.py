"""The pictures of the feature analysis, each as a matplotlib figure with its words.

Maps are drawn in viridis, which is perceptually uniform and can be read without colours. SVG
and PNG are on white.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pbe_fast.analysis.features.comparison import (
    ADVERSARIAL,
    BENIGN,
    BENIGN_ADVERSARIAL,
    CLEAN,
    INFECTED,
    TRIGGERED,
    Features,
)
from pbe_fast.analysis.features.maps import MapRow, Maps
from pbe_fast.analysis.features.similarity import top_count
from pbe_fast.report._drawing import Drawing, write_drawing
from pbe_fast.report._svg import CLEAN as BLUE
from pbe_fast.report._svg import FONT_SIZE, GRID, INK, MUTED, POISON, clean_text, style

__all__ = ["Drawing", "draw_maps", "draw_similarity", "write_drawing"]

WORDS = {
    CLEAN: "clean",
    TRIGGERED: "triggered",
    ADVERSARIAL: "adversarial, of\nthe infected model",
    BENIGN_ADVERSARIAL: "adversarial, of\na benign model",
}
_SHORT = {
    CLEAN: "clean",
    TRIGGERED: "triggered",
    ADVERSARIAL: "adversarial",
    BENIGN_ADVERSARIAL: "benign’s adversarial",
}
_SMALL = FONT_SIZE - 2
# Of the grid of pictures, in CSS pixels.
_CELL, _GAP, _BELOW, _LEFT, _TOP = 104.0, 8.0, 22.0, 150.0, 26.0
_LINE = 16.0


def draw_maps(maps: Maps, classes: Sequence[str]) -> Drawing:
    """An image in all its kinds: itself, what was added to it, and feature maps (Figures 5 to 7).

    Args:
        classes: names of the labels.
    """
    columns = 2 + len(maps.channels)
    width = _LEFT + columns * (_CELL + _GAP) + 4
    caption = textwrap.wrap(
        f"{maps.key}, a {_name(classes, maps.label)}; the attacker’s label is "
        f"{_name(classes, maps.wanted)}. Feature maps at {maps.layer} of the infected model, the "
        "channels that are strongest in the triggered image; each has one scale for all rows, dark "
        "is low and yellow high. Cosine: of this layer’s features to the triggered image’s. "
        "Perturbation: around grey, times the number below it.",
        width=int(width / 5.6),
    )
    height = _TOP + len(maps.rows) * (_CELL + _BELOW) + 10 + _LINE * len(caption)
    with style():
        figure = _figure(width, height)
        heads = ["image", "perturbation", *(f"channel {c}" for c in maps.channels)]
        for column, head in enumerate(heads):
            figure.text(
                (_x(column) + _CELL / 2) / width, 1 - 17 / height, head,
                ha="center", fontsize=_SMALL, color=INK,
            )  # fmt: skip
        stacked = np.stack([row.maps for row in maps.rows])  # (rows, M, h, w)
        lows, highs = stacked.min((0, 2, 3)), stacked.max((0, 2, 3))
        for index, row in enumerate(maps.rows):
            top = _TOP + index * (_CELL + _BELOW)
            middle = 1 - (top + _CELL / 2) / height
            words = f"{WORDS[row.kind]}\ncosine {row.cosine:.2f}"
            figure.text(6 / width, middle, words, va="center", fontsize=_SMALL, color=INK)
            scale = _scale(row)
            shown = [row.image, np.clip(0.5 + scale * row.perturbation, 0, 1), *row.maps]
            below = [f"→ {_name(classes, row.label)}", f"×{scale:.2g}" if scale else "none"]
            for column, picture in enumerate(shown):
                axes = figure.add_axes(
                    (_x(column) / width, 1 - (top + _CELL) / height, _CELL / width, _CELL / height)
                )
                channel = column - 2
                limits = (lows[channel], max(highs[channel], lows[channel] + 1e-12))
                _image(axes, picture, limits if channel >= 0 else None)
                if channel < 0:
                    figure.text(
                        (_x(column) + _CELL / 2) / width, 1 - (top + _CELL + 13) / height,
                        _short(below[column]), ha="center", fontsize=_SMALL, color=INK,
                    )  # fmt: skip
        for index, line in enumerate(reversed(caption)):
            place = (4 + _LINE * index) / height
            figure.text(6 / width, place, clean_text(line), fontsize=_SMALL, color=INK)
        return Drawing(figure, _map_label(maps, classes))


def draw_similarity(features: Features, layer: str, top_share: float) -> Drawing:
    """Cosine and overlap of every pair at a layer: quartiles, median and mean.

    Over the images on which the trigger works, as the claims are; over all if it works on none.
    """
    shown = features.works if features.works.any() else np.ones_like(features.works)
    found = [c for c in features.comparisons if c.layer == layer]
    found.sort(key=lambda c: (c.pair.model == BENIGN, c.pair.shuffled))  # stable
    row, top, bottom = 24.0, 42.0, 76.0
    left, right, inner = 250.0, 8.0, 66.0
    width, height = 760.0, top + bottom + row * max(1, len(found))
    widths = features.widths
    chance = top_count(widths[layer], top_share) / widths[layer]
    panels = {"cosine": "cosine", "overlap": f"strongest {top_share:.0%} in common"}
    with style():
        figure = _figure(width, height)
        each = (width - left - right - 2 * inner) / 2
        for panel, (measure, title) in enumerate(panels.items()):
            place = left + panel * (each + inner)
            axes = figure.add_axes(
                (place / width, bottom / height, each / width, (height - top - bottom) / height)
            )
            _bare(axes)
            axes.set_ylim(len(found) - 0.5, -0.5)
            low = 0.0
            for y, one in enumerate(found):
                values = one.measure(measure)[shown[one.second]].astype(np.float64)
                low = min(low, float(np.quantile(values, 0.25)))
                claim = one.pair.first == ADVERSARIAL and one.pair.second == TRIGGERED
                _spread(axes, y, values, POISON if claim else BLUE, hollow=one.pair.shuffled)
                axes.annotate(
                    f"{values.mean():.3f}", (1, y), xycoords=("axes fraction", "data"),
                    xytext=(12, 0), textcoords="offset points", va="center", fontsize=_SMALL,
                    color=INK, annotation_clip=False,
                )  # fmt: skip
                if panel == 0:
                    axes.annotate(
                        _pair_words(one.pair.first, one.pair.second, one.pair.shuffled), (0, y),
                        xycoords=("axes fraction", "data"), xytext=(-12, 0), ha="right",
                        textcoords="offset points", va="center", fontsize=_SMALL, color=INK,
                        annotation_clip=False,
                    )  # fmt: skip
            axes.set_xlim(low - 0.03 * (1 - low), 1.0 + 0.03 * (1 - low))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if measure == "overlap":
                axes.axvline(chance, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
            border = sum(1 for c in found if c.pair.model == INFECTED)
            if 0 < border < len(found):
                axes.axhline(border - 0.5, color=MUTED, linewidth=1, zorder=1)
            figure.text(place / width, 1 - 16 / height, title, fontsize=_SMALL, color=INK)
            figure.text(
                (place + each + 12) / width, 1 - 16 / height, "mean", fontsize=_SMALL, color=INK
            )
        which = ", on which the trigger works" if features.works.any() else ""
        below = ", and below the line of the benign model" if border < len(found) else ""
        lines = (
            "Bar: half of the images. Mark: the median; hollow where the second is of another "
            "image. Dashed: by chance.",
            f"Layer {layer} of the infected model{below}; {shown.sum():,} images{which}.",
        )
        for index, line in enumerate(lines):
            place = (10 + _LINE * (1 - index)) / height
            figure.text(6 / width, place, clean_text(line), fontsize=_SMALL, color=INK)
        return Drawing(figure, _similarity_label(features, layer))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    return figure


def _x(column: int) -> float:
    """Where a column of the grid begins."""
    return _LEFT + column * (_CELL + _GAP) + (_GAP if column > 1 else 0)


def _image(axes: Axes, picture: np.ndarray, limits: tuple[float, float] | None) -> None:
    low, high = limits or (0.0, 1.0)
    # Without smoothing, as each pixel is a measurement.
    axes.imshow(picture, cmap="viridis", vmin=low, vmax=high, interpolation="none", aspect="auto")
    axes.set_axis_off()


def _bare(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.tick_params(length=0, pad=6, colors=INK, labelsize=_SMALL)
    axes.yaxis.set_visible(False)
    axes.grid(True, axis="x", color=GRID, linewidth=0.8, alpha=0.45)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def _spread(axes: Axes, y: int, values: np.ndarray, colour: str, *, hollow: bool) -> None:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.plot([low, high], [y, y], color=colour, linewidth=6, alpha=0.4, solid_capstyle="butt")
    axes.plot(
        [median], [y], marker="o" if colour == BLUE else "D", markersize=7, color=colour,
        markerfacecolor="none" if hollow else colour, markeredgewidth=1.6, clip_on=False,
    )  # fmt: skip


def _scale(row: MapRow) -> float:
    """Of a perturbation, so that its largest value is black or white; 0 where there is none."""
    most = float(np.abs(row.perturbation).max())
    return 0.5 / most if most > 1e-6 else 0.0


def _name(classes: Sequence[str], label: int) -> str:
    return clean_text(classes[label]) if label < len(classes) else str(label)


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _pair_words(first: str, second: str, shuffled: bool) -> str:
    return f"{_SHORT[first]} – {_SHORT[second]}{', of another' if shuffled else ''}"


def _map_label(maps: Maps, classes: Sequence[str]) -> str:
    rows = "; ".join(
        f"{_SHORT[row.kind]}: taken for {_name(classes, row.label)}, cosine to the triggered "
        f"image {row.cosine:.2f}"
        for row in maps.rows
    )
    return (
        f"Image {maps.key}, its perturbations, and its feature maps at layer {maps.layer} of the "
        f"infected model, in rows. {rows}."
    )


def _similarity_label(features: Features, layer: str) -> str:
    shown = features.works if features.works.any() else np.ones_like(features.works)
    parts = [
        f"{c.pair.model} model, {_pair_words(c.pair.first, c.pair.second, c.pair.shuffled)}: "
        f"cosine {c.measure('cosine')[shown[c.second]].mean():.3f}, "
        f"overlap {c.measure('overlap')[shown[c.second]].mean():.3f}"
        for c in features.comparisons
        if c.layer == layer
    ]
    return f"Similarity of features at layer {layer}, means. {'; '.join(parts)}."
