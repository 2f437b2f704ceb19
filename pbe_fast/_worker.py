"""The worker of a purification: what the driver asks for, done somewhere, and kept.

:class:`RunWorker` knows the run directory and what a new start needs. Where the arithmetic is done
is an :class:`Executor`: this process (:class:`InProcess`), or a fleet.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pbe_fast._jobs import code_versions, fingerprint, require_same_code, restore_state
from pbe_fast._parts import Parts
from pbe_fast._site import Hooks, Site
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.device import Device
from pbe_fast.erase import Place, ScoreFiles, first_subset
from pbe_fast.erase.identify import Scores
from pbe_fast.errors import RunDirectoryError
from pbe_fast.evaluate import Accuracy, Counts, auroc
from pbe_fast.progress import Clock, Progress, StoppedError
from pbe_fast.run_directory import RunDirectory, tensors_digest
from pbe_fast.training import Position, Stage

__all__ = ["SCORES_NAME", "Executor", "Fleet", "InProcess", "RunWorker", "executor_on", "gathered"]

SCORES_NAME = "scores"

Ids = npt.NDArray[np.int64]


class Executor(Protocol):
    """Where the arithmetic of a unit of work is done."""

    @property
    def device(self) -> Device:
        """How models are run there."""

    def finetune(
        self, stage: Stage, place: Place, hooks: Hooks, progress: Progress, clock: Clock
    ) -> None:
        """Train the run's current weights from ``place`` to the end of the stage.

        The weights of the run's model are current whenever ``hooks.checkpoint`` is called, and
        at the end.
        """

    def score(
        self, files: ScoreFiles, shards: Sequence[int], progress: Progress, stop: Callable[[], bool]
    ) -> None:
        """Score some shards; afterwards each of them has its file.

        Raises:
            StoppedError: ``stop`` said so.
        """

    def count(self, current: bool, ids: Ids, progress: Progress) -> Counts:
        """ACC and ASR of the current or the infected model on some test images."""

    def mine(
        self, parts: Parts, shards: Sequence[int], progress: Progress, stop: Callable[[], bool]
    ) -> None:
        """Mine some shards with the infected model; afterwards each of them has its part.

        Raises:
            StoppedError: ``stop`` said so.
        """


class Fleet(Protocol):
    """Other processes that do the arithmetic; ``pipelines.fleet`` has one."""

    def choose_device(self, *args: Any, **kwargs: Any) -> Device:
        """As :func:`pbe_fast.device.choose_device`, on a worker's device."""

    def executor(self, site: Site, run: RunDirectory) -> AbstractContextManager[Executor]:
        """Workers with the site's configuration, models and data; ended after the block."""


@contextmanager
def executor_on(fleet: Fleet | None, site: Site, run: RunDirectory) -> Iterator[Executor]:
    """A fleet's workers, or this process."""
    if fleet is None:
        site.device.place(site.infected)
        site.device.place(site.model)
        yield InProcess(site)
        return
    with fleet.executor(site, run) as executor:
        yield executor


class InProcess:
    """Everything in this process."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def device(self) -> Device:
        """See :class:`Executor`."""
        return self.site.device

    def finetune(
        self, stage: Stage, place: Place, hooks: Hooks, progress: Progress, clock: Clock
    ) -> None:
        """See :class:`Executor`."""
        self.site.finetune(stage, place, hooks, progress=progress, clock=clock)

    def score(
        self, files: ScoreFiles, shards: Sequence[int], progress: Progress, stop: Callable[[], bool]
    ) -> None:
        """See :class:`Executor`."""
        manifest = self.site.sets.some.manifest
        for shard, scores in self.site.score(files.look, shards, progress.advance):
            files.write(manifest, shard, scores)
            if stop():
                raise StoppedError

    def count(self, current: bool, ids: Ids, progress: Progress) -> Counts:
        """See :class:`Executor`."""
        return self.site.count(current, ids, progress.advance)

    def mine(
        self, parts: Parts, shards: Sequence[int], progress: Progress, stop: Callable[[], bool]
    ) -> None:
        """See :class:`Executor`."""

        def advance(images: int) -> None:
            progress.advance(images)
            if stop():  # a shard may take long, and whoever stops a job waits for a minute
                raise StoppedError

        for shard in shards:
            parts.write(self.site.data.manifest, shard, self.site.mine(shard, advance))


def gathered(
    files: ScoreFiles,
    manifest: Manifest,
    images: Sequence[int],
    executor: Executor,
    *,
    phase: str,
    progress: Progress,
    stop: Callable[[], bool],
    clock: Clock,
) -> Scores:
    """What is told of all images, read from its files once each shard has one.

    Args:
        images: of each shard, how many are looked at. A shard without any needs no file, and its
            rows are NaN.
        phase: what it is called; its first word on the clock.

    Returns:
        ``(N, ...)``, a row for each of the manifest's images.

    Raises:
        StoppedError: ``stop`` said so; files that are done are kept.
        RunDirectoryError: a file was written, but is not to be seen here.
    """
    ends = np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)
    scores = np.empty(0, np.float32)

    def take(shard: int) -> bool:
        """Into one array, in which activations of a large set are gigabytes already."""
        nonlocal scores
        part = files.read(manifest, shard)
        if part is None:
            return False
        if not len(scores):
            scores = np.full((len(manifest), *part.shape[1:]), np.nan, part.dtype)
        scores[ends[shard] - len(part) : ends[shard]] = part
        return True

    wanted = [shard for shard, count in enumerate(images) if count]
    missing = [shard for shard in wanted if not take(shard)]
    left = sum(images[shard] for shard in missing)
    progress.phase(phase, sum(images), sum(images) - left)
    if missing:
        began = time.perf_counter()
        try:
            executor.score(files, missing, progress, stop)
        finally:  # a stop also, whose seconds and images count
            done = sum(images[shard] for shard in missing if files.path(shard).exists())
            clock.add(phase.partition(" ")[0], time.perf_counter() - began, done)
    for shard in missing:
        if not take(shard):
            raise RunDirectoryError(
                f"{files.path(shard)}: the scores of {manifest.shards[shard].name} were "
                "written but cannot be read back. Every worker and the driver must see the "
                "same --out (a shared file system)."
            )
    return scores


class RunWorker:
    """Has units of work done, and keeps in the run directory what a new start needs."""

    def __init__(
        self,
        site: Site,
        run: RunDirectory,
        executor: Executor,
        progress: Progress,
        stop: Callable[[], bool],
        accept_changes: bool = False,
    ) -> None:
        self.config, self.sets = site.config, site.sets
        self.infected, self.model = site.infected, site.model
        self.tester, self.data = site.tester, site.data
        self.run, self.executor = run, executor
        self.progress, self.stop, self.accept_changes = progress, stop, accept_changes
        sets = site.sets
        self.inputs = fingerprint(site.config.model.checkpoint, *sets.opened)
        self.clock = Clock()
        self.rounds: list[dict[str, Any]] = []
        self.infected_result: dict[str, float] | None = None

    def first_ids(self) -> Ids:
        """The first subset: of the clean set for AFT, of the training set for PBE."""
        aft = self.config.method == "aft"
        share = self.config.data.clean_fraction if aft else self.config.pbe.initial_fraction
        return first_subset(len(self.data.manifest), share, self.config.seed)

    def restart(self) -> None:
        """See :class:`pbe_fast.erase.Worker`."""
        self.model.load_state_dict(self.infected.state_dict())

    def finetune(self, stage: Stage, place: Place) -> None:
        """See :class:`pbe_fast.erase.Worker`."""

        def checkpoint(position: Position) -> None:
            self.save(replace(place, position=position))

        hooks = Hooks(self.run.event, checkpoint, self.run.logger.info, self.stop)
        self.executor.finetune(stage, place, hooks, self.progress, self.clock)

    def score(self, place: Place, look: Literal["agreement", "outcome"]) -> Scores | None:
        """See :class:`pbe_fast.erase.Worker`."""
        facts: dict[str, Any] = {"round": place.round, "subset": len(place.subset)}
        if self.tester.curve is not None:
            facts |= self._accuracy(True, self.tester.curve, "curve").as_dict()
        scores = None
        if self.sets.train is not None:
            digest = tensors_digest(self.model.state_dict())
            scores = self._scores(self.sets.train, look, f"round-{place.round}", digest)
            if self.sets.truth is not None:
                area = auroc(scores if look == "agreement" else -scores[:, 0], self.sets.truth)
                facts |= {} if area is None else {"auroc": area}
                if self.config.method != "aft":
                    own = place.subset
                    if place.labels is not None:
                        own = own[place.labels == self.sets.train.manifest.labels[own]]
                    facts["subset_poisoned"] = int(self.sets.truth[own].sum())
        self.rounds.append(facts)
        return scores

    def note(self, facts: Mapping[str, Any]) -> None:
        """See :class:`pbe_fast.erase.Worker`."""
        self.rounds[-1] |= facts

    def activations(self) -> Scores:
        """Of the infected model, on every training image; see :class:`Activations`."""
        assert self.sets.train is not None
        return self._scores(self.sets.train, "activations", "infected", "")

    def _scores(
        self,
        data: ImageData,
        look: Literal["activations", "agreement", "outcome"],
        name: str,
        digest: str,
    ) -> Scores:
        """What is told of all images, read from its files once each shard has one.

        ``digest`` is that of the current weights, where they matter.
        """
        manifest = data.manifest
        device = self.executor.device
        key = " ".join(
            [*code_versions().values(), self.inputs[0], digest, device.precision, device.layout,
             str(self.config.data.image_size), str(self.config.eval_batch_size)]
        )  # fmt: skip
        files = ScoreFiles(self.run.path / SCORES_NAME / name, key, look)
        counts = [shard.samples for shard in manifest.shards]
        phase = f"score {name.removeprefix('round-')}"
        return gathered(
            files, manifest, counts, self.executor, phase=phase, progress=self.progress,
            stop=self.stop, clock=self.clock,
        )  # fmt: skip

    def whole_test(self, current: bool, phase: str) -> Accuracy | None:
        """ACC and ASR on all test images; None without them."""
        data = self.tester.data
        return self._accuracy(current, data.ids, phase) if data else None

    def _accuracy(self, current: bool, ids: Ids, phase: str) -> Accuracy:
        self.progress.phase(phase, len(ids))
        return self.executor.count(current, ids, self.progress).accuracy()

    def save(self, place: Place) -> None:
        """Keep the place and the current weights."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"momentum.{k}": v for k, v in place.position.momentum.items()}
        tensors["subset"] = torch.from_numpy(place.subset)
        if place.labels is not None:
            tensors["labels"] = torch.from_numpy(place.labels)
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
                "code": code_versions(),
            },
        )

    def restore(
        self, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], rounds: int
    ) -> Place:
        """Take up what :meth:`save` kept.

        Raises:
            RunDirectoryError: the state is damaged, or about another model or other data.
        """
        require_same_code(self.run, header, self.accept_changes)
        position, self.clock = restore_state(self.run, self.model, tensors, header, self.inputs)
        try:
            self.rounds = [dict(facts) for facts in header["rounds"]]
            self.infected_result = header["infected"]
            subset = _ids(tensors["subset"])
            labels = _ids(tensors["labels"]) if "labels" in tensors else None
            place = Place(int(header["round"]), header["part"], subset, position, labels)
            last = place.subset[-1] if len(place.subset) else -1
            known = place.part in ("finetune", "score") and 0 <= place.round < rounds
            rising = place.subset[:1].min(initial=0) >= 0 and (np.diff(place.subset) > 0).all()
            if not (known and rising and 0 <= last < len(self.data.ids)):
                raise ValueError("the round or the subset is impossible")
            if labels is not None:
                possible = (labels >= 0) & (labels < self.data.manifest.num_classes)
                if len(labels) != len(subset) or not possible.all():
                    raise ValueError("the labels are impossible")
        except (KeyError, TypeError, ValueError) as error:
            raise self.run.damaged(repr(error)) from error
        return place


def _ids(subset: torch.Tensor) -> Ids:
    if subset.dtype != torch.int64 or subset.ndim != 1:
        raise ValueError("the subset is no list of ids")
    ids: Ids = subset.numpy()
    return ids
