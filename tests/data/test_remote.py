"""Whole data sets from a web server: the same bytes as from local disk, or one clear error."""

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pbe_fast.config import DataConfig, PurifyConfig, load_config
from pbe_fast.data import _read
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest, Shard
from pbe_fast.data.shards import (
    Sample,
    ShardReader,
    index_shards,
    require_intact,
    verify_shards,
    write_shards,
)
from pbe_fast.data.storage import MissingError, Patience, Storage, StorageOptions
from pbe_fast.errors import ConfigError, ShardError

QUICK = Patience(connect_seconds=1, stall_seconds=0.5, tries=4, first_wait=0.01, longest_wait=0.3)
COUNT = 200


def samples() -> list[Sample]:
    draw = random.Random(0)
    return [
        Sample(f"{i:04d}", draw.randbytes(20_000 + draw.randrange(9_000)), "jpg", i % 3)
        for i in range(COUNT)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """200 samples of about 24 KB in 5 shards."""
    folder = tmp_path_factory.mktemp("remote") / "set"
    made = write_shards(samples(), folder, classes=("a", "b", "c"), shard_bytes=1_150_000)
    assert len(made.shards) == 5
    return made


@pytest.fixture
def local(server: Any, made: Manifest) -> Manifest:
    """The same, below the server's folder."""
    shutil.copytree(made.root, server.folder / "set")
    return replace(made, root=server.folder / "set")


@pytest.fixture
def options(tmp_path: Path) -> StorageOptions:
    return StorageOptions(tmp_path / "cache", 10**8, QUICK)


@pytest.fixture
def remote(server: Any, local: Manifest) -> Manifest:
    manifest = Manifest.load(f"{server.url}/set", Storage(QUICK))
    server.reset()
    return manifest


def shards_sent(server: Any) -> int:
    return sum(count for path, count in server.sent.items() if path.endswith(".tar"))


def test_the_manifest_comes_from_the_server(server: Any, local: Manifest) -> None:
    for place in (f"{server.url}/set", f"{server.url}/set/", f"{server.url}/set/manifest.parquet"):
        found = Manifest.load(place, Storage(QUICK))
        assert found.root == f"{server.url}/set"
        assert found.is_remote
        assert not local.is_remote
        assert found.shards == local.shards
        assert found.keys.equals(local.keys)
    with pytest.raises(MissingError, match=r"404.*shards index"):
        Manifest.load(f"{server.url}/nothing", Storage(QUICK))
    (server.folder / "set" / MANIFEST_NAME).write_bytes(b"<html>")
    with pytest.raises(ShardError, match="not a manifest"):
        Manifest.load(f"{server.url}/set", Storage(QUICK))


@pytest.mark.parametrize("cache_bytes", [0, 10**8, 200_000])
def test_the_same_bytes_in_any_order(
    local: Manifest, remote: Manifest, options: StorageOptions, cache_bytes: int
) -> None:
    near = ShardReader(local)
    far = ShardReader(remote, storage=replace(options, cache_bytes=cache_bytes))
    ids = np.random.default_rng(0).permutation(COUNT).tolist()
    for part in (ids, sorted(ids), [7, 7, 8, 6], []):
        assert far.read_all(part) == near.read_all(part)
    assert far.read(11) == near.read(11)
    with pytest.raises(IndexError):
        far.read(COUNT)


def test_a_subset_costs_what_it_contains(
    server: Any, remote: Manifest, options: StorageOptions
) -> None:
    subset = np.sort(np.random.default_rng(1).permutation(COUNT)[: COUNT // 20])
    reader = ShardReader(remote, storage=options)
    first = reader.read_all(subset.tolist())
    assert shards_sent(server) == remote.sizes[subset].sum()
    assert shards_sent(server) < 0.06 * sum(shard.bytes for shard in remote.shards)
    server.reset()
    assert ShardReader(remote, storage=options).read_all(subset.tolist()) == first
    assert server.requests == []  # another reader, the same cache


def test_neighbours_come_by_one_request(
    server: Any, remote: Manifest, options: StorageOptions
) -> None:
    ShardReader(remote, storage=options).read_all(range(COUNT))
    assert len(server.requests) == len(remote.shards)


def test_requests_of_a_batch_are_under_way_together(
    server: Any, remote: Manifest, options: StorageOptions
) -> None:
    server.slow = 0.03
    ShardReader(remote, storage=options).read_all(list(range(0, COUNT, 5)))
    assert 4 <= server.busiest <= options.parallel


@pytest.mark.parametrize("fault", ["503", "stall", "truncate", "reset"])
def test_passing_faults_change_nothing(
    server: Any, local: Manifest, remote: Manifest, options: StorageOptions, fault: str
) -> None:
    server.fault = lambda number, _: fault if number % 5 < 2 and number < 20 else None
    ids = list(range(0, COUNT, 10))
    found = ShardReader(remote, storage=options).read_all(ids)
    assert found == ShardReader(local).read_all(ids)


def test_a_lasting_fault_is_one_error(
    server: Any, remote: Manifest, options: StorageOptions
) -> None:
    reader = ShardReader(remote, storage=options)
    server.fault = lambda number, path: "503" if "000003" in path else None
    with pytest.raises(ShardError, match=r"shard-000003\.tar: .*503.*4 tries"):
        reader.read_all(range(COUNT))
    server.fault = lambda number, path: None
    assert len(reader.read_all(range(COUNT))) == COUNT


@pytest.mark.parametrize("cache_bytes", [0, 10**8])
def test_a_server_without_ranges_serves_too(
    server: Any, local: Manifest, remote: Manifest, options: StorageOptions, cache_bytes: int
) -> None:
    server.ranges = False
    reader = ShardReader(remote, storage=replace(options, cache_bytes=cache_bytes))
    near = ShardReader(local)
    assert reader.read_all([3, 90, 5, 150]) == near.read_all([3, 90, 5, 150])
    assert reader.read_shard(2) == near.read_shard(2)
    server.reset()
    assert reader.read_all([4, 10]) == near.read_all([4, 10])
    assert (server.requests == []) == (cache_bytes > 0)


@pytest.mark.parametrize("piece", [2**23, 60_000])
def test_whole_shards(
    server: Any,
    local: Manifest,
    remote: Manifest,
    options: StorageOptions,
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
) -> None:
    monkeypatch.setattr("pbe_fast.data._read._PIECE", piece)
    images = [sample.image for sample in samples()]
    for manifest in (local, remote):
        reader = ShardReader(manifest, storage=options)
        found = [reader.read_shard(number) for number in range(5)]
        assert [image for shard in found for image in shard] == images
    assert shards_sent(server) == sum(shard.bytes for shard in remote.shards)
    server.reset()
    assert ShardReader(remote, storage=options).read_all([0, 77]) == [images[0], images[77]]
    assert server.requests == []


@settings(deadline=None, max_examples=50)
@given(
    spans=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 20)), max_size=12),
    longest=st.integers(1, 60),
)
def test_pieces_of_a_shard_hold_whole_images(spans: list[tuple[int, int]], longest: int) -> None:
    offsets, sizes = [offset for offset, _ in spans], [size for _, size in spans]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_read, "_PIECE", longest)
        pieces = _read._pieces(offsets, sizes, 120)
    assert [start for start, _, _ in pieces] == [0, *(end for _, end, _ in pieces[:-1])]
    assert pieces[-1][1] == 120
    assert sorted(row for *_, rows in pieces for row in rows) == list(range(len(spans)))
    for start, end, rows in pieces:
        assert all(start <= offsets[row] <= offsets[row] + sizes[row] <= end for row in rows)


def change(path: Path, at: int = 5000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_shard_that_changes_on_disk(local: Manifest, how: str) -> None:
    reader = ShardReader(local)
    path = local.shard_path(1)
    whole = reader.read_shard(1)
    reader.read(50)  # the file is open now
    if how == "replaced":
        copy = path.with_suffix(".new")
        copy.write_bytes(path.read_bytes())
        change(copy)
        copy.rename(path)
    else:
        change(path)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: was changed since .* SHA-256"):
        reader.read_shard(1)
    change(path)
    assert reader.read_shard(1) == whole
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ShardError, match="was changed since the manifest was made: it has"):
        reader.read_shard(1)
    path.unlink()
    with pytest.raises(ShardError, match="cannot be read"):
        reader.read_shard(1)


def test_a_shard_that_changes_on_the_server(
    server: Any, local: Manifest, remote: Manifest, options: StorageOptions
) -> None:
    reader = ShardReader(remote, storage=options)
    change(local.shard_path(1))
    with pytest.raises(ShardError, match=r"shard-000001\.tar: was changed since"):
        reader.read_shard(1)
    change(local.shard_path(1))  # what was cached meanwhile is not believed
    assert reader.read_shard(1) == ShardReader(local).read_shard(1)
    with local.shard_path(1).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ShardError, match="is not the one that the manifest was made from"):
        ShardReader(remote, storage=replace(options, cache_bytes=0)).read(50)


def test_opening_compares_sizes(server: Any, local: Manifest, remote: Manifest) -> None:
    require_intact(remote, storage=Storage(QUICK))
    assert shards_sent(server) == len(remote.shards)  # a byte each
    with local.shard_path(1).open("ab") as file:
        file.write(b"\0")
    local.shard_path(3).unlink()
    with pytest.raises(ShardError, match=r"000001\.tar: \d+ bytes instead of") as caught:
        require_intact(remote, storage=Storage(QUICK))
    assert "000003.tar: the server said '404" in str(caught.value)


def test_verify_reads_everything(local: Manifest, remote: Manifest) -> None:
    assert verify_shards(remote, storage=Storage(QUICK)) == []
    change(local.shard_path(2))
    (problem,) = verify_shards(remote, storage=Storage(QUICK))
    assert problem.startswith(f"{remote.root}/shard-000002.tar: SHA-256")


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.full((32, 32, 3), number % 251, np.uint8)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def test_batches(server: Any, tmp_path: Path) -> None:
    write_shards(
        (Sample(f"{i}", picture(i), "png", i % 2) for i in range(64)),
        server.folder / "pictures",
        classes=("a", "b"),
        shard_bytes=20_000,
    )
    options = StorageOptions(tmp_path / "cache", 10**8, QUICK)
    near = ImageData.open(server.folder / "pictures", 32)
    far = ImageData.open(f"{server.url}/pictures", 32, storage=options)
    assert near._worker_count() == 0
    assert far._worker_count() >= 4
    order = np.random.default_rng(0).permutation(64)
    for workers in (0, None):
        read = replace(far, workers=workers).read(order, 10)
        for here, there in zip(near.read(order, 10), read, strict=True):
            assert all(map(np.array_equal, here, there))
    far.require_unchanged(0)
    change(near.manifest.shard_path(0))
    with pytest.raises(ShardError, match="was changed"):
        ImageData(far.manifest, 32, storage=replace(options, cache_bytes=0)).require_unchanged(0)


# Names of shards, which may be anything in a manifest that somebody else wrote


def named(manifest: Manifest, folder: Path, name: str) -> Path:
    """A manifest whose first shard is called otherwise."""
    shards = (replace(manifest.shards[0], name=name), *manifest.shards[1:])
    folder.mkdir(exist_ok=True, parents=True)
    return replace(manifest, shards=shards).save(folder)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../shard.tar",
        "a/../../b.tar",
        "pipe:cat",
        "file:///etc/passwd",
        "gs://bucket/x.tar",
        "http://user:hush@host.invalid/x.tar",
        "http://host.invalid/x.tar?token=hush",
        "HTTP://host.invalid/x.tar",
        "http:///x.tar",
        "s3://",
        "",
        "a\0b",
        "a\\b",
    ],
)
@pytest.mark.parametrize("where", ["here", "there"])
def test_names_that_lead_elsewhere_are_refused(
    server: Any, local: Manifest, name: str, where: str
) -> None:
    named(local, server.folder / "bad", name)
    place = server.folder / "bad" if where == "here" else f"{server.url}/bad"
    with pytest.raises(ShardError, match=r"plain path|not supported|address|plainly") as caught:
        Manifest.load(place, Storage(QUICK))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["s3://bucket/x.tar", "https://host.invalid/x.tar"])
def test_only_a_local_manifest_names_addresses(server: Any, local: Manifest, name: str) -> None:
    named(local, server.folder / "other", name)
    assert Manifest.load(server.folder / "other").shard_location(0) == name
    with pytest.raises(ShardError, match="plain path"):
        Manifest.load(f"{server.url}/other", Storage(QUICK))


def test_a_name_is_never_taken_for_a_part_of_an_address(server: Any, local: Manifest) -> None:
    manifest = replace(local, root="https://host.invalid/set", shards=(
        Shard("a?b#c%2e%2e/é.tar", "0", 1, 0),))  # fmt: skip
    assert manifest.shard_location(0) == ("https://host.invalid/set/a%3Fb%23c%252e%252e/%C3%A9.tar")


# Indexing


def test_index_by_addresses(server: Any, local: Manifest, tmp_path: Path) -> None:
    pattern = f"{server.url}/set/shard-{{000000..000004}}.tar"
    made = index_shards(
        pattern, num_classes=3, manifest_folder=tmp_path / "made", storage=Storage(QUICK)
    )
    found = Manifest.load(tmp_path / "made")
    assert found.shards == made.shards
    assert [shard.name for shard in found.shards] == [
        f"{server.url}/set/{shard.name}" for shard in local.shards
    ]
    for name in ("offsets", "sizes", "labels"):
        assert np.array_equal(getattr(found, name), getattr(local, name))
    reader = ShardReader(found, storage=StorageOptions(None, 0, QUICK))
    assert reader.read_all([0, 199, 60]) == ShardReader(local).read_all([0, 199, 60])
    assert verify_shards(found, storage=Storage(QUICK)) == []


def test_what_cannot_be_indexed(server: Any, local: Manifest, tmp_path: Path) -> None:
    def index(source: str, out: Path | None = tmp_path / "out") -> None:
        index_shards(source, manifest_folder=out, storage=Storage(QUICK))

    with pytest.raises(ShardError, match="--out"):
        index(f"{server.url}/set/shard-000000.tar", None)
    with pytest.raises(ShardError, match="range in braces"):
        index(f"{server.url}/set/*.tar")
    with pytest.raises(ShardError, match="range in braces"):
        index(f"{server.url}/set/")
    with pytest.raises(ShardError, match=r"000005\.tar: the server said '404"):
        index(f"{server.url}/set/shard-{{000004..000005}}.tar")
    with pytest.raises(ShardError, match="twice"):
        index(f"{server.url}/set/shard-{{0000,0000}}00.tar")
    with pytest.raises(ConfigError, match="must end with its path"):
        index(f"{server.url}/set/shard-000000.tar?token=hush")
    (server.folder / "set" / "broken.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(
        ShardError, match=rf"^{server.url}/set/broken\.tar, byte 0: not an"
    ) as error:
        index(f"{server.url}/set/broken.tar")
    assert "/tmp" not in str(error.value)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


# Configuration


def test_addresses_in_a_configuration(tmp_path: Path) -> None:
    config = load_config(
        PurifyConfig,
        values={
            "data.train": Path("s3://bucket/train"),  # as a command line gives it
            "data.clean": "https://Host.invalid:8080/a b/",
            "data.test": "shards/test",
            "data.cache_dir": tmp_path,
            "data.cache_bytes": 10**9,
        },
    )
    assert config.data.train == "s3://bucket/train"
    assert config.data.clean == "https://host.invalid:8080/a%20b"
    assert config.data.test == Path("shards/test")
    assert isinstance(config.data.test, Path)
    written = json.loads(config.model_dump_json())
    assert PurifyConfig.model_validate(written) == config
    assert written["data"]["test"] == "shards/test"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("pipe:cat x", "not supported"),
        ("gs://bucket/x", "not supported"),
        ("file:///x", "not supported"),
        ("s3:bucket", "not supported"),
        ("http://", "names no server"),
        ("s3:///key", "names no bucket"),
        ("http://user:hush@host/x", "must not hold a user"),
        ("https://host/x?sig=hush", "must end with its path"),
        ("https://host/x#hush", "must end with its path"),
        ("http://host:port/x", "is no address"),
        ("http://[::1/x", "is no address"),
        ("http://host/\n", "control characters"),
        (5, "local path"),
    ],
)
def test_bad_addresses_in_a_configuration(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(PurifyConfig, values={"data.train": value})
    assert "user:hush" not in str(caught.value)
    assert "sig=hush" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_config(PurifyConfig, settings=[f"data.train={json.dumps(value)}"])
    assert "user:hush" not in str(caught.value)


def test_negative_caches_are_refused() -> None:
    assert DataConfig(cache_bytes=0).cache_bytes == 0
    with pytest.raises(ConfigError, match="cache_bytes"):
        load_config(PurifyConfig, values={"data.cache_bytes": -1})
