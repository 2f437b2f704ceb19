"""Reading images out of shards by the manifest's offsets."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pbe_fast.data._remote import RemoteShards, Span
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.storage import StorageOptions
from pbe_fast.errors import ShardError

__all__ = ["ShardReader", "read_bytes"]


class ShardReader:
    """Reads images by sample id, with a bounded number of shards open.

    May be shared by threads, pickled for worker processes, and carried through a fork: each
    process opens the shards for itself.
    """

    def __init__(
        self, manifest: Manifest, *, max_open: int = 64, storage: StorageOptions | None = None
    ) -> None:
        """Nothing is opened yet.

        Args:
            max_open: how many local shards stay open; the one unused for longest is closed.
            storage: how shards that have an address are read.
        """
        if max_open < 1:
            raise ValueError(f"max_open is {max_open}; it must be 1 or more")
        self.manifest = manifest
        self.max_open = max_open
        self.storage = storage or StorageOptions()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Handle] = OrderedDict()
        # None where all is local, so that reading costs nothing more there.
        remote = self.manifest.is_remote
        self._remote = RemoteShards(self.manifest, self.storage) if remote else None

    def __getstate__(self) -> dict[str, object]:
        return {"manifest": self.manifest, "max_open": self.max_open, "storage": self.storage}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, sample_id: int) -> bytes:
        """The encoded image of a sample, exactly the bytes that the manifest names.

        Raises:
            ShardError: the shard is missing, too short, or cannot be had; names shard and sample.
            IndexError: there is no such sample.
        """
        return self.read_all([sample_id])[0]

    def read_all(self, ids: Sequence[int]) -> list[bytes]:
        """The encoded images of some samples; neighbours in a shard come by one read.

        Reads of shards that have an address are under way together.

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
        runs = _runs(shards, offsets, sizes)
        remote = None
        if self._remote is not None:
            runs = list(_runs(shards, offsets, sizes, _REMOTE_RUN))
            spans = [
                Span(shards[first], offsets[first], offsets[last] + sizes[last] - offsets[first])
                for first, last in runs
                if self._is_remote(shards[first])
            ]
            remote = self._remote.read(spans)
        for first, last in runs:
            start, end = offsets[first], offsets[last] + sizes[last]
            try:
                if remote is not None and self._is_remote(shards[first]):
                    data = next(remote)
                else:
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

    def read_shard(self, index: int) -> list[bytes]:
        """All encoded images of one shard, in the order of the manifest.

        The shard is read once, whole, and what was read is what the manifest's SHA-256 is of; so
        a shard that was changed since the manifest was made, or damaged, is never used.

        Raises:
            ShardError: the shard was changed, is missing, or cannot be had.
        """
        manifest = self.manifest
        shard, place = manifest.shards[index], manifest.shard_location(index)
        bounds = np.searchsorted(manifest.shard_index, [index, index + 1])
        offsets = manifest.offsets[bounds[0] : bounds[1]].tolist()
        sizes = manifest.sizes[bounds[0] : bounds[1]].tolist()
        pieces = _pieces(offsets, sizes, shard.bytes)
        remote = self._remote if isinstance(place, str) else None
        for _ in range(2 if remote is not None else 1):
            images = [b""] * len(offsets)
            digest = hashlib.sha256()
            if remote is not None:
                read = remote.read([Span(index, start, end - start) for start, end, _ in pieces])
            else:
                read = self._read_file(index, pieces)
            for (start, _end, rows), data in zip(pieces, read, strict=True):
                digest.update(data)
                for row in rows:
                    begin = offsets[row] - start
                    images[row] = data[begin : begin + sizes[row]]
            if digest.hexdigest() == shard.sha256:
                return images
            if remote is not None:  # the cache holds what was fetched before it changed
                remote.forget(index)
        raise ShardError(
            f"{place}: was changed since the manifest was made, or is damaged: its SHA-256 is "
            f"{digest.hexdigest()} instead of {shard.sha256}. {_REMEDY}"
        )

    def _read_file(self, index: int, pieces: "list[_Piece]") -> Iterator[bytes]:
        """The file that lies there now, which need not be the one that is open."""
        path, expected = self.manifest.shard_path(index), self.manifest.shards[index].bytes
        try:
            handle = _Handle(path)
            found = os.fstat(handle.fd).st_size
            if found != expected:
                raise ShardError(
                    f"{path}: was changed since the manifest was made: it has {found} bytes "
                    f"instead of {expected}. {_REMEDY}"
                )
            for start, end, _rows in pieces:
                yield handle.read(end - start, start)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}). {_REMEDY}") from error

    def close(self) -> None:
        """Close all shards; a later read opens what it needs again."""
        with self._lock:
            self._open.clear()

    def _is_remote(self, shard: int) -> bool:
        return isinstance(self.manifest.shard_location(shard), str)

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


_Piece = tuple[int, int, list[int]]  # where it begins, where it ends, which images are in it


def _pieces(offsets: list[int], sizes: list[int], total: int) -> list[_Piece]:
    """A shard cut into pieces of some MiB, none of which ends inside an image."""
    pieces: list[_Piece] = []
    start = end = 0
    rows: list[int] = []
    for row in sorted(range(len(offsets)), key=offsets.__getitem__):
        if offsets[row] >= end and end - start >= _PIECE:
            pieces.append((start, end, rows))
            start, rows = end, []
        rows.append(row)
        end = max(end, offsets[row] + sizes[row])
    return [*pieces, (start, total, rows)]


def _runs(
    shards: list[int], offsets: list[int], sizes: list[int], longest: int = 2**20
) -> Iterable[tuple[int, int]]:
    """First and last positions of samples that follow each other closely in one shard.

    ``longest``: bytes of one read; many more leave the cache before they are decoded.
    """
    first = 0
    for i in range(1, len(shards) + 1):
        if i < len(shards) and shards[i] == shards[first]:
            gap = offsets[i] - (offsets[i - 1] + sizes[i - 1])
            if 0 <= gap <= _GAP and offsets[i] + sizes[i] - offsets[first] <= longest:
                continue
        if first < len(shards):
            yield first, i - 1
        first = i


_GAP = 8 * 1024  # bytes that are read for nothing rather than by another call: headers, a label
_REMOTE_RUN = 4 * 2**20  # bytes of one request, which costs more than a read
_PIECE = 8 * 2**20  # bytes of a shard that is read whole, in memory beside its images
_REMEDY = "Check the shards with 'pbe-fast shards verify', and copy the damaged ones again."


def read_bytes(manifest: Manifest, sample_id: int) -> bytes:
    """The encoded image of one sample; see :meth:`ShardReader.read`.

    For many images use one :class:`ShardReader`, which keeps the shards open.
    """
    return ShardReader(manifest, max_open=1).read(sample_id)
