"""``pbe-fast scan``, as a user meets it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pbe_fast.data import Manifest, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import ModelSpec, create_model, save_model
from pipelines import _scan_command
from tests._command import Run

CLASSES, SIZE = 3, 16


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """``images`` and ``model.safetensors``."""
    write_shards(
        signs(num_classes=CLASSES, per_class=8, size=SIZE, seed=0, split="train"),
        tmp_path / "images",
        classes=sign_names(CLASSES),
    )
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def scan(world: Path, run: Run) -> Run:
    """``pbe-fast scan`` with more arguments."""
    given = [
        "scan", world / "model.safetensors", world / "images", "--out", world / "run",
        "--image-size", SIZE, "--device", "cpu", "--set", "precision=float32",
    ]  # fmt: skip
    return lambda *arguments: run(*given, *arguments)


def test_scan_prints_where_examples_go(world: Path, scan: Run) -> None:
    code, shown, _ = scan("--eps", 4, "--eps", 12, "--per-class", 5)
    assert code == 0
    assert "eps 4/255: " in shown
    assert "eps 12/255: " in shown
    assert f"0 {Manifest.load(world / 'images').classes[0]}" in shown
    assert "15 images" in shown
    assert (world / "run" / "report.html").exists()
    # Other images, on the same folder.
    ended = scan("--eps", 4, "--eps", 12, "--all")
    assert ended.code == 2
    assert "scan.per_class was 5, now None" in ended.said


def test_ctrl_c_says_what_is_kept(scan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_scan_command, "scan", stopped)
    ended = scan()
    assert ended.code == 1
    assert "Finished shards are kept; the same command goes on." in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--all", "--per-class", 3], "contradict"),
        (["--eps", 8, "--eps", 2], "smallest first"),
        (["--eps", -1], "eps_255"),
        (["--workers", 2], "--ray local"),
        (["--width", 3], "model.name"),
    ],
)
def test_mistakes_get_a_word(world: Path, scan: Run, arguments: list[object], words: str) -> None:
    ended = scan(*arguments)
    assert ended.code == 2
    assert words in ended.said
    assert not (world / "run" / "predictions.parquet").exists()
