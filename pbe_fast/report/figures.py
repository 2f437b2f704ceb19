"""The pictures of a report: curves, loss and the histogram of scores.

Every function is pure: the same numbers give the same picture. Its SVG takes its ink from
``currentColor`` and its other colours from the CSS variables ``--figure-muted``,
``--figure-grid``, ``--figure-clean`` and ``--figure-poison``, each with a fallback, so it suits a
light and a dark page. Nothing is told by colour alone: lines differ in dash and marker, bars in
hatching, and each is named in the picture.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from pbe_fast.report._axes import (
    above,
    epoch_ticks,
    legend,
    mark_rounds,
    spans_decades,
    spread,
    starts,
    thin,
)
from pbe_fast.report._drawing import Drawing
from pbe_fast.report._svg import CLEAN, FONT_SIZE, GRID, INK, POISON, panel, style

__all__ = ["Evaluation", "Step", "curves", "epochs_by_round", "loss_curve", "score_histogram"]

_BINS = 48
_MAX_POINTS = 400  # more cannot be told apart in a picture of this width


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during a run.

    Attributes:
        round: the round of the progressive loop, from 0; always 0 for AFT and training.
        epoch: epochs of this round that were finished by then, from 0.
        acc, asr: fractions in [0, 1], None where unknown.
    """

    round: int
    epoch: float
    acc: float | None
    asr: float | None


@dataclass(frozen=True)
class Step:
    """One logged line of optimiser steps.

    Attributes:
        round, epoch, batch: the last step that the line covers, each from 0.
        loss: mean since the line before.
        adversarial: whether these batches were adversarial examples.
    """

    round: int
    epoch: int
    batch: int
    loss: float
    adversarial: bool


def epochs_by_round(
    evaluations: Iterable[Evaluation], steps: Iterable[Step] = ()
) -> dict[int, float]:
    """How many epochs of each round the records reach; the shared x axis of the pictures."""
    reached: dict[int, float] = {}
    for evaluation in evaluations:
        reached[evaluation.round] = max(reached.get(evaluation.round, 0.0), evaluation.epoch)
    for step in steps:
        reached[step.round] = max(reached.get(step.round, 0.0), float(step.epoch + 1))
    return dict(sorted(reached.items()))


def curves(
    evaluations: Sequence[Evaluation],
    *,
    label: str,
    before: tuple[float | None, float | None] = (None, None),
    rounds: Mapping[int, float] | None = None,
    unit: str = "epoch",
) -> Drawing:
    """ACC and ASR over the epochs of all rounds, with the boundaries of the rounds.

    Args:
        evaluations: in any order; an unknown value leaves its point out.
        label: what the picture shows, in words.
        before: ACC and ASR of the infected model, drawn at 0; None where unknown.
        rounds: epochs of each round, from :func:`epochs_by_round`; by default what
            ``evaluations`` reach.
        unit: the name of the x axis.

    Returns:
        The picture.
    """
    lengths = dict(rounds) if rounds is not None else epochs_by_round(evaluations)
    begins = starts(lengths)
    ordered = sorted(evaluations, key=lambda item: (item.round, item.epoch))
    series = []
    for name, first, values in (
        ("ACC", before[0], [item.acc for item in ordered]),
        ("ASR", before[1], [item.asr for item in ordered]),
    ):
        points = [(0.0, first)] if first is not None else []
        points += [
            (begins[item.round] + item.epoch, value)
            for item, value in zip(ordered, values, strict=True)
            if value is not None and (first is None or begins[item.round] + item.epoch > 0)
        ]
        if points:
            series.append((name, points))

    with style():
        axes = panel(left=50, right=94, top=30, bottom=44)
        end = max(sum(lengths.values()), 1e-9)
        axes.set_xlim(0, end)
        low = 0.0
        if series and all(name == "ACC" for name, _ in series):
            # Without ASR nothing lives near the bottom: show the part where ACC moves.
            lowest = min(y for _, points in series for _, y in points)
            low = max(0.0, math.floor((lowest - 0.05) * 10) / 10)
        axes.set_ylim(low - 0.015, 1.015)
        axes.yaxis.set_major_locator(MaxNLocator(4 if low else 5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.0f} %"))
        axes.grid(True, axis="y", color=GRID, linewidth=0.8, alpha=0.45)
        epoch_ticks(axes, unit)
        mark_rounds(axes, lengths, begins, end)
        ends = []
        for name, points in series:
            is_acc = name == "ACC"
            few = len(points) <= 45
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=CLEAN if is_acc else POISON,
                linewidth=2.2,
                linestyle="-" if is_acc else (0, (4, 2)),
                marker=("o" if is_acc else "s") if few or len(points) == 1 else "",
                markersize=5,
                clip_on=False,
            )
            ends.append((points[-1][1], name, CLEAN if is_acc else POISON))
        for (value, name, colour), y in zip(ends, spread([e[0] for e in ends], low), strict=True):
            axes.annotate(
                f"{name} {value * 100:.1f} %",
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(10, 0),
                textcoords="offset points",
                va="center",
                fontsize=FONT_SIZE,
                color=colour,
                annotation_clip=False,
            )
        return Drawing.of(axes, label)


def score_histogram(
    scores: npt.NDArray[np.floating],
    poisoned: npt.NDArray[np.bool_] | None,
    *,
    label: str,
    axis: str = "cosine to the infected model’s logits",
) -> Drawing:
    """How the scores are spread; clean and poisoned images apart where the truth is known.

    Args:
        scores: ``(N,)`` in [-1, 1]; NaN (quarantined) is left out.
        poisoned: ``(N,)`` truth, or None.
        label: what the picture shows, in words.
        axis: what a score is.

    Returns:
        The picture. Counts are on a log scale where the tallest bar would hide the rest.
    """
    known = np.isfinite(scores)
    values = np.clip(scores[known].astype(np.float64), -1.0, 1.0)
    low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 1.0)
    if high - low < 1e-6:  # all the same: a bar needs some width
        low, high = low - 5e-3, high + 5e-3
    edges = np.linspace(low, high, _BINS + 1)
    groups: list[tuple[str, npt.NDArray[np.float64], str, str | None]] = [
        ("images", values, INK, None)
    ]
    if poisoned is not None:
        truth = poisoned[known]
        groups = [
            ("clean", values[~truth], CLEAN, None),
            ("poisoned", values[truth], POISON, "////"),
        ]
    counts = [np.histogram(group, edges)[0] for _, group, _, _ in groups]
    filled = np.concatenate([count[count > 0] for count in counts])
    log = len(filled) > 1 and bool(filled.max() > 30 * np.median(filled))

    with style():
        axes = panel(left=58, right=18, top=40, bottom=44)
        axes.set_xlim(low, high)
        top = float(filled.max()) if len(filled) else 1.0
        if log:
            axes.set_yscale("log")
            axes.set_ylim(0.7, top * 1.6)
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, top * 1.06)
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.grid(True, axis="y", color=GRID, linewidth=0.8, alpha=0.45)
        handles = []
        for (name, group, colour, hatch), count in zip(groups, counts, strict=True):
            # A pale body under a firm outline: where two overlap, both can still be followed.
            axes.stairs(count, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            if hatch:
                axes.stairs(
                    count, edges, fill=True, facecolor="none", edgecolor=colour, hatch=hatch, lw=0
                )
            axes.stairs(count, edges, color=colour, linewidth=1.5, baseline=None)
            handles.append(
                Patch(
                    facecolor="none",
                    edgecolor=colour,
                    hatch=hatch,
                    linewidth=1.5,
                    label=f"{name} ({len(group):,})",
                )
            )
        axes.set_xlabel(axis, color=INK, labelpad=6)
        above(axes, "images, log scale" if log else "images")
        if poisoned is not None:
            legend(axes, handles)
        return Drawing.of(axes, label)


def loss_curve(
    steps: Sequence[Step], *, label: str, rounds: Mapping[int, float] | None = None
) -> Drawing:
    """The training loss over the epochs of all rounds; adversarial batches shaded.

    Args:
        steps: in any order; a loss that is not finite leaves a gap.
        label: what the picture shows, in words.
        rounds: epochs of each round, from :func:`epochs_by_round`; by default what
            ``steps`` reach.

    Returns:
        The picture. Long records are averaged down to about 400 points, never across
        the border between adversarial and plain batches.
    """
    lengths = dict(rounds) if rounds is not None else epochs_by_round((), steps)
    begins = starts(lengths)
    batches: dict[int, int] = {}
    for step in steps:
        batches[step.round] = max(batches.get(step.round, 0), step.batch + 1)
    ordered = sorted(steps, key=lambda item: (item.round, item.epoch, item.batch))
    placed = [
        (begins[s.round] + s.epoch + (s.batch + 1) / batches[s.round], s.loss, s.adversarial)
        for s in ordered
    ]
    bucket = max(1, math.ceil(len(placed) / _MAX_POINTS))

    with style():
        axes = panel(left=50, right=14, top=40, bottom=44)
        end = max(sum(lengths.values()), 1e-9)
        axes.set_xlim(0, end)
        finite = [loss for _, loss, _ in placed if math.isfinite(loss)]
        positive = [loss for loss in finite if loss > 0]
        log = bool(positive) and len(positive) == len(finite) and spans_decades(positive)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(True, axis="y", color=GRID, linewidth=0.8, alpha=0.45)
        epoch_ticks(axes, "epoch")
        border = 0.0
        for adversarial, group in groupby(placed, key=lambda item: item[2]):
            segment = list(group)
            x, y = thin([(a, b) for a, b, _ in segment], bucket)
            colour = POISON if adversarial else CLEAN
            if adversarial:
                axes.axvspan(border, segment[-1][0], color=POISON, alpha=0.12, linewidth=0)
            border = segment[-1][0]  # a line stands for the steps since the line before
            axes.plot(
                x,
                y,
                color=colour,
                linewidth=1.8,
                linestyle=(0, (4, 1.5)) if adversarial else "-",
                marker="s" if adversarial and len(x) == 1 else "o" if len(x) == 1 else "",
                markersize=4,
            )
        if not log:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        mark_rounds(axes, lengths, begins, end, named=False)
        above(axes, "loss, log scale" if log else "loss")
        if any(adversarial for _, _, adversarial in placed):
            legend(
                axes,
                [
                    Line2D([], [], color=CLEAN, lw=1.8, label="plain batches"),
                    Line2D([], [], color=POISON, lw=1.8, ls=(0, (4, 1.5)), label="adversarial"),
                ],
            )
        return Drawing.of(axes, label)
