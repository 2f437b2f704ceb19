"""Mining ahead: what is in the shards, stopping and going on, and purifying with them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast import MineConfig, PurifyConfig, load_config, mine, purify
from pbe_fast.adversary import L2, Linf, Miner
from pbe_fast.adversary.examples import _mined, round_to_levels
from pbe_fast.data import ImageData, Manifest, Sample, ShardReader, verify_shards, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.device import Device
from pbe_fast.erase import make_pgd
from pbe_fast.errors import ConfigError, QuarantineError, RunDirectoryError, ShardError
from pbe_fast.models import ModelSpec, create_model, load_model, save_model
from pbe_fast.progress import StoppedError
from tests._runs import Stop, StopAfter, mined_files

CLASSES, SIZE = 3, 16
CPU = Device(torch.device("cpu"), "float32", "contiguous")
BASE = [
    f"data.image_size={SIZE}", "precision=float32", "memory_format=contiguous", "device=cpu",
    "adversary.steps=2",
]  # fmt: skip


def _samples() -> Iterator[Sample]:
    return signs(num_classes=CLASSES, per_class=20, size=SIZE, seed=0, split="train")


def _write(folder: Path, samples: Any, shard_bytes: int = 25_000) -> Path:
    write_shards(samples, folder, classes=sign_names(CLASSES), shard_bytes=shard_bytes)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``clean``: 60 signs in some shards; ``model.safetensors``."""
    root = tmp_path_factory.mktemp("world")
    assert len(Manifest.load(_write(root / "clean", _samples())).shards) >= 3
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 4})
    save_model(create_model(spec), root / "model.safetensors")
    return root


def _config(world: Path, *settings: str, data: Path | None = None) -> MineConfig:
    values = {
        "model.checkpoint": world / "model.safetensors",
        "data.train": data or world / "clean",
    }
    return load_config(MineConfig, None, [*BASE, "batch_size=8", *settings], values)


@pytest.fixture(scope="module")
def mined(world: Path) -> Path:
    """What a run that nothing stopped made of ``clean``."""
    mine(_config(world), world / "mined")
    return world / "mined"


def _pixels(folder: Path) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Keys, images and labels of a data set."""
    data = ImageData.open(folder, SIZE)
    batch = next(data.read(data.ids, 1000))
    return data.manifest.keys.to_pylist(), batch.images, batch.labels


# what is mined


def test_it_is_a_data_set_with_the_same_keys_and_labels(world: Path, mined: Path) -> None:
    assert verify_shards(Manifest.load(mined)) == []
    (keys, _, labels), (others, _, expected) = _pixels(mined), _pixels(world / "clean")
    assert keys == others
    assert torch.equal(labels, expected)
    assert Manifest.load(mined).classes == Manifest.load(world / "clean").classes
    assert len(Manifest.load(mined).shards) == len(Manifest.load(world / "clean").shards)


def test_examples_are_png_of_the_model_size(mined: Path) -> None:
    assert ShardReader(Manifest.load(mined)).read(0).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        ([], 6),
        (["adversary.eps_255=2.5"], 2),
        (["adversary.eps_255=3", "adversary.random_start=true", "seed=5"], 3),
        (["adversary.mode=retire"], 6),
    ],
)
def test_examples_stay_in_the_ball(
    world: Path, tmp_path: Path, settings: list[str], levels: int
) -> None:
    mine(_config(world, "adversary.steps=6", *settings), tmp_path / "out")
    ours, clean = (_pixels(p)[1].int() for p in (tmp_path / "out", world / "clean"))
    assert int((ours - clean).abs().max()) == levels


def test_examples_are_those_of_the_miner_rounded(world: Path, mined: Path) -> None:
    model = load_model(world / "model.safetensors")
    data = ImageData.open(world / "clean", SIZE)
    count = data.manifest.shards[1].samples
    first = data.manifest.shards[0].samples
    parts = []
    for batch in data.read(np.arange(first, first + count), 8):
        miner = Miner(make_pgd(_config(world).adversary), model, CPU)
        parts.append((miner(batch.images, batch.labels) * 255).round().to(torch.uint8))
    ours = _pixels(mined)[1][first : first + count]
    assert torch.equal(ours, torch.cat(parts))


def test_a_small_batch_is_filled_up_without_harm(world: Path) -> None:
    """As it is on CUDA, where all batches have one shape."""
    model = load_model(world / "model.safetensors")
    data = ImageData.open(world / "clean", SIZE)
    batch = next(data.read(np.arange(3), 8))
    found = []
    for least in (1, 8):
        miner = Miner(make_pgd(_config(world, "adversary.random_start=true").adversary), model, CPU)
        found.append(_mined(miner, batch, least, 7).int())
    assert found[1].shape == (3, 3, SIZE, SIZE)
    # Other batches are rounded otherwise, which a pixel with hardly any gradient may show.
    assert int((found[0] != found[1]).sum()) < 0.01 * found[0].numel()


def test_examples_raise_the_loss(world: Path, mined: Path) -> None:
    model = load_model(world / "model.safetensors").eval()
    losses = []
    for folder in (world / "clean", mined):
        _, images, labels = _pixels(folder)
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(images / 255), labels))
    assert losses[1] > losses[0]


def test_the_seed_matters_to_random_starts_alone(world: Path, tmp_path: Path, mined: Path) -> None:
    mine(_config(world, "seed=1"), tmp_path / "same")
    assert torch.equal(_pixels(tmp_path / "same")[1], _pixels(mined)[1])
    for seed in (0, 1):
        start = ("adversary.random_start=true", f"seed={seed}")
        mine(_config(world, *start), tmp_path / str(seed))
    assert not torch.equal(_pixels(tmp_path / "0")[1], _pixels(tmp_path / "1")[1])


def test_metrics_and_configuration_are_kept(world: Path, mined: Path) -> None:
    metrics = json.loads((mined / "metrics.json").read_text())
    assert metrics["kind"] == "mine"
    assert metrics["images"] == 60
    assert metrics["images_per_second"]["mine"] > 0
    assert "batch_size: 8" in (mined / "config.yaml").read_text()
    assert mine(_config(world), mined, StopAfter(0)) == metrics  # not done again


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0.3, 20),
    clean=st.lists(st.integers(0, 255), min_size=12, max_size=12),
    part=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
)
def test_rounding_moves_by_half_a_level_and_not_out_of_the_ball(
    eps: float, clean: list[int], part: list[float]
) -> None:
    before = torch.tensor(clean, dtype=torch.uint8).view(1, 3, 2, 2)
    moved = before / 255 + torch.tensor(part).view(1, 3, 2, 2) * eps / 255
    moved = moved.clamp(0, 1)
    after = round_to_levels(moved, before, Linf(eps / 255)).int()
    assert int((after - before.int()).abs().max()) <= eps + 1e-4
    inside = round_to_levels(moved, before, L2(1.0)).int()
    assert float((inside - moved * 255).abs().max()) <= 0.5 + 1e-3
    if eps == int(eps):
        assert torch.equal(after, inside)


# stopping and going on


@pytest.mark.parametrize("images", [0, 9, 25, 45])
def test_a_killed_run_ends_in_the_same_bytes(
    world: Path, tmp_path: Path, mined: Path, images: int
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        mine(_config(world), out, StopAfter(images))
    assert not (out / "manifest.parquet").exists()
    kept = {p: p.stat().st_mtime_ns for p in (out / "parts").glob("0*/*.tar")}
    assert bool(kept) == (images > 20)
    mine(_config(world), out)
    assert mined_files(out) == mined_files(mined)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


@pytest.mark.parametrize("polls", [1, 4])
def test_a_run_that_is_told_to_stop_goes_on(
    world: Path, tmp_path: Path, mined: Path, polls: int
) -> None:
    out, left = tmp_path / "out", [polls]

    def stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    with pytest.raises(StoppedError):
        mine(_config(world), out, stop=stop)
    metrics = mine(_config(world), out)
    assert mined_files(out) == mined_files(mined)
    assert metrics["seconds"]["mine"] > 0


def test_damaged_parts_are_mined_again(world: Path, tmp_path: Path, mined: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(mined, out)
    (out / "metrics.json").unlink()
    parts = sorted((out / "parts").iterdir())
    shutil.rmtree(parts[0])
    tar = next(parts[1].glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    (parts[2] / "part.json").write_text("{}")
    (out / "parts" / ".000001.partial").mkdir()
    mine(_config(world), out)
    assert mined_files(out) == mined_files(mined)
    assert not list((out / "parts").glob(".*"))


def test_another_configuration_is_refused_or_mines_all_again(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        mine(_config(world), out, StopAfter(45))
    assert list((out / "parts").glob("0*"))
    other = _config(world, "adversary.eps_255=3")
    with pytest.raises(RunDirectoryError, match=r"adversary\.eps_255 was 6\.0, now 3\.0"):
        mine(other, out)
    mine(other, out, accept_changes=True)
    mine(other, tmp_path / "fresh")
    assert mined_files(out) == mined_files(tmp_path / "fresh")


def test_other_shards_and_other_versions_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(world / "clean", data)
    with pytest.raises(Stop):
        mine(_config(world, data=data), out, StopAfter(45))
    with monkeypatch.context() as patch:
        patch.setattr("pbe_fast._jobs.versions", lambda: {"pbe-fast": "0", "torch": "1.0"})
        with pytest.raises(RunDirectoryError, match=r"now 1\.0.*--accept-changes"):
            mine(_config(world, data=data), out)
    shutil.rmtree(data)
    _write(data, list(_samples())[:-1])
    with pytest.raises(RunDirectoryError, match="the shards have changed"):
        mine(_config(world, data=data), out)


def test_a_folder_with_other_things_is_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "thing.txt").touch()
    with pytest.raises(RunDirectoryError, match=r"thing\.txt"):
        mine(_config(world), tmp_path)
    with pytest.raises(RunDirectoryError):
        mine(_config(world), world / "clean")


# damage and mistakes


def _damaged(folder: Path, bad: Callable[[int], bool]) -> Path:
    """The clean set with some images cut short, in the same shards."""
    samples = [
        replace(sample, image=sample.image[:-40] + bytes(40)) if bad(index) else sample
        for index, sample in enumerate(_samples())
    ]
    return _write(folder, samples)


def test_undecodable_images_have_no_example(world: Path, tmp_path: Path, mined: Path) -> None:
    first = Manifest.load(world / "clean").shards[0].samples
    data = _damaged(tmp_path / "data", lambda i: i < first or i == first + 3)
    with pytest.raises(QuarantineError):
        mine(_config(world, data=data), tmp_path / "strict")
    config = _config(world, "data.quarantine_budget=0.9", data=data)
    with pytest.raises(Stop):
        mine(config, tmp_path / "out", StopAfter(25))
    metrics = mine(config, tmp_path / "out")
    assert metrics["quarantined"] == first + 1
    keys, images, _ = _pixels(tmp_path / "out")
    assert len(keys) == metrics["images"] == 60 - first - 1
    others, expected, _ = _pixels(mined)
    rows = [others.index(key) for key in keys]
    # Batches are cut by position, so neighbours of a damaged image are mined in the same ones.
    difference = (images.int() - expected[rows].int()).abs()
    assert int((difference > 0).sum()) < 0.01 * difference.numel()
    assert [p.name for p in (tmp_path / "out" / "parts" / "000000").iterdir()] == ["part.json"]


def test_a_set_without_a_single_image_is_refused(world: Path, tmp_path: Path) -> None:
    data = _damaged(tmp_path / "data", lambda _: True)
    with pytest.raises(ShardError, match="none of its images"):
        mine(_config(world, "data.quarantine_budget=1", data=data), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data.test": "x"}, r"does not use data\.test"),
        ({"data.flip": True, "data.augment": "none"}, r"data\.augment, data\.flip"),
        ({"adversary.eps_255": 0.5}, "whole levels"),
        ({"data.image_size": 32}, "images of 16 pixels"),
    ],
)
def test_what_makes_no_sense_is_refused(
    world: Path, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    tree: dict[str, Any] = {
        "model.checkpoint": world / "model.safetensors",
        "data.train": world / "clean",
        **change,
    }
    config = load_config(MineConfig, None, BASE[1:], {"data.image_size": SIZE, **tree})
    with pytest.raises(ConfigError, match=text):
        mine(config, tmp_path / "out")


def test_a_model_and_shards_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.checkpoint"):
        mine(MineConfig(), tmp_path / "out")
    values = {"model.checkpoint": tmp_path / "model.safetensors"}
    with pytest.raises(ConfigError, match=r"data\.train"):
        mine(load_config(MineConfig, None, [], values), tmp_path / "out")


# purifying with them


def _purify(world: Path, *settings: str, data: Path | None = None, **more: Path) -> PurifyConfig:
    """AFT; ``more`` are keys of ``data``."""
    values: dict[str, Any] = {
        "model.checkpoint": world / "model.safetensors",
        "data.clean": data or world / "clean",
        **{f"data.{key}": value for key, value in more.items()},
    }
    plain = [
        "aft.batch_size=10",
        "aft.epochs=2",
        "aft.adversarial_epochs=1",
        "checkpoint_seconds=0",
    ]
    return load_config(PurifyConfig, None, [*BASE, *plain, *settings], values)


def _weights(run: Path) -> bytes:
    return (run / "purified.safetensors").read_bytes()


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def _copy(folder: Path, source: Path, change: Callable[[list[Sample]], list[Sample]]) -> Path:
    """A data set with the samples of another one, changed."""
    manifest = Manifest.load(source)
    reader = ShardReader(manifest)
    samples = [
        Sample(key, reader.read(i), "png", int(manifest.labels[i]))
        for i, key in enumerate(manifest.keys.to_pylist())
    ]
    return _write(folder, change(samples))


def test_the_first_batch_is_what_mining_gives(world: Path, tmp_path: Path) -> None:
    """The model is still the infected one then; only rounding is between them."""
    steps = "adversary.steps=7"
    mine(_config(world, steps), tmp_path / "mined")
    settings = (steps, "aft.batch_size=60", "aft.epochs=1", "data.augment=none")
    purify(_purify(world, *settings, mined=tmp_path / "mined"), tmp_path / "ahead")
    purify(_purify(world, *settings), tmp_path / "live")
    purify(_purify(world, *settings, "aft.adversarial_epochs=0"), tmp_path / "clean")
    ahead, live, clean = (_losses(tmp_path / name)[0] for name in ("ahead", "live", "clean"))
    assert abs(ahead - live) < 0.1 * abs(clean - live)
    assert _weights(tmp_path / "ahead") != _weights(tmp_path / "live")


def test_only_adversarial_batches_change(world: Path, tmp_path: Path, mined: Path) -> None:
    for method in ("aft", "pbe"):
        settings = [*PBE, f"method={method}", "aft.adversarial_epochs=0"]
        more = {"train": world / "clean"} if method == "pbe" else {}
        for name, examples in (("with", {"mined": mined}), ("without", {})):
            purify(_purify(world, *settings, **more, **examples), tmp_path / method / name)
        same = _weights(tmp_path / method / "with") == _weights(tmp_path / method / "without")
        assert same == (method == "aft")  # round 0 of PBE is all adversarial


def test_examples_are_taken_as_they_are_and_by_their_keys(world: Path, tmp_path: Path) -> None:
    """With the clean images themselves for examples, adversarial batches are clean ones."""
    backwards = _copy(tmp_path / "mined", world / "clean", lambda samples: samples[::-1])
    plain = ("data.augment=none",)
    purify(_purify(world, *plain, mined=backwards), tmp_path / "ahead")
    purify(_purify(world, *plain, "aft.adversarial_epochs=0"), tmp_path / "clean")
    assert _weights(tmp_path / "ahead") == _weights(tmp_path / "clean")
    # Augmentation does not touch the examples, but the other batches.
    purify(_purify(world, "aft.epochs=1", mined=backwards), tmp_path / "one")
    purify(_purify(world, *plain, "aft.epochs=1", "aft.adversarial_epochs=0"), tmp_path / "other")
    assert _weights(tmp_path / "one") == _weights(tmp_path / "other")


PBE = [
    "method=pbe", "pbe.batch_size=10", "pbe.epochs=1", "pbe.initial_fraction=0.5",
    "pbe.keep=[0.5]", "pbe.adversarial_batches=2",
]  # fmt: skip


@pytest.mark.parametrize(("phase", "images"), [("aft", 15), ("aft", 75), ("round 1", 15)])
def test_a_stopped_purification_ends_in_the_same_bytes(
    world: Path, tmp_path: Path, mined: Path, phase: str, images: int
) -> None:
    if phase == "aft":
        config = _purify(world, mined=mined)
    else:
        config = _purify(world, *PBE, mined=mined, train=world / "clean")
    purify(config, tmp_path / "whole")
    with pytest.raises(Stop):
        purify(config, tmp_path / "run", StopAfter(images, phase))
    purify(config, tmp_path / "run")
    assert _weights(tmp_path / "run") == _weights(tmp_path / "whole")


def test_other_examples_are_refused_when_a_run_goes_on(
    world: Path, tmp_path: Path, mined: Path
) -> None:
    examples = tmp_path / "examples"
    shutil.copytree(mined, examples)
    config = _purify(world, mined=examples)
    with pytest.raises(Stop):
        purify(config, tmp_path / "run", StopAfter(25, "aft"))
    shutil.rmtree(examples)
    mine(_config(world, "adversary.eps_255=3"), examples)
    with pytest.raises(RunDirectoryError, match="have changed"):
        purify(config, tmp_path / "run")


def test_examples_of_another_model_or_adversary_are_taken_with_a_warning(
    world: Path, tmp_path: Path, mined: Path
) -> None:
    purify(_purify(world, mined=mined), tmp_path / "same")
    assert "was mined" not in (tmp_path / "same" / "log.txt").read_text()
    examples = tmp_path / "examples"
    shutil.copytree(mined, examples)
    metrics = json.loads((examples / "metrics.json").read_text())
    (examples / "metrics.json").write_text(json.dumps(metrics | {"weights_sha256": "0" * 64}))
    config = _purify(world, "adversary.eps_255=3", mined=examples)
    purify(config, tmp_path / "other")
    log = (tmp_path / "other" / "log.txt").read_text()
    assert "was mined against another model, with adversary.eps_255=6.0 instead of 3.0" in log
    (examples / "metrics.json").write_text("no JSON")
    purify(config, tmp_path / "unknown")
    assert "was mined" not in (tmp_path / "unknown" / "log.txt").read_text()


def test_missing_examples_are_named(world: Path, tmp_path: Path, mined: Path) -> None:
    some = _copy(tmp_path / "some", mined, lambda samples: samples[:10] + samples[12:])
    missing = Manifest.load(mined).keys.to_pylist()[10]
    with pytest.raises(ConfigError, match=f"for 2 of 60 images.*first: .*{missing}"):
        purify(_purify(world, mined=some), tmp_path / "run")
    budget = "data.quarantine_budget=0.04"  # two images
    purify(_purify(world, budget, mined=some), tmp_path / "other")
    assert "2 images have no mined example" in (tmp_path / "other" / "log.txt").read_text()


def test_examples_of_other_data_are_refused(world: Path, tmp_path: Path, mined: Path) -> None:
    def relabelled(samples: list[Sample]) -> list[Sample]:
        return [replace(samples[0], label=(samples[0].label + 1) % CLASSES), *samples[1:]]

    other = _copy(tmp_path / "labels", mined, relabelled)
    key = Manifest.load(mined).keys.to_pylist()[0]
    with pytest.raises(ConfigError, match=f"1 examples have another label.*{key}"):
        purify(_purify(world, mined=other), tmp_path / "run")
    larger = signs(num_classes=CLASSES, per_class=20, size=20, seed=0, split="train")
    with pytest.raises(ConfigError, match="20 x 20 pixels"):
        purify(_purify(world, mined=_write(tmp_path / "large", larger)), tmp_path / "run2")


def test_mined_shards_may_lie_in_sub_folders_of_a_moved_set(
    world: Path, tmp_path: Path, mined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(mined, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert verify_shards(Manifest.load(Path("moved"))) == []
    mine(_config(world), Path("here"))
    assert mined_files(Path("here")) == mined_files(mined)
    assert sorted(os.listdir("here/parts")) == sorted(os.listdir(mined / "parts"))
