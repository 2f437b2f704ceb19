"""A strict reader of the headers of an uncompressed tar file.

Python's ``tarfile`` treats many kinds of damage as the end of the archive and returns the
members before it, so samples vanish without a word. Here everything that is not exactly a whole
archive is a :class:`ShardError`: each header must have a correct checksum, each member must lie
inside the file, the archive must end with its two blocks of zeros, and nothing but zeros may
follow them.

Only headers are read (contents are stepped over) and nothing is ever extracted, so the cost is
one 512-byte read a member. Damage inside the contents is not seen here: the manifest's SHA-256
is for that.

Understood are ustar, GNU long names (type ``L``) and pax headers (types ``x`` and ``g``, the
records ``path`` and ``size``). Directories are skipped. Links, devices, FIFOs and sparse files
are refused: a shard has no use for them.

Source: the ustar and pax interchange formats of POSIX.1-2001; one header is parsed by
``tarfile.TarInfo.frombuf``.
"""

import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pbe_fast.data._magic import describe_bytes
from pbe_fast.errors import ShardError

__all__ = ["Member", "scan_tar"]

_BLOCK = tarfile.BLOCKSIZE
_ZERO_BLOCK = bytes(_BLOCK)
_CHUNK = 1 << 20
# A long name or a set of pax records is some hundred bytes; a larger one is damage or an attack.
_MAX_EXTENSION_BYTES = 1 << 20

_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_LONG = {tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE}
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGLINK: "a link with a long name",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its name, and where its contents lie in the tar, in bytes."""

    name: str
    offset: int
    size: int


def scan_tar(path: Path) -> list[Member]:
    """List the regular files of a tar, in order, or say what is wrong with it.

    Args:
        path: an uncompressed tar file.

    Raises:
        ShardError: the file is missing, no tar, compressed, truncated or damaged, or holds
            something else than regular files and directories. The message names the byte offset.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened ({error.strerror}).") from error
    try:
        return _Scan(path, fd).members()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}).") from error
    finally:
        os.close(fd)


class _Scan:
    """One pass over the headers of one open file."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            self.fail(0, "not a regular file", "Name a tar file.")
        self.length = status.st_size

    def fail(self, offset: int, what: str, remedy: str) -> NoReturn:
        raise ShardError(f"{self.path}, byte {offset}: {what}. {remedy}")

    def truncated(self, offset: int, what: str) -> NoReturn:
        self.fail(offset, what, "The file is cut off: copy or download it again.")

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def members(self) -> list[Member]:
        if self.length == 0:
            self.fail(0, "the file is empty", "Copy or download it again.")
        found: list[Member] = []
        global_pax: dict[str, str] = {}
        local_pax: dict[str, str] = {}
        long_name: str | None = None
        extension_at: int | None = None  # where a name or pax header waits for its member
        offset = 0
        while True:
            block = self.read(_BLOCK, offset)
            if block == _ZERO_BLOCK:
                if extension_at is not None:
                    self.truncated(extension_at, "a name header that no member follows")
                self.check_end(offset)
                return found
            header = self.parse(block, offset)
            start = offset + _BLOCK
            if header.type in _LONG:
                payload = self.extension(header, offset)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = self.text(payload.rstrip(b"\0"), offset)
                elif header.type == tarfile.XGLTYPE:
                    global_pax |= self.pax_records(payload, offset)
                else:
                    local_pax |= self.pax_records(payload, offset)
                if header.type != tarfile.XGLTYPE:
                    extension_at = offset
                offset = start + _round_up(header.size)
                continue
            pax = global_pax | local_pax
            # A pax path outranks a GNU long name, which outranks the 100 bytes of the header.
            name = pax.get("path", long_name if long_name is not None else header.name)
            size = self.pax_size(pax["size"], offset) if "size" in pax else header.size
            if header.type in _REFUSED or any(key.startswith("GNU.sparse") for key in pax):
                kind = _REFUSED.get(header.type, "a sparse file")
                self.fail(
                    offset,
                    f"{name!r} is {kind}; a shard may hold only regular files",
                    "Write the shard again with real files in it.",
                )
            if header.type == tarfile.DIRTYPE:
                if size != 0:
                    self.fail(offset, f"the directory {name!r} has contents", _DAMAGED)
            elif header.type in _REGULAR:
                self.check_inside(name, size, offset)
                if not name or "\0" in name or not _is_text(name):
                    self.fail(offset, f"a member has the impossible name {name!r}", _DAMAGED)
                found.append(Member(name, start, size))
            else:
                self.fail(offset, f"{name!r} has the unknown member type {header.type!r}", _DAMAGED)
            local_pax, long_name, extension_at = {}, None, None
            offset = start + _round_up(size)

    def parse(self, block: bytes, offset: int) -> tarfile.TarInfo:
        """The header at ``offset``; its checksum and its numbers are checked."""
        if not block:
            self.truncated(offset, "the end-of-archive marker is missing")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            if offset == 0:
                # Only now: a good tar may begin with a member named "BM1.jpg".
                kind = describe_bytes(self.read(_BLOCK, 0), none=f"of no known kind ({error})")
                self.fail(0, f"not an uncompressed tar: it is {kind}", _WRONG_KIND)
            if len(block) < _BLOCK:
                self.truncated(offset, f"only {len(block)} bytes of a 512-byte header are there")
            self.fail(offset, f"damaged header ({error})", _DAMAGED)
        if header.size < 0:
            self.fail(offset, f"{header.name!r} has the negative size {header.size}", _DAMAGED)
        return header

    def check_inside(self, name: str, size: int, offset: int) -> None:
        """The contents and the zeros that fill their last block must be there."""
        missing = offset + _BLOCK + _round_up(size) - self.length
        if missing > 0:
            self.truncated(offset, f"{name!r} has {size} bytes, and {missing} bytes are missing")

    def extension(self, header: tarfile.TarInfo, offset: int) -> bytes:
        """The contents of a long-name or pax header."""
        if header.size > _MAX_EXTENSION_BYTES:
            self.fail(offset, f"a name header claims {header.size} bytes", _DAMAGED)
        self.check_inside(header.name, header.size, offset)
        return self.read(header.size, offset + _BLOCK)

    def text(self, raw: bytes, offset: int) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(offset, "a member name is not UTF-8", _DAMAGED)

    def pax_records(self, payload: bytes, offset: int) -> dict[str, str]:
        """Parse ``"LENGTH KEY=VALUE\\n"`` records; LENGTH counts the whole record."""
        records: dict[str, str] = {}
        payload = payload.rstrip(b"\0")
        while payload:
            digits, space, _ = payload.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            record = payload[len(digits) + 1 : length]
            key, equals, value = record[:-1].partition(b"=")
            if not space or not equals or not key or length > len(payload) or record[-1:] != b"\n":
                self.fail(offset, "a damaged pax header", _DAMAGED)
            # Owner, times and vendor records may be in any encoding and are not needed.
            if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
                records[self.text(key, offset)] = self.text(value, offset)
            payload = payload[length:]
        return records

    def pax_size(self, value: str, offset: int) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 20):
            self.fail(offset, f"a pax header gives the size {value!r}", _DAMAGED)
        return int(value)

    def check_end(self, offset: int) -> None:
        """From the first zero block on there must be two or more blocks of zeros, no more."""
        position = offset
        while chunk := self.read(_CHUNK, position):
            if chunk.count(0) != len(chunk):
                data_at = position + len(chunk) - len(chunk.lstrip(b"\0"))
                self.fail(
                    data_at,
                    f"data after the end of the archive, which is at byte {offset}",
                    "The file is damaged, or several tars were joined with cat: copy it again "
                    "or write it anew.",
                )
            position += len(chunk)
        if position - offset < 2 * _BLOCK:
            self.truncated(offset, "the end-of-archive marker is not whole")
        if position % _BLOCK:
            self.truncated(position, "the file ends inside a block")


_DAMAGED = "The file is damaged: copy or download it again."
_WRONG_KIND = (
    "A shard is a plain .tar: unpack a compressed one first (gunzip, unxz, zstd -d); if it is a "
    "failed download, fetch it again."
)


def _is_text(name: str) -> bool:
    """Whether every byte of the name was UTF-8 (others became lone surrogates)."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _round_up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
