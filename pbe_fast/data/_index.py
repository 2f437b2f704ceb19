"""Making the manifest of shards that already exist."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from braceexpand import braceexpand

from pbe_fast._location import as_written, is_address, location, redacted
from pbe_fast.data._layout import Row, build_manifest, describe_shard, read_rows
from pbe_fast.data._remote import downloaded
from pbe_fast.data.manifest import Manifest, Shard, unsafe_shard_name
from pbe_fast.data.storage import Storage
from pbe_fast.errors import ShardError

__all__ = ["index_shards"]

Place = TypeVar("Place", Path, str)

_MAX_SHARDS = 1_000_000
_MAX_GUESSED_CLASSES = 1_000_000


def index_shards(
    source: Path | str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    manifest_folder: Path | None = None,
    save: bool = True,
    on_shard: Callable[[Shard], None] | None = None,
    storage: Storage | None = None,
) -> Manifest:
    """Read the headers and labels of an existing WebDataset and write its manifest.

    The tar files are not changed. Members other than ``jpg``, ``jpeg``, ``png`` and ``cls`` are
    never read. Tar files that have an address are copied to a temporary file, one after another,
    and are named in the manifest by their addresses.

    Args:
        source: a folder (all ``*.tar`` in it), one tar file, a glob, or a range in braces such
            as ``train-{000000..000003}.tar``; or the address of any of these, where http knows
            neither folders nor globs.
        num_classes: labels must be below it. Without it and ``classes`` the largest label counts.
        classes: class names; a label is an index into them. Default ``"0"``, ``"1"`` and so on.
        manifest_folder: where ``manifest.parquet`` goes; must contain all shards, directly or in
            sub-folders, unless they have addresses. Default: the folder that the shards have in
            common.
        save: False only returns the manifest.
        on_shard: called after each shard.
        storage: reads what has an address.

    Raises:
        ShardError: nothing matches, a shard is damaged or empty, a sample lacks its image or
            label, a label is out of range, or a key stands twice. Names the shard and the sample.
    """
    if classes is not None and num_classes is not None and len(classes) != num_classes:
        raise ShardError(f"{len(classes)} class names for num_classes = {num_classes}.")
    limit = len(classes) if classes is not None else num_classes
    if limit is not None and limit < 1:
        raise ShardError(f"the number of classes is {limit}; it must be 1 or more.")
    storage = storage or Storage()
    root, paths, names = _places(source, manifest_folder, storage)
    shards: list[Shard] = []
    rows: list[list[Row]] = []
    shard_of: dict[str, int] = {}
    for number, path in enumerate(paths):
        with downloaded(path, storage) as file:
            found = read_rows(file)
            shards.append(describe_shard(file, names[number], len(found)))
        for row in found:
            if (other := shard_of.setdefault(row.key, number)) != number:
                raise ShardError(
                    f"{path}, sample {row.key!r}: the key is also in {paths[other]}. "
                    "Keys must be unique across shards: rename one or leave one shard out."
                )
            if limit is not None and row.label >= limit:
                raise ShardError(
                    f"{path}, sample {row.key!r}: the label {row.label} is not in 0 to "
                    f"{limit - 1}. Mend the label, or give the right number of classes."
                )
        rows.append(found)
        if on_shard is not None:
            on_shard(shards[-1])
    if classes is None:
        classes = [str(label) for label in range(limit or _guess_classes(paths, rows))]
    manifest = build_manifest(root, shards, rows, classes)
    if save:
        manifest.save(root)
    return manifest


def _places(
    source: Path | str, folder: Path | None, storage: Storage
) -> tuple[Path, Sequence[Path | str], list[str]]:
    """Where the manifest goes, where the shards lie, and their names in the manifest."""
    text = as_written(source)
    if is_address(text):
        if folder is None:
            raise ShardError(
                f"{redacted(text)}: say in which local folder the manifest goes (--out FOLDER); "
                "the shards stay where they are."
            )
        addresses = _find_remote(text, storage)
        return folder, addresses, addresses
    paths = _find(source)
    if folder is not None:  # so that either may be relative
        folder = Path(os.path.abspath(folder))
        paths = [Path(os.path.abspath(path)) for path in paths]
    root = _root(paths, folder)
    return root, paths, [path.relative_to(root).as_posix() for path in paths]


def _guess_classes(paths: Sequence[Path | str], rows: Sequence[Sequence[Row]]) -> int:
    """One more than the largest label."""
    largest, key, path = max(
        (row.label, row.key, path) for path, found in zip(paths, rows, strict=True) for row in found
    )
    if largest >= _MAX_GUESSED_CLASSES:
        raise ShardError(
            f"{path}, sample {key!r}: the label {largest} would mean {largest + 1} classes. "
            "If that is right, give num_classes."
        )
    return largest + 1


def _find(source: Path | str) -> list[Path]:
    """The tar files that ``source`` means: sorted, or in the order of the braces."""
    text = as_written(source)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text):
        raise ShardError(
            f"{text}: sources that begin with '{scheme.group(1)}:' are not supported; commands "
            "(pipe:) never will be. Name a local path, http://, https:// or s3://."
        )
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            raise ShardError(f"{path}: there are no .tar files in this folder.{_packed(path)}")
        return found
    if path.is_file():
        return [path]
    paths: list[Path] = []
    for pattern in _expanded(text):
        names = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        missing = [name for name in names if not Path(name).is_file()]
        if missing or not names:
            raise ShardError(
                f"{(missing or [pattern])[0]}: there is no such file. Name a folder with .tar "
                "files, a tar file, a glob, or a range such as train-{000000..000003}.tar."
            )
        paths += map(Path, names)
    return _once(text, paths)


def _find_remote(text: str, storage: Storage) -> list[str]:
    """The addresses of the tar files that ``text`` means: sorted, or in the order of the braces."""
    if text.endswith("/") and not text.startswith("s3:"):
        storage.find(text)  # says that it cannot
    places: list[str] = []
    for pattern in _expanded(text):
        if pattern.startswith("s3:") and not pattern.endswith(".tar"):
            pattern = f"{pattern.rstrip('/')}/*.tar"
        if glob.has_magic(pattern) and (pattern.startswith("s3:") or "?" not in pattern):
            found = [str(location(place)) for place in storage.find(pattern)]
            if not found:
                raise ShardError(f"{pattern}: there is no such object. Check the address.")
            places += found
        else:
            places.append(str(location(pattern)))
    return _once(text, places)


def _expanded(text: str) -> list[str]:
    """What a text with braces stands for."""
    too_many = f"{redacted(text)}: the braces mean more than {_MAX_SHARDS} shards. Name fewer."
    # braceexpand makes a whole range in memory before it gives the first name.
    for first, last in re.findall(r"(-?[0-9]+)\.\.(-?[0-9]+)", text):
        if len(first + last) > 30 or abs(int(last) - int(first)) >= _MAX_SHARDS:
            raise ShardError(too_many)
    try:
        patterns = list(itertools.islice(braceexpand(text), _MAX_SHARDS + 1))
    except ValueError as error:
        raise ShardError(
            f"{redacted(text)}: unbalanced braces. Write FOLDER/train-{{000..012}}.tar."
        ) from error
    if len(patterns) > _MAX_SHARDS:
        raise ShardError(too_many)
    return patterns


def _once(text: str, places: list[Place]) -> list[Place]:
    """The same, unless a place stands in it twice."""
    seen: set[Place] = set()
    for place in places:
        if place in seen:
            raise ShardError(f"{redacted(text)}: names {place} twice. Name every shard once.")
        seen.add(place)
    return places


def _packed(folder: Path) -> str:
    packed = sorted(
        path.name for path in folder.iterdir() if re.search(r"\.(tgz|tar\.\w+)$", path.name)
    )
    return f" {packed[0]} is compressed: unpack it to a plain .tar first." if packed else ""


def _root(paths: Sequence[Path], manifest_folder: Path | None) -> Path:
    """The folder that the names in the manifest are relative to."""
    if manifest_folder is not None:
        root = manifest_folder
    else:
        try:
            root = Path(os.path.commonpath([path.parent for path in paths]) or ".")
        except ValueError:  # absolute and relative paths
            raise ShardError(
                f"{paths[0]} and {paths[-1]}: have no folder in common; spell all shards alike."
            ) from None
    for path in paths:
        if not path.is_relative_to(root):
            raise ShardError(
                f"{path}: does not lie in {root}, where the manifest goes. Name a folder that "
                "contains all shards."
            )
        if unsafe_shard_name(path.relative_to(root).as_posix()):
            raise ShardError(
                f"{path}: ':', '\\' and '..' cannot be in a shard's name below {root}. Rename it."
            )
    return root
