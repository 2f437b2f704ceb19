"""A small purification that the tests of a fleet run, and faults that really happen in it.

The model is a Python file whose network kills or stops its own process when it finds a marker
beside it, once. Nothing here needs Ray.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pbe_fast import PurifyConfig, TrainConfig, load_config, poison, purify, train
from pbe_fast.config import PoisonConfig
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pipelines._guard import family

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
        if len(x) > 2:  # those are a model's first try-out, before the phase that a fault is for
            self.fault("train" if self.training else "eval")
        return self.head(self.body(x).mean((2, 3)))

    def fault(self, mode):
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
            elif kind == "wait":
                (HERE / f"waiting-{os.getpid()}").touch()
                time.sleep(600)

def make(num_classes):
    return Net(num_classes)
"""


class Told:
    """A progress that keeps what it is told, and does things one after the other.

    Each when its phase begins, or begins again, after the one before it was done.
    """

    def __init__(self, *to_do: tuple[str, Callable[[], object]]) -> None:
        self.lines: list[str] = []
        self.to_do = list(to_do)

    def phase(self, name: str, total: int, done: int = 0) -> None:
        if self.to_do and name == self.to_do[0][0]:
            self.to_do.pop(0)[1]()

    def advance(self, images: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.lines.append(text)

    def detail(self, text: str) -> None:
        self.lines.append(text)


BASE = [
    "data.image_size=16", "precision=float32", "memory_format=contiguous", "device=cpu",
    "eval_batch_size=50", "checkpoint_seconds=0",
]  # fmt: skip


class World:
    """Poisoned shards of drawn signs, and a model trained on them for an instant."""

    results = ("purified.safetensors", "suspects.parquet")
    classes = CLASSES
    told = Told

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "net.py").write_text(MODEL)
        for split, per_class in (("train", 40), ("test", 10)):
            write_shards(
                signs(num_classes=CLASSES, per_class=per_class, size=16, seed=0, split=split),
                root / split,
                classes=sign_names(CLASSES),
                shard_bytes=60_000,
            )
        self.poison(root / "bad")
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

    def poison(self, out: Path) -> None:
        """The training set with a trigger in it."""
        poison(self.root / "train", out, PoisonConfig(image_size=16, target=1, shard_bytes=60_000))

    @property
    def values(self) -> dict[str, Any]:
        """PBE in two rounds."""
        return {
            "method": "pbe",
            "model.name": f"{self.root / 'net.py'}:make",
            "model.checkpoint": self.root / "infected" / "model.safetensors",
            "data.train": self.root / "bad",
            "data.test": self.root / "test",
            "data.attack": self.root / "bad" / "attack.safetensors",
        }

    settings = (
        *BASE,
        "adversary.steps=2", "pbe.batch_size=10", "pbe.epochs=2", "pbe.adversarial_batches=2",
        "pbe.initial_fraction=0.2", "pbe.keep=[0.5]",
    )  # fmt: skip

    def config(self, *settings: str, train: object = None) -> PurifyConfig:
        """The same, for the library."""
        values = self.values | ({"data.train": train} if train else {})
        return load_config(PurifyConfig, None, [*self.settings, *settings], values)

    def words(self, out: Path, *more: str) -> list[str]:
        """The same, for the command line."""
        values = self.values
        words = ["purify", str(values.pop("model.checkpoint")), "--out", str(out)]
        given = [f"{key}={value}" for key, value in values.items()]
        for setting in (*self.settings, *given):
            words += ["--set", setting]
        return [*words, *more]

    def faults(self, *faults: tuple[str, str]) -> Told:
        """A progress that lets something happen in a phase, to whoever computes then."""
        return Told(*((phase, (self.root / fault).touch) for phase, fault in faults))

    def waiting(self, driver: Any) -> int:
        """The process in which the fault ``wait`` happens, once it does."""
        deadline = time.monotonic() + 120
        while not (found := list(self.root.glob("waiting-*"))):
            assert time.monotonic() < deadline, driver.text
            assert driver.process.poll() is None, driver.text
            time.sleep(0.05)
        found[0].unlink()
        return int(found[0].name.partition("-")[2])

    def require_happened(self, told: Told) -> None:
        """What was asked for has happened."""
        assert not told.to_do
        left = [*self.root.glob("eval-*"), *self.root.glob("train-*")]
        assert not left, "the fault did not happen"

    def same(self, out: Path, expected: Path, *, losses: bool = True) -> None:
        """Two runs ended in the same bytes, over the same steps.

        Losses are written as means between two checkpoints, so a run with fewer has others.
        """
        for name in self.results:
            assert (out / name).read_bytes() == (expected / name).read_bytes(), name
        ours, theirs = (json.loads((d / "metrics.json").read_text()) for d in (out, expected))
        for key in ("infected", "purified", "suspects", "rounds"):
            assert ours[key] == theirs[key], key
        if losses:
            assert self.losses(out) == self.losses(expected)

    def undisturbed(self, fleet: Any = None) -> Path:
        """The run directory of a run that nothing disturbed; made once for each world size."""
        out = self.root / f"undisturbed-{fleet.options.workers if fleet else 0}"
        purify(self.config(), out, fleet=fleet)  # which does nothing where it is finished
        return out

    @staticmethod
    def losses(run: Path) -> list[tuple[int, int, int, float]]:
        """Round, epoch, batch and loss of every step."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        return [(x["round"], x["epoch"], x["batch"], x["loss"]) for x in steps]

    @staticmethod
    def family(pid: int) -> set[tuple[int, str]]:
        """A process and all that descend from it: their numbers, and when they began."""
        return {(each, _life(each)[1]) for each in family(pid)}

    @staticmethod
    def wait_for_end_of(
        processes: set[tuple[int, str]], *words: str, seconds: float = 30.0
    ) -> None:
        """Processes, or those with one of the words in their command lines, end in time."""
        deadline = time.monotonic() + seconds
        while left := [
            title
            for pid, began in processes
            for title, now in [_life(pid)]
            if title and now == began and (not words or any(word in title for word in words))
        ]:
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.5)


def _life(pid: int) -> tuple[str, str]:
    """Command line and beginning of a process; empty if it has ended."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return ("", "") if fields[0] == "Z" else (title.decode(errors="replace"), fields[19])


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made once."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Any]:
    """Two workers of a thread each, on a cluster of this machine."""
    from pipelines.fleet import FleetOptions, connected  # which needs Ray

    with connected(FleetOptions(workers=2, cpus=1, timeout=60.0)) as found:
        yield found
