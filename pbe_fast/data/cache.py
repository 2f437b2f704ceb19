"""A bounded cache on local disk of byte ranges of remote shards, shared by processes.

One sparse file a shard: the bytes lie where they lie in the shard, and after the shard's end
follows a list of records, each saying which bytes are there. The file's name is a hash of the
shard's address, SHA-256 and size, so a data set that changed never meets old bytes.

Nothing here has to be believed. A record has a checksum, and holds a checksum of the bytes it
speaks of, which is compared at every read; whatever does not agree (a write that was cut off, a
disk that lost a page, a file that another process takes away) is a miss, and the bytes are
fetched again. Bytes are written before their record, so a process may be killed at any moment.

Writers take turns by a lock on the folder, in which they also make room: the shards that were not
read for longest go first, until what is allocated on disk and what comes fit the limit. Readers
take no lock. The file of a shard that goes is cut to nothing before it is removed, so its space is
free at once, though somebody may have it open.

A cache that fails (a full disk, a folder without rights) is given up with a warning, and the run
goes on without it.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pbe_fast.data._cache_file import PAGE, CacheFile, records_of

__all__ = ["DEFAULT_BYTES", "Part", "RangeCache", "default_folder", "shard_key"]

DEFAULT_BYTES = 50 * 10**9
_LOCK_SECONDS = 10.0  # a writer that waits longer leaves its bytes out
_NAME = re.compile(r"[0-9a-f]{64}\.1")  # 1: the version of the layout

_log = logging.getLogger("pbe_fast")


class Part(NamedTuple):
    """Some bytes of a shard: whose (:func:`shard_key`), the shard's size, from where, and they."""

    key: str
    total: int
    offset: int
    data: bytes


def default_folder() -> Path:
    """``pbe-fast`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "pbe-fast"


def shard_key(place: str, sha256: str, total: int) -> str:
    """What a shard is called in the cache: 64 hexadecimal digits."""
    return hashlib.sha256(f"{place}\0{sha256}\0{total}".encode()).hexdigest()


class RangeCache:
    """Bytes of shards, in a folder. May be shared by threads and carried through a fork."""

    def __init__(self, folder: Path, limit: int | None = None, *, max_open: int = 256) -> None:
        """Nothing is made on disk before something is put in.

        Args:
            folder: of this cache alone; other files in it are left alone.
            limit: bytes on disk; None: 50 GB or half of what is free, whichever is less.
            max_open: how many shards' files stay open.
        """
        self.folder = folder
        self.max_open = max_open
        self._limit = limit
        self._failed = False
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        self._open: OrderedDict[str, CacheFile] = OrderedDict()

    def get(self, key: str, total: int, offset: int, size: int) -> bytes | None:
        """The bytes, or None where not all of them are there and sound."""
        if self._failed:
            return None
        with self._own():
            try:
                entry = self._entry(key, total, create=False)
                return None if entry is None else entry.read(offset, size)
            except OSError as error:
                self._give_up(error)
                return None

    def put(self, parts: Sequence[Part]) -> None:
        """Keep bytes, after making room for them; more than the limit are not kept at all."""
        if self._failed or not parts:
            return
        with self._own():
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self._locked() as held:
                    if not held or not self._make_room(sum(map(_footprint, parts))):
                        return
                    for part in parts:
                        entry = self._entry(part.key, part.total, create=True)
                        if entry is not None:
                            entry.write(part.offset, part.data)
            except OSError as error:
                self._give_up(error)

    def drop(self, key: str) -> None:
        """Forget a shard."""
        if self._failed or not self.folder.is_dir():
            return
        with self._own():
            try:
                with self._locked():
                    self._open.pop(key, None)
                    _remove(self.folder / _file_name(key))
            except OSError as error:
                self._give_up(error)

    def used(self) -> int:
        """Bytes that the cache takes on disk."""
        return sum(used for _, used, _ in _files(self.folder))

    @property
    def limit(self) -> int:
        """Bytes that the cache may take on disk."""
        if self._limit is None:
            free = shutil.disk_usage(self.folder).free
            self._limit = min(DEFAULT_BYTES, (free + self.used()) // 2)
        return self._limit

    def close(self) -> None:
        """Close all files; a later read opens what it needs again."""
        with self._own():
            self._open.clear()

    @contextmanager
    def _own(self) -> Iterator[None]:
        """One thread at a time; after a fork everything is opened anew."""
        if self._pid != os.getpid():
            self._start()
        with self._mutex:
            yield

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """The folder's lock, against other processes; False where it is not to be had in time."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.folder / "lock", flags, 0o600)
        try:
            end = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > end:  # a process was stopped in the middle of its turn
                        yield False
                        return
                    time.sleep(0.002)
                else:
                    break
            try:
                yield True
            finally:  # by name: a process forked meanwhile has this file open, too
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def _make_room(self, needed: int) -> bool:
        """Remove shards until ``needed`` bytes fit; False where they never will."""
        limit = self.limit
        if needed > limit:
            return False
        files = sorted(_files(self.folder))
        used = sum(size for _, size, _ in files)
        for _, size, name in files:
            if used + needed <= limit:
                break
            _remove(self.folder / name)
            self._open.pop(name.partition(".")[0], None)
            used -= size
        return True

    def _entry(self, key: str, total: int, *, create: bool) -> "CacheFile | None":
        """The shard's file as it is now; None where there is none."""
        entry = self._open.get(key)
        if entry is not None and not entry.refresh():  # another process took it away
            del self._open[key]
            entry = None
        if entry is None:
            entry = CacheFile.open(self.folder / _file_name(key), key, total, create)
            if entry is None:
                return None
            self._open[key] = entry
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return entry

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        self._open.clear()
        _log.warning(
            "%s: the cache of remote shards cannot be used (%s), so their bytes are fetched each "
            "time. Name another folder as data.cache_dir.",
            self.folder,
            error.strerror,
        )


def _file_name(key: str) -> str:
    return f"{key}.1"


def _files(folder: Path) -> Iterable[tuple[int, int, str]]:
    """Of each file of the cache: when it was last read (ns), bytes on disk, name."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield status.st_mtime_ns, status.st_blocks * 512, entry.name
    except FileNotFoundError:
        return


def _remove(path: Path) -> None:
    try:
        os.truncate(path, 0)  # frees the space though another process has it open
        path.unlink()
    except FileNotFoundError:
        pass


def _footprint(part: Part) -> int:
    """At most so much more is allocated on disk by keeping a part."""
    return len(part.data) + records_of(len(part.data)) + 4 * PAGE
