"""Which classes hold two kinds of images: a split of what the infected model sees in each class.

A trigger is a strong feature that many images of a class share and the others lack, so within the
class the infected model's activations fall into two clusters (activation clustering, Chen et al.
2018). They come apart best where the spread that classes have anyway is divided out (SCAn, Tang et
al. 2021; SPECTRE, Hayase et al. 2021). Here: a mixture of two Gaussians along the first principal
component of each class' whitened activations, where a class that falls apart counts as two, so that
its trigger does not whiten itself away.

Where the trigger differs from image to image, the first principal component may be another one. A
second look (:func:`look_again`) goes along the direction to the images whose label a model that is
partly purified finds least likely.

What the infected model sees of the picture itself also counts: where triggered images come from a
class that looks like the target, they may lie with the clean ones. So the clusters of a class that
falls apart are split once more (:attr:`Split.apart`).

What a split that was judged tells of single images is in :mod:`pbe_fast.erase.trigger`.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pbe_fast.erase._clusters import (
    MOST,
    Mixture,
    cluster_around,
    first_component,
    two_gaussians,
)
from pbe_fast.erase._space import LEAST, Features, Mask, Space

__all__ = ["ClassSplit", "Split", "look_again", "split_classes", "swollen_classes"]

_PASSES = 3
_SWOLLEN = 5.0  # times the images of the median class; GTSRB's largest has 3.75 times
_HARD = 0.1  # of a class, its images with the highest losses


@dataclass(frozen=True)
class ClassSplit:
    """A class that falls apart.

    Attributes:
        label: the class.
        images: of it.
        share: of its images that are in the smaller cluster.
        gain: nats by image that two Gaussians explain better than one.
        separation: of the two clusters' means, see :class:`pbe_fast.erase._clusters.Mixture`.
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

    @classmethod
    def of_nothing(cls, images: int) -> "Split":
        """No class falls apart."""
        return cls(np.full(images, -MOST, np.float32), np.zeros(images, bool), ())


def swollen_classes(labels: npt.NDArray[np.integer]) -> set[int]:
    """Classes that have more than five times the images of the median one."""
    values, counts = np.unique(labels, return_counts=True)
    usual = np.median(counts) if len(counts) else 0
    return set(values[counts > _SWOLLEN * usual].tolist())


def split_classes(
    features: Features,
    labels: npt.NDArray[np.integer],
    *,
    ashman: bool = False,
) -> Split:
    """Find the classes whose images fall into two clusters.

    Args:
        features: ``(N, D)`` activations of the infected model. A row that is not finite belongs
            to an image that could not be read.
        labels: ``(N,)``, as the training set has them.
        ashman: see :func:`pbe_fast.erase._clusters.two_gaussians`.
    """
    space = Space.of(features, labels)
    second = np.zeros(len(labels), bool)  # in the smaller cluster of its class
    found: dict[int, Mixture] = {}
    for _ in range(_PASSES if space.members else 0):
        space = space.whitened(second)
        found, second = {}, np.zeros(len(labels), bool)
        for label, ids in space.large():
            mixture = two_gaussians(first_component(space.rows(ids)), ashman=ashman)
            if mixture and mixture.falls_apart:
                found[label] = mixture
                second[ids] = mixture.odds > 0
    split = _split(space, found)
    return replace(split, apart=_apart(space, split)) if found else split


def look_again(space: Space, split: Split, losses: npt.NDArray[np.floating]) -> Split:
    """Look at the classes that seemed whole along the direction to their hardest images.

    Args:
        space: whitened by what :func:`split_classes` found.
        split: that.
        losses: ``(N,)`` of the labels, by a model that did not learn most of the poison.

    Returns:
        the classes that fall apart now, without those that did before.
    """
    found: dict[int, Mixture] = {}
    known = {found_before.label for found_before in split.classes}
    for label, ids in space.large():
        if label not in known:
            of_class = np.nan_to_num(losses[ids])
            hardest = of_class > np.quantile(of_class, 1 - _HARD)
            mixture = cluster_around(space.rows(ids), hardest)
            if mixture is not None:
                found[label] = mixture
    return _split(space, found)


def _split(space: Space, found: dict[int, Mixture]) -> Split:
    """As it is handed out."""
    log_odds = np.full(len(space.features), np.nan, np.float32)
    for label, ids in space.members.items():
        log_odds[ids] = found[label].odds.clip(-MOST, MOST) if label in found else -MOST
    classes = (
        ClassSplit(label, len(m.odds), float((m.odds > 0).mean()), m.gain, m.separation)
        for label, m in found.items()
    )
    return Split(log_odds, np.zeros(len(log_odds), bool), tuple(classes))


def _apart(space: Space, split: Split) -> Mask:
    """See :attr:`Split.apart`."""
    apart, second = np.zeros(len(space.features), bool), split.log_odds > 0
    space = space.whitened(second)
    for label in (found.label for found in split.classes):
        ids = space.members[label]
        for cluster in (ids[second[ids]], ids[~second[ids]]):
            if len(cluster) < LEAST:
                continue
            mixture = two_gaussians(first_component(space.rows(cluster)))
            if mixture and mixture.falls_apart_on_a_hint:
                apart[cluster] = mixture.odds > 0
    return apart
