"""One try of one request over http (aiohttp) or S3 (s3fs), and what its failure means.

The filesystems are fsspec's. Over http the answer's status and ranges are looked at here: fsspec
would take the whole of an object for the bytes that were asked for where a server ignores ranges.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from pbe_fast.errors import ConfigError, ShardError

__all__ = ["S3", "Failure", "Http", "NoRangesError", "Request", "explain"]

_RETRIED = {408, 425, 429}
_AGAIN = "Look at the server and the network, then give the same command again."
_RIGHTS = (
    "Give the rights or the credentials: ~/.netrc for http; for s3 the environment of AWS "
    "(AWS_ACCESS_KEY_ID and so on, or AWS_PROFILE)."
)
_ADDRESS = "Check the address."
_CHANGED = (
    "The object is not the one that the manifest was made from: make the manifest again with "
    "'pbe-fast shards index', or put the object back."
)


class Request(NamedTuple):
    """Some bytes of an object.

    Attributes:
        place: the object's address.
        offset, size: which bytes.
        total: how many bytes the object must have, where that is known.
    """

    place: str
    offset: int
    size: int
    total: int | None = None


class NoRangesError(ShardError):
    """The server sends whole objects only."""


@dataclass
class Failure(Exception):
    """Why a try failed.

    Attributes:
        text: what happened, for people.
        again: whether another try may end otherwise.
        remedy: what to do.
        wait: seconds that the server asks for.
        missing: there is no such object.
        bug: nothing that a server did.
    """

    text: str
    again: bool = True
    remedy: str = _AGAIN
    wait: float | None = None
    missing: bool = False
    bug: bool = False


def by_status(status: int, reason: str, retry_after: str | None = None) -> Failure:
    """What an HTTP status means for another try."""
    text = f"the server said '{status} {reason}'" if reason else f"the server said {status}"
    if status in (404, 410):
        return Failure(text, False, _ADDRESS, missing=True)
    if status == 416:  # the range lies behind the end
        return Failure(text, False, _CHANGED)
    if status in (401, 403, 407):
        return Failure(text, False, _RIGHTS)
    if status >= 500 or status in _RETRIED:
        return Failure(text, wait=_seconds(retry_after))
    return Failure(text, False, _ADDRESS)


def _seconds(retry_after: str | None) -> float | None:
    """The header ``Retry-After`` where it is a number of seconds."""
    if retry_after is not None and re.fullmatch(r"[0-9]{1,6}", retry_after.strip()):
        return float(retry_after)
    return None


class Http:
    """Objects over http and https; for use on the thread of ``loop``.

    Proxies and ``.netrc`` are those of the environment.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            from fsspec.implementations.http import HTTPFileSystem
        except ImportError as error:
            raise ConfigError(
                f"data over http needs the packages fsspec and aiohttp ({error}): "
                "pip install 'fsspec[http]'."
            ) from error
        self._filesystem: Any = HTTPFileSystem(
            asynchronous=True,
            loop=loop,
            skip_instance_cache=True,
            encoded=True,
            client_kwargs={"trust_env": True, "auto_decompress": False},
        )

    async def read(self, request: Request, connect_seconds: float, stall_seconds: float) -> bytes:
        """The bytes; raises :class:`Failure`, NoRangesError, or aiohttp's errors."""
        place, offset, size, total = request
        whole = total is not None and offset == 0 and size == total
        headers = {} if whole else {"Range": f"bytes={offset}-{offset + size - 1}"}
        async with await self._get(place, headers, connect_seconds, stall_seconds) as answer:
            if answer.status == 416:
                raise _other_size(offset + size, _total(answer.headers.get("Content-Range")))
            if answer.status not in (200, 206):
                raise by_status(answer.status, answer.reason, answer.headers.get("Retry-After"))
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise Failure("the server sends it compressed", False, "Store it as it is.")
            if answer.status == 206:
                span = _span(answer.headers.get("Content-Range"))
                if span is None or span[0] != offset or span[1] > offset + size:
                    raise Failure("the server sent other bytes than it was asked for")
                there = span[2]
            else:
                there = answer.content_length
            if there is not None and total is not None and there != total:
                raise _other_size(total, there)
            if there is not None and there < offset + size:
                raise _other_size(offset + size, there)
            if answer.status == 200 and not whole and not (offset == 0 and there == size):
                raise NoRangesError(f"{place}: the server sends whole files only.")
            return await _body(answer, size)

    async def size(self, place: str, connect_seconds: float, stall_seconds: float) -> int:
        """Bytes of the object; one byte is asked for, as not every server knows HEAD."""
        headers = {"Range": "bytes=0-0"}
        async with await self._get(place, headers, connect_seconds, stall_seconds) as answer:
            if answer.status == 416 and _total(answer.headers.get("Content-Range")) == 0:
                return 0
            if answer.status == 206:
                total = _total(answer.headers.get("Content-Range"))
                await _body(answer, 1)  # leaves the connection in use
            elif answer.status == 200:
                total = answer.content_length
            else:
                raise by_status(answer.status, answer.reason, answer.headers.get("Retry-After"))
            if total is None:
                raise Failure("the server does not say how large it is", False, _ADDRESS)
            return int(total)

    async def _get(
        self, place: str, headers: dict[str, str], connect_seconds: float, stall_seconds: float
    ) -> Any:
        from aiohttp import ClientTimeout

        session = await self._filesystem.set_session()
        return await session.get(
            self._filesystem.encode_url(place),
            headers={"Accept-Encoding": "identity", **headers},
            timeout=ClientTimeout(
                total=None, sock_connect=connect_seconds, sock_read=stall_seconds
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._filesystem._session is not None:
            await self._filesystem._session.close()


async def _body(answer: Any, size: int) -> bytes:
    """The body, which must have ``size`` bytes; no more than that is taken into memory."""
    parts: list[bytes] = []
    got = 0
    async for part in answer.content.iter_any():
        parts.append(part)
        got += len(part)
        if got > size:
            break
    if got != size:
        raise Failure(f"the answer has {'more' if got > size else got} of {size} bytes")
    return b"".join(parts)


def _span(header: str | None) -> tuple[int, int, int | None] | None:
    """First byte, one past the last, and the whole size of ``bytes 0-99/1000``."""
    match = re.fullmatch(
        r"\s*bytes\s+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)\s*", header or ""
    )
    if match is None:
        return None
    return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])


def _total(header: str | None) -> int | None:
    match = re.fullmatch(r"\s*bytes\s+\S+/([0-9]{1,19})\s*", header or "")
    return None if match is None else int(match[1])


def _other_size(expected: int, found: int | None) -> Failure:
    has = "fewer bytes" if found is None else f"{found} bytes"
    return Failure(f"has {has} instead of {expected}", False, _CHANGED)


class S3:
    """Objects on S3; for use on the thread of ``loop``. Settings are those of AWS's tools."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            from s3fs import S3FileSystem
        except ImportError as error:
            raise ConfigError(
                f"data on S3 needs the package s3fs ({error}): pip install 'pbe-fast[s3]'."
            ) from error
        self._filesystem: Any = S3FileSystem(
            asynchronous=True,
            loop=loop,
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={"retries": {"total_max_attempts": 1}},
        )
        self._filesystem.retries = 1  # tries are counted by the caller alone

    async def read(self, request: Request, *_seconds: float) -> bytes:
        """The bytes; raises :class:`Failure` or the errors of s3fs and botocore."""
        place, offset, size, total = request
        await self._filesystem.set_session()
        content: bytes = await self._filesystem._cat_file(place, start=offset, end=offset + size)
        if len(content) != size:
            there = await self.size(place)
            if there < offset + size or (total is not None and there != total):
                raise _other_size(offset + size if total is None else total, there)
            raise Failure(f"the answer has {len(content)} of {size} bytes")
        return content

    async def size(self, place: str, *_seconds: float) -> int:
        """Bytes of the object."""
        await self._filesystem.set_session()
        found = await self._filesystem._info(place)
        if found["type"] != "file":
            raise by_status(404, "Not Found")
        return int(found["size"])

    async def find(self, pattern: str) -> list[str]:
        """The objects that a glob means."""
        await self._filesystem.set_session()
        return sorted(f"s3://{name}" for name in await self._filesystem._glob(pattern))

    async def close(self) -> None:
        """Close all connections."""
        if self._filesystem._s3 is not None:
            await self._filesystem._s3.close()


def explain(error: Exception) -> Failure:
    """What an exception of a try means."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ConfigError):
        return Failure("", again=False, bug=True)
    if isinstance(error, TimeoutError):
        return Failure("the server does not answer in time")
    for cause in _causes(error):
        status, reason = _status(cause)
        if status is not None:
            return by_status(status, reason)
    if isinstance(error, FileNotFoundError):
        return by_status(404, "Not Found")
    if isinstance(error, PermissionError):
        return by_status(403, "Forbidden")
    module = type(error).__module__.partition(".")[0]
    name = type(error).__name__
    text = f"{name}: {error}" if str(error) else name
    if "Credential" in name or "Token" in name:
        return Failure(text, False, _RIGHTS)
    if name in ("InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "TooManyRedirects"):
        return Failure(text, False, _ADDRESS)
    if name in ("ParamValidationError", "ProfileNotFound", "NoRegionError", "ConfigParseError"):
        return Failure(text, False, "Mend the address or the configuration of AWS.")
    if isinstance(error, OSError) or module in ("aiohttp", "botocore", "aiobotocore", "urllib3"):
        return Failure(text)
    return Failure(text, again=False, bug=True)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> tuple[int | None, str]:
    """The status that botocore keeps with its error."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None, ""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = str(response.get("Error", {}).get("Code", ""))
    return (status if isinstance(status, int) else None), "" if code.isdigit() else code
