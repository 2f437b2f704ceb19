"""``pbe-fast mine`` and ``purify --mined``, as a user meets them."""

import sys
from pathlib import Path

import pytest
import torch

from pbe_fast.data import Manifest, verify_shards, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import ModelSpec, create_model, save_model
from pipelines.cli import main

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


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pbe-fast", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_mine_then_purify(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--image-size", SIZE, "--device", "cpu", "--set", "precision=float32")
    mined = ("mine", world / "model.safetensors", world / "clean", "--out", world / "mined")
    assert _run(monkeypatch, *mined, *common, "--set", "adversary.steps=1") == 0
    assert "24 adversarial examples in" in capsys.readouterr().out
    assert verify_shards(Manifest.load(world / "mined")) == []
    purified = (
        "purify", world / "model.safetensors", "--clean", world / "clean",
        "--mined", world / "mined", "--out", world / "run", "--set", "aft.epochs=1",
    )  # fmt: skip
    assert _run(monkeypatch, *purified, *common) == 0
    assert (world / "run" / "purified.safetensors").exists()
    assert "mined: " in (world / "run" / "config.yaml").read_text()
    # Another adversary, on the same folder.
    assert _run(monkeypatch, *mined, *common) == 2
    assert "adversary.steps was 1, now 7" in " ".join(capsys.readouterr().err.split())


def test_a_fleet_needs_an_address(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mined = ("mine", world / "model.safetensors", world / "clean", "--out", world / "mined")
    assert _run(monkeypatch, *mined, "--image-size", SIZE, "--workers", 2) == 2
    assert "--ray local" in capsys.readouterr().err
