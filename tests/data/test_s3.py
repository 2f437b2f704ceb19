"""The same data set over S3, from moto's server on this machine."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbe_fast import PurifyConfig, load_config, purify
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import Sample, ShardReader, index_shards, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.data.storage import (
    MissingError,
    Patience,
    Request,
    Storage,
    StorageOptions,
    close_connections,
)
from pbe_fast.errors import ShardError
from pbe_fast.models import ModelSpec, create_model, save_model

pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

pytestmark = pytest.mark.slow  # the server takes seconds to start

QUICK = Patience(connect_seconds=2, stall_seconds=3, tries=3, first_wait=0.01, longest_wait=0.1)
COUNT = 60


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 samples in several shards."""
    return write_shards(
        (Sample(f"{i:03d}", bytes([i]) * (2000 + i), "jpg", i % 3) for i in range(COUNT)),
        tmp_path_factory.mktemp("s3") / "set",
        classes=("a", "b", "c"),
        shard_bytes=50_000,
    )


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(
    endpoint: str, local: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """A bucket that holds the data set below ``some folder/set``."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for path in Path(local.root).iterdir():
        client.upload_file(str(path), "data", f"some folder/set/{path.name}")
    close_connections()
    yield "s3://data/some folder/set"
    close_connections()


@pytest.fixture
def options(tmp_path: Path) -> StorageOptions:
    return StorageOptions(tmp_path / "cache", 10**8, QUICK)


def test_the_same_bytes(bucket: str, local: Manifest, options: StorageOptions) -> None:
    remote = Manifest.load(bucket, Storage(QUICK))
    assert remote.shards == local.shards
    ids = np.random.default_rng(0).permutation(COUNT).tolist()
    for cache_bytes in (0, 10**8):
        reader = ShardReader(remote, storage=replace(options, cache_bytes=cache_bytes))
        assert reader.read_all(ids) == ShardReader(local).read_all(ids)
        assert reader.read_shard(1) == ShardReader(local).read_shard(1)
    data = ImageData.open(bucket, 32, storage=options)
    data.require_unchanged(0)


def test_pieces(bucket: str, local: Manifest) -> None:
    place = f"{bucket}/{local.shards[0].name}"
    content = local.shard_path(0).read_bytes()
    storage = Storage(QUICK)
    assert storage.size(place) == len(content)
    assert storage.read(place, 100, 50) == content[100:150]
    assert storage.read(place, len(content) - 5, 5) == content[-5:]
    requests = [Request(place, i * 500, 400, len(content)) for i in range(50)]
    assert list(storage.read_each(requests)) == [content[r.offset :][:400] for r in requests]


def test_what_is_not_there(bucket: str, local: Manifest) -> None:
    storage = Storage(QUICK)
    with pytest.raises(MissingError, match=r"404|NoSuchKey"):
        storage.read(f"{bucket}/none", 0, 10)
    with pytest.raises(MissingError, match=r"404|NoSuch"):
        storage.size("s3://no-such-bucket/none")
    with pytest.raises(MissingError, match="shards index"):
        Manifest.load("s3://data/elsewhere", storage)
    place = f"{bucket}/{local.shards[0].name}"
    size = local.shards[0].bytes
    for offset in (size - 5, size + 100):
        with pytest.raises(ShardError, match="is not the one that the manifest was made from"):
            storage.read(place, offset, 10)


def test_index_by_glob_folder_and_braces(bucket: str, local: Manifest, tmp_path: Path) -> None:
    last = len(local.shards) - 1
    for i, source in enumerate(
        (bucket, f"{bucket}/shard-*.tar", f"{bucket}/shard-{{000000..{last:06d}}}.tar")
    ):
        made = index_shards(source, manifest_folder=tmp_path / str(i), storage=Storage(QUICK))
        assert [s.sha256 for s in made.shards] == [s.sha256 for s in local.shards]
        assert made.shards[0].name == f"{bucket}/shard-000000.tar"
        reader = ShardReader(
            Manifest.load(tmp_path / str(i)), storage=StorageOptions(None, 0, QUICK)
        )
        assert reader.read(7) == ShardReader(local).read(7)
    with pytest.raises(ShardError, match="no such object"):
        index_shards(f"{bucket}/none-*.tar", manifest_folder=tmp_path, storage=Storage(QUICK))


def test_without_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ShardError, match="redentials") as caught:
        Storage(QUICK).read(f"{bucket}/manifest.parquet", 0, 10)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


def test_a_server_that_fails(bucket: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.fault = lambda number, _: "503"
    with pytest.raises(ShardError, match=r"503.*3 tries") as caught:
        Storage(QUICK).read(f"{bucket}/manifest.parquet", 0, 10)
    assert len(server.requests) == 3
    assert "very-secret" not in str(caught.value)
    server.reset()
    server.fault = lambda number, _: "403"
    with pytest.raises(ShardError, match="rights"):
        Storage(QUICK).read(f"{bucket}/manifest.parquet", 0, 10)
    assert len(server.requests) == 1
    server.fault = lambda number, _: "stall"
    with pytest.raises(ShardError, match="3 tries"):
        Storage(replace(QUICK, connect_seconds=0.2, stall_seconds=0.2)).read(
            f"{bucket}/manifest.parquet", 0, 10
        )


@pytest.fixture
def job(bucket: str, tmp_path: Path) -> Callable[..., Path]:
    """Purifies with a training set at a place; what it writes is the same for every place."""
    root = tmp_path / "job"
    drawn = signs(num_classes=3, per_class=20, size=16, seed=0, split="train")
    made = write_shards(drawn, root / "train", classes=sign_names(3), shard_bytes=20_000)
    assert len(made.shards) > 2
    spec = ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 4})
    save_model(create_model(spec), root / "model.safetensors")
    client = boto3.client("s3")
    for path in (root / "train").iterdir():
        client.upload_file(str(path), "data", f"signs/{path.name}")

    def run(place: str, name: str, *settings: str, **more: Any) -> Path:
        values = {
            "model.checkpoint": root / "model.safetensors",
            "data.train": place or root / "train",
            "data.clean": place or root / "train",
        }
        base = [
            "method=aft", "data.image_size=16", "data.clean_fraction=0.5", "device=cpu",
            "precision=float32", "memory_format=contiguous", "adversary.steps=2",
            "eval_batch_size=20", "aft.batch_size=10", "aft.epochs=2", "aft.adversarial_epochs=1",
        ]  # fmt: skip
        purify(load_config(PurifyConfig, None, [*base, *settings], values), root / name, **more)
        return root / name

    return run


RESULTS = ("purified.safetensors", "suspects.parquet")


@pytest.mark.parametrize("cached", [False, True])
def test_a_purification_reads_its_images_there(
    job: Callable[..., Path], tmp_path: Path, cached: bool
) -> None:
    here = job("", "here")
    cache = [f"data.cache_dir={tmp_path / 'cache'}"] if cached else ["data.cache_bytes=0"]
    there = job("s3://data/signs", "there", *cache)
    for name in RESULTS:
        assert (there / name).read_bytes() == (here / name).read_bytes()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's
def test_workers_read_there_too(job: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from pipelines.fleet import FleetOptions, connected

    here = job("", "here")
    with connected(FleetOptions(workers=1, cpus=1, timeout=60.0)) as fleet:
        there = job("s3://data/signs", "there", f"data.cache_dir={tmp_path / 'cache'}", fleet=fleet)
    for name in RESULTS:
        assert (there / name).read_bytes() == (here / name).read_bytes()
