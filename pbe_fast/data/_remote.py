"""Shards on other machines: spans of bytes through the cache, or whole shards in a file."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pbe_fast.data.cache import Part, RangeCache, default_folder, shard_key
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.storage import NoRangesError, Request, Storage, StorageOptions
from pbe_fast.errors import ShardError

__all__ = ["RemoteShards", "Span", "downloaded"]

_GROUP = 64 * 2**20  # bytes that are looked up, fetched and kept together
_log = logging.getLogger("pbe_fast")


class Span(NamedTuple):
    """Some bytes of a shard."""

    shard: int
    offset: int
    size: int


class RemoteShards:
    """Reads those shards of a manifest that have an address. May be carried through a fork."""

    def __init__(self, manifest: Manifest, options: StorageOptions) -> None:
        self.manifest = manifest
        self.storage = Storage(options.patience, options.parallel)
        self.cache = (
            None
            if options.cache_bytes == 0
            else RangeCache(options.cache_dir or default_folder(), options.cache_bytes)
        )
        self._whole: tuple[int, bytes] | None = None  # where the server knows no ranges

    def read(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """The bytes of each span, in order; what is not in the cache is fetched, and kept there.

        Raises:
            ShardError: an object is missing, has another size, or cannot be had.
        """
        group: list[Span] = []
        size = 0
        for span in spans:
            group.append(span)
            size += span.size
            if size >= _GROUP:
                yield from self._read_group(group)
                group, size = [], 0
        yield from self._read_group(group)

    def forget(self, shard: int) -> None:
        """Have nothing of a shard in the cache any more."""
        self._whole = None
        if self.cache is not None:
            self.cache.drop(self._key(shard))

    def _read_group(self, spans: list[Span]) -> list[bytes]:
        found = {} if self.cache is None else self._cached(self.cache, spans)
        missing = [span for span in dict.fromkeys(spans) if span not in found]
        requests = [Request(self._place(s.shard), s.offset, s.size, self._total(s.shard))
                    for s in missing]  # fmt: skip
        fetched: dict[Span, bytes] = {}
        try:
            for span, content in zip(missing, self.storage.read_each(requests), strict=True):
                fetched[span] = content
        except NoRangesError:
            fetched |= self._from_whole([span for span in missing if span not in fetched])
        if self.cache is not None:
            self.cache.put([self._part(span, content) for span, content in fetched.items()])
        found |= fetched
        return [found[span] for span in spans]

    def _cached(self, cache: RangeCache, spans: list[Span]) -> dict[Span, bytes]:
        found: dict[Span, bytes] = {}
        for span in spans:
            content = cache.get(self._key(span.shard), self._total(span.shard), *span[1:])
            if content is not None:
                found[span] = content
        return found

    def _from_whole(self, spans: list[Span]) -> dict[Span, bytes]:
        """As good as can be done where the server sends whole objects only."""
        fetched: dict[Span, bytes] = {}
        for shard in dict.fromkeys(span.shard for span in spans):
            whole = self._whole
            if whole is None or whole[0] != shard:
                place, total = self._place(shard), self._total(shard)
                _log.warning("%s: the server sends whole files only, so all is fetched.", place)
                content = self.storage.read(place, 0, total, total)
                whole = self._whole = shard, content
                if self.cache is not None:
                    self.cache.put([self._part(Span(shard, 0, total), content)])
            fetched |= {
                span: whole[1][span.offset : span.offset + span.size]
                for span in spans
                if span.shard == shard
            }
        return fetched

    def _place(self, shard: int) -> str:
        return str(self.manifest.shard_location(shard))

    def _total(self, shard: int) -> int:
        return self.manifest.shards[shard].bytes

    def _key(self, shard: int) -> str:
        return shard_key(self._place(shard), self.manifest.shards[shard].sha256, self._total(shard))

    def _part(self, span: Span, content: bytes) -> Part:
        return Part(self._key(span.shard), self._total(span.shard), span.offset, content)


@contextmanager
def downloaded(place: Path | str, storage: Storage) -> Iterator[Path]:
    """A shard as a local file: itself, or a copy that is removed at the end.

    Raises:
        ShardError: it cannot be had. Errors about the copy name the shard's address.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.NamedTemporaryFile(prefix="pbe-fast-", suffix=".tar") as file:
        storage.download(place, file)
        try:
            yield Path(file.name)
        except ShardError as error:
            raise ShardError(str(error).replace(file.name, place)) from error
