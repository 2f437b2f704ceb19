"""What is known of a trigger, once it was found in some images, tells of single ones.

What a trigger adds to the infected model's activations is much the same in all classes, so its
direction can be taken from some classes and looked for in others, where few images have it
(:func:`trigger_odds`), or from a class of which nearly all have it (:func:`part_shown`). Neither
needs a class to fall apart.
"""

import numpy as np
import numpy.typing as npt

from pbe_fast.erase._clusters import FOLDS, MOST, along_directions, first_component, two_gaussians
from pbe_fast.erase._space import LEAST, TINY, Features, Floats, Ids, Mask, Space
from pbe_fast.erase.split import Split

__all__ = ["part_shown", "trigger_odds"]

# Of what the others have along a trigger. Own images of two classes of GTSRB had 0.31 at most,
# clusters of nothing but triggered ones 0.64 and more.
_LESS = 0.5
_RAREST = 1e-3  # rate that can be told from a number of images
_MAD = 1.4826  # of a Gaussian's median absolute deviation, to its standard deviation


def trigger_odds(
    features: Features,
    labels: npt.NDArray[np.integer],
    split: Split,
    suspects: Mask,
    differs: Mask,
) -> npt.NDArray[np.float32]:
    """How likely each image has the trigger that suspects of many classes have.

    Two facts of an image count as if they were independent. One is where it lies along the
    direction from the middle of each class to its suspects that show something else than their
    label, on a Gaussian of those and one of all other images. The other is whether it shows
    something else itself. An image that lies behind the middle of the others counts as one there.

    Args:
        features, labels: as for :func:`pbe_fast.erase.split.split_classes`.
        split: what that has found.
        suspects: ``(N,)``.
        differs: ``(N,)``, images that a partly purified model takes for something else than their
            label.

    Returns:
        ``(N,)`` float32 in [-50, 50]: log odds, NaN where features are. Where fewer than 20
        suspects differ nothing is known, and all are -50.
    """
    space = Space.of(features, labels)
    known = np.zeros(len(labels), bool)
    for ids in space.members.values():
        known[ids] = True
    suspects = suspects & known
    triggered = suspects & differs
    others = known & ~suspects
    if triggered.sum() < LEAST or others.sum() < LEAST:
        return np.where(known, -MOST, np.nan).astype(np.float32)
    along = _along_trigger(space, space.whitener(split.log_odds > 0), triggered)
    middle = float(np.median(along[others]))
    spread = _MAD * float(np.median(np.abs(along[others] - middle)))
    with_it = (float(along[triggered].mean()), float(along[triggered].std()))
    ahead = np.maximum(along, middle)
    odds = _log_density(ahead, *with_it) - _log_density(ahead, middle, spread)
    rates = [float(differs[part].mean().clip(_RAREST, 1 - _RAREST)) for part in (suspects, others)]
    odds += np.where(differs, *(np.log(r / s) for r, s in (rates, (1 - rates[0], 1 - rates[1]))))
    odds += np.log(triggered.sum() / others.sum())
    return odds.clip(-MOST, MOST).astype(np.float32)


def _along_trigger(space: Space, whitener: Floats, triggered: Mask) -> Floats:
    """``(N,)``: how far each image is from the middle of its class along the trigger's direction.

    The middle is that of the images which are not known to be triggered, if there are any.
    """
    fold = np.zeros(len(triggered), int)
    sums = np.zeros((FOLDS, len(space.mean)))
    middles: dict[int, Floats] = {}
    for label, ids in space.members.items():
        rows = space.rows(ids) @ whitener
        here = triggered[ids]
        middles[label] = np.median(rows if here.all() else rows[~here], 0)
        fold[ids[here]] = np.arange(here.sum()) % FOLDS
        for index in range(FOLDS):
            part = rows[here & (fold[ids] == index)]
            sums[index] += (part - middles[label]).sum(0)
    along = np.full(len(triggered), np.nan)
    for label, ids in space.members.items():
        rows = space.rows(ids) @ whitener - middles[label]
        along[ids] = along_directions(rows, fold[ids], lambda index: sums.sum(0) - sums[index])
    return along


def _log_density(values: Floats, mean: float, deviation: float) -> Floats:
    """Of a Gaussian, up to the constant that all have."""
    deviation = deviation + TINY
    density: Floats = -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation)
    return density


def part_shown(
    features: Features,
    labels: npt.NDArray[np.integer],
    split: Split,
    label: int,
    shown: npt.NDArray[np.floating],
) -> npt.NDArray[np.float32] | None:
    """Part a class of which most seems to be triggered images of other classes.

    Its own images show a few labels, and among those that show one of them they are not few: there
    they form a cluster. It is theirs if it has less than half of what the images of the class have
    beside the means of the classes that they show, on average, which is the trigger.

    Args:
        features, labels: as for :func:`pbe_fast.erase.split.split_classes`.
        split: what that has found.
        label: the class.
        shown: ``(N,)``, labels by a model that was not trained on this class.

    Returns:
        ``(N,)`` float32 in [-50, 50]: log odds of being triggered, NaN for images of other classes
        and such that could not be read; None where no own images were found.
    """
    space = Space.of(features, labels)
    ids: Ids = space.members.get(label, np.empty(0, np.int64))
    others = [other for other in space.members if other != label]
    if len(ids) < LEAST or not others:
        return None
    whitener = space.whitener(split.log_odds > 0)
    means: dict[int, Floats] = {
        other: (space.rows(space.members[other]) @ whitener).mean(0) for other in others
    }
    middle: Floats = np.mean(list(means.values()), 0)  # for what shows a class without images
    rows, seen = space.rows(ids) @ whitener, np.nan_to_num(shown[ids], nan=-1).astype(int)
    added = rows - np.stack([means.get(one, middle) for one in seen.tolist()])
    fold = np.arange(len(ids)) % FOLDS
    along = along_directions(added, fold, lambda index: added[fold != index].mean(0))
    odds, found = np.full(len(ids), MOST), False
    for one in np.unique(seen):
        here = seen == one
        mixture = two_gaussians(first_component(rows[here])) if here.sum() >= LEAST else None
        if not mixture or not mixture.falls_apart:
            continue
        smaller = mixture.odds > 0
        ahead = along[here][smaller].mean() > along[here][~smaller].mean()
        own = ~smaller if ahead else smaller
        if along[here][own].mean() < _LESS * along[here][~own].mean():
            odds[here], found = mixture.odds if ahead else -mixture.odds, True
    if not found:
        return None
    parted = np.full(len(labels), np.nan, np.float32)
    parted[ids] = odds.clip(-MOST, MOST)
    return parted
