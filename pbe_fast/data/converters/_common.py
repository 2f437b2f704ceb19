"""What the converters share: order, counted samples, PPM to PNG, and links that lead outside."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pbe_fast.data._magic import describe_bytes
from pbe_fast.data.shards import Sample
from pbe_fast.errors import ImageError, ShardError

__all__ = [
    "Samples",
    "encode_png",
    "natural_key",
    "parse_pnm",
    "read_image_file",
    "refuse_escape",
    "some_names",
    "spread",
]

_MAX_NUMBER_DIGITS = 18
# A PNM header: P5 (grey) or P6 (RGB), width, height and maximum, with comments between them.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P([56])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d+)\s")


class Samples(Iterator[Sample]):
    """A lazy run of samples whose number is known: ``operator.length_hint`` tells it.

    Args:
        count: how many there are.
        read: reads sample 0 to ``count - 1``.
    """

    def __init__(self, count: int, read: Callable[[int], Sample]) -> None:
        self._count = count
        self._read = read
        self._position = 0

    def __iter__(self) -> "Samples":
        return self

    def __next__(self) -> Sample:
        if self._position == self._count:
            raise StopIteration
        self._position += 1
        return self._read(self._position - 1)

    def __length_hint__(self) -> int:
        return self._count - self._position


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts ``img2`` before ``img10``, by code points and numbers alone, not by locale."""
    parts = []
    for part in re.split(r"([0-9]+)", name):
        if part and part[0] in "0123456789" and len(part) <= _MAX_NUMBER_DIGITS:
            parts.append((0, int(part), ""))
        elif part:
            parts.append((1, 0, part))
    return tuple(parts), name


def spread(counts: Sequence[int]) -> list[tuple[int, int]]:
    """An order that spreads every class evenly over the whole set.

    Sample j of a class with n of them stands at (j + 1/2) / n of the way. So each shard holds
    all classes in proportion, and shuffling within a few shards mixes them.

    Args:
        counts: samples of each class.

    Returns:
        ``sum(counts)`` pairs (class, index in the class); indices of a class ascend.
    """
    classes = np.repeat(np.arange(len(counts)), counts)  # (N,)
    indices = np.concatenate([np.arange(n) for n in counts]) if len(counts) else classes
    totals = np.asarray(counts, np.int64)[classes] if len(counts) else classes
    order = np.lexsort((classes, (indices + 0.5) / np.maximum(totals, 1)))
    return list(zip(classes[order].tolist(), indices[order].tolist(), strict=True))


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """``(H, W, 3)`` or ``(H, W)`` uint8 as PNG, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def parse_pnm(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    """The pixels of a binary PPM or PGM file with 8 bits a channel.

    Args:
        data: the whole file.
        where: the file, for messages.

    Returns:
        ``(H, W, 3)`` (PPM) or ``(H, W)`` (PGM) uint8.

    Raises:
        ImageError: another kind of PNM, or not exactly as many bytes as the header says.
    """
    header = _PNM.match(data)
    if header is None:
        raise ImageError(f"{where}: not a binary PPM (P6) or PGM (P5) image.")
    kind, width, height = header[1], int(header[2]), int(header[3])
    if header[4].lstrip(b"0") != b"255":
        raise ImageError(
            f"{where}: a PPM with the maximum {header[4][:20].decode()}; only 255 (8 bits) can "
            "be stored without loss. Convert it to PNG."
        )
    if width == 0 or height == 0:
        raise ImageError(f"{where}: a PPM of {width} x {height} pixels.")
    shape = (height, width, 3) if kind == b"6" else (height, width)
    needed = height * width * (3 if kind == b"6" else 1)
    there = len(data) - header.end()
    if there != needed:
        raise ImageError(
            f"{where}: {width} x {height} pixels need {needed} bytes and {there} are there. "
            "The file is damaged: copy it again."
        )
    return np.frombuffer(data, np.uint8, offset=header.end()).reshape(shape)


def read_image_file(path: Path) -> tuple[bytes, str]:
    """The bytes of a JPEG, PNG or PPM file as a shard stores them, and their extension.

    Raises:
        ShardError: the file cannot be read.
        ImageError: it is of another kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}).") from error
    if data.startswith(b"\xff\xd8\xff"):
        return data, "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data, "png"
    if data[:2] in (b"P5", b"P6"):
        return encode_png(parse_pnm(data, str(path))), "png"
    if not data:
        raise ImageError(f"{path}: the file is empty. Remove it or copy it again.")
    kind = describe_bytes(data[:512], none=f"of no known kind (begins {data[:8]!r})")
    raise ImageError(
        f"{path}: not a JPEG, PNG or PPM image: it is {kind}. Convert it or remove it."
    )


def refuse_escape(path: Path, root: Path) -> None:
    """Refuse a symbolic link that leads out of ``root`` (already resolved) or nowhere.

    Raises:
        ShardError: it does.
    """
    if not path.is_symlink():
        return
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ShardError(f"{path}: a symbolic link that leads nowhere. Remove it.") from error
    if not target.is_relative_to(root):
        raise ShardError(
            f"{path}: a symbolic link to {target}, outside {root}. Copy the file in, or remove "
            "the link."
        )


def some_names(names: Sequence[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for messages."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
