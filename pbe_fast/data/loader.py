"""Batches of uint8 images from shards, each sample exactly once, in worker processes.

A data set is opened once, when its shards are checked against the manifest. After that an
epoch is a list of sample ids cut into batches; workers read those samples' bytes
at the manifest's offsets, so a subset costs what it contains and a run starts anywhere in an
epoch for free.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pbe_fast._files import write_bytes
from pbe_fast.data.augment import SMALL, View
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.order import batches
from pbe_fast.data.shards import ShardReader, require_digest, require_intact
from pbe_fast.data.storage import Storage, StorageOptions
from pbe_fast.errors import ImageError, QuarantineError, ShardError

__all__ = ["Batch", "ImageData", "Quarantine"]

Ids = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """What the loader yields; N is smaller where images were undecodable."""

    images: Tensor  # (N, 3, size, size) uint8, channels_last
    labels: Tensor  # (N,) int64
    ids: Tensor  # (N,) int64, rows of the manifest


@dataclass
class Quarantine:
    """Samples that cannot be decoded: noted, left out, and counted against a budget.

    Each sample counts once, however often it is met, also over a stop and a new start: what
    ``path`` holds already is read back.

    Attributes:
        path: a JSON line for each such sample is appended here; None keeps them in memory.
        budget: the share of a data set that may be undecodable before the run stops.
        reasons: what is wrong, by data set, shard and key.
    """

    path: Path | None = None
    budget: float = 0.001
    reasons: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            self._read_back(self.path)

    def _read_back(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a stop in the middle of a line
            write_bytes(path, whole)
        for text in whole.splitlines():
            try:
                line = json.loads(text)
                self.reasons[str(line["data"]), str(line["shard"]), str(line["key"])] = str(
                    line["reason"]
                )
            except (ValueError, KeyError, TypeError):
                continue  # not a line of ours; it says nothing about a sample

    def add(self, manifest: Manifest, failures: Sequence[tuple[int, str]]) -> None:
        """Note failures.

        Raises:
            QuarantineError: the data set has more of them than the budget allows.
        """
        name = str(manifest.root)
        for sample_id, reason in failures:
            shard = manifest.shards[int(manifest.shard_index[sample_id])].name
            key = manifest.keys[sample_id].as_py()
            if (name, shard, key) in self.reasons:
                continue
            self.reasons[name, shard, key] = reason
            if self.path is not None:
                line = {"data": name, "shard": shard, "key": key, "reason": reason}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        bad = [(*place, why) for (data, *place), why in self.reasons.items() if data == name]
        allowed = math.floor(self.budget * len(manifest) + 1e-9)  # 0.29 * 100 is 28.999...
        if len(bad) > allowed:
            first = "; ".join(f"{shard}: {key} ({why})" for shard, key, why in bad[:3])
            where = f" All are listed in {self.path}." if self.path else ""
            raise QuarantineError(
                f"{name}: {len(bad)} undecodable images, but the budget is {allowed} of "
                f"{len(manifest)} ({self.budget:.2%}). First: {first}.{where} Mend the shards, or "
                "raise data.quarantine_budget; then begin again in a new folder."
            )


@dataclass(frozen=True, eq=False)
class ImageData:
    """An opened data set.

    Attributes:
        manifest: what is in it.
        size: side in pixels that images are brought to.
        workers: decoding processes; 0 decodes in this one, None chooses: none up to 64 pixels,
            where decoding costs less than passing images between processes, else the cores.
            Shards that have an address get 4 or more: they also read ahead, two batches each.
        quarantine: where undecodable images are noted.
        storage: how shards that have an address are read.
    """

    manifest: Manifest
    size: int
    workers: int | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)
    storage: StorageOptions = field(default_factory=StorageOptions)

    @classmethod
    def open(
        cls,
        path: Path | str,
        size: int,
        *,
        workers: int | None = None,
        quarantine: Quarantine | None = None,
        digests: bool = True,
        storage: StorageOptions | None = None,
    ) -> "ImageData":
        """Open shards and check them against their manifest.

        Args:
            path: the folder of the shards or its address, or the manifest itself.
            digests: read every local shard once and compare its SHA-256 and its members; else,
                and for shards that have an address, compare the sizes alone.
            storage: how shards that have an address are read.

        Raises:
            ShardError: something is missing or changed, or a server fails.
        """
        options = storage or StorageOptions()
        far = Storage(options.patience, options.parallel)
        manifest = Manifest.load(path, far)
        require_intact(manifest, digests=digests, members=digests, storage=far)
        return cls(manifest, size, workers, quarantine or Quarantine(), options)

    @property
    def ids(self) -> Ids:
        """All sample ids, in file order."""
        return np.arange(len(self.manifest), dtype=np.int64)

    def read(self, order: Ids, batch_size: int, view: View | None = None) -> Iterator[Batch]:
        """Read samples in the given order.

        Args:
            order: sample ids; each is read once for each time it stands here.
            batch_size: samples a batch.
            view: size and augmentation; None brings images to ``size`` and no more.

        Raises:
            QuarantineError: too many images cannot be decoded.
            ShardError: a shard is shorter than it was when it was opened, or a server fails.
        """
        return self.read_batches(batches(order, batch_size), view)

    def read_batches(self, cut: list[Ids], view: View | None = None) -> Iterator[Batch]:
        """Read samples in batches that are cut already; as :meth:`read`."""
        reader = _BatchReader(self.manifest, view or View(self.size), self.storage)
        workers = min(self._worker_count(), len(cut))
        # torch's loader takes a microsecond an image, which tells at 32x32.
        loaded = _in_workers(reader, cut, workers) if workers else map(reader.__getitem__, cut)
        try:
            for images, labels, ids, failures, broken in loaded:
                if broken is not None:
                    raise ShardError(broken)
                if failures:
                    self.quarantine.add(self.manifest, failures)
                yield Batch(images, labels, ids)
        finally:
            del loaded  # ends the workers now; a traceback would keep them for as long as it lives

    def require_unchanged(self, shard: int) -> None:
        """Compare one shard's SHA-256 with the manifest's.

        A shard that has an address is fetched for that, whole; with a cache that is large enough
        its images are then read from there.

        Raises:
            ShardError: it is another, or the shard is missing.
        """
        if isinstance(self.manifest.shard_location(shard), Path):
            require_digest(self.manifest, shard)
        else:
            ShardReader(self.manifest, storage=self.storage).read_shard(shard)

    def _worker_count(self) -> int:
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        if self.manifest.is_remote:
            return min(16, max(4, cores - 1))
        return 0 if self.size <= SMALL else min(16, max(1, cores - 1))


class _Loaded(NamedTuple):
    """What a worker hands back; its errors are text, as torch would wrap a traceback around."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    failures: list[tuple[int, str]]
    broken: str | None = None  # the message of a ShardError


class _BatchReader(Dataset[_Loaded]):
    """Reads and decodes one batch; runs inside the workers."""

    def __init__(self, manifest: Manifest, view: View, storage: StorageOptions) -> None:
        self.labels = manifest.labels
        self.reader = ShardReader(manifest, storage=storage)
        self.view = view

    def __getitem__(self, ids: Ids) -> _Loaded:
        view = self.view
        pixels = image_memory(len(ids), view.size, view.size, 3)
        good: list[int] = []
        failures: list[tuple[int, str]] = []
        try:
            encoded = self.reader.read_all(ids.tolist())
        except ShardError as error:
            nothing = torch.empty(0)
            return _Loaded(nothing, nothing, nothing, [], str(error))
        for sample_id, content in zip(ids.tolist(), encoded, strict=True):
            row = pixels[len(good)]
            try:
                image = decode_rgb(content, out=row)
            except ImageError as error:
                failures.append((sample_id, str(error)))
                continue
            image = view.image(image, sample_id)
            if image is not row:
                row[:] = image
            good.append(sample_id)
        kept = np.array(good, np.int64)
        images = torch.from_numpy(pixels[: len(good)]).permute(0, 3, 1, 2)  # channels_last
        labels = torch.from_numpy(self.labels[kept].astype(np.int64))
        return _Loaded(view.batch(images, kept), labels, torch.from_numpy(kept), failures)


def _in_workers(reader: _BatchReader, cut: list[Ids], workers: int) -> Iterator[_Loaded]:
    with warnings.catch_warnings():
        # More workers than cores are meant where they wait for a server.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # Workers are forked, here, before they start threads of their own.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        loader = DataLoader(
            reader,
            sampler=cut,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_single_thread,
            generator=torch.Generator(),  # else the loader draws from the global one
        )
        return iter(loader)


def image_memory(*shape: int) -> npt.NDArray[np.uint8]:
    """Memory to decode into, 16 bytes off a multiple of 32.

    To a row of pixels at a multiple of 32 the vector code of libjpeg-turbo writes past the cache.
    That makes decoding of 32x32 pixels a quarter slower than to any other place.
    """
    size = math.prod(shape)
    memory = np.empty(size + 32, np.uint8)
    start = (16 - memory.ctypes.data) % 32
    return memory[start : start + size].reshape(shape)


def _single_thread(_worker: int) -> None:
    torch.set_num_threads(1)  # workers share the cores; they must not fight over them
