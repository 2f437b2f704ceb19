"""Converters: what is in the source comes out, each sample once; nothing is dropped unnoticed."""

import contextlib
import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Mapping
from operator import length_hint
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pbe_fast.data.converters import cifar10, read_cifar10, read_gtsrb, read_image_folder
from pbe_fast.data.converters._common import natural_key, parse_pnm, spread
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.shards import read_bytes, write_shards
from pbe_fast.errors import ImageError, PbeError, ShardError


def _pixels(seed: int, height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _encoded(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(seed)).save(buffer, kind)
    return buffer.getvalue()


def _ppm(pixels: np.ndarray) -> bytes:
    return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def _tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


# ---------------------------------------------------------------------------------------------
# Order


@given(st.lists(st.integers(0, 40), max_size=8))
@settings(deadline=None, max_examples=50)
def test_spread_holds_each_once_and_every_prefix_in_proportion(counts: list[int]) -> None:
    order = spread(counts)
    assert sorted(order) == [(c, i) for c, n in enumerate(counts) for i in range(n)]
    taken = np.zeros(len(counts))
    for position, (label, index) in enumerate(order, start=1):
        assert index == taken[label]
        taken[label] += 1
        expected = np.asarray(counts) * position / len(order)
        assert np.abs(taken - expected).max() <= 1 + len(counts) / 2


def test_natural_order_knows_numbers_and_no_locale() -> None:
    names = ["img10", "img2", "Img1", "ä", "z", "img02", "7", "10"]
    expected = ["7", "10", "Img1", "img02", "img2", "img10", "z", "ä"]
    assert sorted(names, key=natural_key) == expected


# ---------------------------------------------------------------------------------------------
# PPM


@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=20)
def test_pnm_round_trips(height: int, width: int, grey: bool) -> None:
    pixels = _pixels(height * 10 + width, height, width)
    if grey:
        pixels = pixels[:, :, 0]
    data = b"P%d # a comment\n%d\n%d 255\n" % (5 if grey else 6, width, height) + pixels.tobytes()
    np.testing.assert_array_equal(parse_pnm(data, "x.ppm"), pixels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P3\n1 1\n255\n0 0 0", "not a binary PPM"),
        (b"P6\n1 1\n65535\n" + bytes(6), "maximum 65535"),
        (b"P6\n1 1\n15\n" + bytes(3), "maximum 15"),
        (b"P6\n2 2\n255\n" + bytes(11), "need 12 bytes and 11"),
        (b"P6\n2 2\n255\n" + bytes(13), "need 12 bytes and 13"),
        (b"P6\n0 2\n255\n", "0 x 2"),
        (b"P6\n999999999 999999999\n255\n", "are there"),
        (b"P6\n", "not a binary PPM"),
    ],
)
def test_unusual_pnm_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        parse_pnm(data, "here/x.ppm")
    assert "here/x.ppm" in str(caught.value)


# ---------------------------------------------------------------------------------------------
# Image folders

_names = st.text(st.sampled_from("abzÄ09 _-."), min_size=1, max_size=6).filter(
    lambda name: not name.startswith(".") and name.lower() != "train"
)


@given(
    st.dictionaries(
        _names,
        st.lists(st.tuples(_names, st.sampled_from([".jpg", ".JPEG", ".png", ".PPM"])),
                 min_size=1, max_size=4, unique=True),
        min_size=1,
        max_size=4,
    )
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_folder_round_trips_through_shards(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, list[tuple[str, str]]]
) -> None:
    root = tmp_path_factory.mktemp("folder")
    source: dict[str, list[bytes]] = {}
    seed = 0
    for name, files in tree.items():
        for stem, extension in files:
            seed += 1
            kind = {".ppm": "PPM", ".png": "PNG"}.get(extension.lower(), "JPEG")
            content = _encoded(seed, kind)
            _tree(root / "in", {f"{name}/{stem}{extension}": content})
            source.setdefault(name, []).append(content)
    classes, samples = read_image_folder(root / "in")
    assert length_hint(samples) == seed
    listed = list(samples)
    assert classes == sorted(tree, key=natural_key)
    assert list(read_image_folder(root / "in")[1]) == listed
    manifest = write_shards(listed, root / "out", classes=classes, shard_bytes=3000)
    stored: dict[str, list[bytes]] = {}
    for i in range(len(manifest)):
        name = classes[int(manifest.labels[i])]
        stored.setdefault(name, []).append(read_bytes(manifest, i))
    for name in tree:
        # JPEG and PNG byte for byte; of PPM the pixels.
        as_is = sorted(b for b in source[name] if not b.startswith(b"P6"))
        assert [b for b in as_is if b not in stored[name]] == []
        pixels = sorted(decode_rgb(b).tobytes() for b in stored[name])
        assert pixels == sorted(
            (parse_pnm(b, "") if b.startswith(b"P6") else decode_rgb(b)).tobytes()
            for b in source[name]
        )


def test_the_first_bytes_decide_the_format(tmp_path: Path) -> None:
    png, jpeg = _encoded(1, "PNG"), _encoded(2, "JPEG")
    _tree(tmp_path, {"a/1.jpg": png, "a/2.png": jpeg, "a/3.jpg": _ppm(_pixels(3))})
    _, samples = read_image_folder(tmp_path)
    found = [(s.key, s.extension, s.image) for s in samples]
    assert found[:2] == [("a/1", "png", png), ("a/2", "jpg", jpeg)]
    assert found[2][1] == "png"
    np.testing.assert_array_equal(decode_rgb(found[2][2]), _pixels(3))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"", "empty"),
        (b"GIF89a", "GIF"),
        (b"\x00\x01\x02\x03", "no known kind"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    _tree(tmp_path, {"a/1.jpg": _encoded(1, "JPEG"), "a/2.jpg": content})
    _, samples = read_image_folder(tmp_path)
    next(samples)  # listed lazily: the good one comes first
    with pytest.raises(ImageError, match=what) as caught:
        next(samples)
    assert "a/2.jpg" in str(caught.value)


def test_keys_are_safe_and_collisions_are_numbered_the_same_each_time(tmp_path: Path) -> None:
    names = ["x.png", "x.jpg", "x_2.png", "a.b.png", "a_b.png", "tab\there.png"]
    contents = {f"c/{name}": _encoded(seed, "PNG") for seed, name in enumerate(names)}
    _tree(tmp_path, contents)
    listed = list(read_image_folder(tmp_path)[1])
    name_of = {content: name for name, content in contents.items()}
    assert {name_of[s.image]: s.key for s in listed} == {
        "c/a_b.png": "c/a_b",  # a file whose key needs no change keeps it
        "c/a.b.png": "c/a_b_2",
        "c/tab\there.png": "c/tab_here",
        "c/x.jpg": "c/x",
        "c/x.png": "c/x_3",
        "c/x_2.png": "c/x_2",
    }
    assert listed == list(read_image_folder(tmp_path)[1])
    write_shards(read_image_folder(tmp_path)[1], tmp_path / "out", classes=["c"])


def test_hidden_and_harmless_files_are_passed_over(tmp_path: Path) -> None:
    image = _encoded(1, "PNG")
    _tree(
        tmp_path,
        {"a/1.png": image, "a/.DS_Store": b"x", "a/Thumbs.db": b"x", "a/notes.txt": b"x",
         "a/._1.png": b"x", "labels.CSV": b"x", ".cache/1.png": image},
    )  # fmt: skip
    classes, samples = read_image_folder(tmp_path)
    assert classes == ["a"]
    assert [s.key for s in samples] == ["a/1"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a/2.webp": b"RIFF"}, r"a: '2\.webp'"),
        ({"a/deep/1.png": b"x"}, "a: 'deep/'"),
        ({"README.pdf": b"x"}, "README.pdf"),
        ({"1.png": b"x"}, "images lie in the folder itself"),
        ({"empty/.keep": b""}, "empty: there are no images"),
    ],
)
def test_nothing_is_left_out_unnoticed(
    tmp_path: Path, extra: dict[str, bytes], message: str
) -> None:
    _tree(tmp_path, {"a/1.png": _encoded(1, "PNG"), **extra})
    with pytest.raises(ShardError, match=message):
        read_image_folder(tmp_path)


def test_many_strangers_are_counted(tmp_path: Path) -> None:
    _tree(tmp_path, {f"a/{k}.bmp": b"BM" for k in range(9)})
    with pytest.raises(ShardError, match=r"'4\.bmp' and 4 more"):
        read_image_folder(tmp_path)


def test_a_folder_of_splits_is_refused_and_a_class_named_train_is_not(tmp_path: Path) -> None:
    image = _encoded(1, "PNG")
    _tree(tmp_path / "s", {"train/a/1.png": image, "test/a/1.png": image})
    with pytest.raises(ShardError, match="splits rather than classes") as caught:
        read_image_folder(tmp_path / "s")
    assert str(tmp_path / "s" / "test") in str(caught.value)
    _tree(tmp_path / "c", {"train/1.png": image, "tram/1.png": image})
    assert read_image_folder(tmp_path / "c")[0] == ["train", "tram"]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no such folder"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="no class folders"):
        read_image_folder(tmp_path)


def test_class_order_of_another_set(tmp_path: Path) -> None:
    image = _encoded(1, "PNG")
    _tree(tmp_path, {"cat/1.png": image, "dog/1.png": image})
    classes, samples = read_image_folder(tmp_path, classes=["dog", "eel", "cat"])
    assert classes == ["dog", "eel", "cat"]
    assert {s.key: s.label for s in samples} == {"dog/1": 0, "cat/1": 2}
    with pytest.raises(ShardError, match="'dog' is not among the 1 given"):
        read_image_folder(tmp_path, classes=["cat"])
    with pytest.raises(ShardError, match="repeat"):
        read_image_folder(tmp_path, classes=["cat", "dog", "cat"])


def test_links_may_lead_within_the_folder_only(tmp_path: Path) -> None:
    image = _encoded(1, "PNG")
    _tree(tmp_path, {"in/a/1.png": image, "secret/1.png": image})
    (tmp_path / "in/a/2.png").symlink_to("1.png")
    assert len(list(read_image_folder(tmp_path / "in")[1])) == 2
    link = tmp_path / "in/a/3.png"
    link.symlink_to(tmp_path / "secret/1.png")
    with pytest.raises(ShardError, match=r"3\.png: a symbolic link to .* outside"):
        read_image_folder(tmp_path / "in")
    link.unlink()
    link.symlink_to("nowhere.png")
    with pytest.raises(ShardError, match="leads nowhere"):
        read_image_folder(tmp_path / "in")
    link.unlink()
    (tmp_path / "in/b").symlink_to(tmp_path / "secret")
    with pytest.raises(ShardError, match="outside"):
        read_image_folder(tmp_path / "in")


def test_a_linked_root_is_fine(tmp_path: Path) -> None:
    _tree(tmp_path, {"real/a/1.png": _encoded(1, "PNG")})
    (tmp_path / "link").symlink_to("real")
    assert len(list(read_image_folder(tmp_path / "link")[1])) == 1


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/in/a")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/a/\xff.png")).write_bytes(_encoded(1, "PNG"))
    assert [s.key for s in read_image_folder(tmp_path / "in")[1]] == ["a/_"]
    os.makedirs(os.fsencode(tmp_path) + b"/in/\xfe")
    with pytest.raises(ShardError, match="not UTF-8"):
        read_image_folder(tmp_path / "in")


# ---------------------------------------------------------------------------------------------
# CIFAR-10

_TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_META = ("\n".join(_TEN) + "\n\n").encode()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_RECORDS", 4)


def _batch(seed: int, records: int = 4) -> bytes:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (records, 3073), np.uint8)
    data[:, 0] = rng.integers(0, 10, records)
    return data.tobytes()


def _cifar(**changed: bytes | None) -> dict[str, bytes]:
    files: dict[str, bytes | None] = {f"data_batch_{k}.bin": _batch(k) for k in range(1, 6)}
    files |= {"test_batch.bin": _batch(9), "batches.meta.txt": _META, "readme.html": b"<p>"}
    files |= {name.replace("__", "."): content for name, content in changed.items()}
    return {name: content for name, content in files.items() if content is not None}


def _archive(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in reversed(files.items()):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("split", "batches"), [("train", [1, 2, 3, 4, 5]), ("test", [9])])
def test_cifar10_records_come_out_as_they_are(
    tmp_path: Path, split: str, batches: list[int]
) -> None:
    folder = _tree(tmp_path / "data" / "cifar-10-batches-bin", _cifar())
    archive = _archive(tmp_path / "cifar-10-binary.tar.gz", _cifar())
    raw = np.concatenate([np.frombuffer(_batch(k), np.uint8).reshape(-1, 3073) for k in batches])
    seen = []
    for source in (folder, folder.parent, archive):
        classes, samples = read_cifar10(source, split)  # type: ignore[arg-type]
        assert classes == _TEN
        assert length_hint(samples) == len(raw)
        listed = list(samples)
        seen.append(listed)
        assert [s.label for s in listed] == raw[:, 0].tolist()
        for sample, row in zip(listed, raw, strict=True):
            expected = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            np.testing.assert_array_equal(decode_rgb(sample.image), expected)
    assert seen[0] == seen[1] == seen[2]
    assert len({s.key for s in seen[0]}) == len(raw)


_BAD_LABEL = _batch(3)[:3073] + b"\x0a" + _batch(3)[3074:]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_batch_3__bin": None}, r"data_batch_3\.bin is missing"),
        ({"batches__meta__txt": None}, r"batches\.meta\.txt is missing"),
        ({"data_batch_3__bin": _batch(3)[:-1]}, "has 12291 bytes, not 12292"),
        ({"data_batch_3__bin": _batch(3, 3)}, "has 9219 bytes"),
        ({"data_batch_3__bin": _BAD_LABEL}, r"data_batch_3\.bin: record 1 has the label 10"),
        ({"batches__meta__txt": b"one\ntwo\n"}, "ten different classes"),
        ({"batches__meta__txt": b"x\n" * 9999}, "too many"),
    ],
)
def test_damaged_cifar10_is_refused(
    tmp_path: Path, packed: bool, changed: dict[str, bytes | None], message: str
) -> None:
    files = _cifar(**changed)
    source = _archive(tmp_path / "x.tar.gz", files) if packed else _tree(tmp_path / "x", files)
    with pytest.raises(ShardError, match=message) as caught:
        read_cifar10(source, "train")
    assert str(source) in str(caught.value)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("opened-by-a-pickle",))


@pytest.mark.parametrize("packed", [True, False])
def test_the_pickled_version_is_refused_and_never_opened(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"data_batch_1": pickle.dumps(_Bomb()), "batches.meta": pickle.dumps(_Bomb())}
    source = _archive(tmp_path / "x.tar.gz", files) if packed else _tree(tmp_path / "x", files)
    with pytest.raises(ShardError, match=r"pickle.*cifar-10-binary\.tar\.gz"):
        read_cifar10(source, "train")
    assert not (tmp_path / "opened-by-a-pickle").exists()


@pytest.mark.usefixtures("small_batches")
def test_damaged_and_foreign_archives(tmp_path: Path) -> None:
    good = _archive(tmp_path / "good.tar.gz", _cifar()).read_bytes()
    padded = gzip.compress(gzip.decompress(good) + bytes(1 << 20))
    for name, content in {
        "cut": good[: len(good) // 2],
        "far": padded[:-8] + bytes(4) + padded[-4:],
        "text": b"hello" * 999,
        "none": b"",
    }.items():
        path = _tree(tmp_path, {name: content}) / name
        with pytest.raises(ShardError, match=f"{name}: "):
            read_cifar10(path, "train")
    with pytest.raises(ShardError, match="no such file"):
        read_cifar10(tmp_path / "nowhere", "train")
    with pytest.raises(ShardError, match="no split 'val'"):
        read_cifar10(tmp_path / "good.tar.gz", "val")  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_batches")
def test_members_that_are_links_or_come_twice(tmp_path: Path) -> None:
    path = _archive(tmp_path / "x.tar", _cifar(test_batch__bin=None), "w")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ShardError, match="not a regular file"):
        read_cifar10(path, "test")
    twice = _archive(tmp_path / "y.tar", _cifar(), "w")
    with tarfile.open(twice, "a") as archive:
        member = tarfile.TarInfo("elsewhere/test_batch.bin")
        archive.addfile(member)
    with pytest.raises(ShardError, match="twice"):
        read_cifar10(twice, "test")


# ---------------------------------------------------------------------------------------------
# GTSRB

_HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"


def _gtsrb(root: Path, per_class: int = 1) -> Path:
    """A tree in the official layout; image i of class k is ``_pixels(k * 10 + i)``."""
    for label in range(43):
        folder = root / f"GTSRB/Final_Training/Images/{label:05d}"
        table = _HEADER
        for i in range(per_class):
            _tree(folder, {f"00000_{i:05d}.ppm": _ppm(_pixels(label * 10 + i))})
            table += f"00000_{i:05d}.ppm;7;5;1;2;5;3;{label}\r\n"
        _tree(folder, {f"GT-{label:05d}.csv": table.encode()})
    images = root / "GTSRB/Final_Test/Images"
    table = _HEADER
    for i in range(3):
        _tree(images, {f"{i:05d}.ppm": _ppm(_pixels(900 + i))})
        table += f"{i:05d}.ppm;7;5;1;2;5;3;{(i * 20) % 43}\r\n"
    _tree(images, {"GT-final_test.csv": table.encode()})
    return root


@pytest.mark.parametrize(
    "level", ["", "GTSRB", "GTSRB/Final_Training", "GTSRB/Final_Training/Images"]
)
def test_gtsrb_training_images(tmp_path: Path, level: str) -> None:
    classes, samples = read_gtsrb(_gtsrb(tmp_path, per_class=2) / level, "train")
    assert classes == [f"{k:05d}" for k in range(43)]
    assert length_hint(samples) == 86
    listed = list(samples)
    assert sorted(s.label for s in listed) == sorted([*range(43)] * 2)
    for sample in listed:
        index = int(sample.key[-1])
        assert sample.key == f"{sample.label:05d}/00000_{index:05d}"
        np.testing.assert_array_equal(decode_rgb(sample.image), _pixels(sample.label * 10 + index))
    assert list(read_gtsrb(tmp_path / level, "train")[1]) == listed


@pytest.mark.parametrize("level", ["", "GTSRB", "GTSRB/Final_Test", "GTSRB/Final_Test/Images"])
@pytest.mark.parametrize("table_at", ["", "GTSRB", "GTSRB/Final_Test", "GTSRB/Final_Test/Images"])
def test_gtsrb_test_images_wherever_their_table_lies(
    tmp_path: Path, level: str, table_at: str
) -> None:
    _gtsrb(tmp_path)
    name = "GT-final_test.csv"
    (tmp_path / "GTSRB/Final_Test/Images" / name).rename(tmp_path / table_at / name)
    _, samples = read_gtsrb(tmp_path / level, "test")
    listed = list(samples)
    assert [(s.key, s.label) for s in listed] == [
        ("00000/00000", 0), ("00020/00001", 20), ("00040/00002", 40),
    ]  # fmt: skip
    np.testing.assert_array_equal(decode_rgb(listed[2].image), _pixels(902))


def test_gtsrb_box_holds_both_corners(tmp_path: Path) -> None:
    _, samples = read_gtsrb(_gtsrb(tmp_path), "test", crop_roi=True)
    np.testing.assert_array_equal(decode_rgb(next(samples).image), _pixels(900)[2:4, 1:6])


def test_gtsrb_table_without_labels(tmp_path: Path) -> None:
    images = _gtsrb(tmp_path) / "GTSRB/Final_Test/Images"
    (images / "GT-final_test.csv").rename(images / "GT-final_test.test.csv")
    with pytest.raises(ShardError, match=r"no labels.*GTSRB_Final_Test_GT\.zip"):
        read_gtsrb(tmp_path, "test")
    bare = _HEADER.replace(";ClassId", "") + "00000.ppm;7;5;1;2;5;3\n"
    _tree(images, {"GT-final_test.csv": bare.encode()})
    with pytest.raises(ShardError, match=r"ClassId is missing.*GTSRB_Final_Test_GT\.zip"):
        read_gtsrb(tmp_path, "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0.ppm;7;5;0;0;6;4;1\n", "files without a row: '1.ppm'"),
        ("0.ppm;7;5;0;0;6;4;1\n1.ppm;7;5;0;0;6;4;1\n2.ppm;7;5;0;0;6;4;1\n", "rows without a file"),
        ("0.ppm;7;5;0;0;6;4;1\n0.ppm;7;5;0;0;6;4;1\n", "twice"),
        ("0.ppm;7;5;0;0;6;4;43\n", "line 2: ClassId 43"),
        ("0.ppm;7;5;0;0;6;4;-1\n", "line 2: ClassId is '-1'"),
        ("0.ppm;7;5;0;0;7;4;1\n", "box"),
        ("0.ppm;7;5;0;0;6;4\n", "not 8 fields"),
        ("0.ppm;7;5;0;0;6;4;1;1\n", "not 8 fields"),
        ("../0.ppm;7;5;0;0;6;4;1\n", "not the name"),
        ("", "files without a row"),
    ],
)
def test_gtsrb_tables_that_do_not_fit(tmp_path: Path, rows: str, message: str) -> None:
    _tree(
        tmp_path,
        {"0.ppm": _ppm(_pixels(0)), "1.ppm": _ppm(_pixels(1)),
         "GT-final_test.csv": (_HEADER + rows).encode()},
    )  # fmt: skip
    with pytest.raises(ShardError, match=message):
        read_gtsrb(tmp_path, "test")


def test_gtsrb_image_of_another_size_than_its_row(tmp_path: Path) -> None:
    _gtsrb(tmp_path)
    path = tmp_path / "GTSRB/Final_Test/Images/00001.ppm"
    path.write_bytes(_ppm(_pixels(1, 6, 7)))
    _, samples = read_gtsrb(tmp_path, "test")
    next(samples)
    with pytest.raises(ImageError, match=r"00001\.ppm: 7 x 6 pixels, but"):
        next(samples)


def test_gtsrb_training_tree_must_be_whole(tmp_path: Path) -> None:
    images = _gtsrb(tmp_path) / "GTSRB/Final_Training/Images"
    (images / "00043").mkdir()
    with pytest.raises(ShardError, match="not classes of GTSRB: '00043'"):
        read_gtsrb(tmp_path, "train")
    (images / "00043").rmdir()
    table = images / "00003/GT-00003.csv"
    table.write_text(table.read_text().replace(";3\n", ";4\n"))
    with pytest.raises(ShardError, match="ClassId 4 in the folder of class 3"):
        read_gtsrb(tmp_path, "train")
    table.unlink()
    with pytest.raises(ShardError, match=r"GT-00003\.csv: cannot be read"):
        read_gtsrb(tmp_path, "train")
    (images / "00042").rename(tmp_path / "away")
    with pytest.raises(ShardError, match="missing: '00042'"):
        read_gtsrb(tmp_path, "train")


def test_gtsrb_refuses_links_and_wrong_places(tmp_path: Path) -> None:
    _gtsrb(tmp_path / "data")
    path = tmp_path / "data/GTSRB/Final_Test/Images/00001.ppm"
    path.rename(tmp_path / "outside.ppm")
    path.symlink_to(tmp_path / "outside.ppm")
    with pytest.raises(ShardError, match="outside"):
        read_gtsrb(tmp_path / "data", "test")
    with pytest.raises(ShardError, match="Final_Training/Images/000NN"):
        read_gtsrb(tmp_path, "train")
    with pytest.raises(ShardError, match="no split"):
        read_gtsrb(tmp_path, "val")  # type: ignore[arg-type]


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=60)
def test_random_bytes_are_an_image_or_an_error_for_people(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    files = {"a/1.ppm": content, "GT-final_test.csv": content}
    root = _tree(tmp_path_factory.mktemp("any"), files)
    for read in (
        lambda: read_image_folder(root),
        lambda: read_cifar10(root / "a/1.ppm", "test"),
        lambda: read_gtsrb(root, "test"),
        lambda: read_gtsrb(root / "a", "test"),
    ):
        with contextlib.suppress(PbeError):  # and nothing else
            list(read()[1])
