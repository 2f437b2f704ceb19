"""Where data lies: a local path, or the address of an object over http, https or S3.

A local place is a :class:`~pathlib.Path`, a remote one a ``str``; ``Path("s3://b/x")`` would lose
a slash. Nothing here touches a network.

Credentials have no place in an address: configurations, manifests and messages keep addresses,
and are handed on.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from pbe_fast.errors import ConfigError

__all__ = ["SCHEMES", "as_written", "is_address", "join", "location", "redacted"]

SCHEMES = ("http", "https", "s3")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")


def as_written(text: str | os.PathLike[str]) -> str:
    """The text that was given; a ``Path`` made from an address gets back the slash it lost."""
    written = os.fspath(text)
    if isinstance(text, os.PathLike):
        written = re.sub(rf"^({'|'.join(SCHEMES)}):/(?!/)", r"\1://", written)
    return written


def location(text: str | os.PathLike[str]) -> Path | str:
    """A local path as a ``Path``, an address as a ``str`` in one spelling.

    Args:
        text: a local path, ``http://``, ``https://`` or ``s3://BUCKET/KEY``.

    Raises:
        ConfigError: another scheme (``pipe:`` and all others), or an address with a user, a
            query or a fragment.
    """
    written = as_written(text)
    if "\0" in written:
        raise ConfigError("a path or an address cannot hold a zero byte.")
    match = _SCHEME.match(written)
    if match is None:
        return Path(written)
    scheme, shown = match[1].lower(), redacted(written)
    if scheme not in SCHEMES or match[2] is None:
        raise ConfigError(
            f"{shown}: sources that begin with '{match[1]}:' are not supported, and commands "
            "(pipe:) never will be. Name a local path, http://, https:// or s3://."
        )
    try:
        parts = urlsplit(written)
        host, user = parts.hostname, parts.username
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{shown}: is no address. Check the host and the port.") from error
    if user is not None:
        raise ConfigError(
            f"{shown}: an address must not hold a user or a password, because it is written to "
            "the run's files. For http put them into ~/.netrc, for s3 into the environment "
            "(AWS_ACCESS_KEY_ID and so on)."
        )
    if not host:
        raise ConfigError(f"{shown}: the address names no {_HOST[scheme]}.")
    if any((ord(letter) < 33 and letter != " ") or ord(letter) == 127 for letter in written):
        raise ConfigError(f"{shown!r}: an address cannot hold control characters.")
    if scheme == "s3":  # a key is any text, '?' and '#' included
        key = written[match.end() :].strip("/")
        return f"s3://{key}"
    if parts.query or parts.fragment or written.endswith(("?", "#")):
        raise ConfigError(
            f"{shown}: an address must end with its path. What follows '?' is often a secret, and "
            "an address is written to the run's files; '#' would be written as %23."
        )
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~").rstrip("/")
    return f"{scheme}://{parts.netloc.lower()}{path}"


_HOST = {"http": "server", "https": "server", "s3": "bucket"}


def is_address(text: str) -> bool:
    """Whether a text begins as an address; :func:`location` says whether it is a good one."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def join(place: Path | str, name: str) -> Path | str:
    """What ``name``, a plain relative path, means below a place."""
    if isinstance(place, Path):
        return place / name
    return f"{place}/{name if place.startswith('s3:') else quote(name)}"


def redacted(text: str) -> str:
    """A text without what may be secret in the addresses in it: users, passwords and queries.

    Servers answer with signed addresses, and libraries put those into their messages.
    """
    return re.sub(r"[^\s'\"<>]+", _without_secrets, text)  # linear, as texts may be huge


def _without_secrets(match: re.Match[str]) -> str:
    scheme, mark, rest = match[0].partition("://")
    if not mark:
        return match[0]
    host, slash, path = rest.partition("/")
    rest = host.rpartition("@")[2] + slash + path
    if scheme.lower().endswith(("http", "https")):
        rest = rest.partition("?")[0]
    return scheme + mark + rest
