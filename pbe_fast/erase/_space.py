"""Activations, a class at a time, in a space where all clusters have the same spread."""

from dataclasses import dataclass

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
    """Standardised activations, a class at a time: all of them at once take too much memory.

    Attributes:
        members: the ids of each class, of images that could be read.
    """

    features: Features
    members: dict[int, Ids]
    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, features: Features, labels: npt.NDArray[np.integer]) -> "Space":
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
        return cls(features, members, mean, deviation)

    def rows(self, ids: Ids) -> Floats:
        """``(n, D)``."""
        rows: Floats = (self.features[ids].astype(np.float64) - self.mean) / self.deviation
        return rows

    def large(self) -> list[tuple[int, Ids]]:
        """Classes that can be split, with their ids."""
        return [(label, ids) for label, ids in self.members.items() if len(ids) >= LEAST]

    def whitener(self, second: Mask) -> Floats:
        """``(D, D)``; makes the covariance within clusters the identity, classes counting alike."""
        covariance = np.zeros((len(self.mean), len(self.mean)))
        for ids in self.members.values():
            rows = self.rows(ids)
            for cluster in (second[ids], ~second[ids]):
                if cluster.any():
                    rows[cluster] -= rows[cluster].mean(0)
            covariance += rows.T @ rows / len(ids)
        covariance /= len(self.members)
        ridge = _RIDGE * np.trace(covariance) / len(covariance) + TINY
        covariance += ridge * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        whitener: Floats = vectors / np.sqrt(values)
        return whitener
