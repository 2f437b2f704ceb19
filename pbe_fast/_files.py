"""Files that are whole or not there: written beside their place, flushed, then renamed."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "sha256_file", "write_bytes", "write_text"]


@contextmanager
def atomic_path(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends without an exception.

    Args:
        shared: several processes may write this file at once; each gets a temporary of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, shared: bool = False) -> None:
    """Write a file whole or not at all; ``shared`` as in :func:`atomic_path`."""
    with atomic_path(path, shared) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, content.encode())


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
