"""What several witnesses together say of single images, none of which can be trusted alone.

A backdoor leads each class to one label. So where many images show another class than their label,
which class leads to which label can be told from those of which two witnesses say the same, and
then a single image that shows the class that leads to its label is far more suspect than one that
shows any other (:func:`sources`, :func:`weigh`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pbe_fast.erase._space import Floats, Ids

__all__ = ["Weighed", "sources", "weigh"]

_STEPS = 100


@dataclass(frozen=True)
class Weighed:
    """What they say.

    Attributes:
        log_odds: ``(N,)`` of being triggered.
        rate: share of triggered images.
        triggered: of each witness, the share of the triggered images of which it says each thing.
        others: the same of the others.
    """

    log_odds: Floats
    rate: float
    triggered: list[list[float]]
    others: list[list[float]]


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


def weigh(said: Ids) -> Weighed:
    """How much each of at least three witnesses is worth shows in how often they agree.

    Images are of two kinds, and of an image each witness says something by its kind alone (Dawid &
    Skene 1979). Expectation maximisation from what most of them do not acquit.

    Args:
        said: ``(N, W)``, by each witness; 0 acquits, and each other number says something else.
    """
    told, which, times = np.unique(said, axis=0, return_inverse=True, return_counts=True)
    share = (2 * (told > 0).sum(1) > told.shape[1]).astype(float)
    heard = [one[:, None] == np.arange(one.max(initial=1) + 1) for one in told.T]
    for _ in range(_STEPS):
        # One image more of each sort, as none of a few says little.
        rate = ((times * share).sum() + 1) / (times.sum() + 2)
        log_odds = np.full(len(told), np.log(rate / (1 - rate)))
        triggered: list[Floats] = []
        others: list[Floats] = []
        for one in heard:
            for rates, part in ((triggered, times * share), (others, times * (1 - share))):
                rates.append((part @ one + 1) / (part.sum() + one.shape[1]))
            log_odds += one @ np.log(triggered[-1] / others[-1])
        before, share = share, 1 / (1 + np.exp(-log_odds))
        if np.abs(share - before).max(initial=0.0) < 1e-6:
            break
    return Weighed(
        log_odds[which.reshape(-1)],
        float(rate),
        [rates.tolist() for rates in triggered],
        [rates.tolist() for rates in others],
    )
