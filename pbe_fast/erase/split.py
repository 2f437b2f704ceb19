"""Which classes hold two kinds of images: a split of what the infected model sees in each class.

A trigger is a strong feature that many images of a class share and the others lack, so within the
class the infected model's activations fall into two clusters (activation clustering, Chen et al.
2018). They come apart best where the spread that classes have anyway is divided out (SCAn, Tang et
al. 2021; SPECTRE, Hayase et al. 2021). Here: a mixture of two Gaussians along the first principal
component of each class' whitened activations, where a class that falls apart counts as two, so that
its trigger does not whiten itself away.

Where the trigger differs from image to image, the first principal component may be another one. A
second look (:func:`look_again`) goes along the direction to the images whose label a model that is
partly purified finds least likely, and where a trigger leads to every label along the direction to
what was found to be triggered in other classes: what a trigger adds is much the same in all.

What the infected model sees of the picture itself also counts: where triggered images come from a
class that looks like the target, they may lie with the clean ones. So the clusters of a class that
falls apart are split once more (:attr:`Split.apart`).

Where nearly all images of a class are triggered, its own are too few to set the direction.
:func:`part_shown` takes it from what a partly purified model makes of the images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["ClassSplit", "Split", "look_again", "part_shown", "split_classes"]

Features = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LEAST = 20  # images of a class that can be split
_GAIN = 0.15  # nats by image
_SEPARATION = 3.0  # of the means, in standard deviations; two Gaussians show two humps from 2 on
_RIDGE = 1e-2  # of the mean variance
_PASSES = 3
_SMOOTH = 0.05  # least standard deviation of a cluster, of the whole class' one
_MOST = 50.0  # nats of log odds
# The second look, and the clusters within a cluster. On drawn signs classes without poison gained
# up to 0.05 by the look, the others from 0.17 on.
_GAIN_AGAIN = 0.1
_SEPARATION_AGAIN = 2.0
# Of a class that a fiftieth of is something else; one Gaussian gains 0.01 with 400 rows.
_GAIN_PARTED = 0.03
_HARD = 0.1  # of a class, its images with the highest losses
_FOLDS = 5
_TINY = 1e-12


@dataclass(frozen=True)
class ClassSplit:
    """A class that falls apart.

    Attributes:
        label: the class.
        images: of it.
        share: of its images that are in the smaller cluster.
        gain: nats by image that two Gaussians explain better than one.
        separation: Ashman's D of the two clusters.
    """

    label: int
    images: int
    share: float
    gain: float
    separation: float


@dataclass(frozen=True)
class Split:
    """What was found.

    Attributes:
        log_odds: ``(N,)`` float32 in [-50, 50], of the smaller cluster of the image's class against
            the larger one; -50 where a class is whole, NaN where features are.
        apart: ``(N,)``, images of a cluster that falls apart itself, in the smaller of its parts.
        classes: those that fall apart.
    """

    log_odds: npt.NDArray[np.float32]
    apart: Mask
    classes: tuple[ClassSplit, ...]


def split_classes(features: Features, labels: npt.NDArray[np.integer]) -> Split:
    """Find the classes whose images fall into two clusters.

    Args:
        features: ``(N, D)`` activations of the infected model. A row that is not finite belongs
            to an image that could not be read.
        labels: ``(N,)``, as the training set has them.
    """
    space = _Space.of(features, labels)
    second = np.zeros(len(labels), bool)  # in the smaller cluster of its class
    found: dict[int, _Mixture] = {}
    for _ in range(_PASSES if space.members else 0):
        whitener = space.whitener(second)
        found, second = {}, np.zeros(len(labels), bool)
        for label, ids in space.large():
            mixture = _two_gaussians(_first_component(space.rows(ids) @ whitener))
            if mixture and mixture.gain > _GAIN and mixture.separation > _SEPARATION:
                found[label] = mixture
                second[ids] = mixture.odds > 0
    split = space.split(found)
    return replace(split, apart=space.apart(split)) if found else split


def look_again(
    features: Features,
    labels: npt.NDArray[np.integer],
    split: Split,
    losses: npt.NDArray[np.floating],
    triggered: Mask | None = None,
) -> Split:
    """Look at the classes that seemed whole along the direction to their hardest images.

    Where that finds nothing in a class, it looks along the direction from the other images of their
    classes to those of ``triggered``.

    Args:
        features, labels: as for :func:`split_classes`.
        split: what that has found.
        losses: ``(N,)`` of the labels, by a model that did not learn most of the poison.
        triggered: ``(N,)``, images of other classes that are likely to have a trigger.

    Returns:
        the classes that fall apart now, without those that did before.
    """
    space = _Space.of(features, labels)
    found: dict[int, _Mixture] = {}
    whitener = space.whitener(split.log_odds > 0) if space.members else np.empty((0, 0))
    shared = None if triggered is None else space.towards(triggered, whitener)
    known = {found_before.label for found_before in split.classes}
    for label, ids in space.large():
        if label in known:
            continue
        rows = space.rows(ids) @ whitener
        mixture = _harder(rows, np.nan_to_num(losses[ids]))
        if mixture is None and shared is not None:
            mixture = _further(rows @ shared)
        if mixture is not None:
            found[label] = mixture
    return space.split(found)


def part_shown(
    features: Features,
    labels: npt.NDArray[np.integer],
    split: Split,
    label: int,
    shown: npt.NDArray[np.floating],
) -> npt.NDArray[np.float32] | None:
    """Part a class of which most seems to be triggered images of other classes.

    Each image is compared with the mean of the class that it shows. What triggered images differ by
    is the trigger, on average, even where most are taken for a wrong class; of that direction the
    images of the class itself have less.

    Args:
        features, labels: as for :func:`split_classes`.
        split: what that has found.
        label: the class.
        shown: ``(N,)``, labels by a model that was not trained on this class.

    Returns:
        ``(N,)`` float32 in [-50, 50]: log odds of being triggered, NaN for images of other classes
        and such that could not be read; None where there are no two clusters.
    """
    space = _Space.of(features, labels)
    ids = space.members.get(label, np.empty(0, np.int64))
    others = [other for other in space.members if other != label]
    if len(ids) < _LEAST or not others:
        return None
    whitener = space.whitener(split.log_odds > 0)
    means: dict[int, Floats] = {
        other: (space.rows(space.members[other]) @ whitener).mean(0) for other in others
    }
    middle: Floats = np.mean(list(means.values()), 0)  # for what shows a class without images
    seen = np.nan_to_num(shown[ids], nan=-1).astype(int).tolist()
    added = space.rows(ids) @ whitener - np.stack([means.get(one, middle) for one in seen])
    along = _along(added, np.arange(len(ids)) % _FOLDS, lambda rest: added[rest].mean(0))
    mixture = _two_gaussians(along)
    if not mixture or mixture.gain <= _GAIN_PARTED or mixture.separation <= _SEPARATION_AGAIN:
        return None
    odds = mixture.odds if _smaller_ahead(mixture, along) else -mixture.odds
    parted = np.full(len(labels), np.nan, np.float32)
    parted[ids] = odds.clip(-_MOST, _MOST)
    return parted


@dataclass(frozen=True)
class _Space:
    """Standardised activations, a class at a time: all of them at once take too much memory.

    Attributes:
        members: the ids of each class, of images that could be read.
    """

    features: Features
    members: dict[int, Ids]
    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, features: Features, labels: npt.NDArray[np.integer]) -> "_Space":
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
        return [(label, ids) for label, ids in self.members.items() if len(ids) >= _LEAST]

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
        ridge = _RIDGE * np.trace(covariance) / len(covariance) + _TINY
        covariance += ridge * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        whitener: Floats = vectors / np.sqrt(values)
        return whitener

    def towards(self, mask: Mask, whitener: Floats) -> Floats:
        """``(D,)``: from the other rows of their classes to some, in the whitened space."""
        direction = np.zeros(len(self.mean))
        for ids in self.members.values():
            here = mask[ids]
            if here.any() and not here.all():
                rows = self.rows(ids)
                direction += (rows[here] - rows[~here].mean(0)).sum(0)
        return direction @ whitener

    def split(self, found: "dict[int, _Mixture]") -> Split:
        """As it is handed out."""
        log_odds = np.full(len(self.features), np.nan, np.float32)
        for label, ids in self.members.items():
            log_odds[ids] = found[label].odds.clip(-_MOST, _MOST) if label in found else -_MOST
        classes = (
            ClassSplit(label, len(m.odds), float((m.odds > 0).mean()), m.gain, m.separation)
            for label, m in found.items()
        )
        return Split(log_odds, np.zeros(len(log_odds), bool), tuple(classes))

    def apart(self, split: Split) -> Mask:
        """See :attr:`Split.apart`."""
        apart, second = np.zeros(len(self.features), bool), split.log_odds > 0
        whitener = self.whitener(second)
        for label in (found.label for found in split.classes):
            ids = self.members[label]
            for cluster in (ids[second[ids]], ids[~second[ids]]):
                if len(cluster) < _LEAST:
                    continue
                mixture = _two_gaussians(_first_component(self.rows(cluster) @ whitener))
                if mixture and mixture.apart_again:
                    apart[cluster] = mixture.odds > 0
        return apart


@dataclass(frozen=True)
class _Mixture:
    """Two Gaussians along a line; ``odds`` are the log odds of the smaller one."""

    odds: Floats
    gain: float
    separation: float

    @property
    def apart_again(self) -> bool:
        """Whether that is enough for a second look."""
        return self.gain > _GAIN_AGAIN and self.separation > _SEPARATION_AGAIN


def _first_component(z: Floats) -> Floats:
    """``(n,)``: where each row lies along the direction in which they differ most."""
    centred = z - z.mean(0)
    # Of the smaller one of the two products, which has the same values.
    if len(z) < z.shape[1]:
        _, vectors = np.linalg.eigh(centred @ centred.T)
        along: Floats = vectors[:, -1]
    else:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        along = centred @ vectors[:, -1]
    return along


def _harder(z: Floats, losses: Floats) -> _Mixture | None:
    """A class along the direction to its hardest images, if the smaller cluster is the harder."""
    hard = losses > np.quantile(losses, 1 - _HARD)
    if min(hard.sum(), (~hard).sum()) < _FOLDS:
        return None
    mixture = _two_gaussians(_towards(z, hard))
    if not mixture or not mixture.apart_again:
        return None
    return mixture if mixture.odds[hard].mean() >= mixture.odds[~hard].mean() else None


def _further(along: Floats) -> _Mixture | None:
    """A class along a line, if the smaller cluster is further along it."""
    mixture = _two_gaussians(along)
    if not mixture or not mixture.apart_again:
        return None
    return mixture if _smaller_ahead(mixture, along) else None


def _smaller_ahead(mixture: _Mixture, along: Floats) -> bool:
    """Whether the smaller cluster is further along the line."""
    smaller = mixture.odds > 0
    return bool(smaller.any() and along[smaller].mean() > along[~smaller].mean())


def _towards(z: Floats, hard: Mask) -> Floats:
    """``(n,)``: where each row lies along the direction from the other rows to some.

    Where the class lies as a whole must not count, as it does in the direction of another fold.
    """
    z = z - z.mean(0)
    fold = np.empty(len(z), int)
    for part in (hard, ~hard):
        fold[part] = np.arange(part.sum()) % _FOLDS
    return _along(z, fold, lambda rest: z[rest & hard].mean(0) - z[rest & ~hard].mean(0))


def _along(z: Floats, fold: Ids, towards: Callable[[Mask], Floats]) -> Floats:
    """``(n,)``: where each row lies along a direction.

    That is another one for each fold, and made from the other folds: a row would pull it towards
    itself.
    """
    along = np.empty(len(z))
    for index in range(_FOLDS):
        rest = fold != index
        direction = towards(rest)
        along[~rest] = z[~rest] @ direction / (np.linalg.norm(direction) + _TINY)
    return along


def _two_gaussians(values: Floats, steps: int = 100) -> _Mixture | None:
    """Expectation maximisation from several cuts; the best one that does not shrink to nothing."""
    u = (values - values.mean()) / (values.std() + _TINY)
    best: _Mixture | None = None
    for cut in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        share = (u > np.quantile(u, cut)).astype(float)
        for _ in range(steps):
            if not 3 <= share.sum() <= len(u) - 3:
                break
            logs, means, variances = [], [], []
            for part in (1 - share, share):
                means.append((part * u).sum() / part.sum())
                spread = (part * (u - means[-1]) ** 2).sum() / part.sum()
                variances.append(max(spread, _SMOOTH**2))
                distance = (u - means[-1]) ** 2 / variances[-1]
                logs.append(np.log(part.mean()) - 0.5 * (np.log(variances[-1]) + distance))
            before, share = share, 1 / (1 + np.exp(np.clip(logs[0] - logs[1], -50, 50)))
            if np.abs(share - before).max() < 1e-4:
                break
        if not 3 <= share.sum() <= len(u) - 3:
            continue
        gain = float(np.logaddexp(*logs).mean()) + 0.5  # one Gaussian has -0.5, constants aside
        if best is None or gain > best.gain:
            odds = logs[1] - logs[0] if share.mean() <= 0.5 else logs[0] - logs[1]
            separation = abs(means[1] - means[0]) / np.sqrt(np.mean(variances))
            best = _Mixture(odds, gain, float(separation))
    return best
