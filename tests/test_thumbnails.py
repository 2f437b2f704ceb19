"""Pictures of the worst suspects: small, ours, and never in the way of a run."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pbe_fast.data.converters._common import encode_png
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import Sample, read_bytes, write_shards
from pbe_fast.data.storage import StorageOptions
from pbe_fast.suspects import suspicion_order
from pbe_fast.thumbnails import MAX_SIDE, SHOWN, png_bytes, write_thumbnails
from tests._server import Server

RANDOM = np.random.default_rng(3)
IMAGES = 40


def pixels(height: int = 12, width: int = 12) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    """Shards whose images 5 and 6 are no images."""
    samples = [
        Sample(f"a/{i:03}", b"no image" if i in (5, 6) else encode_png(pixels()), "png", i % 2)
        for i in range(IMAGES)
    ]
    write_shards(samples, tmp_path / "shards", classes=("a", "b"), shard_bytes=12_000)
    return ImageData(Manifest.load(tmp_path / "shards"), 12)


def kept(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(path.read_text())["thumbnails"]
    return found


def scores(*nothing: int) -> np.ndarray:
    """Image 0 is the most suspicious, unless it has no score."""
    found = np.linspace(-1, 1, IMAGES).astype(np.float32)
    found[list(nothing)] = np.nan
    return found


def test_the_worst_come_first_with_their_own_pixels(data: ImageData, tmp_path: Path) -> None:
    upside_down = scores(39)[::-1].copy()
    write_thumbnails(tmp_path / "t.json", data, upside_down)
    found = kept(tmp_path / "t.json")
    assert [one["key"] for one in found] == [f"a/{i:03}" for i in range(39, 39 - SHOWN, -1)]
    for one, sample in zip(found, range(39, 0, -1), strict=False):
        original = read_bytes(data.manifest, sample)
        png = base64.b64decode(one["png"])
        assert (decode_rgb(png) == decode_rgb(original)).all()
        assert one["shard"] == data.manifest.shards[data.manifest.shard_index[sample]].name


def test_what_has_no_score_is_not_shown(data: ImageData, tmp_path: Path) -> None:
    write_thumbnails(tmp_path / "t.json", data, scores(*range(3, IMAGES)))
    assert [one["key"] for one in kept(tmp_path / "t.json")] == ["a/000", "a/001", "a/002"]
    write_thumbnails(tmp_path / "t.json", data, scores(*range(IMAGES)))
    assert kept(tmp_path / "t.json") == []


def test_an_image_that_cannot_be_decoded_is_a_word(data: ImageData, tmp_path: Path) -> None:
    write_thumbnails(tmp_path / "t.json", data, scores())
    found = kept(tmp_path / "t.json")
    assert [i for i, one in enumerate(found) if "png" not in one] == [5, 6]
    assert found[5]["reason"] == "could not be decoded"


def test_a_shard_that_is_gone_stops_nothing(data: ImageData, tmp_path: Path) -> None:
    for index in range(len(data.manifest.shards)):
        data.manifest.shard_path(index).unlink()
    write_thumbnails(tmp_path / "t.json", data, scores())
    reasons = [one["reason"] for one in kept(tmp_path / "t.json")]
    assert reasons == ["could not be read"] * 2 + ["not read"] * (SHOWN - 2)


@pytest.mark.parametrize(
    ("shape", "small"),
    [((500, 250), (96, 48)), ((250, 500), (48, 96)), ((3, 2000), (1, 96)), ((40, 30), (40, 30))],
)
def test_large_images_become_small(shape: tuple[int, int], small: tuple[int, int]) -> None:
    assert decode_rgb(png_bytes(pixels(*shape))).shape == (*small, 3)
    assert max(small) <= MAX_SIDE


def test_nothing_but_pixels_is_kept(tmp_path: Path) -> None:
    """What an image carries beside its pixels stays behind."""
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_text("Comment", "<script>alert(1)</script>")
    path = tmp_path / "image.png"
    Image.fromarray(pixels()).save(path, pnginfo=words)
    assert b"<script>" in path.read_bytes()
    assert b"<script>" not in png_bytes(decode_rgb(path.read_bytes()))


def test_order_of_suspicion_is_stable_and_ends_with_what_has_no_score() -> None:
    found = suspicion_order(np.array([0.5, np.nan, 0.1, 0.5], np.float32))
    assert found.tolist() == [2, 0, 3, 1]


@pytest.fixture
def remote(data: ImageData, tmp_path: Path) -> Any:
    server = Server(tmp_path / "shards")
    options = StorageOptions(cache_bytes=0)
    yield server, lambda: ImageData(Manifest.load(server.url), 12, storage=options)
    server.stop()


def test_shards_with_an_address_cost_a_request_an_image(
    remote: tuple[Server, Callable[[], ImageData]], data: ImageData, tmp_path: Path
) -> None:
    server, opened = remote
    there = opened()
    server.reset()
    write_thumbnails(tmp_path / "there.json", there, scores())
    assert len(server.requests) <= SHOWN
    write_thumbnails(tmp_path / "here.json", data, scores())
    assert kept(tmp_path / "there.json") == kept(tmp_path / "here.json")


def test_a_server_that_fails_is_not_waited_for(
    remote: tuple[Server, Callable[[], ImageData]], tmp_path: Path
) -> None:
    server, opened = remote
    there = opened()
    server.reset()
    server.fault = lambda number, path: "503"
    began = time.monotonic()
    write_thumbnails(tmp_path / "t.json", there, scores())
    assert time.monotonic() - began < 20
    assert len(server.requests) <= 4
    assert all("png" not in one for one in kept(tmp_path / "t.json"))
