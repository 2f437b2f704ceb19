"""What is known of a trigger, once it was found in some images, tells of single ones.

What a trigger adds to the infected model's activations is much the same in all classes, so its
direction can be taken from some classes and looked for in others, where few images have it
(:func:`find_triggered`), or from a class of which nearly all have it (:func:`part_shown`). Neither
needs a class to fall apart. Much the same is not the same: where a model is often wrong, the images
of another class that are furthest along the trigger are only in part those that have it. But what
these share is the direction of that class.
"""

from math import lgamma, log, pi
from typing import Any

import numpy as np
import numpy.typing as npt

from pbe_fast.erase._clusters import (
    FOLDS,
    MOST,
    along_directions,
    cluster_ahead,
    cluster_around,
    first_component,
    two_gaussians,
)
from pbe_fast.erase._space import LEAST, TINY, Floats, Ids, Mask, Space

__all__ = ["find_triggered", "part_shown", "trigger_in_common"]

# Of what images of the class have along a trigger on average. Own images of a class of GTSRB had
# 0.30 at most, clusters of triggered ones 0.59 at least, with two triggers.
_LESS = 0.5
_APART = 2.0  # standard deviations of the images without a trigger, which a trigger adds at least
# The same beside what images show: at most 0.5 with one label in ten wrong, on GTSRB and drawn
# signs, and at least 1.8 with triggers for every label of GTSRB that models had hardly learned.
_COMMON = 1.0
_FURTHEST = 0.1  # of a class, its images that are furthest along a trigger
_STEPS = 4  # towards a cluster
_MAD = 1.4826  # of a Gaussian's median absolute deviation, to its standard deviation
_FREEDOM = 4  # of the Student distribution
# Logarithms of the constants of the two densities.
_GAUSSIAN = -0.5 * log(2 * pi)
_STUDENT = lgamma((_FREEDOM + 1) / 2) - lgamma(_FREEDOM / 2) - 0.5 * log(_FREEDOM * pi)


def find_triggered(
    space: Space, suspects: Mask, differs: Mask, hints: Mask
) -> npt.NDArray[np.float32]:
    """Look for the trigger that suspects of many classes have in all images.

    It has a direction, from the middle of each class to its suspects that show something else than
    their label, and another one from the middle of the class that each of these is nearest to. How
    far along either one an image is tells of it: those that made the direction have a Gaussian
    there, and those that are no suspects a Student distribution, as activations have long tails; an
    image behind the middle of these, or ahead of that of the others, counts as one there.

    A class may also fall into two clusters, of which the smaller one has the trigger: along either
    direction, or along the one to those of its images that are furthest along a trigger, and from
    there to the cluster that these are in, a few times. Of several splits that explains most.

    Args:
        space: of the infected model's activations, whitened.
        suspects: ``(N,)``.
        differs: ``(N,)``, images that a partly purified model takes for something else than their
            label.
        hints: ``(N,)``, images to look towards in any case.

    Returns:
        ``(N,)`` float32 in [-50, 50]: log odds of having it, the highest of all that; NaN for
        images that were not read. Nothing is known of a direction where fewer than 20 suspects
        differ or fewer than 20 images are no suspects, or where it does not set the two apart;
        then 0 but for images of a cluster that a hint led to.
    """
    known = space.known()
    suspects = suspects & known
    makers, others = suspects & differs, known & ~suspects
    odds: Floats = np.where(known, 0.0, np.nan)
    directions: list[Floats] = []
    tells = min(makers.sum(), others.sum()) >= LEAST
    middles = space.middles(suspects) if tells else {}
    for beside in (space.labels, space.nearest(middles)[0]) if tells else ():
        along = _along_trigger(space, middles, makers, beside)
        middle, spread, there = _places(along, makers, others)
        if spread < TINY or there - middle < _APART * spread:
            continue
        place, deviation = along.clip(middle, there), max(float(along[makers].std()), spread)
        single = _gaussian((place - there) / deviation, deviation)
        single -= _student((place - middle) / spread, spread)
        single += log(suspects.sum() / others.sum())
        odds = np.maximum(odds, single) if directions else single
        directions.append(along)
    for _, ids in space.large():
        lines = [along[ids] for along in directions]
        starts = [some for some in (hints[ids], *map(_furthest, lines)) if some.any()]
        if not starts:
            continue
        rows = space.rows(ids)
        found = [cluster_around(rows, some, _STEPS) for some in starts]
        found += [cluster_ahead(line) for line in lines]
        clusters = [mixture for mixture in found if mixture]
        if clusters:
            best = max(clusters, key=lambda mixture: mixture.gain)
            odds[ids] = np.maximum(odds[ids], best.odds)  # it may be one of photographs
    return odds.clip(-MOST, MOST).astype(np.float32)


def _furthest(along: Floats) -> Mask:
    """A tenth of a class; of a small one that is too little to look towards."""
    count = round(_FURTHEST * len(along))
    furthest: Mask = along >= np.partition(along, -count)[-count]
    return furthest


def trigger_in_common(space: Space, suspects: Mask, shown: npt.NDArray[np.floating]) -> bool | None:
    """Whether suspects of many classes have a trigger, and not only wrong labels.

    A trigger adds much the same to the activations of all its images. What an image with a wrong
    label has beside those of the class that it shows is nothing, or leads to its label, which is
    another direction for each class.

    Args:
        space, suspects: as for :func:`find_triggered`.
        shown: ``(N,)``, labels by a partly purified model.

    Returns:
        None where too few suspects show another label than theirs to tell.
    """
    known, labels = space.known() & np.isfinite(shown), space.labels
    makers, others = suspects & known & (shown != labels), known & ~suspects
    if min(makers.sum(), others.sum()) < LEAST:
        return None
    beside = np.where(known, shown, labels).astype(np.int64)
    along = _along_trigger(space, space.middles(suspects), makers, beside)
    middle, spread, there = _places(along, makers, others)
    return None if spread < TINY else there - middle > _COMMON * spread


def facts_of_many(space: Space, suspects: Mask, shown: npt.NDArray[np.floating]) -> dict[str, Any]:
    """What there is to say of suspects of many classes: a trigger, and the labels that it leads to.

    Args:
        space, suspects, shown: as for :func:`trigger_in_common`.
    """
    return {
        "trigger": trigger_in_common(space, suspects, shown),
        "poisoned": np.unique(space.labels[suspects]).tolist(),
    }


def _places(along: Floats, makers: Mask, others: Mask) -> tuple[float, float, float]:
    """The middle and the spread of images without a trigger, and the mean of those with one."""
    middle = float(np.median(along[others]))
    spread = _MAD * float(np.median(np.abs(along[others] - middle)))
    return middle, spread, float(along[makers].mean())


def _gaussian(z: Floats, deviation: float) -> Floats:
    """Log density where ``z`` is in standard deviations."""
    density: Floats = -0.5 * z**2 - log(deviation) + _GAUSSIAN
    return density


def _student(z: Floats, spread: float) -> Floats:
    """Log density of a Student distribution of this scale where ``z`` is in units of it."""
    density: Floats = -(_FREEDOM + 1) / 2 * np.log1p(z**2 / _FREEDOM) - log(spread) + _STUDENT
    return density


def _along_trigger(
    space: Space, middles: dict[int, Floats], makers: Mask, beside: npt.NDArray[np.integer]
) -> Floats:
    """``(N,)``: how far each image is from the middle of a class along the trigger's direction.

    Args:
        middles: of each class, without what is suspect.
        beside: ``(N,)``, which class that is.
    """
    elsewhere: Floats = np.mean(list(middles.values()), 0)

    def added(ids: Ids) -> Floats:
        return _beside(space.rows(ids), middles, elsewhere, beside[ids])

    fold = np.zeros(len(makers), int)
    by_class = np.concatenate(list(space.members.values()))  # so that no class is in one fold
    fold[by_class[makers[by_class]]] = np.arange(makers[by_class].sum()) % FOLDS
    sums = np.zeros((FOLDS, len(space.mean)))
    for ids in space.members.values():
        here = ids[makers[ids]]
        if not len(here):
            continue
        rows = added(here)
        for index in range(FOLDS):
            sums[index] += rows[fold[here] == index].sum(0)
    along = np.full(len(makers), np.nan)
    for ids in space.members.values():
        along[ids] = along_directions(
            added(ids), fold[ids], lambda index: sums.sum(0) - sums[index]
        )
    return along


def _beside(
    rows: Floats,
    middles: dict[int, Floats],
    elsewhere: Floats,
    classes: npt.NDArray[np.integer],
) -> Floats:
    """What rows have beside the middles of these classes, or beside ``elsewhere`` without one."""
    beside: Floats = rows - np.stack([middles.get(one, elsewhere) for one in classes.tolist()])
    return beside


def part_shown(
    space: Space, label: int, shown: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32] | None:
    """Part a class of which most seems to be triggered images of other classes.

    Its own images show a few labels, and among those that show one of them they are not few: there
    they form a cluster. It is theirs if it has less than half of what the images of the class have
    beside the means of the classes that they show, on average, which is the trigger. An image that
    shows the class itself may be either.

    Args:
        space: as for :func:`find_triggered`.
        label: the class.
        shown: ``(N,)``, labels by a model that was not trained on this class.

    Returns:
        ``(N,)`` float32 in [-50, 50]: log odds of being triggered, NaN for images of other classes
        and such that could not be read; None where no own images were found.
    """
    ids: Ids = space.members.get(label, np.empty(0, np.int64))
    others = [other for other in space.members if other != label]
    if len(ids) < LEAST or not others:
        return None
    means: dict[int, Floats] = {other: space.rows(space.members[other]).mean(0) for other in others}
    rows, seen = space.rows(ids), np.nan_to_num(shown[ids], nan=-1).astype(int)
    added = _beside(rows, means, np.mean(list(means.values()), 0), seen)
    fold = np.arange(len(ids)) % FOLDS
    along = along_directions(added, fold, lambda index: added[fold != index].mean(0))
    odds, found = np.where(seen == label, 0.0, MOST), False
    for one in np.unique(seen):
        here = seen == one
        mixture = two_gaussians(first_component(rows[here])) if here.sum() >= LEAST else None
        if not mixture or not mixture.falls_apart:
            continue
        smaller, where = mixture.odds > 0, along[here]
        ahead = where[smaller].mean() > where[~smaller].mean()
        own = ~smaller if ahead else smaller
        if where[own].mean() < _LESS * along.mean():
            odds[here], found = mixture.odds if ahead else -mixture.odds, True
    if not found:
        return None
    parted = np.full(len(space.labels), np.nan, np.float32)
    parted[ids] = odds.clip(-MOST, MOST)
    return parted
