"""``extras.json`` of a run: what its page shows of other runs.

A heat map of a scan is kept as its numbers and drawn for every page, a picture of a features run
as a PNG. So the page can be written again without those runs. As with ``thumbnails.json``, the file
may have come from anywhere: its numbers and texts are checked and shown as text, and a picture is
decoded here, and what the page gets is encoded anew.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from markupsafe import Markup
from pydantic import Field, ValidationError

from pbe_fast.data.decode import decode_rgb
from pbe_fast.errors import ImageError
from pbe_fast.report._drawing import Drawing
from pbe_fast.report._run import Count, Record
from pbe_fast.report._scan_map import ScanMap
from pbe_fast.thumbnails import png_bytes

__all__ = [
    "EXTRAS_NAME",
    "MAX_SIDE",
    "MOST_BYTES",
    "MOST_PICTURES",
    "MOST_SCANS",
    "Extras",
    "FeaturePicture",
    "Kept",
    "KeptFeatures",
    "KeptPicture",
    "KeptScan",
    "ScanFigure",
    "as_bytes",
    "parse_extras",
    "read_extras",
]

EXTRAS_NAME = "extras.json"
MOST_BYTES = 24 * 2**20  # a usual file has less than one of them
MOST_SCANS = 6
MOST_PICTURES = 12
MAX_SIDE = 2200  # pixels; six feature maps in a row are 2,136


class KeptScan(Record):
    """The heat map of a scan: the name of its run, and of its model."""

    run: str
    model: str
    map: ScanMap


class KeptPicture(Record):
    """A picture of a features run; ``png`` is base64."""

    name: str
    alt: str
    caption: str
    png: str


class KeptFeatures(Record):
    """A features run: its name, its model's, and its pictures; ``left_out`` are more of them."""

    run: str
    model: str
    pictures: Annotated[tuple[KeptPicture, ...], Field(max_length=MOST_PICTURES)]
    left_out: Count = 0


class Kept(Record):
    """The content of ``extras.json``."""

    scans: Annotated[tuple[KeptScan, ...], Field(max_length=MOST_SCANS)] = ()
    features: KeptFeatures | None = None


@dataclass(frozen=True)
class ScanFigure:
    """A heat map in the page: ``finding`` says what it shows, ``source`` where it is from."""

    title: str
    svg: Markup
    finding: str
    images: int
    run: str


@dataclass(frozen=True)
class FeaturePicture:
    """A picture in the page.

    Attributes:
        source: a ``data:`` URI, or None where the kept picture is damaged.
        width, height: in CSS pixels; it is twice as fine.
    """

    name: str
    alt: str
    caption: str
    source: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Extras:
    """What a page shows of other runs; ``damage`` says why there is nothing."""

    kept: Kept = field(default_factory=Kept)
    damage: str = ""

    @property
    def scans(self) -> list[ScanFigure]:
        """The heat maps, in order."""
        return [
            ScanFigure(
                scan.model, Markup(scan.map.svg(scan.model)), scan.map.finding, scan.map.images,
                scan.run,
            )
            for scan in self.kept.scans
        ]  # fmt: skip

    @property
    def drawings(self) -> dict[str, Drawing]:
        """The heat maps for files of their own, by name, in the order of the page."""
        return {
            f"scan-{number}": scan.map.drawing for number, scan in enumerate(self.kept.scans, 1)
        }

    @property
    def readings(self) -> list[str]:
        """How the heat maps are to be read, each way once."""
        return list(dict.fromkeys(scan.map.reading for scan in self.kept.scans))

    @property
    def pictures(self) -> Iterator[FeaturePicture]:
        """The pictures of features, in order, each decoded when its turn comes.

        A caption that the picture before has already is left out.
        """
        before = ""
        for kept in self.kept.features.pictures if self.kept.features else ():
            yield _shown(kept, "" if kept.caption == before else kept.caption)
            before = kept.caption


def read_extras(run_dir: Path) -> Extras:
    """What a run has kept of others; nothing in the file stops a report."""
    try:
        with (run_dir / EXTRAS_NAME).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return Extras()
    except OSError as error:
        return Extras(damage=f"cannot be read ({error.strerror})")
    return parse_extras(content)


def parse_extras(content: bytes) -> Extras:
    """The content of ``extras.json``, checked."""
    if len(content) > MOST_BYTES:
        return Extras(damage=f"is larger than {MOST_BYTES:,} bytes")
    try:
        return Extras(Kept.model_validate(json.loads(content)))
    except (ValueError, RecursionError, ValidationError):
        return Extras(damage="is damaged")


def as_bytes(kept: Kept) -> bytes:
    """What :func:`parse_extras` reads."""
    return (json.dumps(kept.model_dump(mode="python"), indent=1) + "\n").encode()


def _shown(kept: KeptPicture, caption: str) -> FeaturePicture:
    try:
        encoded = base64.b64decode(kept.png, validate=True)
        pixels = decode_rgb(encoded, max_pixels=MAX_SIDE * MAX_SIDE)
        height, width, _ = pixels.shape
        if max(height, width) > MAX_SIDE:
            raise ImageError("larger than any picture that is kept.")
    except (ValueError, ImageError):
        return FeaturePicture(kept.name, kept.alt, caption)
    source = f"data:image/png;base64,{base64.b64encode(png_bytes(pixels, MAX_SIDE)).decode()}"
    return FeaturePicture(kept.name, kept.alt, caption, source, (width + 1) // 2, (height + 1) // 2)
