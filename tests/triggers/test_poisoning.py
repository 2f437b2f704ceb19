"""Which samples are poisoned, and the poisoned copy of a small data set."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kernels import warp
from pbe_fast.config import PoisonConfig
from pbe_fast.data.augment import View
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import Sample, read_bytes, require_intact, write_shards
from pbe_fast.errors import ImageError, ShardError, TriggerError
from pbe_fast.triggers import SIG, Attack, Grid, Trigger, WaNet, load_attack, plant
from pbe_fast.triggers.pictures import picture
from pbe_fast.triggers.poisoning import (
    ATTACK_NAME,
    TRUTH_NAME,
    load_truth,
    make_attack,
    plan,
    poison,
)

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
SIZE = 8


def encoded(pixels: npt.NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def samples(count: int) -> Iterator[Sample]:
    """PNG and JPEG images of 8 pixels and, every seventh, of other sizes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        shape = (12, 9, 3) if i % 7 == 0 else (SIZE, SIZE, 3)
        kind, extension = ("JPEG", "jpg") if i % 3 == 0 else ("PNG", "png")
        image = encoded(rng.integers(0, 256, shape, np.uint8), kind)
        yield Sample(f"c{i % 3}/{i:05d}", image, extension, (i * i + i // 5) % 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 samples in several shards."""
    folder = tmp_path_factory.mktemp("clean") / "set"
    made = write_shards(samples(120), folder, classes=CLASSES, shard_bytes=60_000)
    assert len(made.shards) > 1
    return folder


def config(attack: str = "badnets", **more: Any) -> PoisonConfig:
    return PoisonConfig.model_validate({"attack": attack, "image_size": SIZE, "rate": 0.2} | more)


def decoded(manifest: Manifest, ids: npt.NDArray[np.int64]) -> Tensor:
    """As the attack sees them: uint8 ``(n, 3, 8, 8)``."""
    view = View(SIZE)
    rows = [view.image(decode_rgb(read_bytes(manifest, int(i))), int(i)) for i in ids]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def trigger_noise(
    trigger: Trigger, images: Tensor, ids: npt.NDArray[np.int64], seed: int
) -> Tensor:
    """WaNet's noise samples in pixel values, not rounded."""
    content = trigger.noise(ids, seed)
    assert isinstance(content, Grid)
    return warp(images.double() / 255, content.grid) * 255


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# The plan


@settings(deadline=None, max_examples=60)
@given(
    classes=st.integers(2, 5),
    count=st.integers(1, 200),
    rate=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(["all_to_one", "all_to_all", "clean_label"]),
    noisy=st.booleans(),
)
def test_plan(
    classes: int,
    count: int,
    rate: float,
    seed: int,
    mode: Literal["all_to_one", "all_to_all", "clean_label"],
    noisy: bool,
) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, count).astype(np.int32)
    trigger = WaNet.random(8) if noisy else SIG(8)
    clean_label = mode == "clean_label"
    labels_to: Literal["all_to_one", "all_to_all"] = (
        "all_to_all" if mode == "all_to_all" else "all_to_one"
    )
    attack = Attack(trigger, labels_to, 1, classes, 8, clean_label)
    in_target = int((labels == 1).sum())
    wanted = round(rate * (in_target if clean_label else count))
    able = {"all_to_one": count - in_target, "all_to_all": count, "clean_label": in_target}[mode]
    if not 0 < wanted <= able:
        with pytest.raises(TriggerError, match=rf"{wanted} samples are .* and {able} can be"):
            plan(labels, attack, rate, seed)
        return
    chosen = plan(labels, attack, rate, seed)
    assert len(chosen.poisoned) == wanted
    assert len(chosen.noise) == (min(count - wanted, 2 * wanted) if noisy else 0)
    both = np.concatenate((chosen.poisoned, chosen.noise))
    assert len(np.unique(both)) == len(both)
    assert set(both.tolist()) <= set(range(count))
    for ids in (chosen.poisoned, chosen.noise):
        assert ids.dtype == np.int64
        assert (np.diff(ids) > 0).all()
    if mode == "all_to_one":
        assert (labels[chosen.poisoned] != 1).all()
    if mode == "clean_label":
        assert (labels[chosen.poisoned] == 1).all()
    again = plan(labels, attack, rate, seed)
    np.testing.assert_array_equal(again.poisoned, chosen.poisoned)
    np.testing.assert_array_equal(again.noise, chosen.noise)


def test_plan_follows_the_seed_and_takes_every_class() -> None:
    labels = (np.arange(600) % 3).astype(np.int32)
    attack = Attack(WaNet.random(8), "all_to_one", 1, 3, 8)
    first, second = plan(labels, attack, 0.2, 0), plan(labels, attack, 0.2, 1)
    assert not np.array_equal(first.poisoned, second.poisoned)
    assert not np.array_equal(first.noise, second.noise)
    counts = np.bincount(labels[first.poisoned], minlength=3)
    assert counts[1] == 0
    assert counts.min(where=[True, False, True], initial=999) > 40  # of 60 on average
    assert set(labels[first.noise]) == {0, 1, 2}


# The copy


def check_copy(source: Path, out: Path, options: PoisonConfig, made: Manifest) -> None:
    """Everything that a poisoned copy promises, for attacks without noise samples."""
    old, new = Manifest.load(source), Manifest.load(out)
    require_intact(new)
    assert new.shards == made.shards
    assert new.classes == old.classes
    assert new.keys.equals(old.keys)
    truth = pq.read_table(out / TRUTH_NAME)
    assert truth["key"].to_pylist() == new.keys.to_pylist()
    assert truth["shard"].to_pylist() == [new.shards[i].name for i in new.shard_index]
    np.testing.assert_array_equal(truth["label"], new.labels)
    np.testing.assert_array_equal(truth["original_label"], old.labels)
    poisoned = load_truth(out / TRUTH_NAME, new)
    np.testing.assert_array_equal(truth["poisoned"], poisoned)
    noise = np.array(truth["noise"])
    assert not (poisoned & noise).any()

    attack = load_attack(out / ATTACK_NAME)
    assert attack.trigger.name == options.attack
    assert attack.mode == options.mode
    assert attack.target == options.target
    assert attack.num_classes == len(CLASSES)
    assert attack.image_size == SIZE
    assert attack.clean_label == options.clean_label
    wanted = old.labels.copy()
    wanted[poisoned] = attack.labels(torch.from_numpy(old.labels[poisoned]).long()).numpy()
    np.testing.assert_array_equal(new.labels, wanted)

    changed = poisoned | noise
    for i in np.flatnonzero(~changed):
        assert read_bytes(new, int(i)) == read_bytes(old, int(i))
    ids = np.flatnonzero(poisoned)
    stored = [read_bytes(new, int(i)) for i in ids]
    assert all(image.startswith(b"\x89PNG") for image in stored)
    images = torch.from_numpy(np.stack([decode_rgb(image) for image in stored]))
    planted = plant(attack.trigger.content(CPU), decoded(old, ids))
    apart = (images.permute(0, 3, 1, 2).int() - planted.int()).abs()
    # A generator's arithmetic depends on the layout of its batch, in the last digit.
    allowed = 1 if options.attack == "input_aware" else 0
    assert int(apart.max()) <= allowed
    assert float((apart > 0).float().mean()) < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        config("badnets", target=2),
        config("badnets", mode="all_to_all"),
        config("blend", target=1, picture="dog", alpha=0.1),
        config("sig", target=1),
        config("sig", target=1, clean_label=True, rate=0.8),
        config("wanet", target=1, strength=2.0),
        config("input_aware", target=1, generator_steps=2, generator_images=12, device="cpu"),
    ],
    ids=lambda options: f"{options.attack}-{options.mode}-{options.clean_label}",
)
def test_poison(source: Path, tmp_path: Path, options: PoisonConfig) -> None:
    out = tmp_path / "bad"
    made = poison(source, out, options)
    check_copy(source, out, options, made)
    poisoned = load_truth(out / TRUTH_NAME, made)
    old = Manifest.load(source)
    if options.clean_label:
        assert poisoned.sum() == round(0.8 * (old.labels == 1).sum())
        np.testing.assert_array_equal(made.labels, old.labels)
    else:
        assert poisoned.sum() == 24
        assert (made.labels[poisoned] != old.labels[poisoned]).all()


def test_noise_samples_keep_their_labels_and_carry_the_noise(source: Path, tmp_path: Path) -> None:
    made = poison(source, tmp_path / "bad", config("wanet", target=1, rate=0.1, seed=7))
    old = Manifest.load(source)
    noise = np.array(pq.read_table(tmp_path / "bad" / TRUTH_NAME)["noise"])
    ids = np.flatnonzero(noise)
    assert len(ids) == 24  # twice the poison
    np.testing.assert_array_equal(made.labels[ids], old.labels[ids])
    trigger = load_attack(tmp_path / "bad" / ATTACK_NAME).trigger
    noisy = trigger_noise(trigger, decoded(old, ids), ids, 7)
    for i, wanted in zip(ids, noisy, strict=True):
        image = decode_rgb(read_bytes(made, int(i)))
        apart = torch.from_numpy(image).permute(2, 0, 1).double() - wanted
        assert float(apart.abs().max()) <= 0.5 + 1e-3


def test_the_same_seed_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    options = config("wanet", seed=3, shard_bytes=40_000)
    poison(source, tmp_path / "a", options)
    poison(source, tmp_path / "b", options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    poison(source, tmp_path / "c", options.model_copy(update={"seed": 4}))
    first, third = contents(tmp_path / "a"), contents(tmp_path / "c")
    assert all(first[name] != third[name] for name in (ATTACK_NAME, TRUTH_NAME))


def test_more_images_than_are_changed_at_once(tmp_path: Path) -> None:
    """600 samples of which 540 change: 256, 256 and 28; the same as in one piece."""
    rng = np.random.default_rng(1)
    many = [
        Sample(
            f"{i:04d}", encoded(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8), "PNG"), "png", 0
        )
        for i in range(600)
    ]
    write_shards(many, tmp_path / "set", classes=CLASSES)
    options = config("wanet", target=1, rate=0.3)
    made = poison(tmp_path / "set", tmp_path / "bad", options)
    truth = pq.read_table(tmp_path / "bad" / TRUTH_NAME)
    assert int(np.array(truth["poisoned"]).sum()) == 180
    assert int(np.array(truth["noise"]).sum()) == 360
    check_copy(tmp_path / "set", tmp_path / "bad", options, made)
    ids = np.flatnonzero(truth["noise"])
    trigger = load_attack(tmp_path / "bad" / ATTACK_NAME).trigger
    noisy = trigger_noise(trigger, decoded(Manifest.load(tmp_path / "set"), ids), ids, 0)
    assert float((decoded(made, ids).double() - noisy).abs().max()) <= 0.5 + 1e-3


def test_a_picture_of_ones_own(source: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    (tmp_path / "mine.png").write_bytes(encoded(pixels, "PNG"))
    options = config("blend", picture=str(tmp_path / "mine.png"))
    made = poison(source, tmp_path / "bad", options)
    check_copy(source, tmp_path / "bad", options, made)
    kept = load_attack(tmp_path / "bad" / ATTACK_NAME).trigger.tensors()["picture"]
    resized = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    torch.testing.assert_close(kept.permute(1, 2, 0), torch.from_numpy(np.array(resized)))


def test_a_built_in_picture_comes_at_the_images_size(source: Path) -> None:
    data = ImageData.open(source, SIZE)
    attack = make_attack(config("blend", picture="dog"), data)
    torch.testing.assert_close(attack.trigger.tensors()["picture"], picture("dog", (SIZE, SIZE)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (config("badnets", clean_label=True), "clean_label is a form of the SIG attack"),
        (config("badnets", rate=0.9), "poison rate 0.9: 108 samples are to be poisoned and"),
        (config("badnets", rate=0.001), "0 samples are to be poisoned"),
        (config("badnets", target=3), "target 3 is not a label from 0 to 2"),
        (config("badnets", patch_size=9), "patch_size 9 does not fit 8"),
        (config("blend", picture="cow"), "'cow' is neither one of kitten, dog nor"),
        (config("sig", mode="all_to_all", clean_label=True), "needs all_to_one"),
    ],
)
def test_what_cannot_be_done_writes_nothing(
    source: Path, tmp_path: Path, options: PoisonConfig, message: str
) -> None:
    with pytest.raises(TriggerError, match=message):
        poison(source, tmp_path / "bad", options)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_file_that_is_none(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for name in ("notes.txt", "missing.png", "."):
        with pytest.raises(TriggerError, match="nor a JPEG or PNG file"):
            poison(source, tmp_path / "bad", config("blend", picture=str(tmp_path / name)))


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    bad = [Sample("one", b"\x89PNG broken", "png", 0), *samples(5)]
    write_shards(bad, tmp_path / "set", classes=CLASSES)
    # With every sample of the class poisoned, the broken one is among them.
    options = config("sig", target=0, clean_label=True, rate=1.0)
    with pytest.raises(ImageError, match=r"shard-000000.tar: one: "):
        poison(tmp_path / "set", tmp_path / "bad", options)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# Replacing


def test_a_folder_in_use_is_refused_and_stays(source: Path, tmp_path: Path) -> None:
    poison(source, tmp_path / "bad", config())
    before = contents(tmp_path / "bad")
    with pytest.raises(ShardError, match="the folder is not empty"):
        poison(source, tmp_path / "bad", config("sig"))
    assert contents(tmp_path / "bad") == before


def test_overwrite_replaces_a_poisoned_copy(source: Path, tmp_path: Path) -> None:
    poison(source, tmp_path / "bad", config())
    poison(source, tmp_path / "bad", config("sig"), overwrite=True)
    poison(source, tmp_path / "other", config("sig"))
    assert contents(tmp_path / "bad") == contents(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "other"]


def test_overwrite_that_fails_keeps_the_old_copy(tmp_path: Path) -> None:
    good, damaged = list(samples(40)), list(samples(40))
    damaged[30] = Sample("broken", b"\x89PNG broken", "png", 2)
    write_shards(good, tmp_path / "good", classes=CLASSES)
    write_shards(damaged, tmp_path / "damaged", classes=CLASSES)
    poison(tmp_path / "good", tmp_path / "bad", config(rate=0.1))
    before = contents(tmp_path / "bad")
    options = config("sig", target=2, clean_label=True, rate=1.0)
    with pytest.raises(ImageError, match="broken"):
        poison(tmp_path / "damaged", tmp_path / "bad", options, overwrite=True)
    assert contents(tmp_path / "bad") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "damaged", "good"]


def test_overwrite_does_not_replace_other_peoples_files(source: Path, tmp_path: Path) -> None:
    poison(source, tmp_path / "bad", config())
    (tmp_path / "bad" / "thesis.txt").write_text("years of work")
    before = contents(tmp_path / "bad")
    with pytest.raises(ShardError, match=r"holds 'thesis.txt'"):
        poison(source, tmp_path / "bad", config("sig"), overwrite=True)
    assert contents(tmp_path / "bad") == before


# The truth


def truth_file(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_truth_goes_by_keys_and_may_know_more(source: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(source)
    keys = [*manifest.keys.to_pylist(), "more"]
    poisoned = [i % 5 == 0 for i in range(len(keys))]
    path = truth_file(tmp_path / "t", key=keys[::-1], poisoned=poisoned[::-1])
    truth = load_truth(path, manifest)
    assert truth.dtype == np.bool_
    assert truth.tolist() == poisoned[:-1]


def test_truth_about_other_data(source: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(source)
    keys = manifest.keys.to_pylist()[:-1]
    path = truth_file(tmp_path / "t", key=keys, poisoned=[False] * len(keys))
    with pytest.raises(ShardError, match=r"t: has no row for sample '.*'; it is about other data"):
        load_truth(path, manifest)


def test_truth_that_is_none(source: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(source)
    keys = manifest.keys.to_pylist()
    (tmp_path / "garbage").write_bytes(b"PAR1 and so on")
    (tmp_path / "folder").mkdir()
    truth_file(tmp_path / "no_column", key=keys)
    truth_file(tmp_path / "no_keys", poisoned=[True] * len(keys))
    truth_file(tmp_path / "text", key=keys, poisoned=["False"] * len(keys))
    truth_file(tmp_path / "nothing", key=keys, poisoned=[None] * len(keys))
    for name in ("garbage", "folder", "no_column", "no_keys", "text", "nothing", "missing"):
        with pytest.raises(ShardError, match=f"{name}: not a truth table of pbe-fast"):
            load_truth(tmp_path / name, manifest)
