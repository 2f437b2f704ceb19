"""Units of work on a pool of actors: given out one by one, and again when a worker is lost."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from pbe_fast.errors import PbeError
from pbe_fast.progress import StoppedError
from pipelines._fleet_options import FleetError, FleetOptions
from pipelines._room import listed, not_started

__all__ = ["Pool"]

U = TypeVar("U")
_POLL_SECONDS = 0.5
_SILENT_SECONDS = 30.0  # so long may workers take to start before it is worth a word


@dataclass
class _Slot:
    """A place for a worker; ``unit`` is a number, None while it starts or waits."""

    actor: Any
    ref: Any
    since: float = field(default_factory=time.monotonic)
    unit: int | None = None
    started: bool = False


@dataclass
class _Work(Generic[U]):
    """What a call of :meth:`Pool.run` has to do: units by number, and how often each failed.

    Number None stands for workers that died while they started.
    """

    units: Sequence[U]
    say: Callable[[str], None]
    waiting: deque[int]
    failures: Counter[int | None]
    told: bool = False  # that it waits for the cluster


class Pool(Generic[U]):
    """Actors that are all alike.

    Args:
        make: starts one; it has a method ``ready`` that returns when it is.
        options: how many, how long to wait, how often to try.
    """

    def __init__(self, make: Callable[[], Any], options: FleetOptions) -> None:
        self._make, self._options = make, options
        self._slots = [self._slot() for _ in range(options.workers)]

    def run(
        self,
        units: Sequence[U],
        call: Callable[[Any, U], Any],
        done: Callable[[U, Any, int], None],
        stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """Have every unit done at least once.

        Args:
            call: starts a unit on an actor and returns the reference of its result.
            done: receives a unit, its result, and which worker did it; called once a unit.
            stop: whether to give out no more and end.
            say: told of lost workers.

        Raises:
            FleetError: a unit failed too often, or no worker can be started.
            StoppedError: ``stop`` said so.
            PbeError: a mistake in what was given, found by a worker.
        """
        work = _Work(units, say, deque(range(len(units))), Counter[int | None]())
        left = len(units)
        while left:
            if stop():
                raise StoppedError
            for slot in self._slots:
                if slot.started and slot.unit is None and work.waiting:
                    slot.unit = work.waiting.popleft()
                    slot.ref, slot.since = call(slot.actor, units[slot.unit]), time.monotonic()
            busy = {
                s.ref: i for i, s in enumerate(self._slots) if s.unit is not None or not s.started
            }
            finished, _ = ray.wait(list(busy), num_returns=1, timeout=_POLL_SECONDS)
            for ref in finished:
                index = busy[ref]
                slot = self._slots[index]
                try:
                    result = ray.get(ref)
                except RayTaskError as error:
                    raise _mistake(error) from error
                except RayError as error:
                    self._lost(index, work, str(error).partition("\n")[0])
                    continue
                number, slot.unit, slot.since = slot.unit, None, time.monotonic()
                if number is None:
                    slot.started = True
                    continue
                done(units[number], result, index)
                left -= 1
            self._give_up_silent(work)

    def _give_up_silent(self, work: _Work[U]) -> None:
        """Replace workers that have not answered for too long; complain if nobody ever starts."""
        limit = self._options.timeout
        for index, slot in enumerate(self._slots):
            silent = time.monotonic() - slot.since
            if slot.unit is not None and silent > limit:
                ray.kill(slot.actor)
                self._lost(index, work, f"no answer for {limit:.0f} s")
        if any(slot.started for slot in self._slots):
            return
        waited = time.monotonic() - max(slot.since for slot in self._slots)
        if waited > limit:
            raise not_started(self._options)
        if waited > _SILENT_SECONDS and not work.told:
            work.told = True
            work.say(
                f"Waiting for workers to start; each of {self._options.workers} needs "
                f"{listed(self._options.resources)}."
            )

    def _lost(self, index: int, work: _Work[U], why: str) -> None:
        number = self._slots[index].unit
        work.failures[number] += 1
        times = work.failures[number]
        if number is None:  # it died while it started
            if times > self._options.retries * self._options.workers:
                raise FleetError(f"workers fail while they start, again and again: {why}")
        else:
            if times > self._options.retries:
                raise FleetError(
                    f"{work.units[number]}: the worker was lost {times} times over it: {why}"
                )
            work.waiting.appendleft(number)
        work.say(f"worker {index} was lost ({why}); another one is started")
        self._slots[index] = self._slot()

    def _slot(self) -> _Slot:
        actor = self._make()
        return _Slot(actor, actor.ready.remote())

    def close(self) -> None:
        """End all workers, and wait until they have given back what they held."""
        for slot in self._slots:
            ray.kill(slot.actor)
        for slot in self._slots:
            try:  # a killed actor answers with an error, once it is dead
                ray.get(slot.actor.ready.remote(), timeout=10)
            except (RayActorError, GetTimeoutError):
                continue


def _mistake(error: RayTaskError) -> BaseException:
    """What a worker raised: as it is where it is for people, else with its remote traceback."""
    cause = error.cause
    return cause if isinstance(cause, PbeError | OSError) else error
