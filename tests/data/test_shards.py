import hashlib
import io
import json
import os
import pickle
import re
import signal
import string
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest, Shard
from pbe_fast.data.shards import (
    Sample,
    ShardReader,
    index_shards,
    read_bytes,
    require_intact,
    verify_shards,
    write_shards,
)
from pbe_fast.errors import ImageError, ShardError

CLASSES = ("ant", "bee", "cat")


def some(count: int, size: int = 3000) -> list[Sample]:
    return [
        Sample(f"c{i % 3}/{i:04d}", bytes([i % 251]) * (size + i), "jpg", i % 3, {"b": i, "a": "é"})
        for i in range(count)
    ]


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(first: Manifest, second: Manifest) -> bool:
    return (
        first.shards == second.shards
        and first.classes == second.classes
        and first.keys.equals(second.keys)
        and all(
            np.array_equal(getattr(first, name), getattr(second, name))
            for name in ("shard_index", "offsets", "sizes", "labels")
        )
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """40 samples in 4 shards."""
    made = write_shards(some(40), tmp_path / "set", classes=CLASSES, shard_bytes=60_000)
    assert len(made.shards) == 4
    return made


# Writing


def test_write_then_read(manifest: Manifest) -> None:
    samples = some(40)
    assert manifest.root.name == "set"
    assert manifest.classes == CLASSES
    assert [shard.name for shard in manifest.shards] == [f"shard-{i:06d}.tar" for i in range(4)]
    assert manifest.keys.to_pylist() == [sample.key for sample in samples]
    assert manifest.labels.tolist() == [sample.label for sample in samples]
    for number, shard in enumerate(manifest.shards):
        data = manifest.shard_path(number).read_bytes()
        assert shard.bytes == len(data)
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
    reader = ShardReader(manifest, max_open=2)
    assert [reader.read(i) for i in range(40)] == [sample.image for sample in samples]
    assert read_bytes(manifest, 17) == samples[17].image
    assert same(Manifest.load(manifest.root), manifest)
    assert verify_shards(manifest) == []


@settings(deadline=None, max_examples=40)
@given(ids=st.lists(st.integers(0, 39), max_size=30))
def test_many_reads_at_once_give_what_single_reads_give(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "many"
    samples = some(40)
    if not folder.exists():
        write_shards(samples, folder, classes=CLASSES, shard_bytes=16 * 1024)
    reader = ShardReader(Manifest.load(folder), max_open=2)
    assert reader.read_all(ids) == [samples[i].image for i in ids]


def test_neighbours_come_by_one_read(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[int, int]] = []
    pread = os.pread

    def spying(fd: int, size: int, offset: int) -> bytes:
        spans.append((offset, size))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", spying)
    reader = ShardReader(manifest)
    reader.read_all([0, 1, 2])
    start = int(manifest.offsets[0])
    assert spans == [(start, int(manifest.offsets[2] + manifest.sizes[2]) - start)]
    spans.clear()
    reader.read_all([2, 0, 39])
    wanted = [(int(manifest.offsets[i]), int(manifest.sizes[i])) for i in (2, 0, 39)]
    assert spans == wanted


def test_a_cut_in_a_read_of_many_names_the_first_sample_that_is_not_whole(
    manifest: Manifest,
) -> None:
    with manifest.shard_path(0).open("r+b") as file:
        file.truncate(int(manifest.offsets[1] + manifest.sizes[1]) - 1)
    reader = ShardReader(manifest)
    assert reader.read_all([0]) == [some(40)[0].image]
    with pytest.raises(ShardError, match=re.escape(manifest.describe(1))):
        reader.read_all([0, 1, 2])
    for wrong in (-1, 40):
        with pytest.raises(IndexError, match=f"sample {wrong} of 40"):
            reader.read_all([0, wrong])


def test_webdataset_reads_what_is_written(manifest: Manifest) -> None:
    found = []
    for number in range(4):
        # webdataset's own opener leaves files open, which is an error in these tests.
        with manifest.shard_path(number).open("rb") as stream:
            source = [{"url": "shard", "stream": stream}]
            found += list(group_by_keys(tar_file_expander(source)))
    assert [item["__key__"] for item in found] == [sample.key for sample in some(40)]
    assert [item["jpg"] for item in found] == [sample.image for sample in some(40)]
    assert [int(item["cls"]) for item in found] == [sample.label for sample in some(40)]
    assert found[5]["json"] == '{"a": "é", "b": 5}'.encode()


def test_shards_are_cut_at_shard_bytes(manifest: Manifest) -> None:
    for shard in manifest.shards[:-1]:
        # One sample (about 5 KiB with headers), tar's records of 10 KiB and its end.
        assert 60_000 <= shard.bytes <= 60_000 + 5120 + 2 * 10240


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    write_shards(some(10), tmp_path / "a", classes=CLASSES, shard_bytes=20_000)
    write_shards(iter(some(10)), tmp_path / "b", classes=CLASSES, shard_bytes=20_000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a/shard-000000.tar") as file:
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in file} == {(0, 0, 0, 0o444)}


def test_a_shard_s_bytes_do_not_depend_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(some(3), tmp_path / "a", classes=CLASSES)
    monkeypatch.setattr("time.time", lambda: 4e9)
    write_shards(some(3), tmp_path / "b", classes=CLASSES)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_on_sample_counts(tmp_path: Path) -> None:
    counts: list[int] = []
    write_shards(some(5), tmp_path / "a", classes=CLASSES, on_sample=counts.append)
    assert counts == [1, 2, 3, 4, 5]


KEYS = st.lists(
    st.text(string.ascii_letters + "é漢 _-{}%'*[", min_size=1, max_size=120),
    min_size=1,
    max_size=4,
).map("/".join)


@settings(deadline=None, max_examples=25)
@given(
    entries=st.lists(
        st.tuples(KEYS, st.binary(min_size=1, max_size=1500), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=12,
        unique_by=lambda entry: entry[0],
    ),
    shard_bytes=st.integers(1, 30_000),
)
def test_write_index_verify_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, bytes, int, bool]],
    shard_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("set") / "100% {a,b}"
    samples = [
        Sample(key, image, "png" if flag else "jpg", label, {} if flag else None)
        for key, image, label, flag in entries
    ]
    written = write_shards(samples, folder, classes=CLASSES, shard_bytes=shard_bytes)
    indexed = index_shards(folder, classes=CLASSES, save=False)
    assert same(written, indexed)
    assert same(written, Manifest.load(folder))
    assert verify_shards(indexed) == []
    reader = ShardReader(indexed, max_open=1)
    assert [reader.read(i) for i in range(len(indexed))] == [sample.image for sample in samples]


GOOD = Sample("good", b"image", "jpg", 0)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(GOOD), "given twice"),
        (replace(GOOD, key="x", label=3), "label 3 is not in 0 to 2"),
        (replace(GOOD, key="x", label=-1), "label -1"),
        (replace(GOOD, key="x", label=1.0), "not an integer"),
        (replace(GOOD, key="x", image=b""), "empty"),
        (replace(GOOD, key="x", extension="jpeg"), "extension is 'jpeg'"),
        (replace(GOOD, key="x", extension="pyd"), "extension is 'pyd'"),
        (replace(GOOD, key="x", metadata={"a": object()}), "JSON"),
        (replace(GOOD, key="x", metadata={"a": float("nan")}), "JSON"),
        (replace(GOOD, key="x", metadata={"a": "\ud800"}), "JSON"),
        (replace(GOOD, key=""), "is empty"),
        (replace(GOOD, key="a.b"), r"'\.' in its last part"),
        (replace(GOOD, key="../a"), r"'\.\.' path component"),
        (replace(GOOD, key="a/../b"), r"'\.\.' path component"),
        (replace(GOOD, key="a//b"), "path component"),
        (replace(GOOD, key="a/"), "path component"),
        (replace(GOOD, key="./a"), "path component"),
        (replace(GOOD, key="/a"), "begins with '/'"),
        (replace(GOOD, key="a\nb"), "control character"),
        (replace(GOOD, key="a\0b"), "control character"),
        (replace(GOOD, key="a\x1b[31m"), "control character"),
        (replace(GOOD, key="a\ud800"), "not valid Unicode"),
        (replace(GOOD, key="k" * 5000), "longer than"),
    ],
)
def test_unusable_samples_are_named_and_nothing_is_left(
    tmp_path: Path, bad: Sample, words: str
) -> None:
    with pytest.raises(ShardError, match=words) as error:
        write_shards([GOOD, bad], tmp_path / "set", classes=CLASSES)
    assert repr(bad.key)[1:-1] in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_dots_in_folders_of_a_key_are_fine(tmp_path: Path) -> None:
    made = write_shards([replace(GOOD, key="v1.2/x")], tmp_path / "a", classes=CLASSES)
    assert index_shards(tmp_path / "a").keys.to_pylist() == made.keys.to_pylist() == ["v1.2/x"]


@pytest.mark.parametrize("key", ["k" * 300, "d/" * 200 + "k", "漢" * 80])
def test_long_and_foreign_keys(tmp_path: Path, key: str) -> None:
    made = write_shards([replace(GOOD, key=key)], tmp_path / "a", classes=CLASSES)
    assert made.keys.to_pylist() == [key]
    assert read_bytes(made, 0) == GOOD.image


def test_numpy_labels_are_integers(tmp_path: Path) -> None:
    made = write_shards([replace(GOOD, label=np.int64(2))], tmp_path / "a", classes=CLASSES)
    assert made.labels.tolist() == [2]


def test_arguments_are_checked(tmp_path: Path) -> None:
    for words, options in (
        ("no samples", {"samples": []}),
        ("class", {"classes": []}),
        ("prefix", {"prefix": "../x"}),
        ("prefix", {"prefix": "a%s"}),
        ("shard_bytes", {"shard_bytes": 0}),
    ):
        arguments = {"samples": [GOOD], "folder": tmp_path / "set", "classes": CLASSES} | options
        with pytest.raises(ShardError, match=words):
            write_shards(**arguments)
    assert list(tmp_path.iterdir()) == []


def interrupted(error: BaseException) -> Iterator[Sample]:
    yield from some(30)
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk"), SystemExit(1)])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_shards(interrupted(error), tmp_path / "set", classes=CLASSES, shard_bytes=20_000)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_shards(manifest: Manifest) -> None:
    before = contents(manifest.root)
    with pytest.raises(KeyboardInterrupt):
        write_shards(
            interrupted(KeyboardInterrupt()), manifest.root, classes=CLASSES, overwrite=True
        )
    assert contents(manifest.root) == before
    assert [path.name for path in manifest.root.parent.iterdir()] == ["set"]


def test_the_target_is_incomplete_to_nobody(tmp_path: Path) -> None:
    def nothing_yet(_: int) -> None:
        assert not (tmp_path / "set").exists()

    write_shards(some(5), tmp_path / "set", classes=CLASSES, on_sample=nothing_yet)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_leftovers_of_a_killed_conversion_are_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".set.partial"
    left.mkdir()
    (left / "shard-000099.tar").write_bytes(b"half")
    made = write_shards(some(5), tmp_path / "set", classes=CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert verify_shards(made) == []


def test_a_kill_between_the_two_renames_loses_nothing(manifest: Manifest) -> None:
    before = contents(manifest.root)
    replaced = manifest.root.with_name(".set.replaced")
    manifest.root.rename(replaced)
    with pytest.raises(ShardError, match="not empty"):
        write_shards(some(5), manifest.root, classes=CLASSES)
    assert contents(manifest.root) == before
    assert not replaced.exists()


def test_two_writers_never_share_a_folder(tmp_path: Path) -> None:
    def second_writer(_: int) -> None:
        with pytest.raises(ShardError, match="another process is writing"):
            write_shards([GOOD], tmp_path / "set", classes=CLASSES)

    made = write_shards(some(3), tmp_path / "set", classes=CLASSES, on_sample=second_writer)
    assert len(made) == 3


def test_a_non_empty_target_is_refused(manifest: Manifest) -> None:
    before = contents(manifest.root)
    with pytest.raises(ShardError, match="not empty"):
        write_shards(some(3), manifest.root, classes=CLASSES)
    assert contents(manifest.root) == before
    made = write_shards(some(3), manifest.root, classes=CLASSES, overwrite=True)
    assert sorted(contents(manifest.root)) == [MANIFEST_NAME, "shard-000000.tar"]
    assert verify_shards(made) == []


def test_overwrite_replaces_shards_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(ShardError, match=r"thesis\.tex"):
        write_shards(some(3), home, classes=CLASSES, overwrite=True)
    assert (home / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ShardError, match="a file of this name"):
        write_shards(some(3), home / "thesis.tex", classes=CLASSES, overwrite=True)


def test_an_empty_target_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    made = write_shards(some(3), tmp_path / "link", classes=CLASSES)
    assert (tmp_path / "link").is_symlink()
    assert verify_shards(made) == []
    assert len(Manifest.load(tmp_path / "empty")) == 3


# Indexing

IMAGE, ZERO = b"image", b"0"


def test_foreign_members_are_stepped_over(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [
            ("README", b"hello"),
            ("./dir/.DS_Store", b"junk"),
            ("./dir/a.JPG", b"one"),
            ("./dir/a.seg.png", b"mask"),
            ("./dir/a.npy", b"\x93NUMPY"),
            ("./dir/a.cls", b" 7\n"),
            ("./dir/._a.jpg", b"junk"),
            ("b.cls", b"+2"),
            ("b.jpeg", b"two"),
        ],
    )
    made = index_shards(path)
    assert made.keys.to_pylist() == ["dir/a", "b"]
    assert made.labels.tolist() == [7, 2]
    assert made.classes == tuple("01234567")
    assert [read_bytes(made, i) for i in range(2)] == [b"one", b"two"]
    assert same(Manifest.load(tmp_path), made)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("k.jpg", IMAGE)], "no label"),
        ([("k.cls", ZERO)], "no image, only cls"),
        ([("k.json", b"{}")], "no image, only json"),
        ([("k.jpg", IMAGE), ("k.png", IMAGE), ("k.cls", ZERO)], r"two images, k\.jpg and k\.png"),
        ([("k.jpg", IMAGE), ("k.jpg", IMAGE), ("k.cls", ZERO)], r"two \.jpg members"),
        ([("k.jpg", IMAGE), ("k.JPG", IMAGE), ("k.cls", ZERO)], r"two \.jpg members"),
        ([("k.jpg", IMAGE), ("k.cls", ZERO), ("k.cls", ZERO)], r"two \.cls members"),
        ([("k.jpg", b""), ("k.cls", ZERO)], "image is empty"),
        ([("k.jpg", IMAGE), ("k.cls", b"cat")], "not an ASCII integer"),
        ([("k.jpg", IMAGE), ("k.cls", b"")], "not an ASCII integer"),
        ([("k.jpg", IMAGE), ("k.cls", b"1.0")], "not an ASCII integer"),
        ([("k.jpg", IMAGE), ("k.cls", b"1_0")], "not an ASCII integer"),
        ([("k.jpg", IMAGE), ("k.cls", "٣".encode())], "not an ASCII integer"),
        ([("k.jpg", IMAGE), ("k.cls", b"\x80\x04K\x01.")], "not an ASCII integer"),
        ([("k.jpg", IMAGE), ("k.cls", b"-1")], "label -1 is negative"),
        ([("k.jpg", IMAGE), ("k.cls", b"3")], "label 3 is not in 0 to 2"),
        ([("k.jpg", IMAGE), ("k.cls", b"9" * 40)], "too large"),
        ([("k.jpg", IMAGE), ("k.cls", b"1" * 65)], "65 bytes"),
        ([("k.jpg", IMAGE), ("j.jpg", IMAGE), ("k.cls", ZERO), ("j.cls", ZERO)], "not adjacent"),
        (
            [(n, ZERO) for n in ("k.jpg", "k.cls", "j.jpg", "j.cls", "k.jpg", "k.cls")],
            "stands twice",
        ),
        ([("../k.jpg", IMAGE), ("../k.cls", ZERO)], "unusable"),
        ([("k\x1b.jpg", IMAGE), ("k\x1b.cls", ZERO)], "control character"),
    ],
)
def test_unusable_shards_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], words: str
) -> None:
    tar(tmp_path / "a.tar", [("ok.jpg", IMAGE), ("ok.cls", ZERO), *members])
    with pytest.raises(ShardError, match=words) as error:
        index_shards(tmp_path, num_classes=3)
    assert "a.tar, sample '" in str(error.value)
    assert "k" in str(error.value).split("sample ")[1]
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_empty_shards_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "good.tar", [("a.jpg", IMAGE), ("a.cls", ZERO)])
    for members in ([], [("README", b"hello")]):
        tar(tmp_path / "none.tar", members)
        with pytest.raises(ShardError, match=r"none\.tar: the shard has no samples"):
            index_shards(tmp_path)


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tar(tmp_path / f"{name}.tar", [("k.jpg", IMAGE), ("k.cls", ZERO)])
    with pytest.raises(ShardError, match=r"b\.tar, sample 'k': the key is also in .*a\.tar"):
        index_shards(tmp_path)


def test_damage_in_any_shard_stops_the_index(manifest: Manifest) -> None:
    path = manifest.shard_path(2)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(ShardError, match=r"shard-000002\.tar, byte \d+: .*cut off"):
        index_shards(manifest.root, classes=CLASSES)
    assert same(Manifest.load(manifest.root), manifest)  # the old one is untouched


def many(folder: Path) -> Path:
    for i in range(4):
        tar(folder / f"train-{i:02d}.tar", [(f"k{i}.jpg", IMAGE), (f"k{i}.cls", b"%d" % i)])
    return folder


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        ("", [0, 1, 2, 3]),
        ("train-02.tar", [2]),
        ("train-*.tar", [0, 1, 2, 3]),
        ("train-0[13].tar", [1, 3]),
        ("train-{01..03}.tar", [1, 2, 3]),
        ("train-{03,00}.tar", [3, 0]),
    ],
)
def test_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, labels: list[int]
) -> None:
    many(tmp_path / "set")
    made = index_shards(f"{tmp_path}/set/{pattern}", save=False)
    assert made.root == tmp_path / "set"
    assert made.labels.tolist() == labels
    assert len(verify_shards(made)) == 4 - len(labels)  # the unlisted ones
    monkeypatch.chdir(tmp_path / "set")
    relative = index_shards(pattern or ".", save=False)
    assert relative.labels.tolist() == labels
    assert relative.root == Path(".")
    assert not (tmp_path / "set" / MANIFEST_NAME).exists()


def test_shards_below_one_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "train/a.tar", [("t.jpg", IMAGE), ("t.cls", ZERO)])
    tar(tmp_path / "val/a.tar", [("v.jpg", IMAGE), ("v.cls", ZERO)])
    made = index_shards(f"{tmp_path}/{{train,val}}/a.tar")
    assert [shard.name for shard in made.shards] == ["train/a.tar", "val/a.tar"]
    assert verify_shards(Manifest.load(tmp_path)) == []
    monkeypatch.chdir(tmp_path)
    made = index_shards(tmp_path / "val", manifest_folder=Path("."))
    assert [shard.name for shard in made.shards] == ["val/a.tar"]
    with pytest.raises(ShardError, match="does not lie in"):
        index_shards("val", manifest_folder=tmp_path / "train")


@pytest.mark.parametrize(
    "source",
    [
        "pipe:touch canary",
        "pipe:cat train-{00..03}.tar",
        "gs://bucket/a.tar",
        "file:train-00.tar",
    ],
)
def test_urls_and_commands_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(many(tmp_path))
    with pytest.raises(ShardError, match="not supported"):
        index_shards(source)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("train-{00..09}.tar", r"train-04\.tar: there is no such file"),
        ("none-*.tar", "no such file"),
        ("none", "no such file"),
        ("train-{00..03.tar", "unbalanced braces"),
        ("train-{0..99999999999}.tar", "more than"),
        ("train-{0..99999}{0..99999}.tar", "more than"),
        ("train-{00,00}.tar", "twice"),
        ("sub", r"no \.tar files.* b\.tar\.gz is compressed"),
    ],
)
def test_sources_that_name_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    monkeypatch.chdir(many(tmp_path))
    Path("sub").mkdir()
    Path("sub/b.tar.gz").touch()
    with pytest.raises(ShardError, match=words):
        index_shards(source)


def test_class_counts(tmp_path: Path) -> None:
    many(tmp_path)
    assert index_shards(tmp_path, num_classes=9, save=False).num_classes == 9
    assert index_shards(tmp_path, classes=list("abcd"), save=False).classes == tuple("abcd")
    with pytest.raises(ShardError, match="4 class names for num_classes = 5"):
        index_shards(tmp_path, classes=list("abcd"), num_classes=5)
    with pytest.raises(ShardError, match="must be 1 or more"):
        index_shards(tmp_path, num_classes=0)
    tar(tmp_path / "z.tar", [("z.jpg", IMAGE), ("z.cls", b"2000000000")])
    with pytest.raises(ShardError, match=r"z\.tar, sample 'z': .*give num_classes"):
        index_shards(tmp_path)


def test_on_shard_and_saved_nothing_but_the_manifest(tmp_path: Path) -> None:
    many(tmp_path)
    before = contents(tmp_path)
    seen: list[Shard] = []
    made = index_shards(tmp_path, on_shard=seen.append)
    assert tuple(seen) == made.shards
    after = contents(tmp_path)
    del after[MANIFEST_NAME]
    assert after == before


# Code in a shard


class Canary:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_code_in_a_shard_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = pickle.dumps(Canary(canary))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    tar(
        tmp_path / "a.tar",
        [
            *((f"a.{name}", evil) for name in ("pyd", "pkl", "pickle", "npy", "pth", "json")),
            ("a.png", buffer.getvalue()),
            ("a.cls", ZERO),
            ("b.jpg", evil),
            ("b.cls", ZERO),
        ],
    )
    made = index_shards(tmp_path)
    assert verify_shards(made) == []
    reader = ShardReader(made)
    assert decode_rgb(reader.read(0)).shape == (4, 4, 3)
    with pytest.raises(ImageError, match="pickle"):
        decode_rgb(reader.read(1))
    assert not canary.exists()
    pickle.loads(evil).close()  # noqa: S301  (our own bytes: the canary does sing)
    assert canary.exists()


# Verifying


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def damage_content(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_missing, "the shard is missing"),
        (damage_folder, "the shard is missing"),
        (damage_short, r"\d+ bytes instead of \d+"),
        (damage_content, "SHA-256"),
    ],
)
def test_damaged_files_are_found(
    manifest: Manifest, damage: Callable[[Path], None], words: str
) -> None:
    damage(manifest.shard_path(1))
    problems = verify_shards(manifest)
    assert len(problems) == 1
    with pytest.raises(ShardError, match=rf"shard-000001\.tar: {words}"):
        require_intact(manifest)


def test_without_digests_only_contents_go_unseen(manifest: Manifest) -> None:
    damage_content(manifest.shard_path(1))  # inside an image
    require_intact(manifest, digests=False)
    require_intact(manifest, digests=False, members=False)
    data = bytearray(manifest.shard_path(1).read_bytes())
    data[0] ^= 1
    manifest.shard_path(1).write_bytes(data)
    assert len(verify_shards(manifest, digests=False)) == 1
    assert verify_shards(manifest, digests=False, members=False) == []
    damage_short(manifest.shard_path(1))
    assert len(verify_shards(manifest, digests=False, members=False)) == 1


def test_rows_that_do_not_match_are_found(manifest: Manifest) -> None:
    key = manifest.keys[5].as_py()

    def changed(name: str) -> list[str]:
        values = getattr(manifest, name).copy()
        values[5] += 1
        return verify_shards(replace(manifest, **{name: values}))

    for name, word in (("offsets", "offset"), ("sizes", "size"), ("labels", "label")):
        (problem,) = changed(name)
        assert f"sample {key!r}: the {word} is" in problem
    keys = manifest.keys.to_pylist()
    keys[5] = "other"
    missing, extra = verify_shards(replace(manifest, keys=pa.array(keys)))
    assert "sample 'other': is in the manifest but not in the shard" in missing
    assert f"sample {key!r}: is in the shard but not in the manifest" in extra


def test_unlisted_shards_are_found(manifest: Manifest) -> None:
    data = manifest.shard_path(0).read_bytes()
    (manifest.root / "shard-000099.tar").write_bytes(data)
    (manifest.root / "backup.tar").write_bytes(data)
    (problem,) = verify_shards(manifest)
    assert "shard-000099.tar: a shard that the manifest does not list" in problem


def test_the_first_ten_problems_are_listed(tmp_path: Path) -> None:
    made = write_shards(some(12, 12_000), tmp_path / "set", classes=CLASSES, shard_bytes=1)
    assert len(made.shards) == 12
    seen: list[Shard] = []
    for number in range(12):
        made.shard_path(number).unlink()
    assert len(verify_shards(made, on_shard=seen.append)) == 12
    assert tuple(seen) == made.shards
    with pytest.raises(ShardError) as error:
        require_intact(made)
    assert str(error.value).count("the shard is missing") == 10
    assert "and 2 more" in str(error.value)


# Reading


def test_a_reader_keeps_few_shards_open(manifest: Manifest) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(manifest, max_open=2)
    for sample_id in [0, 39, 20, 10, 1, 38] * 3:
        assert reader.read(sample_id) == some(40)[sample_id].image
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert reader.read(3) == some(40)[3].image


def test_a_reader_travels_to_other_processes(manifest: Manifest) -> None:
    reader = ShardReader(manifest, max_open=3)
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301  (our own bytes)
    assert copy.max_open == 3
    assert copy.read(39) == reader.read(39)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_reader_survives_a_fork_with_its_lock_held(manifest: Manifest) -> None:
    reader = ShardReader(manifest)
    reader.read(0)
    with reader._lock:
        child = os.fork()
        if child == 0:  # would hang or fail if it used what the parent holds
            signal.alarm(20)
            os._exit(0 if reader.read(39) == some(40)[39].image else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.read(39) == some(40)[39].image


def test_a_reader_is_shared_by_threads(manifest: Manifest) -> None:
    reader = ShardReader(manifest, max_open=1)
    images = [sample.image for sample in some(40)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(start, start + 400, 7):
            if reader.read(i % 40) != images[i % 40]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_short_reads_name_shard_and_sample(manifest: Manifest) -> None:
    path = manifest.shard_path(3)
    path.write_bytes(path.read_bytes()[: int(manifest.offsets[39]) + 10])
    words = rf"shard-000003\.tar: {manifest.keys[39].as_py()}: only 10 of {manifest.sizes[39]}"
    with pytest.raises(ShardError, match=words):
        ShardReader(manifest).read(39)
    path.unlink()
    with pytest.raises(ShardError, match=r"shard-000003\.tar: .*cannot be read"):
        read_bytes(manifest, 39)


@pytest.mark.parametrize("sample_id", [-1, 40])
def test_unknown_samples(manifest: Manifest, sample_id: int) -> None:
    with pytest.raises(IndexError, match="of 40"):
        ShardReader(manifest).read(sample_id)


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    write_shards([replace(GOOD, metadata={"z": [1, None], "a": "é"})], tmp_path / "s", classes="a")
    with tarfile.open(tmp_path / "s/shard-000000.tar") as file:
        member = file.extractfile("good.json")
        assert member is not None
        text = member.read().decode()
    assert text == '{"a": "é", "z": [1, null]}'
    assert json.loads(text) == {"a": "é", "z": [1, None]}
