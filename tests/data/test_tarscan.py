import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pbe_fast.data.tarscan import Member, scan_tar
from pbe_fast.errors import ShardError

CONTENTS = {"a.jpg": b"x" * 700, "a.cls": b"3", "dir/b.png": b"", "dir/b.cls": b"y" * 512}


def make_tar(contents: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def scan(folder: Path, data: bytes) -> list[Member]:
    path = folder / "s.tar"
    path.write_bytes(data)
    return scan_tar(path)


TAR = make_tar(CONTENTS)
# Four headers; the contents take 2, 1, 0 and 1 blocks.
END = (4 + 4) * 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tars")


LONG = "d/" * 70 + "n" * 90 + "é" * 30  # more than ustar has room for


@pytest.mark.parametrize(
    ("format", "long"),
    [
        (tarfile.USTAR_FORMAT, "d" * 90 + "/" + "n" * 90),
        (tarfile.GNU_FORMAT, LONG),
        (tarfile.PAX_FORMAT, LONG),
    ],
)
def test_names_and_places_are_those_of_tarfile(folder: Path, format: int, long: str) -> None:
    contents = {**CONTENTS, long + ".jpg": b"z" * 1025, "last.cls": b"1"}
    data = make_tar(contents, format)
    members = scan(folder, data)
    assert [member.name for member in members] == list(contents)
    for member in members:
        assert data[member.offset : member.offset + member.size] == contents[member.name]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(m.name, m.offset_data, m.size) for m in tar] == [
            (m.name, m.offset, m.size) for m in members
        ]


def test_pax_size_and_global_headers(folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "hello"}
    ) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 600
        info.pax_headers = {"size": "600", "SCHILY.xattr.user": "é"}
        tar.addfile(info, io.BytesIO(b"q" * 600))
    (member,) = scan(folder, buffer.getvalue())
    assert (member.name, member.size) == ("a.jpg", 600)
    assert buffer.getvalue()[member.offset :][:600] == b"q" * 600


def test_pax_size_outranks_the_header(folder: Path) -> None:
    record = b"12 size=600\n"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    small = tarfile.TarInfo("a.jpg")  # says 0 bytes
    data = header.tobuf() + record.ljust(512, b"\0") + small.tobuf() + b"q" * 600
    data = data.ljust(5 * 512, b"\0") + bytes(1024)
    assert scan(folder, data) == [Member("a.jpg", 1536, 600)]


@settings(deadline=None, max_examples=150)
@given(cut=st.integers(0, len(TAR) - 1))
@example(cut=END)
@example(cut=END + 512)
@example(cut=END + 1024)
@example(cut=END + 1025)
@example(cut=END - 512)
@example(cut=512 + 701)  # in the zeros that fill a block of contents
def test_a_cut_file_is_refused_unless_only_padding_is_gone(folder: Path, cut: int) -> None:
    # Two blocks of zeros end an archive; whole blocks of zeros after them mean nothing.
    if cut >= END + 1024 and cut % 512 == 0:
        assert scan(folder, TAR[:cut]) == scan(folder, TAR)
    else:
        with pytest.raises(ShardError, match=r"byte \d+"):
            scan(folder, TAR[:cut])


def header_starts(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar]


@settings(deadline=None, max_examples=150)
@given(
    which=st.integers(0, 3),
    position=st.integers(0, 511),
    value=st.integers(1, 255),
)
@example(which=1, position=148, value=1)
def test_a_changed_header_byte_is_never_silent(
    folder: Path, which: int, position: int, value: int
) -> None:
    data = bytearray(TAR)
    data[header_starts(TAR)[which] + position] ^= value
    try:
        members = scan(folder, bytes(data))
    except ShardError:
        return
    # The two bytes after the checksum's digits are the only ones that mean nothing.
    assert position in (154, 155)
    assert members == scan(folder, TAR)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("position", range(148, 154))
def test_a_changed_checksum_digit(folder: Path, which: int, position: int) -> None:
    data = bytearray(TAR)
    data[header_starts(TAR)[which] + position] ^= 1
    with pytest.raises(ShardError, match=f"byte {header_starts(TAR)[which]}: "):
        scan(folder, bytes(data))


@pytest.mark.parametrize("which", range(4))
def test_a_zeroed_header_hides_nothing(folder: Path, which: int) -> None:
    data = bytearray(TAR)
    start = header_starts(TAR)[which]
    data[start : start + 512] = bytes(512)
    with pytest.raises(ShardError, match=f"data after the end.*byte {start}") as error:
        scan(folder, bytes(data))
    with tarfile.open(fileobj=io.BytesIO(bytes(data)), ignore_zeros=False) as tar:
        assert len(tar.getnames()) < 4  # what tarfile makes of it, without a word
    assert "s.tar" in str(error.value)


def test_joined_archives_and_garbage_at_the_end(folder: Path) -> None:
    for data in (TAR + TAR, TAR + b"\0" * 512 + b"x", TAR + b"garbage" * 300):
        with pytest.raises(ShardError, match="data after the end of the archive"):
            scan(folder, data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (gzip.compress(TAR), "gzip"),
        (lzma.compress(TAR), "xz"),
        (bz2.compress(TAR), "bzip2"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 4, "zstd"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>" * 20, "HTML"),
        (b"<html>404</html>", "HTML"),
        (b"PK\x03\x04" + b"z" * 2000, "zip"),
        (bytes(range(256)) * 40, "no known kind"),
        (b"x" * 100, "no known kind"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    ],
)
def test_other_files_are_named(folder: Path, data: bytes, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        scan(folder, data)


def test_a_good_tar_may_begin_like_another_format(folder: Path) -> None:
    for name in ("BM1.jpg", "GIF8.jpg", "PAR1.jpg", "P1 x.jpg", "<html>.jpg"):
        assert scan(folder, make_tar({name: b"1"})) == [Member(name, 512, 1)]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown member type"),
    ],
)
def test_special_members_are_refused(folder: Path, kind: bytes, words: str) -> None:
    info = tarfile.TarInfo("evil.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ShardError, match=words) as error:
        scan(folder, info.tobuf() + bytes(1024))
    assert "evil.jpg" in str(error.value)


def test_directories_are_skipped(folder: Path) -> None:
    info = tarfile.TarInfo("dir")
    info.type = tarfile.DIRTYPE
    assert scan(folder, info.tobuf() + TAR) == [
        Member(member.name, member.offset + 512, member.size) for member in scan(folder, TAR)
    ]


def test_sizes_beyond_the_file_or_below_zero(folder: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 1 << 50
    with pytest.raises(ShardError, match=r"'a\.jpg' has 1125899906842624 bytes"):
        scan(folder, info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    info.size = -5
    with pytest.raises(ShardError, match="negative size -5"):
        scan(folder, info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


@pytest.mark.parametrize(
    "record",
    [
        b"99 path=b.jpg\n",
        b"9 path=b.jpg\n",
        b"path=b.jpg\n",
        b"-14 path=b.jpg\n",
        b"13 path=b.jpg",
        b"12 size=0x10\n",
        b"11 size=-1\n",
        b"14 path=\xff.jpg\n",
        b"8 path=\n",
        b"7 =abc\n",
    ],
)
def test_damaged_pax_records(folder: Path, record: bytes) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    with pytest.raises(ShardError, match=r"pax header|not UTF-8|impossible name"):
        scan(folder, header.tobuf() + record.ljust(512, b"\0") + TAR)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_name_header_needs_its_member(folder: Path, kind: bytes) -> None:
    body = b"13 path=b.jp\n"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = kind, len(body)
    with pytest.raises(ShardError, match="no member follows"):
        scan(folder, header.tobuf() + body.ljust(512, b"\0") + bytes(1024))
    header.size = 1 << 30
    with pytest.raises(ShardError, match="claims 1073741824 bytes"):
        scan(folder, header.tobuf() + bytes(2048))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="cannot be opened"):
        scan_tar(tmp_path / "none.tar")
    with pytest.raises(ShardError, match="not a regular file"):
        scan_tar(tmp_path)
