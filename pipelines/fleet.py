"""A purification's arithmetic on a Ray cluster.

The driver, in :mod:`pbe_fast.purify`, is the one that also runs in a single process. Here a unit of
work goes to the cluster: fine-tuning to ranks that make every step together, scoring and measuring
to a pool of actors, a shard or a piece of the test set at a time.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import GetTimeoutError
from torch import Tensor, nn

from pbe_fast._parts import Parts
from pbe_fast._site import Hooks, Site
from pbe_fast.device import Device
from pbe_fast.erase import Place, ScoreFiles
from pbe_fast.evaluate import Counts
from pbe_fast.models import Classifier
from pbe_fast.progress import Clock, Progress
from pbe_fast.run_directory import RunDirectory
from pbe_fast.training import Stage
from pipelines._blueprint import Blueprint, Damage, report_damage, weights_of
from pipelines._fleet_options import FleetError, FleetOptions, WorkersLostError
from pipelines._guard import (
    found_at,
    guard_address,
    host_of,
    is_loopback,
    loopback_only,
    start_local,
)
from pipelines._pool import Pool
from pipelines._ranks import Ears, Start, finetune_on_ranks
from pipelines._room import listed, not_started, with_cpus
from pipelines._scorer import Scorer, look

__all__ = ["Fleet", "FleetError", "FleetExecutor", "FleetOptions", "Scorer", "connected"]

Ids = npt.NDArray[np.int64]


class Fleet:
    """See :class:`pbe_fast.purify.Fleet`; needs a connection to Ray (:func:`connected`).

    ``scorer`` is the class of the pool's actors.
    """

    def __init__(self, options: FleetOptions, scorer: type[Any] | None = None) -> None:
        self.options, self.scorer = with_cpus(options), scorer or Scorer

    def choose_device(
        self, name: str, precision: Any, model: nn.Module, *rest: Any, **more: Any
    ) -> Device:
        """As :func:`pbe_fast.device.choose_device`, measured on one of the workers."""
        assert isinstance(model, Classifier)
        if name == "auto":
            name = "cuda" if self.options.gpus else "cpu"
        say = more.pop("say", None)
        layout = more.get("layout", "auto")
        if precision != "auto" and layout != "auto":  # nothing to measure
            return Device(torch.device(name), precision, layout)
        options = {"num_cpus": self.options.cpus, "num_gpus": self.options.gpus, "max_retries": 3}
        found = (
            ray.remote(look)
            .options(**options)
            .remote(self.options.cpus, model.spec, weights_of(model), name, precision, rest, more)
        )
        try:
            device, lines = ray.get(found, timeout=self.options.timeout)
        except GetTimeoutError:
            ray.cancel(found)
            raise not_started(self.options) from None
        for line in lines if say is not None else ():
            say(line)
        return device

    @contextmanager
    def executor(self, site: Site, run: RunDirectory) -> Iterator["FleetExecutor"]:
        """See :class:`pbe_fast.purify.Fleet`."""
        executor = FleetExecutor(site, run, self.options, self.scorer)
        try:
            yield executor
        finally:
            executor.close()


class FleetExecutor:
    """See :class:`pbe_fast._worker.Executor`."""

    def __init__(
        self, site: Site, run: RunDirectory, options: FleetOptions, scorer: type[Any]
    ) -> None:
        self.site, self.run, self.options, self._scorer = site, run, options, scorer
        self._blueprint = ray.put(Blueprint.of(site, options.cpus))
        self._pool: Pool[Any] | None = None
        self._version = 0
        run.logger.info("%d workers with %s each", options.workers, listed(options.resources))

    @property
    def device(self) -> Device:
        """See :class:`pbe_fast._worker.Executor`."""
        return self.site.device

    def finetune(
        self, stage: Stage, place: Place, hooks: Hooks, progress: Progress, clock: Clock
    ) -> None:
        """See :class:`pbe_fast._worker.Executor`."""
        self.close()  # the ranks need what the pool holds
        start = Start(stage, place, weights_of(self.site.model), clock.seconds, clock.images)
        events = self.run.events

        def checkpoint(position: Any, weights: Mapping[str, Tensor], now: Clock) -> None:
            nonlocal start, events
            self._become(weights, now, clock)
            hooks.checkpoint(position)
            start = replace(
                start, place=replace(place, position=position), weights=weights,
                seconds=dict(now.seconds), images=dict(now.images),
            )  # fmt: skip
            events = self.run.events

        ears = Ears(
            event=hooks.event,
            log=hooks.say,
            phase=progress.phase,
            advance=progress.advance,
            checkpoint=checkpoint,
            damage=self._damage,
            stop=hooks.stop,
        )
        for left in reversed(range(self.options.retries + 1)):
            try:
                weights, now = finetune_on_ranks(self._blueprint, start, self.options, ears)
            except WorkersLostError as error:
                if not left:
                    raise FleetError(
                        f"{stage.name}: workers were lost {self.options.retries + 1} times; at "
                        f"last: {error}. The same command goes on from the last saved state."
                    ) from error
                self._warn(progress, f"{stage.name}: {error}; going on from the last saved state")
                self.run.rewind(events)
            else:
                self._become(weights, now, clock)
                return

    def score(
        self, files: ScoreFiles, shards: Sequence[int], progress: Progress, stop: Callable[[], bool]
    ) -> None:
        """See :class:`pbe_fast._worker.Executor`."""
        files = replace(files, folder=Path(os.path.abspath(files.folder)))
        weights = self._current()

        def call(actor: Any, shard: int) -> Any:
            return actor.score.remote(files, shard, *weights)

        self._by_shard(call, shards, progress, stop)

    def mine(
        self, parts: Parts, shards: Sequence[int], progress: Progress, stop: Callable[[], bool]
    ) -> None:
        """See :class:`pbe_fast._worker.Executor`."""
        parts = replace(parts, folder=Path(os.path.abspath(parts.folder)))

        def call(actor: Any, shard: int) -> Any:
            return actor.mine.remote(parts, shard)

        self._by_shard(call, shards, progress, stop)

    def _by_shard(
        self,
        call: Callable[[Any, int], Any],
        shards: Sequence[int],
        progress: Progress,
        stop: Callable[[], bool],
    ) -> None:
        """Have every shard worked on; ``call`` starts it on an actor."""
        began, images, finished = time.monotonic(), Counter[int](), 0

        def done(_: int, result: tuple[int, Damage], worker: int) -> None:
            nonlocal finished
            images[worker] += result[0]
            finished += 1
            progress.detail(
                f"{finished} of {len(shards)} shards, "
                f"{_rates(images, time.monotonic() - began)} images/s by worker"
            )
            progress.advance(result[0])
            self._damage(result[1])

        self._run(list(shards), call, done, progress, stop)
        seconds = time.monotonic() - began
        self.run.logger.info(f"{len(shards)} shards, {_rates(images, seconds)} images/s by worker")

    def count(self, current: bool, ids: Ids, progress: Progress) -> Counts:
        """See :class:`pbe_fast._worker.Executor`."""
        # Whole batches, the same as one process would make.
        size = self.site.config.eval_batch_size
        piece = size * max(1, -(-len(ids) // (size * 4 * self.options.workers)))
        pieces = [ids[i : i + piece] for i in range(0, len(ids), piece)]
        total, weights = Counts(), self._current()

        def call(actor: Any, part: Ids) -> Any:
            return actor.count.remote(current, part, *weights)

        def done(part: Ids, result: tuple[Counts, Damage], worker: int) -> None:
            nonlocal total
            total += result[0]
            progress.advance(len(part))
            self._damage(result[1])

        self._run(pieces, call, done, progress)
        return total

    def close(self) -> None:
        """End the workers; the next unit of work starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _run(
        self,
        units: Sequence[Any],
        call: Any,
        done: Any,
        progress: Progress,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if self._pool is None:
            actor: Any = ray.remote(self._scorer).options(
                num_cpus=self.options.cpus, num_gpus=self.options.gpus
            )
            self._pool = Pool(lambda: actor.remote(self._blueprint), self.options)
        self._pool.run(units, call, done, stop, partial(self._warn, progress))

    def _become(self, weights: Mapping[str, Tensor], now: Clock, clock: Clock) -> None:
        """Take over the ranks' weights and times."""
        self.site.model.load_state_dict(weights)
        clock.seconds.update(now.seconds)
        clock.images.update(now.images)

    def _current(self) -> tuple[int, list[Any]]:
        """The model's weights as they are now, whoever changed them, for the actors to fetch."""
        self._version += 1
        return self._version, [ray.put(weights_of(self.site.model))]

    def _warn(self, progress: Progress, text: str) -> None:
        self.run.logger.warning(text)
        progress.say(text)

    def _damage(self, damage: Damage) -> None:
        report_damage(self.site.sets, self.site.tester, damage)


def _rates(images: Mapping[int, int], seconds: float) -> str:
    return ", ".join(f"{images[worker] / max(seconds, 1e-9):,.0f}" for worker in sorted(images))


@contextmanager
def connected(options: FleetOptions) -> Iterator[Fleet]:
    """A fleet on the cluster of the options, or on one that is started for the block."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2: every round ends later
    if options.address is None:
        cpus = max(os.cpu_count() or 1, options.workers * max(1, options.cpus))
        with start_local(cpus=cpus, insecure=options.insecure):
            yield Fleet(options)
        return
    address = found_at(options.address)
    guard_address(address, insecure=options.insecure)
    with loopback_only() if is_loopback(host_of(address)) else nullcontext():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield Fleet(options)
    finally:
        ray.shutdown()
