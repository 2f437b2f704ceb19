"""Comparing shards with their manifest."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pbe_fast._files import sha256_file
from pbe_fast.data._layout import read_rows
from pbe_fast.data._remote import downloaded
from pbe_fast.data.manifest import Manifest, Shard
from pbe_fast.data.storage import Storage
from pbe_fast.errors import ShardError

__all__ = ["require_digest", "require_intact", "verify_shards"]

_SHOWN = 10


def verify_shards(
    manifest: Manifest,
    *,
    digests: bool = True,
    members: bool = True,
    fetch: bool = True,
    on_shard: Callable[[Shard], None] | None = None,
    storage: Storage | None = None,
) -> list[str]:
    """Find everything in which the shards differ from the manifest.

    Args:
        manifest: as loaded, with its folder.
        digests: read every shard whole and compare its SHA-256.
        members: read the headers and labels of every shard and compare them with the rows. With
            both False only the presence and the sizes of the files are looked at.
        fetch: copy each shard that has an address to a temporary file, for these comparisons;
            with False only its size is compared, whatever the others say.
        on_shard: called after each shard.
        storage: reads what has an address.

    Returns:
        One line a problem, each naming the file and where possible the sample; empty when
        everything is as the manifest says.
    """
    storage = storage or Storage()
    problems = [] if fetch and (digests or members) else _remote_sizes(manifest, storage)
    bounds = np.searchsorted(manifest.shard_index, np.arange(len(manifest.shards) + 1))
    for number, shard in enumerate(manifest.shards):
        place = manifest.shard_location(number)
        rows = range(int(bounds[number]), int(bounds[number + 1]))
        try:
            if isinstance(place, Path):
                problems += _verify_one(manifest, place, shard, rows, digests, members)
            elif fetch and (digests or members):
                with downloaded(place, storage) as path:
                    found = _verify_one(manifest, path, shard, rows, digests, members)
                    problems += [line.replace(str(path), place) for line in found]
        except OSError as error:
            problems.append(f"{place}: cannot be read ({error.strerror})")
        except ShardError as error:
            problems.append(str(error))
        if on_shard is not None:
            on_shard(shard)
    return problems + _unlisted(manifest)


def require_intact(
    manifest: Manifest,
    *,
    digests: bool = True,
    members: bool = True,
    storage: Storage | None = None,
) -> None:
    """Raise unless the shards are as the manifest says; see :func:`verify_shards`.

    Of shards that have an address only the sizes are compared, as all else would read them whole.
    Their SHA-256 is compared where they are read whole: in :meth:`ShardReader.read_shard`.

    Raises:
        ShardError: lists the first 10 problems.
    """
    problems = verify_shards(
        manifest, digests=digests, members=members, fetch=False, storage=storage
    )
    if not problems:
        return
    more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    lines = "\n  ".join(problems[:_SHOWN] + more)
    raise ShardError(
        f"{manifest.root}: the shards are not what the manifest says:\n  {lines}\n"
        "Copy the shards again; if they were changed on purpose, make the manifest again with "
        "'pbe-fast shards index'."
    )


def require_digest(manifest: Manifest, number: int) -> None:
    """Raise unless one shard's SHA-256 is the manifest's.

    Raises:
        ShardError: names the shard.
    """
    path, shard = manifest.shard_path(number), manifest.shards[number]
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise ShardError(f"{path}: the shard cannot be read ({error.strerror}).") from error
    if digest != shard.sha256:
        raise ShardError(
            f"{path}: the shard has changed since the manifest was made (SHA-256 {digest} instead "
            f"of {shard.sha256}). Copy it again, or begin a new run with a new manifest."
        )


def _verify_one(
    manifest: Manifest, path: Path, shard: Shard, rows: range, digests: bool, members: bool
) -> list[str]:
    if not path.is_file():
        return [f"{path}: the shard is missing"]
    problems: list[str] = []
    size = path.stat().st_size
    if size != shard.bytes:
        problems.append(f"{path}: {size} bytes instead of {shard.bytes}")
    elif digests and (digest := sha256_file(path)) != shard.sha256:
        problems.append(f"{path}: SHA-256 {digest} instead of {shard.sha256}")
    if not members:
        return problems
    try:
        found = {row.key: row for row in read_rows(path)}
    except ShardError as error:
        return [*problems, str(error)]
    for sample_id in rows:
        key = manifest.keys[sample_id].as_py()
        row = found.pop(key, None)
        if row is None:
            problems.append(f"{path}, sample {key!r}: is in the manifest but not in the shard")
            continue
        for what, listed, actual in (
            ("offset", manifest.offsets[sample_id], row.offset),
            ("size", manifest.sizes[sample_id], row.size),
            ("label", manifest.labels[sample_id], row.label),
        ):
            if listed != actual:
                problems.append(
                    f"{path}, sample {key!r}: the {what} is {actual}, "
                    f"but {int(listed)} in the manifest"
                )
    return problems + [
        f"{path}, sample {key!r}: is in the shard but not in the manifest" for key in found
    ]


def _remote_sizes(manifest: Manifest, storage: Storage) -> list[str]:
    """Shards that have an address and are not there or not as large as they were."""
    places = map(manifest.shard_location, range(len(manifest.shards)))
    remote = [
        (place, shard.bytes)
        for place, shard in zip(places, manifest.shards, strict=True)
        if isinstance(place, str)
    ]
    sizes = storage.sizes(place for place, _ in remote)
    problems: list[str] = []
    for (place, expected), found in zip(remote, sizes, strict=True):
        if isinstance(found, ShardError):
            problems.append(str(found))
        elif found != expected:
            problems.append(f"{place}: {found} bytes instead of {expected}")
    return problems


def _unlisted(manifest: Manifest) -> list[str]:
    """Tar files that are named like listed ones, numbers apart, but are not listed."""
    places = map(manifest.shard_location, range(len(manifest.shards)))
    listed = {place for place in places if isinstance(place, Path)}
    patterns = {(path.parent, _without_numbers(path.name)) for path in listed}
    return [
        f"{path}: a shard that the manifest does not list"
        for folder in sorted({path.parent for path in listed})
        if folder.is_dir()
        for path in sorted(folder.glob("*.tar"))
        if path not in listed and (folder, _without_numbers(path.name)) in patterns
    ]


def _without_numbers(name: str) -> str:
    return re.sub(r"[0-9]+", "0", name)
