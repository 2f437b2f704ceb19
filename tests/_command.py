"""How a command of the command line ended."""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Ended", "Run"]


class Ended(NamedTuple):
    """Exit code, and what was printed."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that was printed, on one line."""
        return " ".join((self.out + self.err).split())


Run = Callable[..., Ended]
