"""Classes and their two clusters, and what rounds and models tell of them.

What several verdicts of :class:`pbe_fast.erase.sieve.Sieve` ask, and what is said in the end. A
*mask* is ``(N,)`` over the training set; an *outcome* is ``(N, 2)``, the loss and the prediction of
every image (:class:`pbe_fast.erase.identify.Outcome`); *left* is a mask of what the last round did
not train with its own label.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from pbe_fast.erase._space import Ids, Mask
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.progressive import Place
from pbe_fast.erase.split import Split

__all__ = ["DISAGREE", "LIKELY", "MORE", "TELLING", "Classes", "effective"]

DISAGREE = 0.5  # of a cluster, with its label, to be poisoned
MORE = 0.3  # than of the other cluster, which may only be badly learned
TELLING = 20  # images, of which a number of different labels says something
LIKELY = 2.0  # nats of log odds, from which on an image is likely in a cluster, or triggered
_TIMES = 2.0  # as many images of a class as a trigger should have brought, and it was not that
_DOUBTFUL = 8.0  # nats of log odds, up to which an image of a poisoned class waits
# Of all labels, or of twice as many as there are images, effectively, for a trigger to have brought
# images together: of GTSRB's 43 clusters of photographs showed up to 7.2 (6.6 where they are 30
# images), and poisoned ones at least 12.6.
_SHARE_OF_LABELS = 0.22


class Classes:
    """The labels of a training set, and the split of its classes.

    Attributes:
        labels: ``(N,)`` int64.
        num_classes: K.
        split: of the training set.
        known: ``(N,)`` bool, images that could be decoded.
        second: ``(N,)`` bool, those in the smaller cluster of their class.
        between: ``(N,)`` bool, those that may belong to either.
    """

    def __init__(self, labels: npt.NDArray[np.integer], num_classes: int, split: Split) -> None:
        self.labels, self.num_classes = labels.astype(np.int64), num_classes
        self.split = split
        self.known: Mask = ~np.isnan(split.log_odds)
        self.second: Mask = split.log_odds > 0
        self.between: Mask = np.abs(split.log_odds) < _DOUBTFUL

    def clusters(self, label: int) -> tuple[Mask, Mask]:
        """The smaller and the larger one."""
        here = (self.labels == label) & self.known
        return here & self.second, here & ~self.second

    def differs(self, outcome: Scores) -> Mask:
        """Images that a model takes for something else than their label."""
        seen: Mask = np.isfinite(outcome[:, 1]) & (outcome[:, 1] != self.labels)
        return seen

    def diverse(self, seen: npt.NDArray[Any]) -> bool:
        """Whether images show so many classes that a trigger must have brought them together.

        The photographs of one physical sign that a model does not know get few other labels; but a
        few hard ones may all get different ones, so a few images show nothing.
        """
        if len(seen) < TELLING:
            return False
        possible = min(self.num_classes, 2 * len(seen))
        # Of two classes there is only one other label, which tells nothing.
        least = min(3.0, max(1.0, 0.75 * (self.num_classes - 1)))
        return effective(seen) > max(_SHARE_OF_LABELS * possible, least)

    def relabelled_ids(self, place: Place) -> Ids:
        """The images that were trained with another label."""
        if place.labels is None:
            return place.subset[:0]
        changed: Ids = place.subset[self.labels[place.subset] != place.labels]
        return changed

    def relabelled(self, place: Place) -> list[int]:
        """The classes that some images were trained away from."""
        labels: list[int] = np.unique(self.labels[self.relabelled_ids(place)]).tolist()
        return labels

    def untrusted(self, place: Place) -> Mask:
        """The images that the last round did not train with their own label."""
        suspects = self.known.copy()
        own = place.subset
        if place.labels is not None:
            own = own[place.labels == self.labels[own]]
        suspects[own] = False
        return suspects

    def doubtful(self, left: Mask) -> Mask:
        """Images between two clusters, and those that lie apart in a cluster that is trusted."""
        return self.between | (self.trusted(left) & self.split.apart)

    def trusted(self, left: Mask) -> Mask:
        """The clusters of which not most are left out."""
        trusted = np.zeros(len(left), bool)
        for split in self.split.classes:
            for cluster in self.clusters(split.label):
                if left[cluster].mean() < 0.5:
                    trusted |= cluster
        return trusted

    def sides(self, left: Mask) -> dict[int, tuple[Mask, Mask]]:
        """Of classes of one cluster of which far more is left out, the other one and it."""
        sides = {}
        for label in (split.label for split in self.split.classes):
            small, large = self.clusters(label)
            difference = left[small].mean() - left[large].mean()
            if abs(difference) > MORE:
                sides[label] = (large, small) if difference > 0 else (small, large)
        return sides

    def unlearned(
        self, poisoned: Collection[int], outcome: Scores, place: Place
    ) -> dict[int, tuple[Mask, Mask]]:
        """Poisoned classes that a model mostly takes for one other class: own cluster, what waits.

        Where a label mostly came with a trigger, what it means may hardly have been learned. Then
        this model does not tell which images of the cluster are clean; but a trigger that is as
        frequent in every class would not have brought so many of that one.
        """
        differs, unlearned = self.differs(outcome), {}
        sides = self.sides(self.untrusted(place))
        for label in sides.keys() & {*poisoned}:
            own, other = sides[label]
            misread = own & differs
            seen = np.bincount(outcome[misread, 1].astype(np.int64), minlength=1)
            one = int(seen.argmax())
            expected = other.sum() * (self.labels == one).sum() / (self.labels != label).sum()
            least = max(TELLING, DISAGREE * misread.sum(), _TIMES * expected)
            if misread.sum() > DISAGREE * own.sum() and seen[one] > least:
                unsure = self.between | self.split.apart | (differs & (outcome[:, 1] != one))
                unlearned[label] = own, own & unsure
        return unlearned

    def kept(self, outcome: Scores, place: Place, poisoned: list[int]) -> float | None:
        """The share of the poisoned classes' suspects that a model gives the label they came with.

        What shows without a trigger whether a backdoor is gone; what waits counts, as it may be
        triggered, too. None where nothing is suspect.
        """
        left = self.untrusted(place)
        suspects = left & ~self.doubtful(left) & np.isin(self.labels, poisoned)
        return float((outcome[:, 1] == self.labels)[suspects].mean()) if suspects.any() else None

    def can_judge(self) -> bool:
        """Whether a backdoor could be found: with two classes, or with few images, none can."""
        counts = np.bincount(self.labels[self.known], minlength=self.num_classes)
        return self.num_classes > 2 and bool((counts >= TELLING).any())


def effective(seen: npt.NDArray[Any], order: float = 1.0) -> float:
    """How many different labels there are, effectively (Hill 1973); 1 where all are the same.

    Args:
        order: below 1 rare labels count for more; with 1 it is e to the power of their entropy.
    """
    share = np.unique(seen, return_counts=True)[1] / max(1, len(seen))
    if order == 1:
        return float(np.exp(-(share * np.log(share)).sum()))
    return float((share**order).sum() ** (1 / (1 - order)))
