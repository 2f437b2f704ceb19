"""Where arithmetic happens: the models and the data of one process, and units of work on them.

The same object works in this process and in each process of a fleet.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pbe_fast._jobs import StepLogger, Tester, open_data
from pbe_fast.adversary import Miner
from pbe_fast.adversary.examples import shard_examples
from pbe_fast.analysis.answers import Attacked, answer_shards, chosen
from pbe_fast.config import ProbeConfig, PurifyConfig
from pbe_fast.data.loader import ImageData, Quarantine
from pbe_fast.data.mined import Mined
from pbe_fast.data.shards import Sample
from pbe_fast.device import Device
from pbe_fast.erase import (
    Activations,
    Agreement,
    Measure,
    Outcome,
    Place,
    make_pgd,
    score_shards,
)
from pbe_fast.erase.identify import Scores
from pbe_fast.errors import ConfigError
from pbe_fast.evaluate import Counts, count
from pbe_fast.models import Classifier
from pbe_fast.parallel import Share
from pbe_fast.progress import Clock, Progress
from pbe_fast.training import Position, Stage, fit
from pbe_fast.triggers.poisoning import load_truth

__all__ = ["Hooks", "Sets", "Site", "open_sets"]

Ids = npt.NDArray[np.int64]
Truth = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sets:
    """The opened data.

    Attributes:
        train: the set that is scored.
        clean: the set of AFT.
        truth: which samples of ``train`` are poisoned.
        mined: adversarial examples of the set that is fine-tuned on.
    """

    train: ImageData | None
    clean: ImageData | None
    truth: Truth | None
    mined: Mined | None = None

    @property
    def some(self) -> ImageData:
        """Either of them."""
        data = self.train or self.clean
        if data is None:
            raise ConfigError("neither data.train nor data.clean is given.")
        return data

    @property
    def opened(self) -> list[ImageData]:
        """All that there are."""
        mined = self.mined.data if self.mined else None
        return [data for data in (self.train, self.clean, mined) if data is not None]


def open_sets(config: PurifyConfig, quarantine: Quarantine) -> Sets:
    """Open what the configuration names."""
    data = config.data
    train = open_data(data.train, data, quarantine) if data.train else None
    clean = open_data(data.clean, data, quarantine) if data.clean else None
    truth = load_truth(data.truth, train.manifest) if data.truth and train else None
    if train and clean and train.manifest.num_classes != clean.manifest.num_classes:
        raise ConfigError(
            f"{data.train} has {train.manifest.num_classes} classes, {data.clean} "
            f"{clean.manifest.num_classes}. Convert both with the same classes (--classes-from)."
        )
    tuned = clean if config.method == "aft" else train
    mined = None
    if data.mined and tuned:
        mined = Mined.of(open_data(data.mined, data, quarantine), tuned)
    return Sets(train, clean, truth, mined)


@dataclass(frozen=True)
class Hooks:
    """What fine-tuning tells while it runs.

    Attributes:
        event: a line for ``metrics.jsonl``.
        checkpoint: a place to go on from; the current weights belong to it.
        say: a line for the log.
        stop: whether to stop now.
    """

    event: Callable[[Mapping[str, object]], None]
    checkpoint: Callable[[Position], None]
    say: Callable[[str], None]
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Site:
    """One process' models, data and device.

    Attributes:
        infected: the model as it was given; compared with, never changed.
        model: the current weights.
    """

    config: PurifyConfig
    sets: Sets
    infected: Classifier
    model: Classifier
    tester: Tester
    device: Device

    @property
    def data(self) -> ImageData:
        """What is fine-tuned on."""
        data = self.sets.clean if self.config.method == "aft" else self.sets.train
        return data or self.sets.some

    def finetune(
        self,
        stage: Stage,
        place: Place,
        hooks: Hooks,
        *,
        progress: Progress,
        clock: Clock,
        share: Share | None = None,
    ) -> None:
        """Train the current weights on ``place.subset``, from its position to the stage's end."""
        logger = StepLogger(hooks.event, stage.name, stage.round)

        def checkpoint(position: Position) -> None:
            logger.flush()
            hooks.checkpoint(position)

        def on_epoch(epochs: int) -> None:
            logger.flush()
            if epochs < stage.epochs and epochs % max(1, stage.epochs // 5):
                return  # the curve needs no more than about five points a round
            if share is None or share.rank == 0:
                self._curve_point(stage, epochs, hooks)
            images = len(place.subset)
            progress.phase(stage.name, stage.epochs * images, epochs * images)

        fit(
            self.model,
            self.data,
            place.subset,
            stage,
            self.device,
            labels=place.labels,
            pgd=None if self.sets.mined else make_pgd(self.config.adversary),
            mined=self.sets.mined,
            seed=self.config.seed,
            start=place.position,
            progress=progress,
            clock=clock,
            on_step=logger,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
            checkpoint_seconds=self.config.checkpoint_seconds,
            say=hooks.say,
            share=share,
            stop=hooks.stop,
        )

    def _curve_point(self, stage: Stage, epochs: int, hooks: Hooks) -> None:
        result = self.tester.sample(self.model, self.device)
        if result is not None:
            line: dict[str, Any] = {"event": "evaluation", "round": stage.round, "epoch": epochs}
            hooks.event({**line, **result.as_dict()})

    def score(
        self, look: Hashable, shards: Sequence[int], advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Scores]]:
        """See :func:`pbe_fast.erase.score_shards`; for a scan :func:`answer_shards`."""
        data = self.sets.train
        if data is None:
            raise ValueError("there is no training set to score")
        if isinstance(look, ProbeConfig):
            if look not in self._attacked:
                ids = chosen(data.manifest.labels, look.per_class, self.config.seed)
                self._attacked[look] = Attacked(look, self.infected, self.device), ids
            size = self.config.eval_batch_size
            return answer_shards(
                *self._attacked[look], data, shards, batch_size=size, advance=advance
            )
        infected, model = self.infected.eval(), self.model.eval()
        measure: Measure
        match look:
            case "agreement":
                measure = Agreement(infected, model)
            case "outcome":
                measure = Outcome(model)
            case _:
                measure = self._activations
        return score_shards(
            measure,
            data,
            self.device,
            shards,
            batch_size=self.config.eval_batch_size,
            advance=advance,
        )

    def count(self, current: bool, ids: Ids, advance: Callable[[int], None]) -> Counts:
        """ACC and ASR of the current or the infected model on some test images."""
        if self.tester.data is None:
            raise ValueError("there are no test images")
        return count(
            self.model if current else self.infected,
            self.tester.data,
            self.device,
            ids,
            attack=self.tester.attack,
            batch_size=self.config.eval_batch_size,
            advance=advance,
        )

    def mine(self, shard: int, advance: Callable[[int], None]) -> Iterator[Sample]:
        """Examples of the infected model, one for each image of a shard of :attr:`data`.

        See :func:`pbe_fast.adversary.examples.shard_examples`.
        """
        return shard_examples(
            self._miner,
            self.data,
            shard,
            batch_size=self.config.eval_batch_size,
            seed=self.config.seed,
            advance=advance,
        )

    @cached_property
    def _activations(self) -> Activations:
        """Kept, as it looks at the network before the first shard; the infected model stays."""
        assert self.sets.train is not None
        return Activations(self.infected, self.device, self.sets.train.size)

    @cached_property
    def _attacked(self) -> dict[ProbeConfig, tuple[Attacked, Ids]]:
        """Kept, as it copies the infected model."""
        return {}

    @cached_property
    def _miner(self) -> Miner:
        """Kept, as it compiles and records what it runs."""
        return Miner(make_pgd(self.config.adversary), self.infected, self.device)
