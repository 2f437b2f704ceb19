"""The fleet ends where a single process ends, whatever dies on the way.

A Ray cluster is started on this machine, on loopback. Faults are real: the model is a Python file
whose network kills or stops its own process when it finds a marker, once.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pbe_fast import PurifyConfig, TrainConfig, load_config, load_model, poison, purify, train
from pbe_fast.config import PoisonConfig
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.errors import DivergenceError, QuarantineError, ShardError
from pbe_fast.models import ModelSpec
from pbe_fast.progress import StoppedError

pytest.importorskip("ray")
from pipelines.fleet import Fleet, FleetError, FleetOptions, connected

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

RESULTS = ("purified.safetensors", "suspects.parquet")
CLASSES = 3

MODEL = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        )
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        self.fault("train" if self.training else "eval", len(x))
        return self.head(self.body(x).mean((2, 3)))

    def fault(self, mode, size):
        for path in HERE.glob(f"{mode}-*"):
            _, kind, after = path.name.split("-")
            try:
                path.unlink()
            except FileNotFoundError:
                continue  # another process took it
            if int(after):
                (HERE / f"{mode}-{kind}-{int(after) - 1}").touch()
            elif kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif kind == "memory":
                raise torch.OutOfMemoryError("not enough memory")

def make(num_classes):
    return Net(num_classes)
"""


class Told:
    """A progress that keeps what it is told, and may do something at the start of a phase."""

    def __init__(self, at: Callable[[str], None] | None = None) -> None:
        self.lines: list[str] = []
        self.at = at

    def phase(self, name: str, total: int, done: int = 0) -> None:
        if self.at is not None:
            self.at(name)

    def advance(self, images: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.lines.append(text)

    def detail(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Poisoned shards of drawn signs, and a model trained on them for an instant."""
    root = tmp_path_factory.mktemp("world")
    (root / "net.py").write_text(MODEL)
    for split, per_class in (("train", 40), ("test", 10)):
        write_shards(
            signs(num_classes=CLASSES, per_class=per_class, size=16, seed=0, split=split),
            root / split,
            classes=sign_names(CLASSES),
            shard_bytes=60_000,
        )
    poison(root / "train", root / "bad", PoisonConfig(image_size=16, target=1, shard_bytes=60_000))
    values = {
        "data.train": root / "bad",
        "data.test": root / "test",
        "data.attack": root / "bad" / "attack.safetensors",
        "model.name": f"{root / 'net.py'}:make",
    }
    train(
        load_config(TrainConfig, None, [*BASE, "epochs=2", "batch_size=20"], values),
        root / "infected",
    )
    return root


BASE = [
    "data.image_size=16", "precision=float32", "memory_format=contiguous", "device=cpu",
    "eval_batch_size=50", "checkpoint_seconds=0",
]  # fmt: skip


def _config(world: Path, *settings: str, train: Path | None = None) -> PurifyConfig:
    """PBE in two rounds."""
    data = train or world / "bad"
    values: dict[str, Any] = {
        "method": "pbe",
        "model.name": f"{world / 'net.py'}:make",
        "model.checkpoint": world / "infected" / "model.safetensors",
        "data.train": data,
        "data.test": world / "test",
        "data.attack": world / "bad" / "attack.safetensors",
    }
    rounds = [
        "adversary.steps=2", "pbe.batch_size=10", "pbe.epochs=2", "pbe.adversarial_batches=2",
        "pbe.initial_fraction=0.2", "pbe.keep=[0.5]",
    ]  # fmt: skip
    return load_config(PurifyConfig, None, [*BASE, *rounds, *settings], values)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with connected(FleetOptions(workers=2, timeout=60.0)) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(world: Path, fleet: Fleet) -> Callable[[int], Path]:
    """The run directory of a run that nothing disturbed; 0 workers: in this process."""
    done: dict[int, Path] = {}

    def get(workers: int) -> Path:
        if workers not in done:
            done[workers] = world / f"undisturbed-{workers}"
            chosen = Fleet(replace(fleet.options, workers=workers)) if workers else None
            torch.set_num_threads(1)
            purify(_config(world), done[workers], fleet=chosen)
        return done[workers]

    return get


def _same(out: Path, expected: Path) -> None:
    for name in RESULTS:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    ours, theirs = (json.loads((d / "metrics.json").read_text()) for d in (out, expected))
    for key in ("infected", "purified", "suspects", "rounds"):
        assert ours[key] == theirs[key], key
    assert _losses(out) == _losses(expected)


def _losses(run: Path) -> list[tuple[int, int, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(x["round"], x["epoch"], x["batch"], x["loss"]) for x in lines if x["event"] == "step"]


def test_one_worker_gives_the_same_bytes_as_no_fleet(undisturbed: Callable[[int], Path]) -> None:
    _same(undisturbed(1), undisturbed(0))


def test_two_workers_make_the_same_steps(undisturbed: Callable[[int], Path]) -> None:
    alone, together = undisturbed(0), undisturbed(2)
    ours, theirs = _losses(together), _losses(alone)
    assert [x[:3] for x in ours] == [x[:3] for x in theirs]
    # Sums are rounded in another order; the difference grows with the steps.
    np.testing.assert_allclose([x[3] for x in ours], [x[3] for x in theirs], rtol=1e-4)
    models = [load_model(run / RESULTS[0], ModelSpec(f"{alone.parent / 'net.py'}:make", 3, 16))
              for run in (alone, together)]  # fmt: skip
    for (name, a), b in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    scores = [
        pq.read_table(run / RESULTS[1]).sort_by("key")["score"].to_numpy()
        for run in (alone, together)
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)


FAULTS = [
    ("score 0", "eval-kill-1"),  # a scoring actor, in the middle of a shard
    ("round 0", "train-kill-2"),  # a rank
    ("round 1", "train-kill-7"),  # a rank, with checkpoints to go on from
    ("round 1", "eval-kill-1"),  # a rank that mines
    ("score 1", "eval-memory-0"),
]


@pytest.mark.parametrize(("phase", "fault"), FAULTS)
def test_a_run_with_a_fault_ends_in_the_same_bytes(
    world: Path,
    tmp_path: Path,
    fleet: Fleet,
    undisturbed: Callable[[int], Path],
    phase: str,
    fault: str,
) -> None:
    expected = undisturbed(2)
    begun: list[str] = []

    def at(name: str) -> None:
        if name == phase and phase not in begun:
            begun.append(phase)
            (world / fault).touch()

    told = Told(at)
    purify(_config(world), tmp_path / "run", told, fleet=fleet)
    assert begun
    assert not list(world.glob("eval-*")), "the fault did not happen"
    assert not list(world.glob("train-*")), "the fault did not happen"
    _same(tmp_path / "run", expected)


def test_mining_that_does_not_fit_into_memory_is_done_in_halves(
    world: Path, tmp_path: Path, fleet: Fleet, undisturbed: Callable[[int], Path]
) -> None:
    """A smaller batch may be rounded otherwise, so the bytes may differ."""
    expected = undisturbed(2)

    def at(name: str) -> None:
        if name == "round 0" and not (tmp_path / "begun").exists():
            (tmp_path / "begun").touch()
            (world / "eval-memory-0").touch()

    purify(_config(world), tmp_path / "run", Told(at), fleet=fleet)
    assert not list(world.glob("eval-*")), "the fault did not happen"
    ours, theirs = _losses(tmp_path / "run"), _losses(expected)
    assert [x[:3] for x in ours] == [x[:3] for x in theirs]
    np.testing.assert_allclose([x[3] for x in ours], [x[3] for x in theirs], rtol=0.05)


@pytest.mark.parametrize("fault", ["train-hang-3", "eval-hang-1"])
def test_a_worker_that_hangs_is_given_up(
    world: Path, tmp_path: Path, fleet: Fleet, undisturbed: Callable[[int], Path], fault: str
) -> None:
    expected = undisturbed(2)
    phase = "round 1" if fault.startswith("train") else "score 0"
    begun: list[str] = []

    def at(name: str) -> None:
        if name == phase and not begun:
            begun.append(name)
            (world / fault).touch()

    impatient = Fleet(replace(fleet.options, timeout=20.0))
    purify(_config(world), tmp_path / "run", Told(at), fleet=impatient)
    assert begun
    _same(tmp_path / "run", expected)


@pytest.mark.parametrize(
    "phase", ["infected: ACC, ASR", "round 0", "score 0", "round 1", "score 1"]
)
def test_a_driver_that_dies_at_a_phase_and_is_run_again(
    world: Path, tmp_path: Path, fleet: Fleet, undisturbed: Callable[[int], Path], phase: str
) -> None:
    expected = undisturbed(2)

    class Died(BaseException):
        pass

    def die(name: str) -> None:
        if name == phase:
            raise Died

    with pytest.raises(Died):
        purify(_config(world), tmp_path / "run", Told(die), fleet=fleet)
    purify(_config(world), tmp_path / "run", fleet=fleet)
    _same(tmp_path / "run", expected)


def test_a_driver_that_is_told_to_stop_keeps_its_place(
    world: Path, tmp_path: Path, fleet: Fleet, undisturbed: Callable[[int], Path]
) -> None:
    expected = undisturbed(2)
    stopping: list[str] = []
    told = Told(lambda name: stopping.append(name) if name == "round 1" else None)
    config = _config(world, "checkpoint_seconds=3600")
    with pytest.raises(StoppedError):
        purify(config, tmp_path / "run", told, fleet=fleet, stop=lambda: bool(stopping))
    purify(config, tmp_path / "run", fleet=fleet)
    _same(tmp_path / "run", expected)


def test_mistakes_come_back_as_they_are(world: Path, tmp_path: Path, fleet: Fleet) -> None:
    """Without another attempt: the same would happen again."""
    with pytest.raises(DivergenceError, match=r"pbe\.lr"):
        purify(_config(world, "pbe.lr=1e30"), tmp_path / "run", fleet=fleet)


def test_a_shard_that_changes_between_the_rounds_is_noticed(
    world: Path, tmp_path: Path, fleet: Fleet
) -> None:
    bad = tmp_path / "bad"
    poison(world / "train", bad, PoisonConfig(image_size=16, target=1, shard_bytes=60_000))
    shard = sorted(bad.glob("*.tar"))[-1]

    def change(name: str) -> None:
        if name == "score 1":
            content = bytearray(shard.read_bytes())
            content[-2000] ^= 1
            shard.write_bytes(content)

    with pytest.raises(ShardError, match="has changed"):
        purify(_config(world, train=bad), tmp_path / "run", Told(change), fleet=fleet)


def test_undecodable_images_that_workers_meet_are_counted(
    world: Path, tmp_path: Path, fleet: Fleet
) -> None:
    damaged = [
        sample if index != 7 else replace(sample, image=sample.image[:-40])
        for index, sample in enumerate(
            signs(num_classes=CLASSES, per_class=40, size=16, seed=0, split="train")
        )
    ]
    write_shards(damaged, tmp_path / "bad", classes=sign_names(CLASSES), shard_bytes=60_000)
    with pytest.raises(QuarantineError, match="1 undecodable images"):
        purify(_config(world, train=tmp_path / "bad"), tmp_path / "run", fleet=fleet)
    assert (tmp_path / "run" / "quarantine.jsonl").read_text().count("\n") == 1
    metrics = purify(
        _config(world, "data.quarantine_budget=0.02", train=tmp_path / "bad"),
        tmp_path / "other",
        fleet=fleet,
    )
    assert metrics["quarantined"] == 1


def test_a_fleet_that_the_cluster_cannot_hold_says_so(
    world: Path, tmp_path: Path, fleet: Fleet
) -> None:
    greedy = Fleet(replace(fleet.options, cpus=999, timeout=5.0))
    with pytest.raises(FleetError, match=r"999 CPU.*--cpus-per-worker"):
        purify(_config(world), tmp_path / "run", fleet=greedy)


def test_nothing_is_left_behind(fleet: Fleet) -> None:
    """Actors and ranks of the tests before are gone."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = [title for title in _titles() if "Scorer" in title or "RayTrainWorker" in title]
        if not left:
            return
        time.sleep(0.5)
    pytest.fail(f"still running: {left}")


def _titles() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes().decode(errors="replace")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            yield title
