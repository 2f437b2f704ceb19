"""How long work tells that it is alive; the command line draws bars, a library stays silent."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Clock", "Progress", "Silent", "StoppedError"]


class StoppedError(Exception):
    """The work was asked to stop; where it stands has been kept."""


class Progress(Protocol):
    """Receives what a job is doing."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """A phase begins: its name, its images, and how many of them are done already."""

    def advance(self, images: int) -> None:
        """So many more images of the current phase are done."""

    def say(self, text: str) -> None:
        """A line for people."""

    def detail(self, text: str) -> None:
        """A few words beside the phase, in place of the last ones."""


class Silent:
    """A progress that shows nothing."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, images: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def detail(self, text: str) -> None:
        """Nothing."""


class Clock:
    """Seconds and images per phase, kept over a stop and a new start."""

    def __init__(
        self, seconds: Mapping[str, float] | None = None, images: Mapping[str, int] | None = None
    ) -> None:
        self.seconds = dict(seconds or {})
        self.images = dict(images or {})

    def add(self, phase: str, seconds: float, images: int) -> None:
        """Count work."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.images[phase] = self.images.get(phase, 0) + images

    @contextmanager
    def time(self, phase: str, images: int) -> Iterator[None]:
        """Count the time that the block takes, and so many images."""
        started = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - started, images)

    def rates(self) -> dict[str, float]:
        """Images per second of each phase that took any time."""
        return {p: self.images[p] / s for p, s in self.seconds.items() if s > 0 and self.images[p]}
