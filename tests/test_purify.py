"""The purification job: stopping anywhere and going on ends in the same bytes."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from pbe_fast import PurifyConfig, TrainConfig, load_config, load_model, poison, purify, train
from pbe_fast.config import PoisonConfig
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    RunDirectoryError,
    ShardError,
)
from pbe_fast.progress import StoppedError
from pbe_fast.run_directory import tensors_digest
from tests._runs import Stop, StopAfter

CLASSES = 3
RESULTS = ("purified.safetensors", "suspects.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean and poisoned shards of drawn signs, and a model trained on them for an instant."""
    root = tmp_path_factory.mktemp("world")
    for split, per_class in (("train", 40), ("test", 10)):
        write_shards(
            signs(num_classes=CLASSES, per_class=per_class, size=16, seed=0, split=split),
            root / split,
            classes=sign_names(CLASSES),
            shard_bytes=60_000,
        )
    poison(root / "train", root / "bad", PoisonConfig(image_size=16, target=1, shard_bytes=60_000))
    config = load_config(
        TrainConfig,
        None,
        [
            "model.options.width=4",
            "data.image_size=16",
            "epochs=2",
            "batch_size=20",
            "precision=float32",
            "memory_format=contiguous",
            "device=cpu",
        ],
        {
            "data.train": root / "bad",
            "data.test": root / "test",
            "data.attack": root / "bad" / "attack.safetensors",
        },
    )
    train(config, root / "infected")
    return root


def _config(world: Path, method: str, *settings: str) -> PurifyConfig:
    values: dict[str, Any] = {
        "method": method,
        "model.checkpoint": world / "infected" / "model.safetensors",
        "data.train": world / "bad",
        "data.truth": world / "bad" / "truth.parquet",
        "data.test": world / "test",
        "data.attack": world / "bad" / "attack.safetensors",
    }
    if method == "aft":
        values |= {"data.clean": world / "train"}
    base = [
        "data.clean_fraction=0.3",
        "data.image_size=16", "precision=float32", "memory_format=contiguous",
        "device=cpu", "checkpoint_seconds=0",
        "adversary.steps=2", "eval_batch_size=50",
        "aft.batch_size=10", "aft.epochs=3", "aft.adversarial_epochs=1",
        "pbe.batch_size=10", "pbe.epochs=2", "pbe.adversarial_batches=2",
        "pbe.initial_fraction=0.2",
        "sieve.batch_size=10", "sieve.epochs=1", "sieve.initial_epochs=2", "sieve.lr=0.01",
    ]  # fmt: skip
    return load_config(PurifyConfig, None, [*base, *settings], values)


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Callable[[str], Path]:
    """The run directory of a run that nothing stopped, one for each method."""
    done: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in done:
            done[method] = world / f"undisturbed-{method}"
            purify(_config(world, method), done[method])
        return done[method]

    return get


STOPS = [
    ("aft", "infected: ACC, ASR", 0),
    ("aft", "aft", 25),  # in an adversarial epoch
    ("aft", "aft", 60),
    ("aft", "score", 50),
    ("pbe", "round 0", 10),
    ("pbe", "round 1", 12),  # in its adversarial batches
    ("pbe", "round 1", 45),
    ("pbe", "score 2", 60),
    ("pbe", "round 3", 150),
    ("sieve", "score infected", 70),
    ("sieve", "round 0", 10),  # in its adversarial epoch
    ("sieve", "score 0", 70),
    ("sieve", "round 1", 25),  # which began with other weights than it has now
    ("sieve", "score 1", 0),
    ("sieve", "round 2", 40),
]


@pytest.mark.parametrize(("method", "phase", "images"), STOPS)
def test_a_stopped_run_ends_in_the_same_bytes(
    world: Path,
    tmp_path: Path,
    undisturbed: Callable[[str], Path],
    method: str,
    phase: str,
    images: int,
) -> None:
    out = tmp_path / "run"
    config = _config(world, method)
    with pytest.raises(Stop):
        purify(config, out, StopAfter(images, phase))
    assert not (out / "metrics.json").exists()
    purify(config, out)
    expected = undisturbed(method)
    for name in RESULTS:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    ours, theirs = (json.loads((d / "metrics.json").read_text()) for d in (out, expected))
    for key in ("infected", "purified", "suspects", "rounds"):
        assert ours[key] == theirs[key], key
    lines = [
        [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in text]
        for text in ((d / "metrics.jsonl").read_text().splitlines() for d in (out, expected))
    ]
    evaluations = [[x for x in side if x["event"] == "evaluation"] for side in lines]
    assert evaluations[0] == evaluations[1]


def test_a_run_that_is_stopped_at_every_turn_gets_there(
    world: Path, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    out, config, stops = tmp_path / "run", _config(world, "pbe"), 0
    while not (out / "metrics.json").exists():
        try:
            purify(config, out, StopAfter(200))
        except Stop:
            stops += 1
            assert stops < 60
    assert stops > 3
    for name in RESULTS:
        assert (out / name).read_bytes() == (undisturbed("pbe") / name).read_bytes()


def test_sieve_says_what_it_found(undisturbed: Callable[[str], Path]) -> None:
    metrics = json.loads((undisturbed("sieve") / "metrics.json").read_text())
    assert metrics["method"] == "sieve"
    first, second, last = metrics["rounds"]
    assert {"suspects", "relabelled", "waiting", "classes", "second_look"} <= first.keys()
    kept = metrics["backdoor"].pop("kept")
    poisoned, odd = second["poisoned"], second["odd"]
    assert metrics["backdoor"] == {
        "found": bool(poisoned), "labels": poisoned, "odd": odd, "judged": True,
        "mislabelled": [], "unlearned": [],
    }  # fmt: skip
    assert kept is None or (poisoned and 0 <= kept <= 1)
    table = pq.read_table(undisturbed("sieve") / "suspects.parquet")
    suspects, poison = table["score"].to_numpy() <= -0.5, table["poisoned"].to_numpy()
    assert metrics["suspects"]["suspect"] == suspects.sum()
    assert metrics["suspects"]["recall"] == (suspects & poison).sum() / poison.sum()
    assert {"subset", "auroc", "subset_poisoned"} <= last.keys()


def test_the_seed_matters(world: Path, tmp_path: Path, undisturbed: Callable[[str], Path]) -> None:
    purify(_config(world, "aft", "seed=1"), tmp_path / "run")
    name = "purified.safetensors"
    ours, theirs = (tmp_path / "run" / name).read_bytes(), (undisturbed("aft") / name).read_bytes()
    assert ours != theirs


def test_a_finished_run_is_not_done_again(world: Path, undisturbed: Callable[[str], Path]) -> None:
    run = undisturbed("aft")
    before = (run / "purified.safetensors").stat().st_mtime_ns
    metrics = purify(_config(world, "aft"), run, StopAfter(0))
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert (run / "purified.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused(world: Path, undisturbed: Callable[[str], Path]) -> None:
    with pytest.raises(RunDirectoryError, match=r"adversary\.eps_255 was 6\.0, now 9\.0"):
        purify(_config(world, "aft", "adversary.eps_255=9"), undisturbed("aft"))


def test_what_a_run_leaves_behind(world: Path, undisturbed: Callable[[str], Path]) -> None:
    run = undisturbed("pbe")
    model = load_model(run / "purified.safetensors")
    assert model.spec.num_classes == CLASSES
    suspects = pq.read_table(run / "suspects.parquet")
    assert suspects.column_names == ["key", "shard", "label", "score", "rank", "poisoned"]
    scores = suspects["score"].to_numpy()
    assert len(scores) == 120
    assert (np.diff(scores) >= 0).all()
    assert suspects["rank"].to_pylist() == list(range(120))
    assert sum(suspects["poisoned"].to_pylist()) == 12
    metrics = json.loads((run / "metrics.json").read_text())
    assert [r["subset"] for r in metrics["rounds"]] == [24, 24, 60, 84]
    assert set(metrics["seconds"]) == {"finetune", "finetune_adversarial", "score"}
    header = json.loads(pq.read_schema(run / "suspects.parquet").metadata[b"pbe_fast"])
    assert header == {"classes": list(sign_names(CLASSES))}
    thumbnails = json.loads((run / "thumbnails.json").read_text())["thumbnails"]
    assert [one["key"] for one in thumbnails] == suspects["key"].to_pylist()[:24]
    page = (run / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 24
    for thumbnail in thumbnails:
        assert f'alt="Training image {thumbnail["key"]}, labelled ' in page
    assert {"curves.svg", "loss.png", "scores.png"} <= {
        path.name for path in (run / "figures").iterdir()
    }
    assert not (run / "state.safetensors").exists()


def test_aft_needs_no_training_set(world: Path, tmp_path: Path) -> None:
    config = load_config(
        PurifyConfig, None,
        ["data.image_size=16", "precision=float32", "memory_format=contiguous",
        "device=cpu", "aft.epochs=1",
         "adversary.steps=1"],
        {"model.checkpoint": world / "infected" / "model.safetensors",
         "data.clean": world / "train"},
    )  # fmt: skip
    metrics = purify(config, tmp_path / "run")
    assert metrics["method"] == "aft"
    assert "suspects" not in metrics
    assert not (tmp_path / "run" / "suspects.parquet").exists()
    assert (tmp_path / "run" / "purified.safetensors").exists()


def test_labels_of_the_purified_model_do_not_depend_on_the_test_set(
    world: Path, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    """Measuring must not leak into the result: without test data, the same weights."""
    values = _config(world, "pbe").model_dump()
    values["data"] |= {"test": None, "attack": None, "truth": None}
    purify(PurifyConfig.model_validate(values), tmp_path / "run")
    name = "purified.safetensors"
    ours, theirs = (tmp_path / "run" / name).read_bytes(), (undisturbed("pbe") / name).read_bytes()
    assert ours == theirs


def _bad(world: Path) -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    model = world / "infected" / "model.safetensors"
    yield {"data.train": world / "bad"}, ConfigError, "model.checkpoint"
    yield {"model.checkpoint": model}, ConfigError, "data.train"
    yield {"model.checkpoint": model, "method": "aft"}, ConfigError, "data.clean"
    yield (
        {"model.checkpoint": model, "data.clean": world / "train", "data.truth": world / "x"},
        ConfigError,
        "data.truth",
    )
    yield (
        {"model.checkpoint": world / "nothing.safetensors", "data.train": world / "bad"},
        CheckpointError,
        "nothing.safetensors",
    )
    yield (
        {
            "model.checkpoint": model,
            "data.train": world / "bad",
            "data.attack": world / "bad" / "attack.safetensors",
        },
        ConfigError,
        "data.test",
    )


def test_bad_input_is_refused(world: Path, tmp_path: Path) -> None:
    for index, (values, kind, text) in enumerate(_bad(world)):
        config = load_config(PurifyConfig, None, ["data.image_size=16", "device=cpu"], values)
        with pytest.raises(kind, match=text.replace(".", r"\.")):
            purify(config, tmp_path / str(index))


def test_another_number_of_classes_is_refused(world: Path, tmp_path: Path) -> None:
    write_shards(
        signs(num_classes=4, per_class=5, size=16, seed=0, split="train"),
        tmp_path / "four",
        classes=sign_names(4),
    )
    config = load_config(
        PurifyConfig, None, ["data.image_size=16", "device=cpu"],
        {"model.checkpoint": world / "infected" / "model.safetensors",
         "data.train": tmp_path / "four"},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="3 classes"):
        purify(config, tmp_path / "run")


def test_training_that_is_stopped_ends_in_the_same_bytes(world: Path, tmp_path: Path) -> None:
    settings = ["model.options.width=4", "data.image_size=16", "epochs=2", "batch_size=20",
                "precision=float32", "memory_format=contiguous", "device=cpu",
                "checkpoint_seconds=0"]  # fmt: skip
    values = {"data.train": world / "bad", "data.test": world / "test"}
    config = load_config(TrainConfig, None, settings, values)
    with pytest.raises(Stop):
        train(config, tmp_path / "run", StopAfter(150, "train"))
    train(config, tmp_path / "run")
    ours = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert ours == (world / "infected" / "model.safetensors").read_bytes()


def test_purify_leaves_torch_randomness_alone(world: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    purify(_config(world, "aft", "aft.epochs=1"), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def _stopped(world: Path, out: Path) -> PurifyConfig:
    """A PBE run that was stopped inside round 1."""
    config = _config(world, "pbe")
    with pytest.raises(Stop):
        purify(config, out, StopAfter(30, "round 1"))
    return config


def _rewrite(out: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the saved state's tensors and header."""
    path = out / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pbe_fast_state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, header)
    text = json.dumps(header)
    metadata = {"pbe_fast_state": text, "pbe_fast_sha256": tensors_digest(tensors, text)}
    path.write_bytes(save(tensors, metadata=metadata))


def _nan(tensors: dict[str, Any], _header: dict[str, Any]) -> None:
    tensors["model.net.conv1.weight"] = tensors["model.net.conv1.weight"] * float("nan")


DAMAGES: list[Callable[[dict[str, Any], dict[str, Any]], Any]] = [
    lambda tensors, header: header.pop("epoch"),
    lambda tensors, header: header.update(epoch=-1),
    lambda tensors, header: header.update(round=99),
    lambda tensors, header: header.update(part="nothing"),
    lambda tensors, header: tensors.update(subset=torch.tensor([5, 10**6])),
    lambda tensors, header: tensors.update(subset=torch.tensor([-1, 3])),
    lambda tensors, header: tensors.update(subset=torch.zeros(0, dtype=torch.int64)),
    lambda tensors, header: tensors.update(subset=torch.tensor([[1, 2]])),
    lambda tensors, header: tensors.update({"momentum.net.conv1.weight": torch.zeros(3)}),
    lambda tensors, header: [tensors.pop(name) for name in list(tensors) if "conv1" in name],
    _nan,
]


def test_a_damaged_state_is_refused(world: Path, tmp_path: Path) -> None:
    config = _stopped(world, tmp_path / "run")
    whole = (tmp_path / "run" / "state.safetensors").read_bytes()
    for damage in DAMAGES:
        (tmp_path / "run" / "state.safetensors").write_bytes(whole)
        _rewrite(tmp_path / "run", damage)  # type: ignore[arg-type]  # what it returns is dropped
        with pytest.raises(RunDirectoryError, match="saved state is damaged"):
            purify(config, tmp_path / "run")


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_with_the_newest_state_damaged_the_one_before_it_is_taken_loudly(
    world: Path, tmp_path: Path, undisturbed: Callable[[str], Path], damage: bytes | None
) -> None:
    out = tmp_path / "run"
    config = _stopped(world, out)
    newest = out / "state.safetensors"
    content = newest.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]  # a bit of a weight
    newest.write_bytes(flipped if damage is None else damage)
    told = Told()
    purify(config, out, told)
    assert any("WARNING" in line and "damaged" in line for line in told.lines)
    for name in RESULTS:
        assert (out / name).read_bytes() == (undisturbed("pbe") / name).read_bytes(), name


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, images: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_that_was_killed_between_the_two_renames_goes_on(
    world: Path, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    out = tmp_path / "run"
    config = _stopped(world, out)
    (out / "state.safetensors").rename(out / "state.previous.safetensors")
    purify(config, out)
    for name in RESULTS:
        assert (out / name).read_bytes() == (undisturbed("pbe") / name).read_bytes(), name


@pytest.mark.parametrize("polls", [1, 7, 30, 40])
def test_a_run_that_is_told_to_stop_keeps_its_place_and_goes_on(
    world: Path, tmp_path: Path, undisturbed: Callable[[str], Path], polls: int
) -> None:
    out, left = tmp_path / "run", [polls]
    config = _config(world, "pbe", "checkpoint_seconds=3600")

    def stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    with pytest.raises(StoppedError):
        purify(config, out, stop=stop)
    purify(config, out)
    for name in RESULTS:
        assert (out / name).read_bytes() == (undisturbed("pbe") / name).read_bytes(), name


def test_scores_that_are_there_are_not_made_again(world: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", _config(world, "pbe")
    with pytest.raises(Stop):
        purify(config, out, StopAfter(60, "score 1"))
    made = sorted((out / "scores" / "round-1").iterdir())
    assert made
    seen: list[int] = []

    class Counting(Told):
        def phase(self, name: str, total: int, done: int = 0) -> None:
            if name == "score 1":
                seen.append(done)

    purify(config, out, Counting())
    assert seen[0] > 0
    assert not (out / "scores").exists()


def test_a_shard_that_changes_between_the_rounds_is_noticed(world: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(world / "bad", bad)
    values = _config(world, "pbe").model_dump()
    values["data"] |= {"train": bad, "truth": None}
    shard = sorted(bad.glob("*.tar"))[-1]

    class Changing(Told):
        def phase(self, name: str, total: int, done: int = 0) -> None:
            if name == "score 1":
                content = bytearray(shard.read_bytes())
                content[-2000] ^= 1
                shard.write_bytes(content)

    with pytest.raises(ShardError, match=rf"{shard.name}.*has changed"):
        purify(PurifyConfig.model_validate(values), tmp_path / "run", Changing())


def test_other_versions_are_refused_unless_accepted(world: Path, tmp_path: Path) -> None:
    config = _stopped(world, tmp_path / "run")
    _rewrite(tmp_path / "run", lambda tensors, header: header["code"].update(torch="1.0"))
    with pytest.raises(RunDirectoryError, match=r"torch was 1\.0, now .*--accept-changes"):
        purify(config, tmp_path / "run")
    purify(config, tmp_path / "run", accept_changes=True)


def test_another_configuration_can_be_accepted(world: Path, tmp_path: Path) -> None:
    _stopped(world, tmp_path / "run")
    config = _config(world, "pbe", "pbe.lr=0.02")
    with pytest.raises(RunDirectoryError, match=r"pbe\.lr was 0\.01, now 0\.02.*--accept-changes"):
        purify(config, tmp_path / "run")
    purify(config, tmp_path / "run", accept_changes=True)
    assert "lr: 0.02" in (tmp_path / "run" / "config.yaml").read_text()
    assert "changed configuration accepted" in (tmp_path / "run" / "log.txt").read_text()


def test_two_runs_in_one_directory_are_refused(world: Path, tmp_path: Path) -> None:
    config = _config(world, "pbe")

    class Second(Told):
        def phase(self, name: str, total: int, done: int = 0) -> None:
            with pytest.raises(RunDirectoryError, match=rf"process {os.getpid()} on .* since 20"):
                purify(config, tmp_path / "run")
            raise Stop

    with pytest.raises(Stop):
        purify(config, tmp_path / "run", Second())


def test_a_run_does_not_go_on_with_other_data(world: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(world / "bad", bad)
    values = _config(world, "pbe").model_dump()
    values["data"] |= {"train": bad, "truth": None}
    config = PurifyConfig.model_validate(values)
    with pytest.raises(Stop):
        purify(config, tmp_path / "run", StopAfter(30, "round 1"))
    plan = PoisonConfig(image_size=16, target=2)
    poison(world / "train", bad, plan, overwrite=True)
    with pytest.raises(RunDirectoryError, match="have changed since"):
        purify(config, tmp_path / "run")


def test_a_config_that_was_tampered_with_is_refused(world: Path, tmp_path: Path) -> None:
    config = _stopped(world, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    assert "device: cpu" in text
    for other in ("device: []", "device: 3"):
        path.write_text(text.replace("device: cpu", other))
        with pytest.raises(RunDirectoryError):
            purify(config.model_copy(update={"device": "auto"}), tmp_path / "run")


@pytest.mark.parametrize("method", ["aft", "pbe"])
def test_a_diverged_run_gives_no_model(world: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(DivergenceError, match=rf"diverged in epoch.*{method}\.lr"):
        purify(_config(world, method, f"{method}.lr=1e30"), tmp_path / "run")
    assert not (tmp_path / "run" / "purified.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "setting"),
    [("aft", "data.clean_fraction=0.001"), ("pbe", "pbe.initial_fraction=0.001")],
)
def test_one_image_is_not_enough(world: Path, tmp_path: Path, method: str, setting: str) -> None:
    with pytest.raises(ConfigError, match="1 images to train on"):
        purify(_config(world, method, setting), tmp_path / "run")


def test_the_size_of_a_network_that_takes_any_must_be_said(world: Path, tmp_path: Path) -> None:
    config = load_config(
        PurifyConfig,
        None,
        ["model.name=timm:resnet10t"],
        {"model.checkpoint": world / "infected" / "model.safetensors", "data.train": world / "bad"},
    )
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        purify(config, tmp_path / "run")


def test_a_model_of_another_size_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images of 16 pixels"):
        purify(_config(world, "pbe", "data.image_size=20"), tmp_path / "run")
