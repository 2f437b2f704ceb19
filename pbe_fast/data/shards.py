"""Shards: WebDataset tar files that are written whole, indexed strictly and read by offset.

A sample is ``KEY.jpg`` (or png), ``KEY.cls`` (the label as an ASCII integer) and, if wanted,
``KEY.json``. Beside the tar files lies ``manifest.parquet``; everything that reads images goes
by it. Members other than the image and the label are never read, so a pickle in a shard is
harmless here.

Writing the same samples gives the same bytes: order of members, owner, mode and time are fixed.
"""

from pbe_fast.data._index import index_shards
from pbe_fast.data._read import ShardReader, read_bytes
from pbe_fast.data._verify import require_digest, require_intact, verify_shards
from pbe_fast.data._write import Sample, write_shards

__all__ = [
    "Sample",
    "ShardReader",
    "index_shards",
    "read_bytes",
    "require_digest",
    "require_intact",
    "verify_shards",
    "write_shards",
]
