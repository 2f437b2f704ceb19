"""Activations, a class at a time, in a space where all clusters have the same spread."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST", "TINY", "Features", "Floats", "Ids", "Mask", "Space"]

Features = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LEAST = 20  # images of a class that can be split
TINY = 1e-12
_RIDGE = 1e-2  # of the mean variance


@dataclass(frozen=True)
class Space:
    """Activations, a class at a time: all of them at once take too much memory.

    Attributes:
        labels: ``(N,)``.
        members: the ids of each class, of images that could be read.
        whitener: ``(D, D)``, of standardised activations; None: they are only standardised.
    """

    features: Features
    labels: npt.NDArray[np.integer]
    members: dict[int, Ids]
    mean: Floats
    deviation: Floats
    whitener: Floats | None = None

    @classmethod
    def of(cls, features: Features, labels: npt.NDArray[np.integer]) -> "Space":
        """Standardised.

        Args:
            features: ``(N, D)``; a row that is not finite belongs to an image that could not be
                read.
            labels: ``(N,)``, as the training set has them.
        """
        order = np.argsort(labels, kind="stable")
        values, starts = np.unique(labels[order], return_index=True)
        members = {}
        total, squares = np.zeros((2, features.shape[1]))
        for label, ids in zip(values.tolist(), np.split(order, starts[1:]), strict=True):
            rows = features[ids].astype(np.float64)
            known = np.isfinite(rows).all(1)
            if known.any():
                members[int(label)] = ids[known]
                total += rows[known].sum(0)
                squares += (rows[known] ** 2).sum(0)
        count = max(1, sum(map(len, members.values())))
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0)) + 1e-6
        return cls(features, labels, members, mean, deviation)

    def rows(self, ids: Ids) -> Floats:
        """``(n, D)``."""
        rows: Floats = (self.features[ids].astype(np.float64) - self.mean) / self.deviation
        return rows if self.whitener is None else rows @ self.whitener

    def large(self) -> list[tuple[int, Ids]]:
        """Classes that can be split, with their ids."""
        return [(label, ids) for label, ids in self.members.items() if len(ids) >= LEAST]

    def known(self) -> Mask:
        """``(N,)``: images that could be read."""
        known = np.zeros(len(self.labels), bool)
        for ids in self.members.values():
            known[ids] = True
        return known

    def middles(self, left_out: Mask) -> dict[int, Floats]:
        """``(D,)`` of each class: the median of its images, without some if there are others."""
        middles = {}
        for label, ids in self.members.items():
            rest = ids[~left_out[ids]]
            middles[label] = np.median(self.rows(rest if len(rest) else ids), 0)
        return middles

    def nearest(self, middles: Mapping[int, Floats]) -> tuple[Ids, Floats]:
        """Which class' middle each image is nearest to, and by how much.

        Args:
            middles: of :meth:`middles`.

        Returns:
            ``(N,)``, -1 for images that were not read; and ``(N,)``, the logarithm of how many
            times further the middle of their own class is.
        """
        nearest, margin = np.full(len(self.labels), -1), np.zeros(len(self.labels))
        classes, where = np.array(list(middles)), np.array(list(middles.values()))
        for index, ids in enumerate(self.members.values()):
            rows = self.rows(ids)
            squares = (rows**2).sum(1)[:, None] + (where**2).sum(1) - 2 * rows @ where.T
            squares = np.maximum(squares, TINY)
            nearest[ids] = classes[squares.argmin(1)]
            margin[ids] = 0.5 * np.log(squares[:, index] / squares.min(1))
        return nearest, margin

    def whitened(self, second: Mask) -> "Space":
        """Where the covariance within clusters is the identity, classes counting alike.

        Args:
            second: ``(N,)``, images in the second cluster of their class.
        """
        if not self.members:
            return self
        standard = replace(self, whitener=None)
        covariance = np.zeros((len(self.mean), len(self.mean)))
        for ids in self.members.values():
            rows = standard.rows(ids)
            for cluster in (second[ids], ~second[ids]):
                if cluster.any():
                    rows[cluster] -= rows[cluster].mean(0)
            covariance += rows.T @ rows / len(ids)
        covariance /= len(self.members)
        ridge = _RIDGE * np.trace(covariance) / len(covariance) + TINY
        covariance += ridge * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        return replace(self, whitener=vectors / np.sqrt(values))
