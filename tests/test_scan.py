"""The job scan: what is asked of the model, what is kept, stopping and going on."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pbe_fast import ScanConfig, load_config, scan
from pbe_fast.adversary import Miner
from pbe_fast.analysis.answers import chosen
from pbe_fast.analysis.predictions import read_predictions
from pbe_fast.analysis.verdict import Verdict, judge
from pbe_fast.config import AdversaryConfig
from pbe_fast.data import ImageData, Manifest, Sample, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.device import Device
from pbe_fast.erase import make_pgd
from pbe_fast.erase.activations import Activations
from pbe_fast.erase.identify import score_shards
from pbe_fast.erase.split import ClassSplit, Split
from pbe_fast.errors import ConfigError, DivergenceError, QuarantineError, RunDirectoryError
from pbe_fast.models import ModelSpec, create_model, load_model, save_model
from pbe_fast.progress import StoppedError
from tests._runs import Stop, StopAfter

CLASSES, SIZE = 3, 16
CPU = Device(torch.device("cpu"), "float32", "contiguous")
BASE = [
    f"data.image_size={SIZE}", "precision=float32", "memory_format=contiguous", "device=cpu",
    "scan.eps_255=[2,8]", "scan.steps=2", "scan.per_class=7", "batch_size=8",
]  # fmt: skip


def _samples() -> Iterator[Sample]:
    return signs(num_classes=CLASSES, per_class=20, size=SIZE, seed=0, split="train")


def _write(folder: Path, samples: Iterator[Sample]) -> Path:
    write_shards(samples, folder, classes=sign_names(CLASSES), shard_bytes=25_000)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``images``: 60 signs in some shards; ``model.safetensors``."""
    root = tmp_path_factory.mktemp("world")
    assert len(Manifest.load(_write(root / "images", _samples())).shards) >= 3
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), root / "model.safetensors")
    return root


def _config(world: Path, *settings: str, data: Path | None = None) -> ScanConfig:
    values = {
        "model.checkpoint": world / "model.safetensors",
        "data.train": data or world / "images",
    }
    return load_config(ScanConfig, None, [*BASE, *settings], values)


@pytest.fixture(scope="module")
def scanned(world: Path) -> Path:
    """A run that nothing stopped."""
    first = scan(_config(world), world / "scanned")
    assert scan(_config(world), world / "scanned") == first  # the second is only read
    return world / "scanned"


# what is asked


def test_the_rows_are_the_models_answers(world: Path, scanned: Path) -> None:
    model = load_model(world / "model.safetensors").eval()
    data = ImageData.open(world / "images", SIZE)
    manifest = data.manifest
    ids = chosen(manifest.labels, 7, 0)
    batch = next(data.read(ids, 1000))
    views = [batch.images.float() / 255]
    for eps in (2.0, 8.0):
        miner = Miner(make_pgd(AdversaryConfig(eps_255=eps, steps=2)), model, CPU)
        views.append(miner(batch.images, batch.labels))
        reach = 2 * eps / 5 / 255  # two steps
        assert float((views[-1] - views[0]).abs().max()) == pytest.approx(reach, rel=1e-3)
    found = read_predictions(scanned / "predictions.parquet")
    table = pq.read_table(scanned / "predictions.parquet")
    assert table["key"].to_pylist() == manifest.keys.take(ids).to_pylist()
    assert table["shard"][0].as_py() == manifest.shards[0].name
    np.testing.assert_array_equal(found.labels, batch.labels.numpy())
    for column, view in enumerate(views):
        with torch.inference_mode():
            logits = model(view)
        others = logits.clone()
        others[torch.arange(len(ids)), batch.labels] = -torch.inf
        margins = logits[torch.arange(len(ids)), batch.labels] - others.amax(1)
        np.testing.assert_allclose(found.margins[:, column], margins, atol=2e-3)
        clear = margins.abs().numpy() > 1e-2
        same = found.predicted[:, column] == logits.argmax(1).numpy()
        assert same[clear].all()
    assert (found.margins[:, 1] <= found.margins[:, 0] + 1e-3).mean() > 0.9  # it is an attack


def test_the_choice_is_even_random_and_repeatable() -> None:
    labels = np.array([0] * 50 + [2] * 3 + [1] * 20, np.int32)
    ids = chosen(labels, 5, 0)
    assert np.bincount(labels[ids]).tolist() == [5, 5, 3]
    assert (np.diff(ids) > 0).all()
    assert ids.tolist() == chosen(labels, 5, 0).tolist()
    assert ids.tolist() != chosen(labels, 5, 1).tolist()
    assert chosen(labels, None, 0).tolist() == list(range(73))


def test_what_is_kept_says_what_the_table_says(scanned: Path) -> None:
    metrics = json.loads((scanned / "metrics.json").read_text())
    found = read_predictions(scanned / "predictions.parquet")
    assert metrics["kind"] == "scan"
    assert metrics["images"] == len(found.labels) == 3 * 7
    assert metrics["accuracy"] == pytest.approx(found.accuracy)
    assert metrics["images_per_second"]["scan"] > 0
    for size, row in enumerate(metrics["scan"]):
        assert row["eps_255"] == found.eps_255[size]
        assert row["success"] == pytest.approx(found.success[size])
        for label in row["labels"]:
            assert label["share"] == pytest.approx(found.share[size, label["label"]])
            assert label["expected"] == pytest.approx(found.expected[size, label["label"]])
    for name in ("config.yaml", "log.txt", "report.html"):
        assert (scanned / name).exists()
    assert not (scanned / "state.safetensors").exists()


def test_the_verdict_says_what_it_went_by(world: Path, scanned: Path, tmp_path: Path) -> None:
    metrics = json.loads((scanned / "metrics.json").read_text())
    found = read_predictions(scanned / "predictions.parquet")
    assert found.second is not None
    assert metrics["verdict"] == json.loads(json.dumps(asdict(_short(judge(found)))))
    assert {one["kind"] for one in metrics["verdict"]["evidence"]} >= {"pull", "shift"}
    data = ImageData.open(world / "images", SIZE)
    assert metrics["images_per_second"]["activations"] > 0
    assert len(list((scanned / "scores" / "activations").iterdir())) == len(data.manifest.shards)

    without = scan(_config(world, "split=false"), tmp_path / "out")
    assert read_predictions(tmp_path / "out" / "predictions.parquet").second is None
    assert without["verdict"]["clusters"] is False
    assert not (tmp_path / "out" / "scores" / "activations").exists()


def _short(verdict: Verdict) -> Verdict:
    return replace(verdict, evidence=verdict.strongest)


def test_kinds_are_found_by_the_activations_of_all_images(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageData.open(world / "images", SIZE)
    measure = Activations(load_model(world / "model.safetensors").eval(), CPU, SIZE)
    shards = range(len(data.manifest.shards))
    scored = score_shards(measure, data, CPU, shards, batch_size=8, advance=lambda _: None)
    rows = np.concatenate([row for _, row in scored])
    third = np.arange(len(data.manifest)) % 3 == 0

    def split(features: np.ndarray, labels: np.ndarray, *, ashman: bool) -> Split:
        assert ashman  # as for the benign models of the verdict
        np.testing.assert_allclose(features.astype(float), rows.astype(float), atol=2e-2)
        np.testing.assert_array_equal(labels, data.manifest.labels)
        odds = np.where(third, 50, -50).astype(np.float32)
        return Split(odds, np.zeros(len(labels), bool), (ClassSplit(1, 100, 0.3, 2.0, 6.0),))

    # The function hides the module of its name.
    monkeypatch.setattr(sys.modules["pbe_fast.scan"], "split_classes", split)
    scan(_config(world), tmp_path / "out")
    found = read_predictions(tmp_path / "out" / "predictions.parquet")
    np.testing.assert_array_equal(found.second, third[chosen(data.manifest.labels, 7, 0)])
    assert [one.label for one in found.split] == [1]


def test_all_images(world: Path, tmp_path: Path) -> None:
    assert scan(_config(world, "scan.per_class=null"), tmp_path / "out")["images"] == 60


# stopping and going on


def _bytes(out: Path) -> bytes:
    return (out / "predictions.parquet").read_bytes()


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    world: Path, scanned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        scan(_config(world), out, StopAfter(10))
    kept = {p: p.stat().st_mtime_ns for p in (out / "scores" / "scan").iterdir()}
    assert kept
    assert not (out / "predictions.parquet").exists()
    metrics = scan(_config(world), out)
    assert _bytes(out) == _bytes(scanned)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert metrics["images_per_second"]["scan"] > 0


def test_a_run_that_is_told_to_stop_goes_on(world: Path, scanned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        scan(_config(world), out, stop=lambda: True)
    assert len(list((out / "scores" / "scan").iterdir())) == 1
    scan(_config(world), out)
    assert _bytes(out) == _bytes(scanned)


def test_a_finished_run_is_not_done_again(world: Path, scanned: Path) -> None:
    (scanned / "report.html").unlink()
    before = (scanned / "predictions.parquet").stat().st_mtime_ns
    assert scan(_config(world), scanned)["images"] == 21
    assert (scanned / "predictions.parquet").stat().st_mtime_ns == before
    assert (scanned / "report.html").exists()


def test_a_damaged_part_is_done_again(world: Path, scanned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        scan(_config(world), out, StopAfter(10))
    part = min((out / "scores" / "scan").iterdir())
    part.write_bytes(part.read_bytes()[:-8])
    scan(_config(world), out)
    assert _bytes(out) == _bytes(scanned)


@pytest.mark.parametrize("other", ["scan.eps_255=[2,9]", "scan.steps=3", "seed=1"])
def test_another_configuration_is_refused_and_if_accepted_done_anew(
    world: Path, tmp_path: Path, other: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        scan(_config(world), out, StopAfter(10))
    changed = _config(world, other)
    with pytest.raises(RunDirectoryError, match="another configuration"):
        scan(changed, out)
    scan(changed, out, accept_changes=True)
    scan(changed, tmp_path / "fresh")
    assert _bytes(out) == _bytes(tmp_path / "fresh")


def test_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes((world / "model.safetensors").read_bytes())
    config = _config(world).model_copy(
        update={"model": _config(world).model.model_copy(update={"checkpoint": model})}
    )
    with pytest.raises(Stop):
        scan(config, tmp_path / "out", StopAfter(10))
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), model)
    with pytest.raises(RunDirectoryError, match="have changed"):
        scan(config, tmp_path / "out")


# bad input


def test_undecodable_images_are_left_out_within_the_budget(world: Path, tmp_path: Path) -> None:
    samples = (
        replace(sample, image=sample.image[:-40]) if index == 5 else sample
        for index, sample in enumerate(_samples())
    )
    data = _write(tmp_path / "damaged", samples)
    everything = ("scan.per_class=null", "data.quarantine_budget=0.1")
    metrics = scan(_config(world, *everything, data=data), tmp_path / "out")
    assert (metrics["images"], metrics["quarantined"]) == (59, 1)
    assert (tmp_path / "out" / "quarantine.jsonl").exists()
    with pytest.raises(QuarantineError):
        scan(_config(world, "scan.per_class=null", data=data), tmp_path / "strict")


def test_a_model_that_diverged_is_refused(world: Path, tmp_path: Path) -> None:
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    model = create_model(spec)
    with torch.no_grad():
        for weights in model.parameters():
            weights.fill_(1e38)
    save_model(model, tmp_path / "model.safetensors")
    config = load_config(
        ScanConfig, None, BASE,
        {"model.checkpoint": tmp_path / "model.safetensors", "data.train": world / "images"},
    )  # fmt: skip
    with pytest.raises(DivergenceError, match="not finite"):
        scan(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["scan.eps_255=[8,2]"], "smallest first"),
        (["scan.eps_255=[2,2]"], "smallest first"),
        (["scan.eps_255=[]"], "eps_255"),
        (["scan.eps_255=[0]"], "eps_255"),
        (["scan.per_class=0"], "per_class"),
        (["scan.step=3"], "steps"),
        (["data.test=x"], "does not use data.test"),
        (["model.checkpoint=null"], "model.checkpoint"),
        (["data.train=null"], "data.train"),
    ],
)
def test_senseless_configurations_are_refused(
    world: Path, tmp_path: Path, settings: list[str], words: str
) -> None:
    values = [f"model.checkpoint={world / 'model.safetensors'}", f"data.train={world / 'images'}"]
    with pytest.raises(ConfigError, match=words):
        scan(load_config(ScanConfig, None, [*BASE, *values, *settings]), tmp_path / "out")
