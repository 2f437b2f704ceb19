"""A folder of shards that appears complete or not at all."""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pbe_fast.data.manifest import MANIFEST_NAME
from pbe_fast.errors import ShardError

__all__ = ["check_target", "replacing"]


@contextmanager
def replacing(folder: Path, overwrite: bool, also: Collection[str] = ()) -> Iterator[Path]:
    """A hidden folder beside ``folder`` that takes its place if the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    with _locked(temporary, folder):
        try:
            # A process that was killed between the two renames below left the old folder here.
            if replaced.exists():
                if folder.exists():
                    shutil.rmtree(replaced)
                else:
                    replaced.rename(folder)
            check_target(folder, overwrite, also)
            for left_over in temporary.iterdir():
                left_over.unlink()
            yield temporary
            _fsync(temporary)
            if folder.exists() and any(folder.iterdir()):
                check_target(folder, overwrite, also)
                folder.rename(replaced)
                try:
                    temporary.rename(folder)
                except OSError:
                    replaced.rename(folder)
                    raise
                shutil.rmtree(replaced)
            else:
                temporary.rename(folder)
            _fsync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _locked(temporary: Path, folder: Path) -> Iterator[None]:
    """Make and hold the working folder, so that two conversions never share it."""
    try:
        temporary.mkdir(exist_ok=True)
        fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ShardError(f"{temporary}: cannot be used ({error.strerror}). Remove it.") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(
                f"{folder}: another process is writing shards there. Wait for it to end."
            ) from None
        yield
    finally:
        os.close(fd)


def check_target(folder: Path, overwrite: bool, also: Collection[str] = ()) -> None:
    """Whether ``folder`` may be made, filled or replaced.

    Args:
        also: names of files that may lie beside shards and manifest and be replaced with them.

    Raises:
        ShardError: it may not.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ShardError(f"{folder}: there is a file of this name. Choose another folder.")
    names = sorted(entry.name for entry in folder.iterdir())
    if names and not overwrite:
        raise ShardError(
            f"{folder}: the folder is not empty. Choose another one, or pass overwrite "
            "to replace the shards in it."
        )
    for name in names:
        is_ours = name in (MANIFEST_NAME, *also) or name.endswith(".tar")
        if not is_ours or not (folder / name).is_file():
            raise ShardError(
                f"{folder}: holds {name!r}, which is neither a shard nor a manifest, so the "
                "folder is not replaced. Move that away or choose another folder."
            )


def _fsync(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
