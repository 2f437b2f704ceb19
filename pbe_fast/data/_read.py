"""Reading images out of shards by the manifest's offsets."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

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
        return self.read_all([sample_id])[0]

    def read_all(self, ids: Sequence[int]) -> list[bytes]:
        """The encoded images of some samples; neighbours in a shard come by one read.

        Raises:
            ShardError, IndexError: as :meth:`read`.
        """
        manifest = self.manifest
        chosen = np.asarray(ids, np.int64)
        outside = (chosen < 0) | (chosen >= len(manifest))
        if outside.any():
            raise IndexError(f"sample {chosen[outside][0]} of {len(manifest)}")
        shards = manifest.shard_index[chosen].tolist()
        offsets, sizes = manifest.offsets[chosen].tolist(), manifest.sizes[chosen].tolist()
        images: list[bytes] = []
        for first, last in _runs(shards, offsets, sizes):
            start, end = offsets[first], offsets[last] + sizes[last]
            try:
                data = self._handle(shards[first]).read(end - start, start)
            except OSError as error:
                raise ShardError(
                    f"{manifest.root}/{manifest.describe(ids[first])}: cannot be read "
                    f"({error.strerror}). {_REMEDY}"
                ) from error
            for i in range(first, last + 1):
                image = data[offsets[i] - start : offsets[i] - start + sizes[i]]
                if len(image) != sizes[i]:
                    raise ShardError(
                        f"{manifest.root}/{manifest.describe(ids[i])}: only {len(image)} of "
                        f"{sizes[i]} bytes are there; the shard is cut off. {_REMEDY}"
                    )
                images.append(image)
        return images

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


def _runs(shards: list[int], offsets: list[int], sizes: list[int]) -> Iterator[tuple[int, int]]:
    """First and last positions of samples that follow each other closely in one shard."""
    first = 0
    for i in range(1, len(shards) + 1):
        if i < len(shards) and shards[i] == shards[first]:
            gap = offsets[i] - (offsets[i - 1] + sizes[i - 1])
            if 0 <= gap <= _GAP and offsets[i] + sizes[i] - offsets[first] <= _RUN:
                continue
        if first < len(shards):
            yield first, i - 1
        first = i


_GAP = 8 * 1024  # bytes that are read for nothing rather than by another call: headers, a label
_RUN = 2**20  # bytes of one read; many more leave the cache before they are decoded
_REMEDY = "Check the shards with 'pbe-fast shards verify', and copy the damaged ones again."


def read_bytes(manifest: Manifest, sample_id: int) -> bytes:
    """The encoded image of one sample; see :meth:`ShardReader.read`.

    For many images use one :class:`ShardReader`, which keeps the shards open.
    """
    return ShardReader(manifest, max_open=1).read(sample_id)
