"""How members of a tar make samples, and what one shard holds.

WebDataset's convention: a member's name up to the first dot of its last path component is the
key, the rest is the extension; the members of a sample lie next to each other. A name without
an extension, or one whose last component begins with a dot, belongs to no sample.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pbe_fast._files import sha256_file
from pbe_fast.data.manifest import Manifest, Shard
from pbe_fast.data.tarscan import Member, scan_tar
from pbe_fast.errors import ShardError

__all__ = ["IMAGE_EXTENSIONS", "Row", "build_manifest", "describe_shard", "key_fault", "read_rows"]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png"})
_MAX_LABEL_BYTES = 64
_MAX_LABEL = 2**31 - 1  # the manifest's labels are int32
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a shard: where its image lies, in bytes, and its label."""

    key: str
    offset: int
    size: int
    label: int


def key_fault(key: str) -> str | None:
    """Why ``key`` cannot name a sample, or None when it can."""
    parts = key.split("/")
    if not key:
        return "it is empty"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in key):
        return "it holds a control character"
    if any("\ud800" <= letter <= "\udfff" for letter in key):
        return "it is not valid Unicode"
    if len(key.encode()) > 4096:
        return "it is longer than 4096 bytes"
    if key.startswith("/"):
        return "it begins with '/'"
    if any(part in ("", ".", "..") for part in parts):
        return "it has an empty, '.' or '..' path component"
    if "." in parts[-1]:
        return "there is a '.' in its last part, where WebDataset would begin the extension"
    return None


def read_rows(path: Path) -> list[Row]:
    """The samples of one shard, in the order of their images' keys in the file.

    Only headers and the ``.cls`` members are read; every other member is stepped over.

    Raises:
        ShardError: the tar is damaged or empty, a sample lacks its image or label or has two,
            a label is no number, or the members of a sample are not adjacent.
    """
    groups: dict[str, dict[str, Member]] = {}
    current: str | None = None
    for member in scan_tar(path):
        match = _NAME.fullmatch(member.name.removeprefix("./"))
        if match is None:
            continue
        key, extension = match.group(1), match.group(2).lower()
        if key != current:
            if key in groups:
                again = extension in groups[key]
                what = "the key stands twice" if again else "its members are not adjacent"
                raise _fault(path, key, what, "Write the shard again, sorted by key.")
            if fault := key_fault(key):
                raise _fault(path, key, f"this key is unusable: {fault}", "Rename the sample.")
            groups[key] = {}
            current = key
        if extension in groups[key]:
            raise _fault(path, key, f"there are two .{extension} members", _ONE)
        groups[key][extension] = member
    if not groups:
        raise ShardError(f"{path}: the shard has no samples. Remove it, or write it again.")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_row(path, fd, key, members) for key, members in groups.items()]
    finally:
        os.close(fd)


_ONE = "A sample is one image (.jpg, .jpeg or .png) and one .cls: write the shard again."


def _fault(path: Path, key: str, what: str, remedy: str) -> ShardError:
    return ShardError(f"{path}, sample {key!r}: {what}. {remedy}")


def _row(path: Path, fd: int, key: str, members: dict[str, Member]) -> Row:
    images = [member for name, member in members.items() if name in IMAGE_EXTENSIONS]
    if len(images) > 1:
        names = " and ".join(image.name for image in images)
        raise _fault(path, key, f"there are two images, {names}", _ONE)
    if not images:
        raise _fault(path, key, f"there is no image, only {', '.join(sorted(members))}", _ONE)
    if "cls" not in members:
        raise _fault(path, key, "there is no label (.cls)", _ONE)
    (image,) = images
    if image.size == 0:
        raise _fault(path, key, "the image is empty (0 bytes)", _ONE)
    return Row(key, image.offset, image.size, _label(path, fd, key, members["cls"]))


def _label(path: Path, fd: int, key: str, member: Member) -> int:
    if member.size > _MAX_LABEL_BYTES:
        raise _fault(
            path, key, f"the label has {member.size} bytes, too many for a number", _NUMBER
        )
    text = os.pread(fd, member.size, member.offset)
    if re.fullmatch(rb"[+-]?[0-9]+", text.strip()) is None:
        raise _fault(path, key, f"the label is {text!r}, not an ASCII integer", _NUMBER)
    label = int(text)
    if label < 0:
        raise _fault(path, key, f"the label {label} is negative", _NUMBER)
    if label > _MAX_LABEL:
        raise _fault(path, key, f"the label {label} is too large", _NUMBER)
    return label


_NUMBER = "A .cls member holds a class number from 0 on, as ASCII digits: write the shard again."


def describe_shard(path: Path, name: str, samples: int) -> Shard:
    """Digest and size of a tar file that holds ``samples`` samples."""
    return Shard(name, sha256_file(path), path.stat().st_size, samples)


def build_manifest(
    root: Path, shards: Sequence[Shard], rows: Sequence[Sequence[Row]], classes: Sequence[str]
) -> Manifest:
    """Put the rows of all shards together; ``rows[i]`` are those of ``shards[i]``."""
    flat = list(itertools.chain.from_iterable(rows))
    return Manifest(
        root=root,
        shards=tuple(shards),
        classes=tuple(classes),
        shard_index=np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows]),
        keys=pa.array([row.key for row in flat], pa.string()),
        offsets=np.array([row.offset for row in flat], np.int64),
        sizes=np.array([row.size for row in flat], np.int64),
        labels=np.array([row.label for row in flat], np.int32),
    )
