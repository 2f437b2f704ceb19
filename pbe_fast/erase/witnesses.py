"""What several witnesses together say of single images, none of which can be trusted alone.

A backdoor leads each class to one label. So where many images show another class than their label,
which class leads to which label can be told from those of which two witnesses say the same, and
then a single image that shows the class that leads to its label is far more suspect than one that
shows any other (:func:`sources`, :func:`weigh`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pbe_fast.erase._classes import LIKELY, TELLING, Classes
from pbe_fast.erase._space import Floats, Ids, Mask, Space
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.trigger import facts_of_many, find_triggered

__all__ = ["Judged", "Weighed", "judge_images", "sources", "weigh"]

_STEPS = 100
_PRIOR = 20.0  # images of each class that are as those of all
_EXPECTED = 0.5  # of the triggered images of a class, by how many there are of all


@dataclass(frozen=True)
class Weighed:
    """What they say.

    Attributes:
        log_odds: ``(N,)`` of being triggered.
        rate: share of triggered images.
        triggered: of each witness, the share of the triggered images of which it says each thing,
            in the classes where the first one speaks.
        others: the same of the others; more was told of these, see :func:`weigh`.
    """

    log_odds: Floats
    rate: float
    triggered: list[list[float]]
    others: list[list[float]]


@dataclass(frozen=True)
class Judged:
    """What becomes of images.

    Attributes:
        suspects, waiting: ``(N,)`` bool.
        shows: ``(N,)``, labels that suspects get.
        facts: for ``metrics.json``.
    """

    suspects: Mask
    waiting: Mask
    shows: Ids
    facts: dict[str, Any]


def judge_images(
    classes: Classes, space: Space, outcome: Scores, suspects: Mask, likely: Mask
) -> Judged | None:
    """Where there is a trigger for every label, image by image; None if hardly any is suspect.

    One witness is where the infected model puts it within its class: in the smaller cluster, or
    along the trigger. Another is the class that it puts it nearest to, and the third is the
    partly purified model. The last two know three answers: the label, a class that the
    backdoor leads to this label, and any other. What the first one accuses waits at least.

    Args:
        space: the infected model's.
        outcome: ``(N, 2)``, of the partly purified model.
        suspects: so far; those that show something else make the direction of the trigger.
        likely: in the smaller cluster of a class that seemed whole.
    """
    labels, known = classes.labels, classes.known
    apart = classes.second | likely
    apart |= find_triggered(space, suspects, classes.differs(outcome), likely) > 0
    shown = np.nan_to_num(outcome[:, 1], nan=-1).astype(np.int64)
    nearest, margin = space.nearest(space.middles(apart))
    leads = sources(labels, nearest, shown, margin, classes.num_classes)
    led = [leads[seen, labels] > 0 for seen in (nearest, shown)]
    said = [
        np.where(seen == labels, 0, np.where(leading, 1, 2))
        for seen, leading in zip((nearest, shown), led, strict=True)
    ]
    weighed = weigh(np.stack([apart, *said], 1)[known], labels[known])
    log_odds = np.full(len(known), -np.inf)
    log_odds[known] = weighed.log_odds
    suspects = log_odds > LIKELY
    if suspects.sum() < TELLING:
        return None
    waiting = known & ~suspects & (apart | (log_odds > -LIKELY))
    facts = facts_of_many(space, suspects, outcome[:, 1])
    shows = shown
    if facts["trigger"]:  # wrong labels come from anywhere, a trigger's from a class or two
        loudest = np.where(leads.max(0) > 0, leads.argmax(0), -1)[labels]
        # What both see elsewhere may be a photograph that is hard for both.
        shows = np.select(
            [led[1], led[0], (loudest >= 0) & (nearest == shown), loudest >= 0],
            [shown, nearest, labels, loudest],
            shown,
        )
    worth = {key: getattr(weighed, key) for key in ("rate", "triggered", "others")}
    return Judged(suspects, waiting, shows, {**facts, "witnesses": worth})


def sources(
    labels: npt.NDArray[np.integer], nearest: Ids, shown: Ids, margin: Floats, classes: int
) -> Floats:
    """Which classes a backdoor leads to which label.

    Each class leads to one label at most: the one for which most speaks.

    Args:
        labels: ``(N,)`` in ``range(classes)``, as the training set has them.
        nearest, shown: ``(N,)``, classes by two witnesses. Images of which both name the same class
            that is not their label speak for this class leading to that label.
        margin: ``(N,)``, at least 0: how loudly.
        classes: K.

    Returns:
        ``(K, K)``: how much speaks for a class (first) leading to a label (second); 0 where it does
        not.
    """
    agreed = (nearest == shown) & (nearest != labels) & (nearest >= 0)
    speaks = np.zeros((classes, classes))
    np.add.at(speaks, (nearest[agreed], labels[agreed]), margin[agreed])
    most = np.arange(classes) == speaks.argmax(1)[:, None]
    return np.where(most, speaks, 0.0)


def weigh(said: Ids, labels: npt.NDArray[np.integer]) -> Weighed:
    """How much each of at least three witnesses is worth shows in how often they agree.

    Images are of two kinds, and of an image each witness says something by its kind (Dawid & Skene
    1979): expectation maximisation from what most of them do not acquit. What the second and later
    ones say of images that are not triggered goes together, as an image that is hard for one of
    them is for the others; it is told by those that the first one acquits. Some classes are hard as
    a whole. Of those in which the first witness accuses as many as could be expected, what the
    others say of such images is found again, class by class; elsewhere nothing would tell it from
    what they say of triggered ones.

    Args:
        said: ``(N, W)``, by each witness; 0 acquits, and each other number says something else.
        labels: ``(N,)`` from 0, the class of each image.
    """
    rows, which, times = np.unique(
        np.column_stack([labels, said]), axis=0, return_inverse=True, return_counts=True
    )
    classes, told = rows[:, 0], rows[:, 1:]
    count = classes.max(initial=0) + 1
    share = (2 * (told > 0).sum(1) > told.shape[1]).astype(float)
    weighed = _maximise(told, times, np.zeros_like(classes), share)
    log_odds, rate = weighed.log_odds.copy(), weighed.rate
    accused = np.bincount(classes, times * _share(log_odds) * (told[:, 0] > 0), count)
    speaks = (accused > _EXPECTED * rate * np.bincount(classes, times, count))[classes]
    if speaks.any():
        weighed = _maximise(told[speaks], times[speaks], classes[speaks], _share(log_odds[speaks]))
        log_odds[speaks] = weighed.log_odds
    return replace(weighed, log_odds=log_odds[which.reshape(-1)], rate=rate)


def _maximise(told: Ids, times: Ids, classes: Ids, share: Floats) -> Weighed:
    """Expectation maximisation.

    Args:
        told: ``(R, W)``, what was said.
        times: ``(R,)``, of so many images.
        classes: ``(R,)``, of this class.
        share: ``(R,)`` of them that are triggered, to begin with.
    """
    heard = [one[:, None] == np.arange(one.max(initial=1) + 1) for one in told.T]
    together = np.unique(told[:, 1:], axis=0, return_inverse=True)[1].reshape(-1)
    of_others = [heard[0], together[:, None] == np.arange(together.max(initial=0) + 1)]
    for _ in range(_STEPS):
        rate = ((times * share).sum() + 1) / (times.sum() + 2)
        log_odds = np.full(len(told), np.log(rate / (1 - rate)))
        for one in heard:
            log_odds += one @ np.log(_rates(one, times * share))
        rest = times * (1 - share)
        for one, images in zip(of_others, (rest, rest * (told[:, 0] == 0)), strict=True):
            of_class = np.tile(_PRIOR * _rates(one, images), (classes.max(initial=0) + 1, 1))
            np.add.at(of_class, classes, images[:, None] * one)
            of_class /= of_class.sum(1, keepdims=True)
            log_odds -= np.log((of_class[classes] * one).sum(1))
        before, share = share, _share(log_odds)
        if np.abs(share - before).max(initial=0.0) < 1e-6:
            break
    triggered, others = (
        [_rates(one, times * part).tolist() for one in heard] for part in (share, 1 - share)
    )
    return Weighed(log_odds, float(rate), triggered, others)


def _share(log_odds: Floats) -> Floats:
    share: Floats = 1 / (1 + np.exp(-log_odds))
    return share


def _rates(heard: npt.NDArray[np.bool_], images: Floats) -> Floats:
    """How often each thing is said; one image more of each sort, as none of a few says little."""
    rates: Floats = (images @ heard + 1) / (images.sum() + heard.shape[1])
    return rates
