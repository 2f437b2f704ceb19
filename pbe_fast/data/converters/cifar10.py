"""CIFAR-10, the official binary version: ``cifar-10-binary.tar.gz`` or the folder in it.

A batch is 10,000 records of 3,073 bytes: the label, then 1,024 bytes each of red, green and
blue, row by row (Krizhevsky, 2009, "Learning multiple layers of features from tiny images").
The archive is read as a stream and nothing is extracted. The version for Python is refused,
because it is made of pickles, which run code when they are loaded.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from pbe_fast.data.converters._common import Samples, encode_png, refuse_escape
from pbe_fast.data.shards import Sample
from pbe_fast.errors import ShardError

__all__ = ["read_cifar10"]

_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE
_RECORDS = 10_000  # in each official batch
_CLASSES = 10
_CHUNK = 1 << 20
_NAMES = "batches.meta.txt"
_MAX_NAMES_BYTES = 4096
_FOLDER = "cifar-10-batches-bin"
_BATCHES = {
    "train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    "test": ("test_batch.bin",),
}
_FETCH = "Take the binary version, cifar-10-binary.tar.gz, and copy it again if it is damaged."


def read_cifar10(source: Path, split: Literal["train", "test"]) -> tuple[list[str], Samples]:
    """Read one split; images are encoded as PNG, without loss, as they are taken.

    Args:
        source: ``cifar-10-binary.tar.gz``, or the folder ``cifar-10-batches-bin`` or its parent.
            From the archive the split's batches are held in memory (up to 154 MB).
        split: ``train`` (50,000 images) or ``test`` (10,000).

    Returns:
        the ten class names, and the samples in the official order with keys such as
        ``data_batch_1-00042`` (``operator.length_hint`` tells how many).

    Raises:
        ShardError: a missing, damaged or foreign file, or the pickled version.
    """
    source = Path(source)
    if split not in _BATCHES:
        raise ShardError(f"CIFAR-10 has no split {split!r}; it has train and test.")
    wanted = _BATCHES[split]
    if source.is_dir():
        parts = _from_folder(source, wanted)
    elif source.is_file():
        parts = _from_archive(source, wanted)
    else:
        raise ShardError(f"{source}: there is no such file or folder. {_FETCH}")
    batches = [_records(parts[name], f"{source}: {name}") for name in wanted]
    names = _class_names(parts[_NAMES], f"{source}: {_NAMES}")

    def read(position: int) -> Sample:
        batch, record = divmod(position, _RECORDS)
        row = batches[batch][record]  # (3073,)
        pixels = row[1:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)  # (32, 32, 3)
        stem = PurePosixPath(wanted[batch]).stem
        image = encode_png(np.ascontiguousarray(pixels))
        return Sample(f"{stem}-{record:05d}", image, "png", int(row[0]))

    return names, Samples(len(wanted) * _RECORDS, read)


def _from_folder(source: Path, wanted: Iterable[str]) -> dict[str, np.typing.NDArray[np.uint8]]:
    """The split's files, mapped rather than read."""
    folder = source / _FOLDER if (source / _FOLDER).is_dir() else source
    root = source.resolve()
    parts = {}
    for name in (*wanted, _NAMES):
        path = folder / name
        if not path.is_file():
            pickled = (folder / "data_batch_1").exists() or (folder / "batches.meta").exists()
            if pickled or (source / "cifar-10-batches-py").exists():
                raise _pickled(folder)
            raise ShardError(f"{folder}: {name} is missing. {_FETCH}")
        refuse_escape(path, root)
        _check_size(name, path.stat().st_size, str(path))
        try:
            parts[name] = (
                np.fromfile(path, np.uint8) if name == _NAMES else np.memmap(path, mode="r")
            )
        except (OSError, ValueError) as error:
            raise ShardError(f"{path}: cannot be read ({error}). {_FETCH}") from error
    return parts


def _from_archive(source: Path, wanted: Iterable[str]) -> dict[str, np.typing.NDArray[np.uint8]]:
    """The split's files from the archive, in one pass; of a member's path only the name counts."""
    needed = {*wanted, _NAMES}
    parts: dict[str, np.typing.NDArray[np.uint8]] = {}
    try:
        with _opened(source) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in ("data_batch_1", "batches.meta"):
                    raise _pickled(source)
                if name not in needed:
                    continue
                where = f"{source}: {name}"
                if name in parts:
                    raise ShardError(f"{where} is in the archive twice. {_FETCH}")
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    raise ShardError(f"{where} is not a regular file in the archive. {_FETCH}")
                _check_size(name, member.size, where)
                parts[name] = np.frombuffer(file.read(), np.uint8)
                _check_size(name, len(parts[name]), where)
            while stream.read(_CHUNK):  # gzip compares its checksum at the end
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ShardError(f"{source}: a damaged archive, or none ({error}). {_FETCH}") from error
    if missing := sorted(needed - parts.keys()):
        raise ShardError(f"{source}: {', '.join(missing)} is missing. {_FETCH}")
    return parts


def _opened(source: Path) -> gzip.GzipFile | io.BufferedReader:
    """The tar in the archive, unpacked as it is read if it is gzip-compressed."""
    with source.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(source, "rb") if packed else source.open("rb")


def _pickled(where: Path) -> ShardError:
    return ShardError(
        f"{where}: the version of CIFAR-10 for Python, which is made of pickles; loading a "
        "pickle runs the code in it, so it is never read here. Take the binary version, "
        "cifar-10-binary.tar.gz, instead."
    )


def _check_size(name: str, size: int, where: str) -> None:
    if name == _NAMES:
        if size > _MAX_NAMES_BYTES:
            raise ShardError(f"{where}: {size} bytes are too many for ten names. {_FETCH}")
    elif size != _RECORDS * _RECORD:
        raise ShardError(
            f"{where}: has {size} bytes, not {_RECORDS * _RECORD} ({_RECORDS} records of "
            f"{_RECORD}). {_FETCH}"
        )


def _records(data: np.typing.NDArray[np.uint8], where: str) -> np.typing.NDArray[np.uint8]:
    """``(records, 3073)`` with labels checked."""
    records = data.reshape(-1, _RECORD)
    wrong = np.flatnonzero(records[:, 0] >= _CLASSES)
    if len(wrong):
        raise ShardError(
            f"{where}: record {wrong[0]} has the label {records[wrong[0], 0]}; labels are 0 to "
            f"{_CLASSES - 1}. {_FETCH}"
        )
    return records


def _class_names(data: np.typing.NDArray[np.uint8], where: str) -> list[str]:
    text = data.tobytes().decode("utf-8", "replace")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != _CLASSES or len(set(names)) != _CLASSES:
        raise ShardError(f"{where}: must name ten different classes, one a line. {_FETCH}")
    return names
