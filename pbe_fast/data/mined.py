"""Adversarial examples that were mined ahead of time, found by the keys of what they came from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pbe_fast.data.augment import View
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import ShardReader
from pbe_fast.errors import ConfigError

__all__ = ["Mined"]

Ids = npt.NDArray[np.int64]
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Mined:
    """The examples of one data set.

    Attributes:
        data: the examples, an ordinary data set.
        rows: ``(N,)`` the example of each sample of the other set; -1 where there is none.
    """

    data: ImageData
    rows: Ids

    @classmethod
    def of(cls, mined: ImageData, source: ImageData) -> "Mined":
        """Match examples with what they came from.

        Images that could not be decoded have no example. As many may lack one as the quarantine
        of ``source`` would allow to be undecodable.

        Raises:
            ConfigError: too many samples have no example; an example has another label than its
                sample; or the examples have another size than images are read at.
        """
        ours, theirs = source.manifest, mined.manifest
        found = pc.index_in(ours.keys, value_set=theirs.keys)
        rows = found.fill_null(-1).to_numpy().astype(np.int64)
        missing = np.flatnonzero(rows < 0)
        if len(missing) > math.floor(source.quarantine.budget * len(ours) + 1e-9):
            raise ConfigError(
                f"{theirs.root}: has no adversarial example for {len(missing):,} of {len(ours):,} "
                f"images of {ours.root}; first: {_names(ours, missing)}. Mine them from these "
                "shards with 'pbe-fast mine'."
            )
        known = np.flatnonzero(rows >= 0)
        wrong = known[theirs.labels[rows[known]] != ours.labels[known]]
        if len(wrong):
            raise ConfigError(
                f"{theirs.root}: {len(wrong):,} examples have another label than in {ours.root}; "
                f"first: {_names(ours, wrong)}. They were mined from other data: mine them from "
                "these shards with 'pbe-fast mine'."
            )
        if len(theirs):
            pixels = decode_rgb(ShardReader(theirs, storage=mined.storage).read(0))
            if pixels.shape[:2] != (source.size, source.size):
                raise ConfigError(
                    f"{theirs.root}: its examples have {pixels.shape[1]} x {pixels.shape[0]} "
                    f"pixels, but data.image_size is {source.size}; resizing would destroy them. "
                    "Mine with the same image size."
                )
        return cls(mined, rows)

    @property
    def missing(self) -> int:
        """How many samples have no example."""
        return int((self.rows < 0).sum())

    def read_batches(self, cut: Sequence[Ids]) -> Iterator[Batch]:
        """The examples of some batches of samples, as they are, without augmentation.

        Args:
            cut: ids of the other set.

        Yields:
            batches whose ids are the examples' own; a sample without an example is left out.
        """
        rows = [self.rows[ids] for ids in cut]
        return self.data.read_batches([part[part >= 0] for part in rows], View(self.data.size))


def _names(manifest: Manifest, ids: Ids) -> str:
    return "; ".join(manifest.describe(int(sample_id)) for sample_id in ids[:_SHOWN])
