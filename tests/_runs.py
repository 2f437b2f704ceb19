"""Stopping a run where a test wants it, and what it has made."""

from pathlib import Path


class Stop(BaseException):
    """A kill: nothing in the library may catch it."""


class StopAfter:
    """A progress that kills the run after so many images of the phases that match."""

    def __init__(self, images: int, phase: str = "") -> None:
        self.images, self.wanted, self.name = images, phase, ""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        self.name = name

    def advance(self, images: int) -> None:
        if self.wanted in self.name:
            self.images -= images
            if self.images < 0:
                raise Stop

    def say(self, text: str) -> None:
        pass

    def detail(self, text: str) -> None:
        pass


def mined_files(out: Path) -> dict[str, bytes]:
    """The manifest and all parts."""
    found = [out / "manifest.parquet", *sorted((out / "parts").rglob("*"))]
    return {str(p.relative_to(out)): p.read_bytes() for p in found if p.is_file()}
