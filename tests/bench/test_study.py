"""The study from nothing, on a few drawn signs."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import study
from bench.study import Case, DataSet, added, cases, collect, der, prepare, run_case, run_cell
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import read_bytes
from pbe_fast.progress import Silent

TINY = DataSet(
    "tiny", classes=3, train_per_class=12, test_per_class=4, epochs=1, clean_fraction=0.5
)


def test_cases_are_all_that_the_study_promises() -> None:
    found = list(cases())
    assert len({case.name for case in found}) == len(found) == 3 * (1 + 5 * 2 + 2 * 3)


def test_der_is_that_of_backdoorbench() -> None:
    assert der({"acc": 0.9, "asr": 1.0}, {"acc": 0.9, "asr": 0.0}) == 1.0
    assert der({"acc": 0.9, "asr": 1.0}, {"acc": 0.7, "asr": 1.0}) == pytest.approx(0.4)
    assert der({"acc": 0.9, "asr": 0.5}, {"acc": 0.95, "asr": 0.6}) == 0.5


def test_rows_of_other_folders_stay_and_newer_ones_replace_them() -> None:
    model = {"method": "sieve", "model": "0a"}
    old = [{"case": case, "seconds": 1, **model} for case in ("b", "a")]
    new = [{"case": case, "seconds": 2, **model} for case in ("c", "b")]
    found = [(row["case"], row["seconds"]) for row in added(old, new)]
    assert found == [("a", 1), ("b", 2), ("c", 2)]


def test_rows_of_a_model_that_was_trained_again_go() -> None:
    new = [{"case": "a", "method": "sieve", "model": "0b"}]
    same = {"case": "a", "method": "ft", "model": "0b"}
    other = {"case": "b", "method": "ft", "model": "0a"}
    unknown = {"case": "a", "method": "nad"}  # of when it was not kept which model it was
    assert added([same | {"model": "0a"}, unknown], new) == new
    assert added([same, other], new) == [same, *new, other]


def test_a_case_and_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"precision": "float32", "memory_format": "contiguous", "adversary.steps": 1}
    methods = {
        "aft": {"method": "aft", "aft.epochs": 1, "aft.adversarial_epochs": 1, **quick},
        "pbe": {"method": "pbe", "pbe.epochs": 1, "pbe.adversarial_batches": 1, **quick},
    }
    monkeypatch.setattr(study, "METHODS", methods)
    shards = prepare(tmp_path, TINY, None)
    infected, benign = Case("badnets", "all_to_all", 0.2, 1), Case("benign", seed=1)
    for case in (infected, benign):
        run_case(tmp_path, shards, TINY, case, "cpu", Silent())
        for method in methods:
            run_cell(tmp_path, shards, TINY, case, method, "cpu", Silent())
    rows = collect(tmp_path, TINY)
    assert [(row["case"], row["method"]) for row in rows] == [
        (case.name, method) for case in (infected, benign) for method in ("aft", "pbe")
    ]
    assert len({row["model"] for row in rows}) == 2  # one of each case
    assert all("der" in row and "auroc" in row for row in rows[:2])
    assert not any("precision" in row or "count" in row for row in rows)  # no method that cuts
    file = tmp_path / "tiny" / infected.name / "pbe" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["suspects"] |= {"suspect": 9, "undecided": 2, "precision": 0.5, "recall": 0.25}
    metrics["backdoor"] = {"found": True, "labels": [0, 2], "mislabelled": []}
    file.write_text(json.dumps(metrics))
    row = collect(tmp_path, TINY)[1]
    listed = ("suspect", "undecided", "precision", "recall", "found", "labels", "mislabelled")
    assert [row[key] for key in listed] == [9, 2, 0.5, 0.25, True, 2, 0]
    assert row["subset_poisoned"] == [facts["subset_poisoned"] for facts in metrics["rounds"]]
    assert len(row["subset_poisoned"]) == 4
    assert all("der" not in row and row["purified"].keys() == {"acc"} for row in rows[2:])
    model = tmp_path / "tiny" / infected.name / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    run_case(tmp_path, shards, TINY, infected, "cpu", Silent())  # is there already
    assert model.stat().st_mtime_ns == before


def test_thinned_shards_have_every_third_image_by_name(tmp_path: Path) -> None:
    whole = Manifest.load(prepare(tmp_path, TINY, None) / "train")
    thinned = replace(TINY, name="thin", every=3)
    made = Manifest.load(prepare(tmp_path, thinned, tmp_path / "tiny-clean") / "train")
    expected = sorted(whole.keys.to_pylist())[::3]
    assert sorted(made.keys.to_pylist()) == expected
    labels = dict(zip(whole.keys.to_pylist(), whole.labels.tolist(), strict=True))
    assert made.labels.tolist() == [labels[key] for key in made.keys.to_pylist()]
    assert made.classes == whole.classes
    for kept in range(len(made)):
        origin = whole.keys.to_pylist().index(made.keys[kept].as_py())
        assert read_bytes(made, kept) == read_bytes(whole, origin)
    test = Manifest.load(tmp_path / "thin-clean" / "test")
    assert len(test) == 3 * TINY.test_per_class  # the test images are all there


def test_of_a_whole_class_every_image_is_taken(tmp_path: Path) -> None:
    prepare(tmp_path, TINY, None)
    thinned = replace(TINY, name="thin", every=3, whole=1)
    made = Manifest.load(prepare(tmp_path, thinned, tmp_path / "tiny-clean") / "train")
    counts = [int((made.labels == label).sum()) for label in range(3)]
    assert counts[1] == 12
    assert counts[0] + counts[2] < 12
    assert len(set(made.keys.to_pylist())) == len(made)


@pytest.mark.parametrize("step", [None, 1])
def test_of_mislabelled_shards_a_share_has_other_labels(tmp_path: Path, step: int | None) -> None:
    data = replace(TINY, name="noisy", wrong=0.4, wrong_step=step)
    made = prepare(tmp_path, data, None)
    noisy, clean = (Manifest.load(folder / "train") for folder in (made, tmp_path / "noisy-clean"))
    assert noisy.keys.equals(clean.keys)
    moved = (noisy.labels - clean.labels)[noisy.labels != clean.labels] % TINY.classes
    assert 0.2 < len(moved) / len(clean) < 0.6
    assert set(moved.tolist()) == ({1, 2} if step is None else {1})
    assert read_bytes(noisy, 0) == read_bytes(clean, 0)
    test = Manifest.load(made / "test")
    assert (test.labels == Manifest.load(tmp_path / "noisy-clean" / "test").labels).all()


def test_noise_is_added_to_every_image_and_is_another_one_in_training(tmp_path: Path) -> None:
    """Training images of one place in their folder must not tell of a test image's noise."""
    made = prepare(tmp_path, replace(TINY, name="hard", noise=50), None)
    added = []
    for split in ("train", "test"):
        noisy, clean = (Manifest.load(f / split) for f in (made, tmp_path / "hard-clean"))
        assert noisy.keys.equals(clean.keys)
        assert (noisy.labels == clean.labels).all()
        for index in (0, len(clean) - 1):
            images = [Image.open(io.BytesIO(read_bytes(m, index))) for m in (noisy, clean)]
            after, before = (np.asarray(image.convert("RGB"), float) for image in images)
            inside = (before > 100) & (before < 155)  # where nothing is cut off
            assert 40 < (after - before)[inside].std() < 60
            added.append(after - before)
    assert abs(np.corrcoef(added[0].ravel(), added[2].ravel())[0, 1]) < 0.1


def test_the_target_is_that_of_the_data_set(tmp_path: Path) -> None:
    data = replace(TINY, name="other", target=2)
    shards = prepare(tmp_path, data, None)
    run_case(tmp_path, shards, data, Case("badnets", rate=0.5), "cpu", Silent())
    poisoned = Manifest.load(tmp_path / "other" / "badnets-all_to_one-0.5-0" / "poisoned")
    assert (poisoned.labels == 2).sum() > 12
