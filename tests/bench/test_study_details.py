"""What the study's tables do not say, of a few drawn signs and models whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench import study_details
from bench.study import DATA, DataSet, prepare
from bench.study_details import of_target, of_wrong_labels
from pbe_fast import PoisonConfig, PurifyConfig, load_config, poison
from pbe_fast.config import dump_config
from pbe_fast.data.manifest import Manifest
from pbe_fast.suspects import SUSPECTS_NAME
from pbe_fast.train import MODEL_NAME

TINY = DataSet("tiny", classes=3, train_per_class=12, test_per_class=4)


class Says(torch.nn.Module):
    """That every image is of one class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.max() <= 1
        return torch.nn.functional.one_hot(torch.full((len(images),), self.label), 3).float()


def test_how_models_see_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "tiny", TINY)
    monkeypatch.setattr(
        study_details, "load_model", lambda file: Says(1 if file.name == MODEL_NAME else 2)
    )
    shards, case = prepare(tmp_path, TINY, None), tmp_path / "tiny" / "badnets-all_to_one-0.25-0"
    plan = PoisonConfig(attack="badnets", target=TINY.target, rate=0.25, device="cpu")
    poison(shards / "train", case / "poisoned", plan)
    (case / "sieve").mkdir()
    config = load_config(PurifyConfig, values={"data.test": shards / "test"})
    (case / "sieve" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert of_target(case) == {
        "target": 1,
        "test_images": 4,
        "infected_knows": 4,
        "purified_knows": 0,
        "own_training_images": 12,
        "purified_knows_own": 0,
        "triggered": 9,
        "purified_takes_for_target": 0,
    }


def test_how_many_suspects_have_a_wrong_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = replace(TINY, wrong=0.5)
    monkeypatch.setitem(DATA, "tiny", noisy)
    shards, case = prepare(tmp_path, noisy, None), tmp_path / "tiny" / "benign-0" / "sieve"
    given = Manifest.load(shards / "train")
    true = np.array([int(key.as_py().split("/")[0]) for key in given.keys])
    wrong = true != given.labels
    assert 0 < wrong.sum() < len(wrong)
    order = np.argsort(~wrong, kind="stable")
    count = int(wrong.sum())
    scores = np.full(len(wrong), -0.1)
    scores[: count - 1], scores[count - 1 : count + 1] = -0.9, -0.3  # one of each is undecided
    case.mkdir(parents=True)
    columns = {"key": given.keys.take(pa.array(order)), "label": given.labels[order]}
    pq.write_table(pa.table(columns | {"score": scores}), case / SUSPECTS_NAME)
    assert of_wrong_labels(case.parent) == {
        "wrong": count,
        "suspects": count - 1,
        "wrong_suspects": count - 1,
        "undecided": 2,
        "wrong_undecided": 1,
        "share_of_as_many_first": 1.0,
    }
