"""What the study's tables do not say, of a few drawn signs and models whose answers are known."""

from collections.abc import Mapping
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
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.purify import PURIFIED_NAME
from pbe_fast.suspects import SUSPECTS_NAME
from pbe_fast.train import MODEL_NAME
from pbe_fast.triggers.poisoning import TRUTH_NAME, load_truth

TINY = DataSet("tiny", classes=3, train_per_class=12, test_per_class=4)


class Told(torch.nn.Module):
    """That each image is of the class that it is told to be of."""

    def __init__(self, classes: Mapping[bytes, int]) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        pixels = (images * 255).round().to(torch.uint8)
        return torch.nn.functional.one_hot(
            torch.tensor([self.classes[one.numpy().tobytes()] for one in pixels]), 3
        ).float()


def _told(data: ImageData, classes: np.ndarray) -> dict[bytes, int]:
    [batch] = data.read(data.ids, len(data.ids))
    return {one.numpy().tobytes(): int(k) for one, k in zip(batch.images, classes, strict=True)}


def test_how_models_see_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "tiny", TINY)
    shards, case = prepare(tmp_path, TINY, None), tmp_path / "tiny" / "badnets-all_to_one-0.25-0"
    plan = PoisonConfig(attack="badnets", target=1, rate=0.25, device="cpu")
    poison(shards / "train", case / "poisoned", plan)
    (case / "sieve").mkdir()
    config = load_config(PurifyConfig, values={"data.test": shards / "test"})
    (case / "sieve" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    test, train = (ImageData.open(p, 32, workers=0) for p in (shards / "test", case / "poisoned"))
    truth = load_truth(case / "poisoned" / TRUTH_NAME, train.manifest)

    seen, seen_again = (np.zeros(len(test.ids), int) for _ in range(2))
    here = np.flatnonzero(test.manifest.labels == 1)
    seen[here[:3]] = seen_again[here[:2]] = 1
    seen[np.flatnonzero(test.manifest.labels == 2)] = 1
    trained = np.zeros(len(train.ids), int)
    own = np.flatnonzero((train.manifest.labels == 1) & ~truth)
    trained[own[:7]] = trained[np.flatnonzero(truth)[:4]] = 1
    trained[np.flatnonzero(train.manifest.labels == 2)] = 1
    models = {
        MODEL_NAME: Told(_told(test, seen)),
        PURIFIED_NAME: Told(_told(test, seen_again) | _told(train, trained)),
    }
    monkeypatch.setattr(study_details, "load_model", lambda file: models[file.name])
    assert of_target(case) == {
        "target": 1,
        "test_images": 4,
        "infected_knows": 3,
        "purified_knows": 2,
        "own_training_images": 12,
        "purified_knows_own": 7,
        "triggered": 9,
        "purified_takes_for_target": 4,
    }


def test_how_many_suspects_have_a_wrong_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = replace(TINY, wrong=0.5)
    monkeypatch.setitem(DATA, "tiny", noisy)
    shards, case = prepare(tmp_path, noisy, None), tmp_path / "tiny" / "benign-0" / "sieve"
    given = Manifest.load(shards / "train")
    wrong = np.array([int(key.as_py().split("/")[0]) for key in given.keys]) != given.labels
    count = int(wrong.sum())
    assert 3 < count < len(wrong) - 3
    # Of the suspects all have a wrong label but one, and one wrong label is undecided.
    order = np.argsort(~wrong, kind="stable")
    order[[count - 1, count]] = order[[count, count - 1]]
    scores = np.full(len(wrong), -0.1)
    scores[:count], scores[count] = -0.9, -0.3
    case.mkdir(parents=True)
    columns = {"key": given.keys.take(pa.array(order)), "label": given.labels[order]}
    pq.write_table(pa.table(columns | {"score": scores}), case / SUSPECTS_NAME)
    found = of_wrong_labels(case.parent)
    assert (found["wrong"], found["suspect"], found["undecided"]) == (count, count, 1)
    for share in ("precision", "recall", "precision_at_truth"):
        assert found[share] == pytest.approx((count - 1) / count), share
