"""Units of work executed in this process: fine-tune the current weights, score every image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pbe_fast._jobs import StepLogger, Tester, fingerprint, restore_state
from pbe_fast.adversary import PGD
from pbe_fast.config import PurifyConfig
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.erase import Place, first_subset, make_pgd, score
from pbe_fast.erase.identify import Scores
from pbe_fast.errors import ConfigError
from pbe_fast.evaluate import auroc
from pbe_fast.models import Classifier
from pbe_fast.progress import Clock, Progress
from pbe_fast.run_directory import RunDirectory
from pbe_fast.training import Position, Stage, fit

__all__ = ["LocalWorker", "Sets"]

Ids = npt.NDArray[np.int64]
Truth = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sets:
    """The opened data: the set that is scored, the clean one, and which samples are poisoned."""

    train: ImageData | None
    clean: ImageData | None
    truth: Truth | None

    @property
    def some(self) -> ImageData:
        """Either of them."""
        data = self.train or self.clean
        if data is None:
            raise ConfigError("neither data.train nor data.clean is given.")
        return data


class LocalWorker:
    """Executes the units of work in this process, and keeps what a new start needs."""

    def __init__(
        self,
        config: PurifyConfig,
        run: RunDirectory,
        sets: Sets,
        infected: Classifier,
        model: Classifier,
        tester: Tester,
        device: Device,
        progress: Progress,
    ) -> None:
        self.config, self.run, self.sets, self.tester = config, run, sets, tester
        self.infected, self.model = infected, model
        self.device, self.progress = device, progress
        self.pgd: PGD = make_pgd(config.adversary)
        self.inputs = fingerprint(config.model.checkpoint, sets.train, sets.clean)
        self.clock = Clock()
        self.rounds: list[dict[str, Any]] = []
        self.infected_result: dict[str, float] | None = None
        device.place(infected)
        device.place(model)

    @property
    def data(self) -> ImageData:
        """What is fine-tuned on."""
        data = self.sets.clean if self.config.method == "aft" else self.sets.train
        return data or self.sets.some

    def first_ids(self) -> Ids:
        """The first subset: of the clean set for AFT, of the training set for PBE."""
        aft = self.config.method == "aft"
        share = self.config.data.clean_fraction if aft else self.config.pbe.initial_fraction
        return first_subset(len(self.data.manifest), share, self.config.seed)

    def finetune(self, stage: Stage, place: Place) -> None:
        """See :class:`pbe_fast.erase.Worker`."""
        logger = StepLogger(self.run, stage.name, stage.round)
        current = place

        def checkpoint(position: Position) -> None:
            logger.flush()
            self.save(Place(current.round, "finetune", current.subset, position))

        def on_epoch(epochs: int) -> None:
            logger.flush()
            if epochs < stage.epochs and epochs % max(1, stage.epochs // 5):
                return  # the curve needs no more than about five points a round
            result = self.tester.sample(self.model, self.device)
            if result is not None:
                line = {"event": "evaluation", "round": stage.round, "epoch": epochs}
                self.run.event({**line, **result.as_dict()})
            images = len(place.subset)
            self.progress.phase(stage.name, stage.epochs * images, epochs * images)

        fit(
            self.model,
            self.data,
            place.subset,
            stage,
            self.device,
            pgd=self.pgd,
            seed=self.config.seed,
            start=place.position,
            progress=self.progress,
            clock=self.clock,
            on_step=logger,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
            checkpoint_seconds=self.config.checkpoint_seconds,
            say=self.run.logger.info,
        )

    def score(self, place: Place) -> Scores | None:
        """See :class:`pbe_fast.erase.Worker`."""
        facts: dict[str, Any] = {"round": place.round, "subset": len(place.subset)}
        result = self.tester.sample(self.model, self.device)
        facts |= result.as_dict() if result else {}
        scores = None
        if self.sets.train is not None:
            with self.clock.time("score", len(self.sets.train.manifest)):
                scores = score(
                    self.infected,
                    self.model,
                    self.sets.train,
                    self.device,
                    batch_size=self.config.eval_batch_size,
                    phase=f"score {place.round}",
                    progress=self.progress,
                )
            if self.sets.truth is not None:
                area = auroc(scores, self.sets.truth)
                facts |= {} if area is None else {"auroc": area}
                if self.config.method == "pbe":
                    facts["subset_poisoned"] = int(self.sets.truth[place.subset].sum())
        self.rounds.append(facts)
        return scores

    def save(self, place: Place) -> None:
        """Keep the place and the current weights."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"momentum.{k}": v for k, v in place.position.momentum.items()}
        tensors["subset"] = torch.from_numpy(place.subset)
        self.run.save_state(
            tensors,
            {
                "round": place.round,
                "part": place.part,
                "epoch": place.position.epoch,
                "batch": place.position.batch,
                "seconds": self.clock.seconds,
                "images": self.clock.images,
                "rounds": self.rounds,
                "infected": self.infected_result,
                "inputs": self.inputs,
            },
        )

    def restore(
        self, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], rounds: int
    ) -> Place:
        """Take up what :meth:`save` kept.

        Raises:
            RunDirectoryError: the state is damaged, or about another model or other data.
        """
        position, self.clock = restore_state(self.run, self.model, tensors, header, self.inputs)
        try:
            self.rounds = [dict(facts) for facts in header["rounds"]]
            self.infected_result = header["infected"]
            place = Place(int(header["round"]), header["part"], _ids(tensors["subset"]), position)
            last = place.subset[-1] if len(place.subset) else -1
            known = place.part in ("finetune", "score") and 0 <= place.round < rounds
            rising = place.subset[:1].min(initial=0) >= 0 and (np.diff(place.subset) > 0).all()
            if not (known and rising and 0 <= last < len(self.data.ids)):
                raise ValueError("the round or the subset is impossible")
        except (KeyError, TypeError, ValueError) as error:
            raise self.run.damaged(repr(error)) from error
        return place


def _ids(subset: torch.Tensor) -> Ids:
    if subset.dtype != torch.int64 or subset.ndim != 1:
        raise ValueError("the subset is no list of ids")
    ids: Ids = subset.numpy()
    return ids
