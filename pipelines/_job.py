"""What a submitted job is made of: its name, its command, and the code that travels with it."""

import importlib.metadata
import importlib.util
import re
import secrets
import shlex
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pbe_fast.errors import ConfigError

__all__ = ["dependencies", "entrypoint", "job_name", "pack"]

PACKAGES = ("kernels", "pbe_fast", "pipelines")
MOST_BYTES = 16 * 2**20  # of the packed code; anything near it does not belong there

_DISTRIBUTION = "pbe-fast"


def job_name(name: str | None = None) -> str:
    """A name that a job can have, made up if none is given; :class:`ConfigError` if it cannot."""
    if name is None:
        return f"pbe-fast-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(
            f"{name!r} cannot name a job: letters, digits, '.', '_' and '-', at most 100."
        )
    return name


def entrypoint(arguments: Sequence[str]) -> str:
    """The shell command of ``pbe-fast ARGUMENTS`` on the cluster; the shell interprets nothing.

    :class:`ConfigError` for arguments that cannot be sent, and for results that would be lost.
    """
    if not arguments:
        raise ConfigError("Nothing to run. Give a command, such as: -- purify MODEL --out /DIR")
    if arguments[0] == "submit":
        raise ConfigError("A submitted job cannot be another submission.")
    for argument in arguments:
        if "\0" in argument or not _is_text(argument):
            raise ConfigError(f"The argument {argument!r} cannot be sent: it is not text.")
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        out = option[6:] if option.startswith("--out=") else value if option == "--out" else ""
        if out and not out.startswith("/") and "://" not in out:
            raise ConfigError(
                f"--out {out} is relative to a folder that Ray deletes after the job. Give an "
                "absolute path on storage that all nodes of the cluster share."
            )
    return shlex.join(["python", "-m", "pipelines", *arguments])


def _is_text(argument: str) -> bool:
    """Whether it is Unicode: an argument of other bytes holds halves of characters."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def pack(target: Path, files: Sequence[Path] = ()) -> None:
    """Write the source of the packages, and ``files`` beside them, as a zip archive.

    The same content gives the same bytes, so Ray uploads it once. From a checkout and from an
    installed wheel alike; hidden files and what Python compiled are left out.
    :class:`ConfigError` for a file that is missing, too large, or named like another.
    """
    members: dict[str, bytes] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            members |= _sources(Path(root), package)
    members |= _metadata()
    for path in files:
        if path.name in members or path.name.split(".")[0] in PACKAGES:
            raise ConfigError(f"{path}: the job has another file of this name.")
        try:
            members[path.name] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be sent: {error.strerror}.") from None
    size = sum(map(len, members.values()))
    if size > MOST_BYTES:
        largest = max(members, key=lambda name: len(members[name]))
        raise ConfigError(
            f"What the job needs is {size / 2**20:.0f} MiB, more than {MOST_BYTES / 2**20:.0f}; "
            f"most of it is {largest}. Large files belong on storage that the cluster reaches."
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, members[name])


def _sources(root: Path, package: str) -> dict[str, bytes]:
    found = {}
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        left_out = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if not left_out and path.suffix != ".pyc" and path.is_file():
            found[f"{package}/{inside.as_posix()}"] = path.read_bytes()
    return found


def _metadata() -> dict[str, bytes]:
    """So that a run on the cluster knows the version of this code."""
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return {}
    text = f"Metadata-Version: 2.1\nName: {_DISTRIBUTION}\nVersion: {version}\n"
    return {f"{_DISTRIBUTION.replace('-', '_')}-{version}.dist-info/METADATA": text.encode()}


def dependencies() -> list[str]:
    """What pbe-fast needs, as pip takes it, and what shards at ``s3://`` do.

    Raises:
        ConfigError: pbe-fast is not installed.
    """
    try:
        wanted = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("--pip needs an installed pbe-fast; this is a bare checkout.") from None
    needed = [requirement for requirement in wanted if "extra ==" not in requirement]
    return needed + [one.partition(";")[0] for one in wanted if one.endswith('extra == "s3"')]
