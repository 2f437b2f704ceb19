"""Fine-tuning over several ranks: one stage is one run of Ray Train's ``TorchTrainer``.

The ranks talk to the driver through a mailbox of their own attempt, so whatever is left
of an attempt that failed talks to nobody. The driver alone writes the run directory, and every
attempt begins at the last place that the driver has kept.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    get_context,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from torch import Tensor

from pbe_fast._site import Hooks
from pbe_fast.erase import Place
from pbe_fast.parallel import Share, share_batch_norm
from pbe_fast.progress import Clock, Progress, Silent, StoppedError
from pbe_fast.training import Position, Stage
from pipelines._blueprint import Blueprint, Damage, noted, weights_of
from pipelines._counter import count_images
from pipelines._fleet_options import FleetOptions, WorkersLostError
from pipelines._mailbox import Mailbox, pack, run_rank, unpack
from pipelines._process_group import NodeTorchConfig
from pipelines._room import has_room, not_started

__all__ = ["Start", "finetune_on_ranks"]

_THREAD = "ray-train"
_POLL_SECONDS = 0.2
_END_SECONDS = 30.0  # for Ray Train to see that its ranks are gone; one that hangs takes 5
_TELL_SECONDS = 0.5  # between two messages of a rank that only tell that it is alive


@dataclass(frozen=True)
class Start:
    """Where an attempt begins."""

    stage: Stage
    place: Place
    weights: Mapping[str, Tensor]
    seconds: Mapping[str, float]
    images: Mapping[str, int]


class _Line:
    """A rank's end of the mailbox; also the :class:`pbe_fast.progress.Progress` of rank 0."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.images, self.told, self.stopping = 0, 0.0, False

    def post(self, kind: str, value: Any = None) -> None:
        """Say something, and hear whether to stop."""
        self.stopping = ray.get(self.mailbox.post.remote(pack(kind, value)))
        self.told = time.monotonic()

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        self.flush()
        self.post("phase", (name, total, done))

    def advance(self, images: int) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        count_images("finetune", images)
        self.images += images
        if time.monotonic() - self.told > _TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell what was not told yet."""
        if self.images:
            self.post("advance", self.images)
            self.images = 0

    def say(self, text: str) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        self.post("log", text)

    def detail(self, text: str) -> None:
        """Nothing; the driver knows how many ranks there are."""


def rank(settings: dict[str, Any]) -> None:
    """What every rank runs."""
    mailbox, blueprint, start = settings["mailbox"], settings["blueprint"], settings["start"]
    line = _Line(mailbox)
    try:
        _finetune(line, ray.get(blueprint[0]), ray.get(start[0]))
    except torch.OutOfMemoryError as error:
        line.post("error", error)  # it would be the same again
        raise
    except (RuntimeError, RayError):
        raise  # collectives fail so when another rank dies; the driver sees the whole
    except Exception as error:
        line.post("error", error)
        if not isinstance(error, StoppedError):
            raise


def _finetune(line: _Line, blueprint: Blueprint, start: Start) -> None:
    context = get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    handle = ray.get_runtime_context().current_actor
    line.post("hello", (share.rank, handle))
    site = blueprint.build()
    site.model.load_state_dict(start.weights)
    if share.world > 1:
        share_batch_norm(site.model)
    clock = Clock(start.seconds, start.images)
    first = share.rank == 0

    def checkpoint(position: Position) -> None:
        if first:  # all ranks have the same weights
            momentum = {name: value.detach().cpu() for name, value in position.momentum.items()}
            kept = Position(position.epoch, position.batch, momentum)
            line.flush()
            line.post("checkpoint", (kept, weights_of(site.model), clock.seconds, clock.images))

    hooks = Hooks(
        event=(lambda record: line.post("event", dict(record))) if first else (lambda _: None),
        checkpoint=checkpoint,
        say=(lambda text: line.post("log", text)) if first else (lambda _: None),
        stop=(lambda: line.stopping) if first else (lambda: False),
    )
    progress: Progress = line if first else Silent()
    site.finetune(start.stage, start.place, hooks, progress=progress, clock=clock, share=share)
    damage = noted(site)
    if damage:
        line.post("damage", damage)
    if first:
        line.flush()
        line.post("done", (weights_of(site.model), clock.seconds, clock.images))


@dataclass(frozen=True)
class Ears:
    """What the driver does with what it hears."""

    event: Callable[[Mapping[str, object]], None]
    log: Callable[[str], None]
    phase: Callable[[str, int, int], None]
    advance: Callable[[int], None]
    checkpoint: Callable[[Position, Mapping[str, Tensor], Clock], None]
    damage: Callable[[Damage], None]
    stop: Callable[[], bool]


def finetune_on_ranks(
    blueprint: Any, start: Start, options: FleetOptions, ears: Ears
) -> tuple[Mapping[str, Tensor], Clock]:
    """Run one attempt of a stage.

    Args:
        blueprint: a reference to the :class:`Blueprint` in the object store.

    Returns:
        the weights at the end of the stage, and the clock.

    Raises:
        WorkersLostError: ranks died or hung; another attempt may succeed.
        StoppedError: ``ears.stop`` said so, and what was done is in a checkpoint.
        FleetError: the cluster has no room for the ranks.
        PbeError: a mistake in what was given, found by a rank.
    """
    here = ray.get_runtime_context().get_node_id()
    mailbox: Any = ray.remote(Mailbox).options(
        num_cpus=0,
        scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            here, soft=False
        ),
    ).remote()  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pbe-fast-train-") as folder:
        trainer = TorchTrainer(
            run_rank,
            train_loop_config={
                "mailbox": mailbox,
                "blueprint": [blueprint],
                "start": [ray.put(start)],
            },
            torch_config=NodeTorchConfig(
                backend="nccl" if options.gpus else "gloo", timeout_s=int(options.timeout)
            ),
            scaling_config=ScalingConfig(
                num_workers=options.workers,
                use_gpu=options.gpus > 0,
                resources_per_worker=options.resources,
            ),
            # Attempts are counted by the driver, which knows what was kept.
            run_config=RunConfig(
                name="finetune",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0),
                callbacks=[_Introduced(mailbox)],  # type: ignore[list-item]  # Ray's stub
            ),
        )
        attempt = _Attempt(trainer, mailbox)
        try:
            return _listen(attempt, options, ears)
        finally:
            attempt.end()
            ray.kill(mailbox)


class _Introduced(ControllerCallback):
    """Has Ray Train's controller, an actor, say who it is: it can be ended in no other way."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:
        """See :class:`ControllerCallback`."""
        handle = ray.get_runtime_context().current_actor
        self._mailbox.post.remote(pack("controller", handle))


class _Attempt:
    """``trainer.fit()`` in a thread, so that the driver can listen and be stopped meanwhile."""

    def __init__(self, trainer: TorchTrainer, mailbox: Any) -> None:
        self.error: BaseException | None = None
        self.ranks: dict[int, Any] = {}
        self._controller: Any = None
        self._mailbox = mailbox
        self._trainer = trainer
        self._thread = threading.Thread(target=self._fit, name=_THREAD, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # handed to the thread that listens
            self.error = error

    @property
    def running(self) -> bool:
        """Whether Ray Train is still at it."""
        return self._thread.is_alive()

    def hear(self, stop: bool) -> tuple[list[tuple[str, Any]], bool]:
        """What was said by those who have introduced themselves, and whether anything was.

        Raises:
            RayError: the mailbox was lost.
        """
        messages = [unpack(m) for m in ray.get(self._mailbox.take.remote(stop))]
        for kind, value in messages:
            if kind == "hello":
                rank, handle = value
                self.ranks[rank] = handle
            elif kind == "controller":
                self._controller = value
        rest = [m for m in messages if m[0] not in ("hello", "controller")]
        return rest, bool(messages)

    def end(self) -> None:
        """Kill what still runs. Ray is shut down after this, and must not have a thread in it."""
        began = time.monotonic()
        while self.running and (waited := time.monotonic() - began) < 2 * _END_SECONDS:
            with suppress(RayError):  # the cluster is gone, and Ray tells the thread, too
                self.hear(stop=False)
            for handle in self.ranks.values():  # Ray Train then ends by itself, and leaves nothing
                ray.kill(handle)
            if self._controller is not None and (not self.ranks or waited > _END_SECONDS):
                ray.kill(self._controller)  # it may be waiting for room
            self._thread.join(1.0)


def _listen(
    attempt: _Attempt, options: FleetOptions, ears: Ears
) -> tuple[Mapping[str, Tensor], Clock]:
    heard = time.monotonic()
    result: tuple[Mapping[str, Tensor], Clock] | None = None
    while True:
        running = attempt.running  # before the last look into the mailbox
        stopping = ears.stop()
        if stopping and not attempt.ranks:  # nobody there who could make a checkpoint
            raise StoppedError
        try:
            messages, anything = attempt.hear(stopping)
        except RayError as error:
            raise WorkersLostError(f"the driver's mailbox was lost ({error})") from error
        if anything:
            heard = time.monotonic()
        for kind, value in messages:
            match kind:
                case "event":
                    ears.event(value)
                case "log":
                    ears.log(value)
                case "phase":
                    ears.phase(*value)
                case "advance":
                    ears.advance(value)
                case "checkpoint":
                    position, weights, seconds, images = value
                    ears.checkpoint(position, weights, Clock(seconds, images))
                case "damage":
                    ears.damage(value)
                case "error":
                    raise value
                case "done":
                    weights, seconds, images = value
                    result = weights, Clock(seconds, images)
        if not running and not anything:
            if result is not None:
                return result
            if not isinstance(attempt.error, TrainingFailedError | RayError | None):
                raise attempt.error
            raise WorkersLostError(_cause(attempt.error))
        if time.monotonic() - heard > options.timeout:
            if not attempt.ranks and not has_room(options):
                raise not_started(options)
            raise WorkersLostError(f"no rank said anything for {options.timeout:.0f} s")
        time.sleep(_POLL_SECONDS)


def _cause(error: BaseException | None) -> str:
    if error is None:
        return "the training ended without a result"
    failures = getattr(error, "worker_failures", None)
    if failures:
        return "; ".join(f"rank {rank}: {_first_line(e)}" for rank, e in failures.items())
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
