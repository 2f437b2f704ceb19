"""Reading single images out of shards by the manifest's offsets."""

import os
import threading
from collections import OrderedDict
from pathlib import Path

from pbe_fast.data.manifest import Manifest
from pbe_fast.errors import ShardError

__all__ = ["ShardReader", "read_bytes"]


class ShardReader:
    """Reads images by sample id, with a bounded number of shards open.

    May be shared by threads, pickled for worker processes, and carried through a fork: each
    process opens the shards for itself.
    """

    def __init__(self, manifest: Manifest, *, max_open: int = 64) -> None:
        """``max_open``: how many shards stay open; the one unused for longest is closed."""
        if max_open < 1:
            raise ValueError(f"max_open is {max_open}; it must be 1 or more")
        self.manifest = manifest
        self.max_open = max_open
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"manifest": self.manifest, "max_open": self.max_open}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, sample_id: int) -> bytes:
        """The encoded image of a sample, exactly the bytes that the manifest names.

        Raises:
            ShardError: the shard is missing or too short; names shard and sample.
            IndexError: there is no such sample.
        """
        manifest = self.manifest
        if not 0 <= sample_id < len(manifest):
            raise IndexError(f"sample {sample_id} of {len(manifest)}")
        offset = int(manifest.offsets[sample_id])
        size = int(manifest.sizes[sample_id])
        try:
            handle = self._handle(int(manifest.shard_index[sample_id]))
            data = handle.read(size, offset)
        except OSError as error:
            raise ShardError(
                f"{manifest.root}/{manifest.describe(sample_id)}: cannot be read "
                f"({error.strerror}). {_REMEDY}"
            ) from error
        if len(data) != size:
            raise ShardError(
                f"{manifest.root}/{manifest.describe(sample_id)}: only {len(data)} of {size} "
                f"bytes are there; the shard is cut off. {_REMEDY}"
            )
        return data

    def close(self) -> None:
        """Close all shards; a later read opens what it needs again."""
        with self._lock:
            self._open.clear()

    def _handle(self, shard: int) -> "_Handle":
        if self._pid != os.getpid():  # after a fork; the lock may have been held by then
            self._start()
        with self._lock:
            handle = self._open.get(shard)
            if handle is None:
                handle = self._open[shard] = _Handle(self.manifest.shard_path(shard))
                if len(self._open) > self.max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return handle


class _Handle:
    """A file descriptor that lives as long as the last thread that reads through it.

    Closing it at eviction instead could make another thread read from whichever file got the
    same number next.
    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``, or fewer at the end of the file."""
        data = os.pread(self.fd, size, offset)
        while len(data) < size:  # a signal or a network file system may return less
            more = os.pread(self.fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if (fd := self.__dict__.get("fd")) is not None:
            os.close(fd)


_REMEDY = "Check the shards with 'pbe-fast shards verify', and copy the damaged ones again."


def read_bytes(manifest: Manifest, sample_id: int) -> bytes:
    """The encoded image of one sample; see :meth:`ShardReader.read`.

    For many images use one :class:`ShardReader`, which keeps the shards open.
    """
    return ShardReader(manifest, max_open=1).read(sample_id)
