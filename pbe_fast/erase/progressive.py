"""The driver of purification: rounds of fine-tuning and identification (Algorithm 1, PBE).

It is written once. What executes a unit of work (fine-tune on these ids, score every image) is
a :class:`Worker`: one process here, a fleet elsewhere. AFT is the same driver with one round on
the clean set.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pbe_fast.config import PbeConfig
from pbe_fast.data.augment import Augment
from pbe_fast.erase.identify import Scores, select_top
from pbe_fast.randomness import permutation
from pbe_fast.training import Position, Stage

__all__ = ["Place", "Round", "Worker", "first_subset", "pbe_rounds", "run_rounds"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """One round: a stage, and what share of the training set the next round trains on."""

    stage: Stage
    keep_next: float | None


@dataclass(frozen=True)
class Place:
    """Where a purification stands; with the current weights, all that a new start needs."""

    round: int
    part: Literal["finetune", "score"]
    subset: Ids
    position: Position = field(default_factory=Position)


class Worker(Protocol):
    """Executes units of work on the current weights, which it holds."""

    def finetune(self, stage: Stage, place: Place) -> None:
        """Train on ``place.subset`` from ``place.position`` to the end of the stage."""

    def score(self, place: Place) -> Scores | None:
        """Agreement of the infected and the current model on every training image.

        None where there is no training set to score (AFT with a clean set alone).
        """


def pbe_rounds(config: PbeConfig, augment: Augment, flip: bool) -> list[Round]:
    """The rounds of PBE: round 0 all adversarial, later ones in their first batches only."""
    keep = [*config.keep, None]
    return [
        Round(
            Stage.of(
                config,
                name=f"round {index}",
                round=index,
                augment=augment,
                flip=flip,
                adversarial_epochs=config.epochs if index == 0 else 0,
                adversarial_batches=config.adversarial_batches,
            ),
            keep_next,
        )
        for index, keep_next in enumerate(keep)
    ]


def first_subset(count: int, fraction: float, seed: int) -> Ids:
    """A random share of ``range(count)``, in file order."""
    chosen = max(1, round(fraction * count))
    return np.sort(permutation(count, seed, "first subset")[:chosen])


def run_rounds(
    rounds: list[Round], worker: Worker, place: Place, save: Callable[[Place], None]
) -> Scores | None:
    """Run the rounds from ``place`` on.

    Args:
        save: called whenever the place changes between units of work; what it keeps, together
            with the worker's weights, is enough to go on from there.

    Returns:
        the scores after the last round, the suspects' ranking; None without a training set.
    """
    scores: Scores | None = None
    for index in range(place.round, len(rounds)):
        if place.part == "finetune":
            worker.finetune(rounds[index].stage, place)
            place = Place(index, "score", place.subset)
            save(place)
        scores = worker.score(place)
        keep = rounds[index].keep_next
        if keep is not None and scores is not None:
            place = Place(index + 1, "finetune", select_top(scores, keep))
            save(place)
    return scores
