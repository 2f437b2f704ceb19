"""Writing shards, through webdataset's writer."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import IO, Any

from pbe_fast.data._folder import replacing
from pbe_fast.data._layout import build_manifest, describe_shard, key_fault, read_rows
from pbe_fast.data.manifest import Manifest
from pbe_fast.errors import ShardError

__all__ = ["Sample", "write_shards"]

_MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """One labelled image, still encoded.

    Attributes:
        key: unique name without extension; may contain ``/``, but no dot in the last part.
        image: the encoded file, copied into the shard as it is.
        extension: ``jpg`` or ``png``.
        label: class number, an index into the data set's class names.
        metadata: JSON values, written as ``KEY.json`` with sorted keys; None writes none.
    """

    key: str
    image: bytes
    extension: str
    label: int
    metadata: Mapping[str, object] | None = None

    @classmethod
    def copied(cls, key: str, image: bytes, label: int) -> "Sample":
        """One whose image was read from a shard: a PNG by its first bytes, else a JPEG."""
        return cls(key, image, "png" if image.startswith(b"\x89PNG") else "jpg", label)


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    *,
    classes: Sequence[str],
    prefix: str = "shard",
    shard_bytes: int = 256 * _MIB,
    overwrite: bool = False,
    on_sample: Callable[[int], None] | None = None,
    beside: Mapping[str, Callable[[Path, Manifest], None]] | None = None,
) -> Manifest:
    """Write samples as ``PREFIX-000000.tar`` and so on, with their manifest.

    The folder appears when everything in it is complete and flushed; until then the work is in
    a hidden folder beside it, which is removed on any failure.

    Args:
        samples: read once, in order.
        folder: must not exist, or be empty, unless ``overwrite``.
        classes: class names; a label is an index into them.
        prefix: of the files' names: letters, digits, ``_`` and ``-``.
        shard_bytes: a new shard is begun when the current one has reached this many bytes on
            disk, which is looked at in steps of 10 KiB.
        overwrite: replace a folder that holds shards, a manifest, the files of ``beside`` and
            nothing else; the old ones stay until the new ones are complete.
        on_sample: called after each sample with the number written so far.
        beside: more files of the folder by name, each with what writes it to a path; they
            appear, and are replaced, together with the shards.

    Raises:
        ShardError: an unusable sample (the message names its key), no samples at all, or a
            target that must not be replaced.
    """
    folder = Path(os.path.realpath(folder) if Path(folder).is_symlink() else folder)
    if re.fullmatch(r"[A-Za-z0-9_-]+", prefix) is None:
        raise ShardError(f"prefix {prefix!r}: use letters, digits, '_' and '-' only.")
    if shard_bytes < 1:
        raise ShardError(f"shard_bytes is {shard_bytes}; give a positive number of bytes.")
    if not classes:
        raise ShardError(f"{folder}: no class names were given. Name at least one class.")
    beside = beside or {}
    with replacing(folder, overwrite, beside) as temporary:
        written = _write_tars(samples, temporary, len(classes), prefix, shard_bytes, on_sample)
        shards, rows = [], []
        for name, entries in written.items():
            # The manifest says what can be read back, not what was meant to be written.
            found = read_rows(temporary / name)
            if [(row.key, row.size, row.label) for row in found] != entries:
                raise ShardError(f"{name}: what was written does not read back the same.")
            shards.append(describe_shard(temporary / name, name, len(found)))
            rows.append(found)
        manifest = build_manifest(temporary, shards, rows, classes)
        manifest.save(temporary)
        for name, write in beside.items():
            write(temporary / name, manifest)
    return replace(manifest, root=folder)


def _write_tars(
    samples: Iterable[Sample],
    folder: Path,
    num_classes: int,
    prefix: str,
    shard_bytes: int,
    on_sample: Callable[[int], None] | None,
) -> dict[str, list[tuple[str, int, int]]]:
    """Write the tar files; returns per file name the (key, image bytes, label) of its samples."""
    # Here, because webdataset imports torch, which readers of shards need not wait for.
    from webdataset.writer import ShardWriter

    written: dict[str, list[tuple[str, int, int]]] = {}
    seen: set[str] = set()
    streams: list[IO[bytes]] = []

    def opener(name: str) -> IO[bytes]:
        # An own opener, because webdataset's gopen would run names such as "pipe:..." .
        streams.append((folder / name).open("xb"))
        written[name] = []
        return streams[-1]

    def flush(_: str) -> None:
        streams[-1].flush()
        os.fsync(streams[-1].fileno())
        streams[-1].close()

    writer: Any = None
    try:
        for count, sample in enumerate(samples, start=1):
            label = _check_sample(sample, num_classes, seen)
            members = _members(sample, label)
            if writer is None:
                writer = ShardWriter(
                    f"{prefix}-%06d.tar",
                    maxcount=2**62,
                    maxsize=2**62,
                    post=flush,
                    verbose=0,
                    opener=opener,
                    encoder=False,
                    mtime=0,
                    format="PAX_FORMAT",  # as ustar, but long or non-ASCII keys fit too
                )
            elif streams[-1].tell() >= shard_bytes:
                writer.next_stream()
            writer.write(members)
            seen.add(sample.key)
            written[writer.fname].append((sample.key, len(sample.image), label))
            if on_sample is not None:
                on_sample(count)
        if writer is None:
            raise ShardError(f"there are no samples to write ({prefix}). Check the source.")
    finally:
        try:
            if writer is not None:
                writer.close()
        finally:
            for stream in streams:
                stream.close()
    return written


def _check_sample(sample: Sample, num_classes: int, seen: set[str]) -> int:
    """Refuse a sample that could not be read back; returns its label as an int."""
    where = f"sample {sample.key!r}"
    if fault := key_fault(sample.key):
        raise ShardError(f"{where}: this key is unusable: {fault}. Give it another key.")
    if sample.key in seen:
        raise ShardError(f"{where}: the key was given twice. Keys must be unique.")
    if sample.extension not in ("jpg", "png"):
        raise ShardError(f"{where}: the extension is {sample.extension!r}; use 'jpg' or 'png'.")
    if not isinstance(sample.image, bytes) or not sample.image:
        raise ShardError(f"{where}: the image is empty or not bytes. Give the encoded file.")
    try:
        label = index(sample.label)
    except TypeError:
        raise ShardError(f"{where}: the label {sample.label!r} is not an integer.") from None
    if not 0 <= label < num_classes:
        raise ShardError(
            f"{where}: the label {label} is not in 0 to {num_classes - 1}. "
            "Mend the label or name more classes."
        )
    return label


def _members(sample: Sample, label: int) -> dict[str, str | bytes]:
    """A sample as webdataset's writer takes it."""
    members: dict[str, str | bytes] = {
        "__key__": sample.key,
        sample.extension: sample.image,
        "cls": str(label).encode("ascii"),
    }
    if sample.metadata is not None:
        try:
            text = json.dumps(
                dict(sample.metadata), sort_keys=True, ensure_ascii=False, allow_nan=False
            )
            members["json"] = text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ShardError(
                f"sample {sample.key!r}: the metadata cannot be written as JSON ({error}). "
                "Use strings, finite numbers, booleans, lists and dictionaries."
            ) from error
    return members
