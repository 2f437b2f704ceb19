"""A folder of class folders: ``CLASS/*.jpg``, also ``.jpeg``, ``.png`` and ``.ppm``.

JPEG and PNG files are stored byte for byte as they are; which of the two a file is, its first
bytes tell, not its name. PPM becomes PNG without loss. Nothing is left out silently: what is
neither an image nor known to be harmless stops the conversion.
"""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pbe_fast.data.converters._common import (
    Samples,
    natural_key,
    read_image_file,
    refuse_escape,
    some_names,
    spread,
)
from pbe_fast.data.shards import Sample
from pbe_fast.errors import ShardError

__all__ = ["read_image_folder"]

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".ppm"})
_HARMLESS = frozenset({".csv", ".txt", ".md", ".json", ".xml", ".yaml", ".yml", ".ini", ".db"})
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


def read_image_folder(
    folder: Path, *, classes: Sequence[str] | None = None
) -> tuple[list[str], Samples]:
    """List a folder of class folders; the images are read as they are taken.

    Class folders and files are sorted naturally (``2`` before ``10``), independent of locale.
    Samples come with the classes evenly spread, so that each shard holds all of them. Keys are
    ``CLASS/STEM``; a dot in the stem becomes ``_``, and where two files would get the same key
    the later one gets ``_2``, ``_3`` and so on.

    Args:
        folder: holds one folder for each class. Hidden entries are ignored.
        classes: the class names in the order of their labels, such as those of the training
            set when this is the test set; by default the folders' names, sorted.

    Returns:
        the class names, and the samples (``operator.length_hint`` tells how many).

    Raises:
        ShardError: the folder is not of this form, holds files that are no images, links that
            lead outside, or classes that are not in ``classes``.
        ImageError: while samples are taken, a file that is neither JPEG, PNG nor PPM.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ShardError(f"{root}: there is no such folder.")
    resolved = root.resolve()
    found = _class_folders(root, resolved)
    names = list(found) if classes is None else list(classes)
    if len(set(names)) != len(names):
        raise ShardError(f"{root}: the given class names repeat. Name each class once.")
    if unknown := [name for name in found if name not in set(names)]:
        raise ShardError(
            f"{root}: {some_names(unknown)} is not among the {len(names)} given classes. Take "
            "the class order of a set that has them all."
        )
    files = {name: _image_files(root / name, resolved) for name in found}
    per_class = [files.get(name, []) for name in names]
    order = spread([len(group) for group in per_class])
    keys = _keys(names, per_class)

    def read(position: int) -> Sample:
        label, index = order[position]
        name = per_class[label][index]
        image, extension = read_image_file(root / names[label] / name)
        return Sample(keys[label][index], image, extension, label)

    return names, Samples(len(order), read)


def _class_folders(root: Path, resolved: Path) -> list[str]:
    folders, strangers = [], []
    for name in _visible(root):
        path = root / name
        refuse_escape(path, resolved)
        if path.is_dir():
            if not _is_utf8(name):
                raise ShardError(f"{root}: the folder name {name!r} is not UTF-8. Rename it.")
            folders.append(name)
        elif path.suffix.lower() not in _HARMLESS:
            strangers.append(name)
    if any(Path(name).suffix.lower() in _IMAGES for name in strangers):
        raise ShardError(
            f"{root}: images lie in the folder itself ({some_names(strangers)}). Put each one "
            "into a folder named after its class, or name the folder above."
        )
    _refuse_strangers(root, strangers)
    if not folders:
        raise ShardError(f"{root}: there are no class folders. Put the images into CLASS/.")
    if all(name.lower() in _SPLITS for name in folders) and any(
        entry.is_dir() for name in folders for entry in (root / name).iterdir()
    ):
        raise ShardError(
            f"{root}: holds {some_names(folders)}, which are splits rather than classes. Name "
            f"one of them, such as {root / folders[0]}."
        )
    return folders


def _image_files(folder: Path, resolved: Path) -> list[str]:
    images, strangers = [], []
    for name in _visible(folder):
        path = folder / name
        refuse_escape(path, resolved)
        suffix = path.suffix.lower()
        if suffix in _IMAGES and path.is_file():
            images.append(name)
        elif path.is_dir() or suffix not in _HARMLESS:
            strangers.append(name + "/" if path.is_dir() else name)
    _refuse_strangers(folder, strangers)
    if not images:
        raise ShardError(
            f"{folder}: there are no images in this class folder. Add some, or remove it."
        )
    return images


def _visible(folder: Path) -> list[str]:
    """Names in a folder without the hidden ones, in natural order."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ShardError(f"{folder}: cannot be listed ({error.strerror}).") from error
    return sorted((name for name in names if not name.startswith(".")), key=natural_key)


def _refuse_strangers(folder: Path, names: Sequence[str]) -> None:
    if names:
        raise ShardError(
            f"{folder}: {some_names(names)}: neither a JPEG, PNG or PPM image nor a file that "
            "may be ignored. Convert or move it, so that nothing is left out unnoticed."
        )


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _safe(part: str) -> str:
    """A path part without what a key may not hold."""
    return "".join(
        "_" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in part
    )


def _keys(names: Sequence[str], files: Sequence[Sequence[str]]) -> list[list[str]]:
    """A unique key for each file; those whose plain key is free and needs no change go first."""
    keys: list[list[str]] = [[""] * len(group) for group in files]
    taken: set[str] = set()
    changed: list[tuple[int, int, str]] = []
    for label, (name, group) in enumerate(zip(names, files, strict=True)):
        for index, file in enumerate(group):
            plain = f"{name}/{Path(file).stem}"
            key = f"{_safe(name)}/{_safe(Path(file).stem).replace('.', '_')}"
            if key != plain or key in taken:
                changed.append((label, index, key))
            else:
                keys[label][index] = key
                taken.add(key)
    for label, index, key in changed:
        number, candidate = 1, key
        while candidate in taken:
            number += 1
            candidate = f"{key}_{number}"
        keys[label][index] = candidate
        taken.add(candidate)
    return keys
