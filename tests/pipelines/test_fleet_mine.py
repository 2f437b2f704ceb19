"""Mining over a fleet, and purifying over one with what was mined, end as in a single process."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pbe_fast import MineConfig, PurifyConfig, load_config, mine, purify
from pbe_fast.data import Sample, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.errors import QuarantineError
from pbe_fast.models import ModelSpec, create_model, save_model
from pbe_fast.progress import StoppedError
from tests._runs import mined_files

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
    "adversary.steps=2",
]  # fmt: skip


def _write(folder: Path, damaged: int | None = None) -> Path:
    def samples() -> Iterator[Sample]:
        drawn = signs(num_classes=CLASSES, per_class=30, size=SIZE, seed=0, split="train")
        for index, sample in enumerate(drawn):
            yield replace(sample, image=sample.image[:-40]) if index == damaged else sample

    write_shards(samples(), folder, classes=sign_names(CLASSES), shard_bytes=20_000)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``clean``, ``model.safetensors``, and ``mined``: by this process."""
    root = tmp_path_factory.mktemp("world")
    _write(root / "clean")
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), root / "model.safetensors")
    torch.set_num_threads(1)  # as the workers have
    mine(_config(root), root / "mined")
    return root


def _config(world: Path, *settings: str, data: Path | None = None) -> MineConfig:
    values = {
        "model.checkpoint": world / "model.safetensors",
        "data.train": data or world / "clean",
    }
    return load_config(MineConfig, None, [*BASE, "batch_size=8", *settings], values)


def test_any_number_of_workers_makes_the_same_bytes(
    world: Path, tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mined_files(world / "mined")
    assert len(expected) > 8  # several shards
    monkeypatch.chdir(tmp_path)  # relative paths mean the same to the workers
    for workers in (1, 2):
        one = Fleet(replace(fleet.options, workers=workers))
        metrics = mine(_config(world), Path(f"out{workers}"), fleet=one)
        assert metrics["images"] == 90
        assert metrics["images_per_second"]["mine"] > 0
        assert mined_files(Path(f"out{workers}")) == expected


def test_a_fleet_that_was_stopped_goes_on_anywhere(
    world: Path, tmp_path: Path, fleet: Fleet
) -> None:
    out, parts = tmp_path / "out", tmp_path / "out" / "parts"
    with pytest.raises(StoppedError):
        mine(_config(world), out, fleet=fleet, stop=lambda: bool(list(parts.glob("0*/*.tar"))))
    time.sleep(1)  # workers are gone before another process writes here
    assert not (out / "manifest.parquet").exists()
    mine(_config(world), out)
    assert mined_files(out) == mined_files(world / "mined")


def test_undecodable_images_are_counted_by_the_driver(
    world: Path, tmp_path: Path, fleet: Fleet
) -> None:
    data = _write(tmp_path / "data", damaged=40)
    with pytest.raises(QuarantineError, match="1 undecodable images"):
        mine(_config(world, data=data), tmp_path / "out", fleet=fleet)
    config = _config(world, "data.quarantine_budget=0.02", data=data)
    metrics = mine(config, tmp_path / "other", fleet=fleet)
    assert (metrics["images"], metrics["quarantined"]) == (89, 1)


def test_ranks_take_what_was_mined(world: Path, tmp_path: Path, fleet: Fleet) -> None:
    values: dict[str, Any] = {
        "model.checkpoint": world / "model.safetensors",
        "data.clean": world / "clean",
        "data.mined": world / "mined",
    }
    steps = ["aft.batch_size=20", "aft.epochs=2", "aft.adversarial_epochs=1"]
    config = load_config(PurifyConfig, None, [*BASE, *steps], values)
    purify(config, tmp_path / "alone")
    live = config.model_copy(update={"data": config.data.model_copy(update={"mined": None})})
    purify(live, tmp_path / "live")
    for workers in (1, 2):
        some = Fleet(replace(fleet.options, workers=workers))
        purify(config, tmp_path / str(workers), fleet=some)
    weights = [(tmp_path / name / "purified.safetensors").read_bytes() for name in ("alone", "1")]
    assert weights[0] == weights[1]
    alone, two, mining = (_losses(tmp_path / name) for name in ("alone", "2", "live"))
    np.testing.assert_allclose(two, alone, rtol=1e-4)
    assert not np.allclose(mining, alone, rtol=1e-4)


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]
