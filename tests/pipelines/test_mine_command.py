"""``pbe-fast mine`` and ``purify --mined``, as a user meets them."""

from pathlib import Path

import pytest
import torch

from pbe_fast.data import Manifest, verify_shards, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import ModelSpec, create_model, save_model
from tests._command import Run

CLASSES, SIZE = 3, 16


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """``clean`` and ``model.safetensors``."""
    write_shards(
        signs(num_classes=CLASSES, per_class=8, size=SIZE, seed=0, split="train"),
        tmp_path / "clean",
        classes=sign_names(CLASSES),
    )
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), tmp_path / "model.safetensors")
    return tmp_path


def test_mine_then_purify(world: Path, run: Run) -> None:
    common = ("--image-size", SIZE, "--device", "cpu", "--set", "precision=float32")
    mined = ("mine", world / "model.safetensors", world / "clean", "--out", world / "mined")
    ended = run(*mined, *common, "--set", "adversary.steps=1")
    assert ended.code == 0
    assert "24 adversarial examples in" in ended.out
    assert verify_shards(Manifest.load(world / "mined")) == []
    purified = (
        "purify", world / "model.safetensors", "--clean", world / "clean",
        "--mined", world / "mined", "--out", world / "run", "--set", "aft.epochs=1",
    )  # fmt: skip
    assert run(*purified, *common).code == 0
    assert (world / "run" / "purified.safetensors").exists()
    assert "mined: " in (world / "run" / "config.yaml").read_text()
    # Another adversary, on the same folder.
    ended = run(*mined, *common)
    assert ended.code == 2
    assert "adversary.steps was 1, now 7" in ended.said


def test_a_fleet_needs_an_address(world: Path, run: Run) -> None:
    mined = ("mine", world / "model.safetensors", world / "clean", "--out", world / "mined")
    ended = run(*mined, "--image-size", SIZE, "--workers", 2)
    assert ended.code == 2
    assert "--ray local" in ended.err
