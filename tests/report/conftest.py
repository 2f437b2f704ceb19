"""Run directories as the jobs leave them: PBE with truth, AFT without test triggers, training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

VERSIONS = {"pbe-fast": "0.1.0", "torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3"}
CONFIG = """\
method: pbe
model: builtin:preact_resnet18
width: 16
data:
  train: gtsrb/train
  test: gtsrb/test
  triggered: gtsrb/test-blend
adversary:
  norm: linf
  eps_255: 6
  steps: 7
seed: 7
"""


def write_json(run: Path, metrics: dict[str, Any]) -> None:
    (run / "metrics.json").write_text(json.dumps(metrics))


def write_suspects(run: Path, *, truth: bool, images: int = 4000, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    poisoned = np.arange(images) % 10 == 4
    scores = np.where(poisoned, random.normal(0.35, 0.2, images), random.normal(0.9, 0.06, images))
    scores = np.clip(scores, -1, 1)
    scores[:3] = np.nan
    rank = np.empty(images, np.int64)
    rank[np.argsort(np.nan_to_num(scores, nan=9.0), kind="stable")] = np.arange(images)
    columns = {
        "key": [f"{i % 43:05d}/{i // 43:05d}_{i % 30:05d}" for i in range(images)],
        "shard": [f"gtsrb-train-{i // 1000:06d}.tar" for i in range(images)],
        "label": pa.array(np.where(poisoned, 1, np.arange(images) % 43), pa.int32()),
        "score": pa.array(scores, pa.float32()),
        "rank": rank,
    }
    if truth:
        columns["poisoned"] = poisoned
    pq.write_table(pa.table(columns), run / "suspects.parquet")


def history(
    rounds: list[tuple[int, int, str]], *, asr: bool, seed: int = 0
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; ``rounds`` says (number, epochs, what is adversarial)."""
    random = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = [{"event": "start", "method": "pbe"}]
    for number, epochs, adversarial in rounds:
        for epoch in range(epochs):
            for batch in range(9, 120, 10):
                attacked = {
                    "all": True,
                    "first 3": epoch < 3,
                    "first batches": epoch == 0 and batch < 30,
                    "none": False,
                }[adversarial]
                level = (2.1 if number == 0 else 1.1) if attacked else 0.25
                loss = level * 0.93 ** (epoch + batch / 120) * (1 + 0.09 * random.normal())
                lines.append(
                    {
                        "event": "step",
                        "phase": "finetune",
                        "round": number,
                        "epoch": epoch,
                        "batch": batch,
                        "loss": round(float(loss), 4),
                        "accuracy": 0.91,
                        "images_per_second": 900.0,
                        "adversarial": attacked,
                    }
                )
            done = number * 10 + epoch + 1
            line = {"event": "evaluation", "round": number, "epoch": epoch + 1}
            line["acc"] = 0.966 - 0.05 * float(np.exp(-done / 4)) + 0.004 * float(random.normal())
            if asr:
                line["asr"] = float(np.exp(-done / 3.2)) + 0.001
            lines.append(line)
    return lines


def write_history(run: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)


def make_pbe(run: Path) -> Path:
    run.mkdir(parents=True)
    write_json(
        run,
        {
            "kind": "purify",
            "method": "pbe",
            "model": {
                "name": "builtin:preact_resnet18",
                "options": {"width": 16},
                "classes": 43,
            },
            "infected": {"acc": 0.9712, "asr": 1.0},
            "purified": {"acc": 0.9641, "asr": 0.0011},
            "suspects": {
                "count": 4000,
                "auroc": 0.9413,
                "precision_at_truth": 0.912,
                "poisoned": 400,
            },
            "rounds": [
                {
                    "round": 0,
                    "subset": 200,
                    "subset_poisoned": 21,
                    "acc": 0.941,
                    "asr": 0.043,
                    "auroc": 0.885,
                },
                {
                    "round": 1,
                    "subset": 800,
                    "subset_poisoned": 0,
                    "acc": 0.957,
                    "asr": 0.012,
                    "auroc": 0.921,
                },
                {"round": 2, "subset": 2000, "acc": 0.962, "asr": 0.004},
                {"round": 3, "subset": 2800, "acc": 0.9641, "asr": 0.0011, "auroc": 0.9413},
            ],
            "seconds": {
                "load": 3.21,
                "finetune_adversarial": 1284.4,
                "score": 41220.5,
                "evaluate": 0.42,
            },
            "images_per_second": {
                "finetune_adversarial": 921.6,
                "score": 12840.0,
                "evaluate": 18.25,
            },
            "device": "cuda (1 GPU)",
            "precision": "bfloat16",
            "versions": VERSIONS,
            "seed": 7,
            "attack": {"name": "blend", "mode": {"kind": "all-to-one", "target": 1}},
            "quarantined": 3,
        },
    )
    rounds = [(0, 10, "all"), (1, 10, "first batches"), (2, 10, "first batches")]
    lines = history([*rounds, (3, 10, "first batches")], asr=True)
    lines[-1] |= {"acc": 0.9641, "asr": 0.0011}
    write_history(run, lines)
    write_suspects(run, truth=True)
    (run / "config.yaml").write_text(CONFIG)
    return run


def make_aft(run: Path) -> Path:
    run.mkdir(parents=True)
    write_json(
        run,
        {
            "kind": "purify",
            "method": "aft",
            "rounds": [{"round": 0, "subset": 1333, "acc": 0.9645}],
            "infected": {"acc": 0.9712},
            "purified": {"acc": 0.9645},
            "suspects": {"count": 4000},
            "seconds": {"finetune": 62.0, "score": 11.9},
            "images_per_second": {"finetune": 310.0, "score": 2010.4},
            "device": "cpu",
            "precision": "float32",
            "versions": VERSIONS,
            "seed": 0,
            "quarantined": 0,
        },
    )
    write_history(run, history([(0, 20, "first 3")], asr=False))
    write_suspects(run, truth=False)
    (run / "config.yaml").write_text(CONFIG.replace("pbe", "aft"))
    return run


def make_train(run: Path) -> Path:
    run.mkdir(parents=True)
    write_json(
        run,
        {
            "kind": "train",
            "test": {"acc": 0.9712, "asr": 1.0},
            "seconds": {"train": 301.5},
            "images_per_second": {"train": 1500.0},
            "device": "cpu",
            "precision": "float32",
            "versions": VERSIONS,
            "seed": 3,
            "attack": {"name": "badnets", "mode": "all-to-one"},
        },
    )
    lines = history([(0, 15, "none")], asr=False)
    for line in lines:
        if line["event"] == "step":
            line["phase"] = "train"
            line["loss"] = 3.6 * 0.72 ** (line["epoch"] + line["batch"] / 120)
        elif line["event"] == "evaluation":
            line["acc"] = 0.97 - 0.7 * 0.7 ** (line["epoch"] - 1)
            line["asr"] = 1 - 0.9 * 0.3 ** (line["epoch"] - 1)
    write_history(run, lines)
    (run / "config.yaml").write_text("method: train\nmodel: builtin:preact_resnet18\n")
    return run


MAKERS: dict[str, Callable[[Path], Path]] = {"pbe": make_pbe, "aft": make_aft, "train": make_train}


@pytest.fixture
def pbe_run(tmp_path: Path) -> Path:
    return make_pbe(tmp_path / "gtsrb-blend-pbe")


@pytest.fixture
def aft_run(tmp_path: Path) -> Path:
    return make_aft(tmp_path / "gtsrb-aft")


@pytest.fixture
def train_run(tmp_path: Path) -> Path:
    return make_train(tmp_path / "gtsrb-train")


@pytest.fixture(params=list(MAKERS))
def any_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path / f"run-{request.param}")
