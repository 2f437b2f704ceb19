"""The driver of purification: rounds of fine-tuning and identification (Algorithm 1, PBE).

It is written once. What executes a unit of work (fine-tune on these ids, score every image) is
a :class:`Worker`: one process here, a fleet elsewhere. AFT is the same driver with one round on
the clean set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pbe_fast.config import PbeConfig
from pbe_fast.data.augment import Augment
from pbe_fast.erase.identify import Scores, select_top
from pbe_fast.randomness import permutation
from pbe_fast.training import Position, Stage

__all__ = ["Place", "Round", "Selection", "Worker", "first_subset", "pbe_rounds", "run_rounds"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a purification stands; with the current weights, all that a new start needs.

    Attributes:
        subset: rising ids of what the round trains on.
        labels: of the subset, as it is trained; None for those of the training set.
    """

    round: int
    part: Literal["finetune", "score"]
    subset: Ids
    position: Position = field(default_factory=Position)
    labels: Ids | None = None


@dataclass(frozen=True)
class Selection:
    """What the next round trains on.

    Attributes:
        ids: rising.
        labels: of them; None for those of the training set.
        facts: to be kept with the round that they come from.
    """

    ids: Ids
    labels: Ids | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        stage: of fine-tuning.
        look: what is told of every training image after it (:mod:`pbe_fast.erase.identify`).
        select: the next round's subset, from that and from the place of this one, or None if there
            is nothing more to do; None for the last round.
        fresh: whether it begins with the infected model's weights again.
    """

    stage: Stage
    look: Literal["agreement", "outcome"]
    select: Callable[[Scores, Place], Selection | None] | None
    fresh: bool = False


class Worker(Protocol):
    """Executes units of work on the current weights, which it holds."""

    def restart(self) -> None:
        """Take the infected model's weights for the current ones."""

    def finetune(self, stage: Stage, place: Place) -> None:
        """Train on ``place.subset`` from ``place.position`` to the end of the stage."""

    def score(self, place: Place, look: Literal["agreement", "outcome"]) -> Scores | None:
        """What is told of every training image.

        None where there is no training set to score (AFT with a clean set alone).
        """

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep facts with what is known of the round that was scored last."""


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
            "agreement",
            None if keep_next is None else partial(_top, keep_next),
        )
        for index, keep_next in enumerate(keep)
    ]


def _top(share: float, scores: Scores, _: Place) -> Selection:
    return Selection(select_top(scores, share))


def first_subset(count: int, fraction: float, seed: int) -> Ids:
    """A random share of ``range(count)``, in file order."""
    chosen = max(1, round(fraction * count))
    return np.sort(permutation(count, seed, "first subset")[:chosen])


def run_rounds(
    rounds: list[Round], worker: Worker, place: Place, save: Callable[[Place], None]
) -> tuple[Scores | None, Place]:
    """Run the rounds from ``place`` on.

    Args:
        save: called whenever the place changes between units of work; what it keeps, together
            with the worker's weights, is enough to go on from there.

    Returns:
        what was told of the training set after the last round, None without one; and the place of
        that round.
    """
    scores: Scores | None = None
    for index in range(place.round, len(rounds)):
        if place.part == "finetune":
            if rounds[index].fresh and not (place.position.epoch or place.position.batch):
                worker.restart()
            worker.finetune(rounds[index].stage, place)
            place = Place(index, "score", place.subset, labels=place.labels)
            save(place)
        scores = worker.score(place, rounds[index].look)
        select = rounds[index].select
        if select is not None and scores is not None:
            chosen = select(scores, place)
            if chosen is None:
                break
            worker.note(chosen.facts)
            place = Place(index + 1, "finetune", chosen.ids, labels=chosen.labels)
            save(place)
    return scores, place
