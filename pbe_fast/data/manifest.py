"""The manifest: what is in a set of shards, one row a sample, beside the tar files.

Tar readers drop samples silently on most kinds of damage, so nothing is read that the manifest
does not name, and everything that it names must be there. The manifest gives each sample's
byte offset, so a subset is read without touching the rest.

A shard's name is a plain path below the manifest, which may itself lie at an address (``https``,
``s3``). A manifest on local disk may also name shards by their addresses. One that was fetched
may not, nor can it name local files: it was perhaps written by somebody else, and would be read
with the rights of whoever reads it.

On disk (``manifest.parquet``): columns ``shard`` (dictionary of names), ``key``,
``offset``, ``size`` (bytes of the image inside the shard) and ``label``; the shards' SHA-256,
sizes and sample counts and the class names are JSON in the schema's metadata.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pbe_fast._files import atomic_path
from pbe_fast._location import is_address, join, location, redacted
from pbe_fast.data.storage import MissingError, Storage
from pbe_fast.errors import ConfigError, ShardError

__all__ = ["MANIFEST_NAME", "Manifest", "Shard"]

MANIFEST_NAME = "manifest.parquet"
_METADATA_KEY = b"pbe_fast"
_VERSION = 1
_CHUNK = 100_000  # rows of strings that are Python's at a time


@dataclass(frozen=True)
class Shard:
    """One tar file: its name below the manifest or its address, SHA-256 (hex), bytes, samples."""

    name: str
    sha256: str
    bytes: int
    samples: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """All samples of a data set. A sample's id is its row, 0 to N - 1.

    Attributes:
        root: the folder, or its address, that shard names are relative to.
        shards: the tar files, in order; rows are grouped by shard in this order.
        classes: class names; a label is an index into them.
        shard_index: ``(N,)`` int32, index into ``shards``.
        keys: N strings, the samples' names without extension; unique.
        offsets, sizes: ``(N,)`` int64, where the image's bytes lie in the shard.
        labels: ``(N,)`` int32.
    """

    root: Path | str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    shard_index: npt.NDArray[np.int32]
    keys: pa.StringArray
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes there are, with or without samples."""
        return len(self.classes)

    def shard_location(self, index: int) -> Path | str:
        """Where shard ``index`` lies: a local path, or an address."""
        name = self.shards[index].name
        return name if is_address(name) else join(self.root, name)

    def shard_path(self, index: int) -> Path:
        """Where shard ``index`` lies on local disk.

        Raises:
            ShardError: it has an address.
        """
        place = self.shard_location(index)
        if not isinstance(place, Path):
            raise ShardError(f"{place}: is no local file. Copy the shards to a local folder.")
        return place

    @property
    def is_remote(self) -> bool:
        """Whether any shard has an address."""
        return isinstance(self.root, str) or any(is_address(s.name) for s in self.shards)

    def describe(self, sample_id: int) -> str:
        """A sample for people: ``train-000003.tar: 00012/00045_00010``."""
        shard = self.shards[int(self.shard_index[sample_id])].name
        return f"{shard}: {self.keys[sample_id].as_py()}"

    def save(self, folder: Path) -> Path:
        """Write ``manifest.parquet`` into ``folder``, whole or not at all."""
        header = {
            "version": _VERSION,
            "classes": list(self.classes),
            "shards": [vars(shard) for shard in self.shards],
        }
        names = pa.array([shard.name for shard in self.shards], pa.string())
        table = pa.table(
            {
                "shard": pa.DictionaryArray.from_arrays(pa.array(self.shard_index), names),
                "key": self.keys,
                "offset": pa.array(self.offsets),
                "size": pa.array(self.sizes),
                "label": pa.array(self.labels),
            }
        ).replace_schema_metadata({_METADATA_KEY: json.dumps(header)})
        path = folder / MANIFEST_NAME
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return path

    @classmethod
    def load(cls, path: Path | str, storage: Storage | None = None) -> "Manifest":
        """Read and check a manifest.

        Args:
            path: the folder of the shards or its address, or the ``manifest.parquet`` itself.
            storage: reads what has an address.

        Raises:
            ShardError: the file is missing, is no manifest, or contradicts itself.
            ConfigError: an address that is not supported.
        """
        file, content = _open(location(path), storage or Storage())
        try:
            with pq.ParquetFile(content) as table:
                manifest = cls._read(table, file)
        except (pa.ArrowException, LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ShardError):
                raise
            raise ShardError(
                f"{file}: not a manifest of pbe-fast ({error}). Make it again with "
                "'pbe-fast shards index'."
            ) from error
        manifest._check(file)
        # What reading took beside would otherwise stay with the process.
        pa.default_memory_pool().release_unused()
        return manifest

    @classmethod
    def _read(cls, table: pq.ParquetFile, file: Path | str) -> "Manifest":
        header = json.loads((table.schema_arrow.metadata or {})[_METADATA_KEY])
        if header["version"] != _VERSION:
            raise ShardError(f"{file}: manifest version {header['version']}, not {_VERSION}.")
        shards = tuple(
            Shard(str(s["name"]), str(s["sha256"]), int(s["bytes"]), int(s["samples"]))
            for s in header["shards"]
        )
        return cls(
            root=file.parent if isinstance(file, Path) else file.rpartition("/")[0],
            shards=shards,
            classes=tuple(str(name) for name in header["classes"]),
            shard_index=_shard_index(_column(table, "shard"), shards),
            keys=_one_array(_column(table, "key")),
            offsets=_numbers(_column(table, "offset"), np.int64),
            sizes=_numbers(_column(table, "size"), np.int64),
            labels=_numbers(_column(table, "label"), np.int32),
        )

    def _check(self, file: Path | str) -> None:
        """Refuse a manifest that contradicts itself, before any byte is read by it."""
        wrong: list[str] = []
        for shard in self.shards:
            if isinstance(self.root, Path) and is_address(shard.name):
                wrong += _address_fault(shard.name)
            elif unsafe_shard_name(shard.name):
                shown = redacted(shard.name)
                wrong.append(f"shard name {shown!r} is not a plain path below the folder")
        counts = np.bincount(self.shard_index, minlength=len(self.shards))
        for shard, count in zip(self.shards, counts, strict=True):
            if count != shard.samples:
                wrong.append(f"{shard.name}: {count} rows for {shard.samples} samples")
        if len(self) and np.any(np.diff(self.shard_index) < 0):
            wrong.append("rows are not in the order of the shards")
        if len(self):
            ends = np.array([shard.bytes for shard in self.shards], np.int64)[self.shard_index]
            if (self.offsets < 0).any() or (self.sizes < 0).any():
                wrong.append("negative offsets or sizes")
            elif (self.offsets > ends).any() or (self.sizes > ends - self.offsets).any():
                wrong.append("samples that lie beyond the end of their shard")
            if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
                wrong.append(f"labels outside 0 to {self.num_classes - 1}")
            if _has_duplicates(self.keys):
                wrong.append("keys that stand in more than one row")
        if wrong:
            raise ShardError(f"{file}: " + "; ".join(wrong) + ". Make it again from the shards.")


def unsafe_shard_name(name: str) -> bool:
    """Whether a shard's name could lead out of its folder, or is a URL or a command."""
    path = PurePosixPath(name)
    return (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or ":" in name
        or "\\" in name
        or "\0" in name
    )


def _address_fault(name: str) -> list[str]:
    try:
        return (
            []
            if location(name) == name
            else [f"shard name {redacted(name)!r} is not spelled plainly"]
        )
    except ConfigError as error:
        return [str(error)]


def _open(place: Path | str, storage: Storage) -> tuple[Path | str, Path | pa.BufferReader]:
    """Where the manifest lies, and what to read it from."""
    if isinstance(place, Path):
        file = place / MANIFEST_NAME if place.is_dir() else place
        if not file.exists():
            raise ShardError(f"{file}: there is no such file. {_NO_MANIFEST}")
        return file, file
    address = place if place.endswith(".parquet") else str(join(place, MANIFEST_NAME))
    try:
        return address, pa.BufferReader(storage.read_object(address))
    except MissingError as error:
        raise MissingError(f"{error} {_NO_MANIFEST}") from error


_NO_MANIFEST = (
    "Make one with 'pbe-fast shards index FOLDER' (an existing WebDataset) or 'pbe-fast shards "
    "convert' (anything else)."
)


def _column(file: pq.ParquetFile, name: str) -> pa.ChunkedArray:
    """One column alone, so that not all are held twice at a time."""
    return file.read(columns=[name], use_threads=False).column(0)


def _shard_index(column: pa.ChunkedArray, shards: tuple[Shard, ...]) -> npt.NDArray[np.int32]:
    names = column.combine_chunks()
    if isinstance(names, pa.ChunkedArray):
        names = names.chunk(0)
    position = {shard.name: i for i, shard in enumerate(shards)}
    renumber = np.array([position[name] for name in names.dictionary.to_pylist()], np.int32)
    found: npt.NDArray[np.int32] = renumber[names.indices.to_numpy()]
    return found


def _numbers(column: pa.ChunkedArray, dtype: type[Any]) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = column.to_numpy().astype(dtype, copy=False)
    return found


def _has_duplicates(keys: pa.StringArray) -> bool:
    """By hashes first, which take a tenth of the memory of the keys' own table."""
    hashes = np.empty(len(keys), np.int64)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK].to_pylist()
        hashes[start : start + len(chunk)] = np.fromiter(map(hash, chunk), np.int64, len(chunk))
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any()) and len(keys.unique()) != len(keys)


def _one_array(column: pa.ChunkedArray) -> pa.StringArray:
    return pa.chunked_array(column, pa.string()).combine_chunks()
