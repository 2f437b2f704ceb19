"""The heat map of a scan at one size, as numbers and words.

The page of a scan shows one for each size; the page of a purification shows one of a scan, which
it keeps, so this is also what is read back from a file.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pbe_fast.analysis.predictions import Predictions
from pbe_fast.report._drawing import Drawing
from pbe_fast.report._run import Count, Fraction, Record
from pbe_fast.report._words import percent
from pbe_fast.report.heatmap import heat_map, heat_map_drawing

__all__ = ["ScanMap", "class_name", "named", "scan_map", "side_by_side", "strongest"]

_DRAWN = 60  # classes in a heat map; more cannot be told apart
_Cell = Annotated[int, Field(ge=0, le=10**12)]


class MostGiven(Record):
    """The label that gets most: its name, its share, and what an even spread would give it."""

    label: str
    share: Fraction
    expected: Fraction


class ScanMap(Record):
    """Where the adversarial examples of one size go.

    Attributes:
        classes: how many the model has, K.
        names: of the D classes that are drawn, such as ``7 bumps``.
        counts: ``(D, D)``, examples by the images' label and the predicted one.
        images: of all classes.
        most: None where there is nothing to compare.
    """

    eps_255: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    classes: Count
    images: Count
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=_DRAWN)]
    counts: Annotated[tuple[tuple[_Cell, ...], ...], Field(max_length=_DRAWN)]
    most: MostGiven | None = None

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if {len(self.counts), *map(len, self.counts)} != {len(self.names)}:
            raise ValueError("counts and names are not of the same classes")
        return self

    @property
    def eps(self) -> str:
        """The size, such as ``8/255``."""
        return f"{self.eps_255:g}/255"

    @property
    def finding(self) -> str:
        """The label that gets most, and its share beside an even spread."""
        if self.most is None:
            return "There is nothing to compare: all images have one label."
        return (
            f"Label {self.most.label} gets the most: {percent(self.most.share)} of the other "
            f"labels’ adversarial examples at eps {self.eps}, where an even spread would give it "
            f"{percent(self.most.expected)}."
        )

    @property
    def reading(self) -> str:
        """How the picture is to be read."""
        text = "Each row: where the adversarial examples of a class go"
        if len(self.names) < self.classes:
            text += f", for the {len(self.names)} labels with the largest share"
        return text + ". Stronger: a larger part of the row. Outlined: those that keep their label."

    @property
    def spoken(self) -> str:
        """The picture for those who cannot see it."""
        words = f"Heat map at eps {self.eps}, {len(self.names)} true labels against predicted ones."
        if self.most is not None:
            words += f" Label {self.most.label} gets most, {percent(self.most.share)}."
        return words

    def svg(self, title: str = "") -> str:
        """For a page; see :func:`pbe_fast.report.heatmap.heat_map`.

        Args:
            title: whose it is, to tell several apart; any text.
        """
        spoken = f"{title}. {self.spoken}" if title else self.spoken
        return heat_map(self._cells, self.names, label=spoken)

    @property
    def drawing(self) -> Drawing:
        """For files of its own."""
        return heat_map_drawing(self._cells, self.names, label=self.spoken)

    @property
    def _cells(self) -> npt.NDArray[np.int64]:
        return np.array(self.counts, np.int64)


def scan_map(found: Predictions, size: int, drawn: npt.NDArray[np.int64] | None = None) -> ScanMap:
    """The heat map of a scan at ``found.eps_255[size]``.

    Args:
        drawn: labels, in order; by default all, or of many those with the largest share.
    """
    order = found.largest(size, len(found.classes))
    if drawn is None:
        drawn = _drawn(found.share[size])
    most = None
    if order:
        most = MostGiven(
            label=named(found, order[0]),
            share=float(found.share[size, order[0]]),
            expected=float(found.expected[size, order[0]]),
        )
    return ScanMap(
        eps_255=found.eps_255[size],
        classes=len(found.classes),
        images=len(found.labels),
        names=tuple(f"{label} {class_name(found, label)}".strip() for label in drawn.tolist()),
        counts=tuple(map(tuple, found.counts[size][np.ix_(drawn, drawn)].tolist())),
        most=most,
    )


def side_by_side(scans: Sequence[Predictions]) -> list[ScanMap]:
    """One heat map of each scan, of the same labels where the models have as many classes.

    Of many labels those are drawn that come first by their share in any of the scans.
    """
    sizes = strongest(scans)
    drawn = None
    if len({len(scan.classes) for scan in scans}) == 1:
        drawn = _drawn(*(scan.share[size] for scan, size in zip(scans, sizes, strict=True)))
    return [scan_map(scan, size, drawn) for scan, size in zip(scans, sizes, strict=True)]


def strongest(scans: Sequence[Predictions]) -> list[int]:
    """The size of each scan at which a label gets the largest share.

    Scans that are looked at side by side are to be compared, so it is one size for all of them
    where they have one in common: that of the largest share in any.
    """
    best = [
        {eps: _largest(share) for eps, share in zip(scan.eps_255, scan.share, strict=True)}
        for scan in scans
    ]
    common = set.intersection(*map(set, best)) if best else set()
    if common:
        chosen = max(sorted(common), key=lambda eps: max(sizes[eps] for sizes in best))
        return [scan.eps_255.index(chosen) for scan in scans]
    return [scan.eps_255.index(max(sizes, key=sizes.__getitem__))
            for scan, sizes in zip(scans, best, strict=True)]  # fmt: skip


def class_name(found: Predictions, label: int) -> str:
    """Of a class; empty where it is the number alone."""
    name = found.classes[label]
    return "" if name == str(label) else name


def named(found: Predictions, label: int) -> str:
    """``7 (bumps)``, or the number alone."""
    name = class_name(found, label)
    return f"{label} ({name})" if name else str(label)


def _drawn(*shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """All labels, or of many those that come first in any list of shares; NaN comes last."""
    place = [np.where(np.isnan(share), np.inf, -share).argsort(kind="stable").argsort(kind="stable")
             for share in shares]  # fmt: skip
    return np.sort(np.minimum.reduce(place).argsort(kind="stable")[:_DRAWN])


def _largest(share: npt.NDArray[np.float64]) -> float:
    return -1.0 if np.isnan(share).all() else float(np.nanmax(share))
