"""Mined examples on disk: one folder a shard, so that work that was done is never done again.

A folder appears whole or not at all, and says what it is the result of. Writing it twice gives the
same bytes, so it does not matter who wrote it, how often, or whether anybody heard of it.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from pbe_fast._files import write_text
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import Sample, write_shards

__all__ = ["Parts", "joined"]

_MARK = "part.json"
_ONE_SHARD = 2**62  # bytes; a part has one shard, as what it was mined from


@dataclass(frozen=True)
class Parts:
    """The parts of one run.

    Attributes:
        folder: where they lie; with several machines all of them must see it.
        key: stands for everything that a part depends on besides its shard.
    """

    folder: Path
    key: str

    def path(self, shard: int) -> Path:
        """The folder of a shard's examples."""
        return self.folder / f"{shard:06}"

    def write(self, source: Manifest, shard: int, samples: Iterable[Sample]) -> None:
        """Keep the examples of a shard of ``source``; perhaps none, if nothing could be decoded."""
        rest = iter(samples)
        first = next(rest, None)
        if first is None:
            shutil.rmtree(self.path(shard), ignore_errors=True)
            write_text(self.path(shard) / _MARK, self._mark(source, shard, 0))
            return
        write_shards(
            chain([first], rest),
            self.path(shard),
            classes=source.classes,
            prefix="mined",
            shard_bytes=_ONE_SHARD,
            overwrite=True,
            beside={
                _MARK: lambda path, made: write_text(path, self._mark(source, shard, len(made)))
            },
        )

    def read(self, source: Manifest, shard: int) -> Sequence[Manifest] | None:
        """The manifest of a part, or none of a part without images; None where the part is missing.

        A part that is the result of something else is missing too.
        """
        folder = self.path(shard)
        try:
            mark = (folder / _MARK).read_text(encoding="utf-8")
            if mark == self._mark(source, shard, 0):
                return []
            manifest = Manifest.load(folder)
            sizes = [(folder / each.name).stat().st_size for each in manifest.shards]
        except (OSError, ValueError):
            return None
        whole = sizes == [each.bytes for each in manifest.shards]
        return [manifest] if whole and mark == self._mark(source, shard, len(manifest)) else None

    def _mark(self, source: Manifest, shard: int, images: int) -> str:
        content = {"of": f"{self.key} {source.shards[shard].sha256}", "images": images}
        return json.dumps(content) + "\n"


def joined(root: Path, parts: Sequence[Manifest]) -> Manifest:
    """One manifest of parts whose folders lie in ``root``; there is at least one."""
    counts = [len(part.shards) for part in parts]
    first = np.cumsum([0, *counts[:-1]], dtype=np.int32)
    return Manifest(
        root=root,
        shards=tuple(
            replace(shard, name=(part.shard_path(i).relative_to(root)).as_posix())
            for part in parts
            for i, shard in enumerate(part.shards)
        ),
        classes=parts[0].classes,
        shard_index=np.concatenate([p.shard_index + n for p, n in zip(parts, first, strict=True)]),
        keys=pa.concat_arrays([part.keys for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
