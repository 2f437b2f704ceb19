"""What Sieve says in the end: the ranking of the training set, and of a backdoor."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pbe_fast.erase._classes import Classes
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.progressive import Place

__all__ = ["KEPT", "SUSPECT", "UNDECIDED", "backdoor_found", "rank_images"]

# The highest scores of suspects, and of undecided images.
SUSPECT = -0.5
UNDECIDED = -0.25
KEPT = 0.05  # of the suspects with the label they came with, and the backdoor is not gone


def backdoor_found(
    classes: Classes, judged: Mapping[str, Any], outcome: Scores, place: Place, ranking: Scores
) -> dict[str, Any]:
    """What there is to say of a backdoor in the end.

    Args:
        judged: the facts of the last verdict: the labels ``poisoned`` and ``odd``, where it is of
            many classes whether there is a ``trigger``, and in ``witnesses`` what they are worth,
            and else the labels that are ``unlearned``.
        outcome, place: after the last round.
        ranking: of :func:`rank_images`.
    """
    labels, noise = judged["poisoned"], judged.get("trigger") is False
    poisoned = [] if noise else labels
    suspects = (ranking <= SUSPECT) & np.isin(classes.labels, poisoned)
    return {
        "found": bool(poisoned), "labels": poisoned, "mislabelled": labels if noise else [],
        "odd": judged["odd"], "judged": classes.can_judge(),
        "unlearned": sorted(classes.unlearned(poisoned, outcome, place)),
        "kept": float((~classes.differs(outcome))[suspects].mean()) if suspects.any() else None,
    }  # fmt: skip


def rank_images(
    classes: Classes, judged: Mapping[str, Any], outcome: Scores, place: Place, *, relabel: bool
) -> Scores:
    """``(N,)`` in [-1, 0], high for clean: suspects, undecided images and others, by loss.

    The first two were not trained with their labels. Undecided is what lies plainly in the
    trusted cluster of a poisoned class, where a model that is often wrong takes clean images
    for something else, what waited there as the class was not learned, and of what else waited
    what gets its label from the purified model: it is clean, or part of the backdoor is left.
    Doubtful images that get their label are neither.

    Args:
        judged, outcome, place: as for :func:`backdoor_found`.
        relabel: whether suspects were trained with other labels.
    """
    left, differs = classes.untrusted(place), classes.differs(outcome)
    doubtful = classes.doubtful(left)
    listed = left & (differs | ~doubtful)
    waited = np.isin(classes.labels, judged["odd"])
    plain, relabelled = np.zeros((2, len(left)), bool)
    relabelled[classes.relabelled_ids(place)] = True
    if "witnesses" in judged:  # who say more than the clusters do
        waited[:] = relabel  # without it nothing tells suspects from what waited
    else:
        plain = classes.trusted(left) & ~doubtful
        sides = classes.sides(left)
        for label in sides.keys() & judged.get("unlearned", ()):
            plain |= sides[label][0] & ~relabelled
    undecided = listed & (plain | (waited & ~relabelled & ~differs))
    loss = outcome[:, 0].astype(np.float64)
    share = loss / (1 + loss)
    suspicion = np.select(
        [undecided, listed],
        [-UNDECIDED + share * (UNDECIDED - SUSPECT), -SUSPECT + share * (1 + SUSPECT)],
        share * -UNDECIDED,
    )
    ranking: Scores = -suspicion.astype(np.float32)
    return ranking
