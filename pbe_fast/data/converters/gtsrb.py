"""GTSRB, the German traffic sign benchmark, in its official layout (Stallkamp et al., 2012).

Training images are ``Final_Training/Images/000NN/*.ppm`` with ``GT-000NN.csv`` beside them, test
images ``Final_Test/Images/*.ppm`` with ``GT-final_test.csv``, which is a separate download
(GTSRB_Final_Test_GT.zip): the table inside the archive of images has no labels.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pbe_fast.data.converters._common import (
    Samples,
    encode_png,
    natural_key,
    parse_pnm,
    refuse_escape,
    some_names,
    spread,
)
from pbe_fast.data.shards import Sample
from pbe_fast.errors import ImageError, ShardError

__all__ = ["read_gtsrb"]

_CLASSES = 43
_PARTS = {"train": "Final_Training", "test": "Final_Test"}
_LABELLED = "GT-final_test.csv"
_UNLABELLED = "GT-final_test.test.csv"
_NUMBERS = ("Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
_COPY = "Unpack the official archive again."


@dataclass(frozen=True)
class _Row:
    """One line of an annotation table; the box is in pixels, its corners belong to it."""

    path: Path
    width: int
    height: int
    box: tuple[int, int, int, int]  # x1, y1, x2, y2
    label: int


def read_gtsrb(
    source: Path, split: Literal["train", "test"], *, crop_roi: bool = False
) -> tuple[list[str], Samples]:
    """List one split; images are read and encoded as PNG, without loss, as they are taken.

    Args:
        source: the folder ``GTSRB``, its parent, ``Final_Training`` (or ``Final_Test``), or the
            ``Images`` in it.
        split: ``train`` (39,209 images) or ``test`` (12,630).
        crop_roi: keep only the annotated box of the sign, without the margin about it.

    Returns:
        the 43 class names ``00000`` to ``00042``, and the samples with keys such as
        ``00014/00003_00021`` (``operator.length_hint`` tells how many). Training classes come
        evenly spread; test images keep their order.

    Raises:
        ShardError: a file without a row or a row without a file, a wrong or missing table, a
            missing class, or links that lead outside.
        ImageError: while samples are taken, an image that is damaged or not as its row says.
    """
    source = Path(source)
    if split not in _PARTS:
        raise ShardError(f"GTSRB has no split {split!r}; it has train and test.")
    images = _find_images(source, split)
    root = images.resolve()
    if split == "train":
        groups = _training_rows(images, root)
        rows = [groups[label][index] for label, index in spread([len(g) for g in groups])]
    else:
        table = _find_test_table(images)
        rows = _read_table(table, images, root)

    def read(position: int) -> Sample:
        row = rows[position]
        key = f"{row.label:05d}/{row.path.stem}"
        return Sample(key, _read_image(row, crop_roi), "png", row.label)

    return [f"{label:05d}" for label in range(_CLASSES)], Samples(len(rows), read)


def _find_images(source: Path, split: str) -> Path:
    part = _PARTS[split]
    candidates = [
        source / "GTSRB" / part / "Images",
        source / part / "Images",
        source / "Images",
        source,
    ]
    for folder in candidates:
        if not folder.is_dir():
            continue
        if split == "train" and (folder / "00000").is_dir():
            return folder
        if split == "test" and next(folder.glob("*.ppm"), None) is not None:
            return folder
    shape = f"{part}/Images/" + ("000NN/*.ppm" if split == "train" else "*.ppm")
    raise ShardError(f"{source}: no GTSRB images found; they lie in {shape}. {_COPY}")


def _training_rows(images: Path, root: Path) -> list[list[_Row]]:
    """The rows of each class, by label."""
    names = [f"{label:05d}" for label in range(_CLASSES)]
    if missing := [name for name in names if not (images / name).is_dir()]:
        raise ShardError(f"{images}: class folders are missing: {some_names(missing)}. {_COPY}")
    there = sorted(entry.name for entry in images.iterdir() if entry.is_dir())
    if extra := [name for name in there if name not in names and not name.startswith(".")]:
        raise ShardError(f"{images}: not classes of GTSRB: {some_names(extra)}. Move them away.")
    groups = []
    for label, name in enumerate(names):
        refuse_escape(images / name, root)
        table = images / name / f"GT-{name}.csv"
        rows = _read_table(table, images / name, root)
        if wrong := [row for row in rows if row.label != label]:
            raise ShardError(
                f"{table}: {wrong[0].path.name} has ClassId {wrong[0].label} in the folder of "
                f"class {label}. {_COPY}"
            )
        groups.append(rows)
    return groups


def _find_test_table(images: Path) -> Path:
    """The labelled table: it comes alone, so people put it at any level."""
    levels = [images, *images.resolve().parents[:3]]
    for folder in levels:
        if (folder / _LABELLED).is_file():
            return folder / _LABELLED
    given = (
        f" {_UNLABELLED} is there, but it has no labels."
        if (any((folder / _UNLABELLED).is_file() for folder in levels))
        else ""
    )
    raise ShardError(
        f"{images}: {_LABELLED} is missing.{given} Take it from GTSRB_Final_Test_GT.zip and put "
        "it beside the images."
    )


def _read_table(table: Path, folder: Path, root: Path) -> list[_Row]:
    """Read an annotation table and hold it against the files, both ways; in natural order."""
    rows: dict[str, _Row] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=";", strict=True)
            header = reader.fieldnames or []
            if missing := [c for c in ("Filename", *_NUMBERS) if c not in header]:
                labels = (
                    f" The table with labels is {_LABELLED} in GTSRB_Final_Test_GT.zip."
                    if "ClassId" in missing
                    else ""
                )
                raise ShardError(
                    f"{table}: the column {', '.join(missing)} is missing.{labels} {_COPY}"
                )
            for record in reader:
                where = f"{table}, line {reader.line_num}"
                if len(record) != len(header) or None in record.values():
                    raise ShardError(f"{where}: not {len(header)} fields. {_COPY}")
                row = _row(record, folder, where)
                if row.path.name in rows:
                    raise ShardError(f"{table}: {row.path.name} stands there twice. {_COPY}")
                rows[row.path.name] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{table}: cannot be read ({error}). {_COPY}") from error
    files = {entry.name for entry in folder.iterdir() if entry.suffix.lower() == ".ppm"}
    if lost := sorted(rows.keys() - files, key=natural_key):
        raise ShardError(f"{table}: rows without a file: {some_names(lost)}. {_COPY}")
    if unnamed := sorted(files - rows.keys(), key=natural_key):
        raise ShardError(f"{table}: files without a row: {some_names(unnamed)}. {_COPY}")
    if not rows:
        raise ShardError(f"{table}: the table is empty. {_COPY}")
    for row in rows.values():
        refuse_escape(row.path, root)
    return [rows[name] for name in sorted(rows, key=natural_key)]


def _row(record: dict[str, str], folder: Path, where: str) -> _Row:
    name = record["Filename"]
    if not name or Path(name).name != name or not name.lower().endswith(".ppm") or "\\" in name:
        raise ShardError(f"{where}: {name!r} is not the name of a .ppm file. {_COPY}")
    if "." in Path(name).stem:
        raise ShardError(f"{where}: {name!r} is not an official file name. {_COPY}")
    values = []
    for column in _NUMBERS:
        text = record[column]
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ShardError(f"{where}: {column} is {text!r}, not a number. {_COPY}")
        values.append(int(text))
    width, height, x1, y1, x2, y2, label = values
    if label >= _CLASSES:
        raise ShardError(f"{where}: ClassId {label}; classes are 0 to {_CLASSES - 1}. {_COPY}")
    if not (x1 <= x2 < width and y1 <= y2 < height):
        raise ShardError(f"{where}: the box leads out of the {width} x {height} image. {_COPY}")
    return _Row(folder / name, width, height, (x1, y1, x2, y2), label)


def _read_image(row: _Row, crop_roi: bool) -> bytes:
    try:
        data = row.path.read_bytes()
    except OSError as error:
        raise ShardError(f"{row.path}: cannot be read ({error.strerror}).") from error
    pixels = parse_pnm(data, str(row.path))  # (H, W, 3)
    height, width = pixels.shape[:2]
    if (width, height) != (row.width, row.height):
        raise ImageError(
            f"{row.path}: {width} x {height} pixels, but its table says {row.width} x "
            f"{row.height}. {_COPY}"
        )
    if crop_roi:
        x1, y1, x2, y2 = row.box
        pixels = pixels[y1 : y2 + 1, x1 : x2 + 1]
    return encode_png(pixels)
