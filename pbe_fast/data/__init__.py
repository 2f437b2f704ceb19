"""Data sets as shards: writing, checking, reading in any order, and bringing to one size."""

from pbe_fast.data.augment import Augment, View
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import Batch, ImageData, Quarantine
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest, Shard
from pbe_fast.data.order import epoch_order
from pbe_fast.data.shards import (
    Sample,
    ShardReader,
    index_shards,
    require_intact,
    verify_shards,
    write_shards,
)

__all__ = [
    "MANIFEST_NAME",
    "Augment",
    "Batch",
    "ImageData",
    "Manifest",
    "Quarantine",
    "Sample",
    "Shard",
    "ShardReader",
    "View",
    "decode_rgb",
    "epoch_order",
    "index_shards",
    "require_intact",
    "verify_shards",
    "write_shards",
]
