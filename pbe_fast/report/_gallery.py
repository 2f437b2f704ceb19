"""``thumbnails.json`` of a run, read and checked for the report.

The file may have come with a run from anywhere, so a picture in it is no more trusted than one in
a shard: it is decoded here, and what the page gets is encoded anew.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pbe_fast.data.decode import decode_rgb
from pbe_fast.errors import ImageError
from pbe_fast.report._run import Record
from pbe_fast.report._suspects import Suspect
from pbe_fast.thumbnails import MAX_SIDE, SHOWN, THUMBNAILS_NAME, png_bytes

__all__ = ["Gallery", "Tile", "load_gallery"]

_MOST_BYTES = 4 * 2**20  # 24 pictures of 96x96 pixels are a sixth of it
_SMALL = 48  # pixels; up to here each pixel is shown as a square


class _Thumbnail(Record):
    shard: str
    key: str
    png: str | None = None
    reason: str | None = None


class _File(Record):
    thumbnails: tuple[_Thumbnail, ...]


@dataclass(frozen=True)
class Tile:
    """One suspect and its picture.

    Attributes:
        source: a ``data:`` URI, or None.
        width, height: of the picture, in pixels.
        missing: why there is no picture.
    """

    suspect: Suspect
    source: str | None = None
    width: int = 0
    height: int = 0
    missing: str = ""

    @property
    def is_small(self) -> bool:
        """Whether its pixels are to be seen one by one."""
        return max(self.width, self.height) <= _SMALL


@dataclass(frozen=True)
class Gallery:
    """The worst suspects; ``damage`` says why none of them has its picture."""

    tiles: tuple[Tile, ...] = ()
    damage: str = ""


def load_gallery(run_dir: Path, worst: Sequence[Suspect]) -> Gallery:
    """The pictures of the first of ``worst``; none if the run kept none.

    Nothing in the file stops a report: a file that is damaged is said to be, and a picture that is
    has a word in its place.
    """
    path = run_dir / THUMBNAILS_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return Gallery()
    except OSError as error:
        return Gallery(damage=f"cannot be read ({error.strerror})")
    if len(content) > _MOST_BYTES:
        return Gallery(damage=f"is larger than {_MOST_BYTES:,} bytes")
    try:
        kept = _File.model_validate(json.loads(content)).thumbnails
    except (ValueError, RecursionError, ValidationError):
        return Gallery(damage="is damaged")
    found = {(one.shard, one.key): one for one in kept}
    return Gallery(tuple(_tile(s, found.get((s.shard, s.key))) for s in worst[:SHOWN]))


def _tile(suspect: Suspect, kept: _Thumbnail | None) -> Tile:
    if kept is None:
        return Tile(suspect, missing="not kept")
    if kept.png is None:
        return Tile(suspect, missing=(kept.reason or "not kept")[:60])
    try:
        encoded = base64.b64decode(kept.png, validate=True)
        pixels = decode_rgb(encoded, max_pixels=MAX_SIDE * MAX_SIDE)
    except (ValueError, ImageError):
        return Tile(suspect, missing="damaged in thumbnails.json")
    height, width, _ = pixels.shape
    source = f"data:image/png;base64,{base64.b64encode(png_bytes(pixels)).decode()}"
    return Tile(suspect, source, width, height)
