"""``pbe-fast report`` with other runs, as a user meets it."""

import json
from pathlib import Path

import pytest
import torch

from pbe_fast.data import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import ModelSpec, create_model, save_model
from pbe_fast.triggers import Attack, BadNets, save_attack
from tests._command import Run

CLASSES, SIZE = 3, 16


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """``images``, ``attack.safetensors``, the infected model, and ``pure``, a run with another."""
    write_shards(
        signs(num_classes=CLASSES, per_class=6, size=SIZE, seed=0, split="test"),
        tmp_path / "images",
        classes=sign_names(CLASSES),
    )
    save_attack(
        Attack(BadNets(SIZE, 3), "all_to_one", 1, CLASSES, SIZE), tmp_path / "attack.safetensors"
    )
    pure = tmp_path / "pure"
    pure.mkdir()
    (pure / "metrics.json").write_text(json.dumps({"kind": "purify", "method": "aft"}))
    infected = tmp_path / "infected.safetensors"
    (pure / "config.yaml").write_text(f"model:\n  checkpoint: {infected}\n")
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 2})
    for seed, path in enumerate((infected, pure / "purified.safetensors")):
        torch.manual_seed(seed)
        save_model(create_model(spec), path)
    return tmp_path


def test_other_runs_are_shown_and_stay(world: Path, run: Run) -> None:
    small = ["--image-size", SIZE, "--device", "cpu", "--set", "memory_format=contiguous"]
    models = {"bad": world / "infected.safetensors", "good": world / "pure/purified.safetensors"}
    for name, model in models.items():
        ended = run("scan", model, world / "images", "--out", world / name, "--eps", 8, *small,
                         "--set", "precision=float32")  # fmt: skip
        assert ended.code == 0, ended.said
        assert (world / name / "figures" / "heat-map-8.png").exists()
    ended = run("features", models["bad"], world / "images", "--out", world / "looks",
                     "--attack", world / "attack.safetensors", "--images", 6, *small)  # fmt: skip
    assert ended.code == 0, ended.said

    ended = run("report", world / "pure", "--scan", world / "bad", "--scan", world / "good",
                     "--features", world / "looks")  # fmt: skip
    assert ended.code == 0, ended.said
    assert str(world / "pure" / "report.html") in ended.said.replace(" ", "")
    page = (world / "pure" / "report.html").read_text("utf-8")
    for words in (
        "Infected model. Heat map at eps 8/255",
        "Purified model. Heat map at eps 8/255",
        "Similarity of features at layer penultimate",
        "feature maps at layer",
    ):
        assert words in page
    assert page.count("<img ") == len(list((world / "looks").glob("*.png"))) >= 2
    assert run("report", world / "pure")[0] == 0
    assert (world / "pure" / "report.html").read_text("utf-8") == page


def test_mistakes_get_a_word(world: Path, run: Run) -> None:
    for option in ("--scan", "--features"):
        ended = run("report", world / "pure", option, world / "missing")
        assert ended.code == 2
        assert "missing: there is no such run directory" in ended.said
    ended = run("report", world / "pure", "--scan", world / "pure")
    assert ended.code == 2
    assert "is no run of 'pbe-fast scan' but of 'purify'" in ended.said
    assert not (world / "pure" / "report.html").exists()
