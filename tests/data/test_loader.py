"""The loader gives each sample once, says what it cannot read, and reads nothing else."""

import io
import json
import multiprocessing
import os
import tarfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from pbe_fast.data import loader
from pbe_fast.data.augment import View
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import Batch, ImageData, Quarantine
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.order import epoch_order
from pbe_fast.data.shards import Sample, ShardReader, index_shards, write_shards
from pbe_fast.errors import QuarantineError, ShardError

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


def _pixels(seed: int, height: int = 8, width: int = 8) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(seed: int, height: int = 8, width: int = 8) -> bytes:
    return _encode(Image.fromarray(_pixels(seed, height, width)))


def _cut_jpeg(seed: int) -> bytes:
    whole = _encode(Image.fromarray(_pixels(seed, 40, 40)), "JPEG")
    return whole[: len(whole) // 2]


def _write(folder: Path, images: Iterable[bytes], *, shard_bytes: int = 12_000) -> Path:
    samples = (
        Sample(f"k{i:03d}", image, "png" if image.startswith(b"\x89PNG") else "jpg", i % 5)
        for i, image in enumerate(images)
    )
    write_shards(samples, folder, classes=list("abcde"), shard_bytes=shard_bytes)
    return folder


COUNT = 37


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 images of 8 pixels in several shards; image i is ``_pixels(i)``, its label i mod 5."""
    folder = _write(tmp_path_factory.mktemp("loader") / "s", (_png(i) for i in range(COUNT)))
    assert len(Manifest.load(folder).shards) >= 3
    return folder


def _all(batches: Iterable[Batch]) -> tuple[Tensor, list[int], list[int]]:
    """All images, labels and ids, one after another."""
    kept = list(batches)
    return (
        torch.cat([batch.images for batch in kept]),
        torch.cat([batch.labels for batch in kept]).tolist(),
        torch.cat([batch.ids for batch in kept]).tolist(),
    )


def _same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


# order, batches, workers


def test_in_file_order_each_sample_comes_once_with_its_pixels_and_label(shards: Path) -> None:
    data = ImageData.open(shards, 8)
    batches = list(data.read(data.ids, 10))
    assert [len(batch.ids) for batch in batches] == [10, 10, 10, 7]
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 8, 8)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.ids.dtype == torch.int64
    images, labels, ids = _all(batches)
    assert ids == list(range(COUNT))
    assert labels == [i % 5 for i in range(COUNT)]
    for i in range(COUNT):
        np.testing.assert_array_equal(images[i].permute(1, 2, 0).numpy(), _pixels(i))


def test_in_shuffled_order_each_sample_keeps_its_pixels_and_label(shards: Path) -> None:
    data = ImageData.open(shards, 8)
    order = epoch_order(data.ids, data.manifest.shard_index, 3, "epoch", 1)
    images, labels, ids = _all(data.read(order, 10))
    assert ids == order.tolist()
    assert ids != sorted(ids)
    assert labels == [i % 5 for i in ids]
    for image, i in zip(images, ids, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), _pixels(i))


@pytest.mark.parametrize(
    ("size", "view"),
    [
        (8, View(8, "crop_rotate", seed=1, stream=("epoch", 2))),
        (72, View(72, "resized_crop", flip=True, seed=1, stream=("epoch", 2))),
        (72, None),
    ],
)
def test_workers_change_nothing(shards: Path, size: int, view: View | None) -> None:
    data = ImageData.open(shards, size, workers=0)
    order = epoch_order(data.ids, data.manifest.shard_index, 3, "epoch", 1)
    alone = list(data.read(order, 8, view))
    assert _all(alone)[2] == order.tolist()
    forked = ImageData.open(shards, size, workers=2).read(order, 8, view)
    assert _same(alone, forked)


def test_workers_decode_in_processes_of_their_own(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(_: bytes, out: Pixels) -> Pixels:
        return np.full((8, 8, 3), os.getpid() % 251, np.uint8)

    monkeypatch.setattr(loader, "decode_rgb", decode)
    data = ImageData.open(shards, 8, workers=2)
    found = {int(batch.images[0, 0, 0, 0]) for batch in data.read(data.ids, 5)}
    assert len(found) == 2
    assert os.getpid() % 251 not in found


def test_workers_end_with_the_reading(damaged: Path) -> None:
    data = ImageData.open(damaged, 8, workers=2)
    with pytest.raises(QuarantineError) as caught:
        list(data.read(data.ids, 5))
    assert caught.tb is not None  # it holds the frames, and must not hold the workers
    assert multiprocessing.active_children() == []
    stopped = data.read(data.ids[5:20], 5)
    next(stopped)
    assert len(multiprocessing.active_children()) == 2
    del stopped
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("size", "expected"), [(32, 0), (64, 0), (65, 3), (224, 3)])
def test_how_many_workers_are_chosen(
    shards: Path, monkeypatch: pytest.MonkeyPatch, size: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    manifest = Manifest.load(shards)
    assert ImageData(manifest, size)._worker_count() == expected
    assert ImageData(manifest, size, workers=7)._worker_count() == 7


def test_the_tail_of_an_order_gives_the_tail_of_the_batches(shards: Path) -> None:
    data = ImageData.open(shards, 8)
    view = View(8, "crop_rotate", seed=5)
    order = epoch_order(data.ids, data.manifest.shard_index, 0, "epoch", 0)
    whole = list(data.read(order, 6, view))
    assert _same(data.read(order[3 * 6 :], 6, view), whole[3:])


def test_reading_leaves_the_global_random_state_and_the_warnings_alone(shards: Path) -> None:
    data = ImageData.open(shards, 72, workers=1)
    torch.manual_seed(0)
    before, filters = torch.get_rng_state(), list(warnings.filters)
    for batch in data.read(data.ids[:4], 2):
        assert len(batch.ids) == 2
        assert warnings.filters == filters  # also between two batches
    assert torch.equal(torch.get_rng_state(), before)


def test_a_view_may_have_another_size(shards: Path) -> None:
    data = ImageData.open(shards, 8)
    assert next(data.read(data.ids, 4, View(16))).images.shape == (4, 3, 16, 16)


def test_no_samples_give_no_batches(shards: Path) -> None:
    data = ImageData.open(shards, 72, workers=2)
    assert list(data.read(data.ids[:0], 4)) == []


# what is decoded in place and what is not


def _oriented(pixels: Pixels, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encode(Image.fromarray(pixels), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "view",
    [None, View(8, "crop_rotate", seed=1), View(8, "resized_crop", flip=True, seed=1)],
    ids=["none", "crop_rotate", "resized_crop"],
)
def test_images_of_all_kinds_are_as_if_decoded_one_by_one(
    tmp_path: Path, view: View | None
) -> None:
    kinds = [
        _encode(Image.fromarray(_pixels(0)), "JPEG"),
        _png(1),
        _encode(Image.fromarray(_pixels(2)).convert("L"), "JPEG"),
        _encode(Image.fromarray(_pixels(3)).convert("CMYK"), "JPEG"),
        _oriented(_pixels(4), 6),
        _cut_jpeg(5),
        _encode(Image.fromarray(_pixels(6, 9, 8)), "JPEG"),
        _encode(Image.fromarray(_pixels(7, 4, 16)), "JPEG"),  # as many bytes as 8x8
        _encode(Image.fromarray(_pixels(8)), "JPEG", progressive=True),
        _encode(Image.fromarray(_pixels(9)), "JPEG")[:-40],  # fails when much is decoded
        _png(10),
    ]
    data = ImageData.open(_write(tmp_path / "s", kinds), 8, quarantine=Quarantine(budget=1))
    (batch,) = data.read(data.ids, len(kinds), view)
    assert batch.ids.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 10]
    view = view or View(8)
    alone = np.stack([view.image(decode_rgb(kinds[i]), i) for i in batch.ids.tolist()])
    expected = view.batch(torch.from_numpy(alone).permute(0, 3, 1, 2), batch.ids.numpy())
    assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("shape", [(3, 32, 32, 3), (1, 1), (0, 8, 8, 3)])
def test_memory_for_images_is_off_what_libjpeg_calls_aligned(shape: tuple[int, ...]) -> None:
    memory = loader.image_memory(*shape)
    assert (memory.shape, memory.dtype) == (shape, np.uint8)
    assert memory.flags.c_contiguous
    assert memory.ctypes.data % 32 == 16 or not memory.size


# only what is asked for is read


def test_a_subset_reads_its_own_samples_and_no_others(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    decoded: list[bytes] = []
    reading, decoding = ShardReader.read_all, decode_rgb

    def counting_read(self: ShardReader, ids: Sequence[int]) -> list[bytes]:
        read.extend(ids)
        return reading(self, ids)

    def counting_decode(content: bytes, out: Pixels) -> Pixels:
        decoded.append(content)
        return decoding(content, out=out)

    data = ImageData.open(shards, 8)
    monkeypatch.setattr(ShardReader, "read_all", counting_read)
    monkeypatch.setattr(loader, "decode_rgb", counting_decode)
    subset = np.array([30, 2, 17, 5], np.int64)
    images, labels, ids = _all(data.read(subset, 3))
    assert ids == read == [30, 2, 17, 5]
    assert labels == [0, 2, 2, 0]
    assert decoded == [_png(i) for i in read]
    assert len(images) == 4


def test_what_lies_beside_an_image_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    # Protocol 0: calls os.mkdir(canary) when it is unpickled.
    hostile = f"cos\nmkdir\n(V{canary}\ntR.".encode()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(4):
            for name, content in (
                (f"k{i}.pkl", hostile),
                (f"k{i}.png", _png(i)),
                (f"k{i}.pyd", hostile),
                (f"k{i}.cls", b"1"),
                (f"k{i}.pickle", hostile),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    index_shards(str(tmp_path))
    data = ImageData.open(tmp_path, 8)
    decoded: list[bytes] = []

    def spying(content: bytes, out: Pixels) -> Pixels:
        decoded.append(content)
        return decode_rgb(content, out=out)

    monkeypatch.setattr(loader, "decode_rgb", spying)
    images, _, _ = _all(data.read(data.ids, 2))
    np.testing.assert_array_equal(images[3].permute(1, 2, 0).numpy(), _pixels(3))
    assert decoded == [_png(i) for i in range(4)]
    assert not canary.exists()


# undecodable images


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """30 images, of which 4 and 21 are JPEG cut in half."""
    return _write(
        tmp_path / "damaged", (_cut_jpeg(i) if i in (4, 21) else _png(i) for i in range(30))
    )


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("size", "workers"), [(8, 0), (8, 2), (72, 2)])
def test_an_undecodable_image_is_noted_and_left_out(
    damaged: Path, tmp_path: Path, size: int, workers: int
) -> None:
    path = tmp_path / "quarantine.jsonl"
    data = ImageData.open(damaged, size, workers=workers, quarantine=Quarantine(path, 0.1))
    batches = list(data.read(data.ids, 10))
    assert [len(batch.ids) for batch in batches] == [9, 10, 9]
    assert [len(batch.images) for batch in batches] == [9, 10, 9]
    assert _all(batches)[2] == [i for i in range(30) if i not in (4, 21)]
    manifest = data.manifest
    first, second = _lines(path)
    for line, i in ((first, 4), (second, 21)):
        assert line["data"] == str(damaged)
        assert line["shard"] == manifest.shards[int(manifest.shard_index[i])].name
        assert line["key"] == f"k{i:03d}"
        assert "JPEG" in line["reason"]
    assert first["shard"] != second["shard"]


def test_its_place_in_the_batch_is_closed_up(damaged: Path) -> None:
    data = ImageData.open(damaged, 8, quarantine=Quarantine(budget=0.1))
    batch = next(data.read(data.ids, 10))
    assert batch.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(batch.images[4].permute(1, 2, 0).numpy(), _pixels(5))


def test_augmentation_is_not_moved_by_an_undecodable_neighbour(damaged: Path) -> None:
    data = ImageData.open(damaged, 8, quarantine=Quarantine(budget=0.1))
    view = View(8, "crop_rotate", seed=2)
    batch = next(data.read(np.array([4, 5, 6], np.int64), 3, view))
    assert _same([batch], data.read(np.array([5, 6], np.int64), 2, view))


@pytest.mark.parametrize("kind", ["none", "crop_rotate"])
def test_a_batch_of_which_nothing_is_left_is_empty(damaged: Path, kind: str) -> None:
    data = ImageData.open(damaged, 8, quarantine=Quarantine(budget=0.1))
    view = View(8, "crop_rotate" if kind == "crop_rotate" else "none")
    (batch,) = data.read(np.array([4, 21], np.int64), 2, view)
    assert batch.images.shape == (0, 3, 8, 8)
    assert len(batch.labels) == len(batch.ids) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_budget_stops_the_run_and_says_where(
    damaged: Path, tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "quarantine.jsonl"
    data = ImageData.open(damaged, 8, workers=workers, quarantine=Quarantine(path, 1 / 30))
    read = data.read(data.ids, 10)
    assert [len(next(read).ids), len(next(read).ids)] == [9, 10]
    with pytest.raises(QuarantineError) as caught:
        next(read)
    message, manifest = str(caught.value), data.manifest
    for i in (4, 21):
        assert f"{manifest.shards[int(manifest.shard_index[i])].name}: k{i:03d} (" in message
    assert "2 undecodable images, but the budget is 1 of 30" in message
    assert str(path) in message
    assert "data.quarantine_budget" in message
    assert "Traceback" not in message
    assert len(_lines(path)) == 2  # the one that broke the budget is noted too


def test_a_budget_of_nothing_allows_nothing(damaged: Path) -> None:
    data = ImageData.open(damaged, 8)  # 0.1 % of 30
    with pytest.raises(QuarantineError, match=r"k004.*the budget is|the budget is.*k004"):
        list(data.read(data.ids, 10))


@pytest.mark.parametrize(("share", "count"), [(0.29, 29), (0.07, 7), (0.57, 57), (0.999, 99)])
def test_the_budget_is_the_share_that_was_meant(shards: Path, share: float, count: int) -> None:
    # 0.29 * 100 is 28.999999999999996
    samples = (Sample(f"k{i}", _png(0), "png", 0) for i in range(100))
    manifest = write_shards(samples, shards.parent / f"hundred{count}", classes=["a"])
    quarantine = Quarantine(budget=share)
    quarantine.add(manifest, [(i, "bad") for i in range(count)])
    with pytest.raises(QuarantineError, match=f"the budget is {count} of 100"):
        quarantine.add(manifest, [(count, "bad")])


def test_a_sample_counts_once_however_often_it_is_met(damaged: Path, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    data = ImageData.open(damaged, 8, quarantine=Quarantine(path, 2 / 30))
    for epoch in range(3):
        list(data.read(epoch_order(data.ids, data.manifest.shard_index, 0, epoch), 10))
    assert sorted(line["key"] for line in _lines(path)) == ["k004", "k021"]
    assert len(data.quarantine.reasons) == 2


def test_two_data_sets_have_a_budget_each(damaged: Path, tmp_path: Path) -> None:
    other = _write(
        tmp_path / "other", (_cut_jpeg(i) if i in (1, 4) else _png(i) for i in range(30))
    )
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 2 / 30)
    for folder in (damaged, other, damaged):
        data = ImageData.open(folder, 8, quarantine=quarantine)
        list(data.read(data.ids, 10))
    assert sorted(line["key"] for line in _lines(tmp_path / "quarantine.jsonl")) == [
        "k001", "k004", "k004", "k021",
    ]  # fmt: skip
    assert len(quarantine.reasons) == 4


def test_a_new_start_neither_notes_nor_counts_a_sample_again(damaged: Path, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first = ImageData.open(damaged, 8, quarantine=Quarantine(path, 2 / 30))
    list(first.read(first.ids[:15], 5))  # meets k004, and is stopped here
    before = path.read_text()
    again = ImageData.open(damaged, 8, quarantine=Quarantine(path, 2 / 30))
    assert len(again.quarantine.reasons) == 1
    list(again.read(again.ids, 5))
    assert path.read_text().startswith(before)
    assert [line["key"] for line in _lines(path)] == ["k004", "k021"]
    assert len(again.quarantine.reasons) == 2


def test_the_budget_holds_over_a_new_start(damaged: Path, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first = ImageData.open(damaged, 8, quarantine=Quarantine(path, 1 / 30))
    list(first.read(first.ids[:15], 5))
    again = ImageData.open(damaged, 8, quarantine=Quarantine(path, 1 / 30))
    with pytest.raises(QuarantineError, match="2 undecodable images"):
        list(again.read(again.ids[15:], 5))


@pytest.mark.parametrize("torn", [b'{"data": "x', b"\xff\xfe", b'{"data": "x", "shard": "s"'])
def test_a_torn_last_line_is_mended(damaged: Path, tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "quarantine.jsonl"
    first = ImageData.open(damaged, 8, quarantine=Quarantine(path, 0.1))
    list(first.read(first.ids[:15], 5))
    path.write_bytes(path.read_bytes() + torn)
    again = ImageData.open(damaged, 8, quarantine=Quarantine(path, 0.1))
    list(again.read(again.ids, 5))
    assert [line["key"] for line in _lines(path)] == ["k004", "k021"]


def test_lines_of_somebody_else_are_kept_and_count_for_nothing(
    damaged: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quarantine.jsonl"
    foreign = '[1, 2]\nnot JSON\n{"data": 3}\n'
    path.write_text(foreign)
    quarantine = Quarantine(path, 0.1)
    assert quarantine.reasons == {}
    data = ImageData.open(damaged, 8, quarantine=quarantine)
    list(data.read(data.ids, 10))
    assert path.read_text().startswith(foreign)


# damage to shards


@pytest.mark.parametrize(("size", "workers"), [(8, 0), (72, 2)])
def test_a_shard_that_shrinks_after_opening_stops_the_run(
    tmp_path: Path, size: int, workers: int
) -> None:
    folder = _write(tmp_path / "s", (_png(i) for i in range(30)))
    data = ImageData.open(folder, size, workers=workers)
    last = len(data.manifest.shards) - 1
    path = data.manifest.shard_path(last)
    os.truncate(path, int(data.manifest.offsets[-1]) + 10)
    with pytest.raises(ShardError) as caught:
        list(data.read(data.ids, 5))
    message = str(caught.value)
    assert path.name in message
    assert "k029" in message
    assert "only 10 of" in message
    assert "Traceback" not in message  # torch would put the worker's into it


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_disappears_after_opening_stops_the_run(tmp_path: Path, workers: int) -> None:
    folder = _write(tmp_path / "s", (_png(i) for i in range(30)))
    data = ImageData.open(folder, 8, workers=workers)
    data.manifest.shard_path(0).unlink()
    with pytest.raises(ShardError, match=r"shard-000000\.tar: k000: cannot be read"):
        list(data.read(data.ids, 5))


def test_a_flipped_byte_is_found_at_opening_by_its_digest(tmp_path: Path) -> None:
    folder = _write(tmp_path / "s", (_png(i) for i in range(30)))
    manifest = Manifest.load(folder)
    path = manifest.shard_path(1)
    content = bytearray(path.read_bytes())
    content[int(manifest.offsets[-1] % len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: SHA-256"):
        ImageData.open(folder, 8)
    ImageData.open(folder, 8, digests=False)  # not asked for: the size is right


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("change", ["longer", "shorter", "missing"])
def test_another_size_is_found_at_opening_with_or_without_digests(
    tmp_path: Path, digests: bool, change: str
) -> None:
    folder = _write(tmp_path / "s", (_png(i) for i in range(30)))
    path = Manifest.load(folder).shard_path(1)
    steps: dict[str, Callable[[], object]] = {
        "longer": lambda: os.truncate(path, path.stat().st_size + 512),
        "shorter": lambda: os.truncate(path, path.stat().st_size - 512),
        "missing": path.unlink,
    }
    steps[change]()
    with pytest.raises(ShardError, match=r"shard-000001\.tar"):
        ImageData.open(folder, 8, digests=digests)


def test_without_digests_no_byte_of_a_shard_is_read_at_opening(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    opening = io.open

    def spying(file: object, *args: object, **kwargs: object) -> object:
        opened.append(str(file))
        return opening(file, *args, **kwargs)  # type: ignore[call-overload]  # handed through

    monkeypatch.setattr(io, "open", spying)
    monkeypatch.setattr("builtins.open", spying)
    ImageData.open(shards, 8, digests=False)
    assert not [name for name in opened if name.endswith(".tar")]


# kinds of images


def test_all_kinds_of_images_come_out_as_rgb_of_the_size(tmp_path: Path) -> None:
    colour = np.zeros((40, 60, 3), np.uint8)
    colour[:, :30] = (200, 30, 30)  # left red, right blue
    colour[:, 30:] = (30, 30, 200)
    grey = np.repeat(np.arange(60, dtype=np.uint8)[None] * 4, 40, 0)  # (40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first column is the upright top
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(colour)))
    kinds = [
        _encode(Image.fromarray(colour), "JPEG", quality=95),
        _encode(Image.fromarray(grey), "JPEG", quality=95),
        _encode(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=95),
        _encode(turned, "JPEG", quality=95, exif=exif),
        _encode(Image.fromarray(grey.astype(np.uint16) * 257)),
        _encode(Image.fromarray(colour).convert("RGBA")),
        _encode(Image.fromarray(colour).quantize(4)),
        _encode(Image.fromarray(grey > 120)),
    ]
    data = ImageData.open(_write(tmp_path / "kinds", kinds), 24)
    images, _, ids = _all(data.read(data.ids, 8))
    assert ids == list(range(8))
    assert images.shape == (8, 3, 24, 24)
    pixels = images.permute(0, 2, 3, 1).numpy().astype(int)
    for i in (0, 2, 3, 5, 6):
        assert abs(pixels[i, 12, 3] - (200, 30, 30)).max() < 12, i
        assert abs(pixels[i, 12, 20] - (30, 30, 200)).max() < 12, i
    expected = np.array(Image.fromarray(grey).resize((24, 24), Image.Resampling.BILINEAR), int)
    for i in (1, 4):
        assert abs(pixels[i] - expected[..., None]).max() < 6, i
    assert pixels[7, 12, 3].tolist() == [0, 0, 0]
    assert pixels[7, 12, 20].tolist() == [255, 255, 255]
