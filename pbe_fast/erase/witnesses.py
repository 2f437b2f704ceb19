"""What several witnesses together say of single images, none of which can be trusted alone.

A backdoor leads each class to one label. So where many images show another class than their label,
which class leads to which label can be told from those of which two witnesses say the same, and
then a single image that shows the class that leads to its label is far more suspect than one that
shows any other (:func:`sources`, :func:`weigh`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Weighed", "sources", "weigh"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

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
) -> Ids:
    """Which class a backdoor leads to which label.

    Each class leads to one label at most: the one for which most speaks.

    Args:
        labels: ``(N,)`` in ``range(classes)``, as the training set has them.
        nearest, shown: ``(N,)``, classes by two witnesses. Images of which both name the same class
            that is not their label speak for this class leading to that label.
        margin: ``(N,)``, at least 0: how loudly.
        classes: K.

    Returns:
        ``(K,)``: of each label the class, or -1; of several that lead to it, that for which most
        speaks.
    """
    agreed = (nearest == shown) & (nearest != labels) & (nearest >= 0)
    speaks = np.zeros((classes, classes))
    np.add.at(speaks, (nearest[agreed], labels[agreed]), margin[agreed])
    leads = speaks == speaks.max(1, keepdims=True)
    speaks = np.where(leads, speaks, 0.0)
    return np.where(speaks.max(0) > 0, speaks.argmax(0), -1)


def weigh(said: Ids) -> Weighed:
    """How much each of at least three witnesses is worth shows in how often they agree.

    Images are of two kinds, and of an image each witness says something by its kind alone (Dawid &
    Skene 1979). Expectation maximisation from what most of them do not acquit.

    Args:
        said: ``(N, W)``, by each witness; 0 acquits, and each other number says something else.
    """
    share = (2 * (said > 0).sum(1) > said.shape[1]).astype(float)
    heard = [said[:, witness, None] == np.arange(said[:, witness].max(initial=1) + 1)
             for witness in range(said.shape[1])]  # fmt: skip
    for _ in range(_STEPS):
        # One image more of each sort, as none of a few says little.
        rate = (share.sum() + 1) / (len(share) + 2)
        log_odds = np.full(len(share), np.log(rate / (1 - rate)))
        triggered, others = [], []
        for one in heard:
            triggered.append((share @ one + 1) / (share.sum() + one.shape[1]))
            others.append(((1 - share) @ one + 1) / ((1 - share).sum() + one.shape[1]))
            log_odds += one @ np.log(triggered[-1] / others[-1])
        before, share = share, 1 / (1 + np.exp(-log_odds))
        if np.abs(share - before).max(initial=0.0) < 1e-6:
            break
    return Weighed(
        log_odds, float(rate), [t.tolist() for t in triggered], [o.tolist() for o in others]
    )
