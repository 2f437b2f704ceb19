"""Reading bytes of objects that lie on another machine, over http, https or S3 (fsspec).

A request asks for some bytes of one object. Many are under way at once, because what a request
costs is mostly waiting. A server that fails for a while is asked again: after 5xx, 408, 425 and
429, broken and refused connections, timeouts and answers that are too short, with waits that
double. What cannot get better (401, 403, 404, an object of another size) fails at once. Either
way the error is a :class:`ShardError` that names the object, what the server said and what to do.

Credentials come from where aiohttp and botocore look for them by themselves: ``~/.netrc``, the
proxy variables, the environment and the files of AWS.
"""

import asyncio
import hashlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from pbe_fast._location import redacted
from pbe_fast.data._connections import close_connections, connections
from pbe_fast.data._protocols import Failure, NoRangesError, Request, explain
from pbe_fast.errors import ShardError

__all__ = [
    "MissingError",
    "NoRangesError",
    "Patience",
    "Request",
    "Storage",
    "StorageOptions",
    "close_connections",
]

PIECE = 8 * 2**20  # bytes of one request; larger objects are read in pieces
_AHEAD = 2  # finished and running requests for each running one
T = TypeVar("T")


class MissingError(ShardError):
    """There is no such object."""


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    With the default values a server that answers nothing but 503 is given up after 63 seconds of
    waiting, give or take a quarter, and one that takes connections and stays silent after that
    and 8 times 20 seconds: about 4 minutes.

    Attributes:
        connect_seconds: to open a connection.
        stall_seconds: between two packets of an answer.
        bytes_per_second: an answer that is slower on the whole counts as stalled.
        tries: of one request, the first included.
        first_wait: seconds before the second try; each later wait is twice as long.
        longest_wait: seconds; also where the server asks for more (``Retry-After``).
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    bytes_per_second: float = 256 * 1024
    tries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 32.0

    def deadline(self, size: int) -> float:
        """Seconds that one try for ``size`` bytes may take."""
        return self.connect_seconds + self.stall_seconds + size / self.bytes_per_second

    def wait(self, place: str, offset: int, attempt: int) -> float:
        """Seconds between try ``attempt`` (from 1) and the next.

        Between 3/4 and 5/4 of the doubling waits, by a hash of the arguments, so that readers of
        different bytes do not come back all at once.
        """
        text = f"{place}\0{offset}\0{attempt}".encode()
        share = int.from_bytes(hashlib.sha256(text).digest()[:4], "big") / 2**32
        doubled = self.first_wait * 2.0 ** (attempt - 1)
        return min(self.longest_wait, doubled) * (0.75 + share / 2)


@dataclass(frozen=True)
class StorageOptions:
    """How remote shards are read; local ones need none of it.

    Attributes:
        cache_dir: where bytes are kept; None: ``pbe-fast`` in the user's cache folder.
        cache_bytes: how much of the disk they may take; 0 keeps none, None chooses.
        patience: with servers that fail.
        parallel: requests under way at once, in each process.
    """

    cache_dir: Path | None = None
    cache_bytes: int | None = None
    patience: Patience = Patience()
    parallel: int = 8


@dataclass(frozen=True)
class Storage:
    """Reads remote objects. Connections are shared by all threads of a process."""

    patience: Patience = Patience()
    parallel: int = 8

    def read(self, place: str, offset: int, size: int, total: int | None = None) -> bytes:
        """``size`` bytes at ``offset``.

        Raises:
            ShardError: they cannot be had; :class:`MissingError`: there is no such object.
            NoRangesError: the server sends whole objects only.
        """
        return next(self.read_each([Request(place, offset, size, total)]))

    def read_each(self, requests: Iterable[Request]) -> Iterator[bytes]:
        """The bytes of many requests, in their order; some requests ahead are under way.

        Raises:
            as :meth:`read`, when the request's turn comes.
        """
        return self._run(partial(self._read, request) for request in requests)

    def size(self, place: str) -> int:
        """How many bytes an object has.

        Raises:
            ShardError: that cannot be learned; :class:`MissingError`: there is no such object.
        """
        return next(self._run([partial(self._size, place)]))

    def sizes(self, places: Iterable[str]) -> Iterator[int | ShardError]:
        """As :meth:`size` for many objects, in order; errors are handed back, not raised."""

        async def either(place: str) -> int | ShardError:
            try:
                return await self._size(place)
            except ShardError as error:
                return error

        return self._run(partial(either, place) for place in places)

    def read_object(self, place: str, largest: int = 2**32) -> bytes:
        """A whole object, such as a manifest.

        Raises:
            ShardError: as :meth:`read`, it is larger than ``largest`` bytes, or it changed while
                it was read.
        """
        for _ in range(2):
            size = self.size(place)
            if size > largest:
                raise ShardError(f"{place}: has {size} bytes; at most {largest} are read.")
            content = b"".join(self.pieces(place, size))
            again = self.size(place)
            if again == size:
                return content
        raise ShardError(f"{place}: changes while it is read. Wait until it is written.")

    def pieces(self, place: str, total: int) -> Iterator[bytes]:
        """A whole object of ``total`` bytes, in pieces.

        Raises:
            as :meth:`read`, but servers without ranges serve too.
        """
        starts = range(0, total, PIECE)
        pieces = self.read_each(
            Request(place, start, min(PIECE, total - start), total) for start in starts
        )
        try:
            yield from pieces
        except NoRangesError:  # at the first piece, so nothing was handed out yet
            yield self.read(place, 0, total, total)

    def download(self, place: str, file: IO[bytes]) -> int:
        """Copy an object into an open file; returns its size in bytes.

        Raises:
            ShardError: as :meth:`read`.
        """
        total = self.size(place)
        for piece in self.pieces(place, total):
            file.write(piece)
        file.flush()
        return total

    def find(self, pattern: str) -> list[str]:
        """The objects that a glob means, sorted.

        Raises:
            ShardError: the storage cannot list (http), or as :meth:`read`.
        """

        async def listed() -> list[str]:
            return await self._patiently(pattern, 0, 0, lambda: connections().s3().find(pattern))

        if not pattern.startswith("s3:"):
            raise ShardError(
                f"{redacted(pattern)}: http servers cannot list their files. Name every shard "
                "with a range in braces, such as train-{000000..000146}.tar."
            )
        return next(self._run([listed]))

    def _run(self, work: Iterable[Callable[[], Awaitable[T]]]) -> Iterator[T]:
        """Do work on the loop's thread, ``parallel`` at once, and give the results in order."""
        loop = connections().loop
        turn = asyncio.Semaphore(self.parallel)

        async def in_turn(one: Callable[[], Awaitable[T]]) -> T:
            async with turn:
                return await one()

        running: deque[Future[T]] = deque()
        left = iter(work)
        try:
            while True:
                for one in itertools.islice(left, self.parallel * _AHEAD - len(running)):
                    running.append(asyncio.run_coroutine_threadsafe(in_turn(one), loop))
                if not running:
                    return
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    async def _read(self, request: Request) -> bytes:
        place, offset, size, _ = request
        if size == 0:
            return b""
        seconds = self.patience.connect_seconds, self.patience.stall_seconds
        return await self._patiently(
            place, offset, size, lambda: connections().protocol(place).read(request, *seconds)
        )

    async def _size(self, place: str) -> int:
        seconds = self.patience.connect_seconds, self.patience.stall_seconds
        return await self._patiently(
            place, 0, 0, lambda: connections().protocol(place).size(place, *seconds)
        )

    async def _patiently(
        self, place: str, offset: int, size: int, ask: Callable[[], Awaitable[T]]
    ) -> T:
        """Ask until there is an answer, or no hope for one."""
        patience = self.patience
        loop = asyncio.get_running_loop()
        began = loop.time()
        for attempt in itertools.count(1):
            try:
                return await asyncio.wait_for(ask(), patience.deadline(size))
            except NoRangesError:
                raise
            except Exception as error:
                failure = explain(error)
                if failure.bug:
                    raise
                if not failure.again or attempt >= patience.tries:
                    seconds = loop.time() - began
                    raise _final(place, failure, attempt, seconds) from None
                wait = patience.wait(place, offset, attempt)
                if failure.wait is not None:
                    wait = max(wait, min(failure.wait, patience.longest_wait))
                await asyncio.sleep(wait)
        raise AssertionError  # the count does not end


def _final(place: str, failure: Failure, tries: int, seconds: float) -> ShardError:
    asked = "" if tries == 1 else f", {tries} tries in {seconds:.0f} seconds"
    kind = MissingError if failure.missing else ShardError
    return kind(f"{redacted(place)}: {redacted(failure.text)}{asked}. {failure.remedy}")
