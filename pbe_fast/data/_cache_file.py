"""One shard's file in the cache; :mod:`pbe_fast.data.cache` says how it is laid out."""

import bisect
import os
import struct
import time
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PAGE", "CacheFile", "records_of"]

PAGE = 4096
_RECORD = struct.Struct("<QIII")  # offset, size, CRC-32 of the bytes, CRC-32 of the former three
_LARGEST = 128 * 1024  # bytes of one record: so many are read to check some of them
_TOUCH_SECONDS = 5.0  # how exactly "not read for longest" is known


def records_of(size: int) -> int:
    """At most so many bytes of records speak of ``size`` bytes that lie together."""
    return (-(-size // _LARGEST) + 1) * _RECORD.size


class CacheFile:
    """One shard's file, open, and which bytes it has by the records read so far."""

    def __init__(self, fd: int, key: str, total: int) -> None:
        self.fd = fd
        self.seed = zlib.crc32(key.encode())
        self.base = -(-total // PAGE) * PAGE  # where the records begin
        self.seen = self.base
        self.touched = 0.0
        # Disjoint, in order: where spans begin and end in the shard, and the CRC-32 of each.
        self.starts, self.ends, self.sums = array("Q"), array("Q"), array("I")

    @classmethod
    def open(cls, path: Path, key: str, total: int, create: bool) -> "CacheFile | None":
        """Open the file, and make it where that is wanted."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            return None
        entry = cls(fd, key, total)
        if create and os.fstat(fd).st_size < entry.base:
            os.ftruncate(fd, entry.base)
        return entry if entry.refresh() else None

    def __del__(self) -> None:
        os.close(self.fd)

    def refresh(self) -> bool:
        """Read the records that came since; False where the file was taken away."""
        status = os.fstat(self.fd)
        if status.st_nlink == 0 or status.st_size < self.seen:
            return False
        records = os.pread(self.fd, status.st_size - self.seen, self.seen)
        records = records[: len(records) // _RECORD.size * _RECORD.size]  # not half a one
        for offset, size, crc, check in _RECORD.iter_unpack(records):
            if check == self._check(offset, size, crc) and offset + size <= self.base:
                self._add(offset, size, crc)
        self.seen += len(records)
        return True

    def read(self, offset: int, size: int) -> bytes | None:
        """The bytes, or None where they are not all there and sound."""
        end = offset + size
        first = last = bisect.bisect_right(self.starts, offset) - 1
        if first < 0 or self.ends[first] <= offset:
            return None
        while self.ends[last] < end:
            last += 1
            if last == len(self.starts) or self.starts[last] != self.ends[last - 1]:
                return None
        start = self.starts[first]
        content = memoryview(os.pread(self.fd, self.ends[last] - start, start))
        if any(
            zlib.crc32(content[self.starts[i] - start : self.ends[i] - start]) != self.sums[i]
            for i in range(first, last + 1)
        ):
            for spans in (self.starts, self.ends, self.sums):
                del spans[first : last + 1]
            return None
        now = time.time()
        if now - self.touched > _TOUCH_SECONDS:
            self.touched = now
            os.utime(self.fd)
        return bytes(content[offset - start : end - start])

    def write(self, offset: int, data: bytes) -> None:
        """Add what is not there of some bytes. The caller holds the folder's lock."""
        end_of_file = os.fstat(self.fd).st_size
        # Over half a record, where a writer was killed.
        at = end_of_file - (end_of_file - self.base) % _RECORD.size
        view = memoryview(data)
        records = b""
        for start, end in list(self._gaps(offset, offset + len(data))):
            piece = view[start - offset : end - offset]
            _write(self.fd, piece, start)
            crc = zlib.crc32(piece)
            records += _RECORD.pack(start, end - start, crc, self._check(start, end - start, crc))
        if records:
            _write(self.fd, memoryview(records), at)
        self.refresh()

    def _check(self, offset: int, size: int, crc: int) -> int:
        return zlib.crc32(struct.pack("<QII", offset, size, crc), self.seed)

    def _add(self, offset: int, size: int, crc: int) -> None:
        """A span that is there; it takes the place of those it overlaps, which were unsound."""
        first = bisect.bisect_right(self.ends, offset)
        last = bisect.bisect_left(self.starts, offset + size)
        self.starts[first:last] = array("Q", [offset])
        self.ends[first:last] = array("Q", [offset + size])
        self.sums[first:last] = array("I", [crc])

    def _gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of a span is not there, in pieces of at most ``_LARGEST`` bytes."""
        i = bisect.bisect_right(self.ends, start)
        while start < end:
            stop = min(end, self.starts[i]) if i < len(self.starts) else end
            while start < stop:
                piece = min(stop, start + _LARGEST)
                yield start, piece
                start = piece
            if i < len(self.starts):
                start = max(start, self.ends[i])
            i += 1


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
