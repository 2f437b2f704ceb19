"""Scanning over a fleet ends in the same bytes as in a single process."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.data import Manifest, Sample, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import ModelSpec, create_model, save_model
from pbe_fast.progress import Silent, StoppedError

pytest.importorskip("ray")
from pipelines.fleet import Fleet

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CLASSES, SIZE = 3, 16
BASE = [
    f"data.image_size={SIZE}", "precision=float32", "memory_format=contiguous", "device=cpu",
    "scan.eps_255=[2,8]", "scan.steps=2", "scan.per_class=7", "batch_size=8",
]  # fmt: skip


def _samples() -> Iterator[Sample]:
    return signs(num_classes=CLASSES, per_class=30, size=SIZE, seed=0, split="train")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``images``, ``model.safetensors``, and ``scanned``: by this process."""
    root = tmp_path_factory.mktemp("world")
    write_shards(_samples(), root / "images", classes=sign_names(CLASSES), shard_bytes=20_000)
    assert len(Manifest.load(root / "images").shards) >= 3
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), root / "model.safetensors")
    torch.set_num_threads(1)  # as the workers have
    scan(_config(root), root / "scanned")
    return root


def _config(world: Path) -> ScanConfig:
    values = {"model.checkpoint": world / "model.safetensors", "data.train": world / "images"}
    return load_config(ScanConfig, None, BASE, values)


class _Counting(Silent):
    """Of each phase, how many images there are, and how many were done."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    def phase(self, name: str, total: int, done: int = 0) -> None:
        self.name = name
        self.counts[name] = [total, done]

    def advance(self, images: int) -> None:
        self.counts[self.name][1] += images


def test_any_number_of_workers_makes_the_same_bytes(
    world: Path, tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths mean the same to the workers
    for workers in (1, 2):
        one = Fleet(replace(fleet.options, workers=workers))
        progress = _Counting()
        scan(_config(world), Path(f"out{workers}"), progress, fleet=one)
        assert progress.counts == {"scan": [21, 21], "activations": [90, 90]}
        made = (tmp_path / f"out{workers}" / "predictions.parquet").read_bytes()
        assert made == (world / "scanned" / "predictions.parquet").read_bytes()


def test_a_stopped_fleet_goes_on(world: Path, tmp_path: Path, fleet: Fleet) -> None:
    parts = tmp_path / "out" / "scores" / "scan"

    def stop() -> Any:
        time.sleep(0.01)
        return parts.exists() and any(parts.glob("*.safetensors"))

    with pytest.raises(StoppedError):
        scan(_config(world), tmp_path / "out", fleet=fleet, stop=stop)
    scan(_config(world), tmp_path / "out", fleet=fleet)
    made = (tmp_path / "out" / "predictions.parquet").read_bytes()
    assert made == (world / "scanned" / "predictions.parquet").read_bytes()
