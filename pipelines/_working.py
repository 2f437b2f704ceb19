"""What surrounds a job on the command line: progress, and how it is stopped."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from pbe_fast.progress import StoppedError
from pipelines._console import ConsoleProgress, progress_bars

__all__ = ["EndedError", "told_to_stop", "working"]


class EndedError(Exception):
    """Ctrl-C; says what that means for the work."""


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come; a second one ends the process at once."""
    told = threading.Event()

    def handle(number: int, frame: object) -> None:
        told.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def working(console: Console, if_stopped: str) -> Iterator[ConsoleProgress]:
    """Bars, and a word about what is kept after Ctrl-C; typer would exit without any."""
    try:
        with progress_bars(console) as progress:
            yield progress
    except (KeyboardInterrupt, StoppedError):
        raise EndedError(f"Stopped. {if_stopped}".rstrip()) from None
