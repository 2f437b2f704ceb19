"""What the model of round 0 says of what it was not trained on (step 3 of Sieve).

It has not learned those labels, so poisoned images it sees as what they show.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pbe_fast.erase._classes import DISAGREE, LIKELY, MORE, Classes, effective
from pbe_fast.erase._space import Mask, Space
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.split import ClassSplit
from pbe_fast.erase.trigger import part_shown

__all__ = ["Verdict", "judge_clusters", "judge_swollen"]

_DIVERSE = 1.5  # times as many labels, effectively
# Of the number of other labels, effectively: nearly poisoned classes of GTSRB showed 0.49 and 0.69
# of it in round 0, and clean ones up to 0.28 (bench/left_out.py). A trigger brings images of all
# classes, many of which a model takes for few others: so rare labels count.
_SPREAD = 0.37
_ORDER = 0.5
# Labels. Of few classes a clean one may show most others, as up to 7.0 with CIFAR-10; but of few
# classes none becomes nearly all poison by a small share of the data set.
_FEWEST = 8.0


@dataclass(frozen=True)
class Verdict:
    """Of a class that fell apart.

    Attributes:
        split: the class.
        whole: whether all of it was left out of round 0.
        measured: of the smaller and the larger cluster, the share that gets another label, or where
            all was left out the number of different labels (e to the power of their entropy).
        poisoned: ``smaller``, ``larger``, or ``unclear``.
    """

    split: ClassSplit
    whole: bool
    measured: tuple[float, float]
    poisoned: str

    def facts(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        small, large = self.measured
        told = {"whole": self.whole, "smaller": small, "larger": large, "poisoned": self.poisoned}
        return asdict(self.split) | told


def judge_clusters(classes: Classes, whole: Collection[int], outcome: Scores) -> list[Verdict]:
    """Of each class that fell apart.

    Args:
        whole: classes all of which was left out.
        outcome: ``(N, 2)``, see :class:`pbe_fast.erase.identify.Outcome`.
    """
    verdicts = []
    for split in classes.split.classes:
        seen = [outcome[mask, 1] for mask in classes.clusters(split.label)]
        poisoned = "unclear"
        if split.label in whole:
            small, large = (effective(labels) for labels in seen)
            if small > _DIVERSE * large and classes.diverse(seen[0]):
                poisoned = "smaller"
            elif large > _DIVERSE * small and classes.diverse(seen[1]):
                poisoned = "larger"
        else:
            small, large = (float((labels != split.label).mean()) for labels in seen)
            if small > DISAGREE and small > large + MORE:
                poisoned = "smaller"
        verdicts.append(Verdict(split, split.label in whole, (small, large), poisoned))
    return verdicts


def judge_swollen(
    classes: Classes, label: int, space: Space, outcome: Scores
) -> tuple[Mask, Mask, dict[str, Any]]:
    """Of a swollen class what is suspect, what waits, and what was measured.

    The model has not learned the label, so it takes images of a clean class for others, too,
    but for those that look like it: poisoned ones show what there is in the data.
    """
    here = (classes.labels == label) & classes.known
    differs = here & classes.differs(outcome)
    facts: dict[str, Any] = {
        "label": label,
        "differ": float(differs.sum() / here.sum()),
        "shown": effective(outcome[differs, 1], _ORDER),
        "possible": effective(classes.labels[classes.known & ~here], _ORDER),
    }
    least = max(_SPREAD * facts["possible"], _FEWEST)
    facts["poisoned"] = facts["differ"] > DISAGREE and facts["shown"] > least
    if not facts["poisoned"]:
        return np.zeros_like(here), np.zeros_like(here), facts
    parted = part_shown(space, label, outcome[:, 1])
    if parted is None:  # hardly any images of its own
        return differs, here & ~differs, facts
    triggered = here & (parted > 0)
    return triggered, here & ~triggered & (parted > -LIKELY), facts
