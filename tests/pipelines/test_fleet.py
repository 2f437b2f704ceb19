"""The fleet ends where a single process ends, whatever dies on the way.

A Ray cluster is started on this machine, on loopback. Faults are real: the model is a Python file
whose network kills or stops its own process when it finds a marker, once.
"""

import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pbe_fast import load_model, purify
from pbe_fast.config import SieveConfig
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.errors import DivergenceError, QuarantineError, ShardError
from pbe_fast.models import ModelSpec
from pbe_fast.progress import StoppedError

pytest.importorskip("ray")
import ray

from pipelines._fleet_options import WorkersLostError
from pipelines._ranks import Ears, finetune_on_ranks
from pipelines.fleet import Fleet, FleetError, Scorer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_two_workers_make_the_same_steps(world: Any, fleet: Fleet) -> None:
    alone, together = world.undisturbed(None), world.undisturbed(fleet)
    ours, theirs = world.losses(together), world.losses(alone)
    assert [x[:3] for x in ours] == [x[:3] for x in theirs]
    # Sums are rounded in another order; the difference grows with the steps.
    np.testing.assert_allclose([x[3] for x in ours], [x[3] for x in theirs], rtol=1e-4)
    models = [load_model(run / world.results[0], ModelSpec(f"{world.root / 'net.py'}:make", 3, 16))
              for run in (alone, together)]  # fmt: skip
    for (name, a), b in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    scores = [
        pq.read_table(run / world.results[1]).sort_by("key")["score"].to_numpy()
        for run in (alone, together)
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)


def test_sieve_makes_the_same_decisions_over_workers(
    world: Any, tmp_path: Path, fleet: Fleet
) -> None:
    sieve = SieveConfig(batch_size=10, initial_epochs=1, epochs=1, lr=0.01)
    config = world.config().model_copy(update={"method": "sieve", "sieve": sieve})
    runs = {"alone": None, "together": fleet}
    ours, theirs = (purify(config, tmp_path / name, fleet=f) for name, f in runs.items())
    assert ours["backdoor"] == theirs["backdoor"]
    decided = ("subset", "suspects", "relabelled")
    assert [[r.get(x) for x in decided] for r in ours["rounds"]] == [
        [r.get(x) for x in decided] for r in theirs["rounds"]
    ]
    steps = [[x[:3] for x in world.losses(tmp_path / name)] for name in runs]
    assert steps[0] == steps[1]


FAULTS = [
    ("infected: ACC, ASR", "eval-kill-0"),  # an actor that measures
    ("round 0", "train-kill-2"),  # a rank
    ("score 0", "eval-kill-1"),  # a scoring actor, in the middle of a shard
    ("round 1", "train-kill-3"),  # a rank, with checkpoints to go on from
    ("round 1", "eval-kill-0"),  # a rank that mines
    ("round 1", "train-hang-1"),  # a rank that does nothing any more
    ("score 1", "eval-memory-0"),  # a batch that does not fit into memory
    ("purified: ACC, ASR", "eval-hang-0"),  # an actor that measures
]


def test_a_run_with_all_faults_ends_in_the_same_bytes(
    world: Any, tmp_path: Path, fleet: Fleet, server: Any
) -> None:
    """And with shards on a server that refuses, hangs up, and sends too little or nothing."""
    expected = world.undisturbed(fleet)
    for file in (world.root / "bad").iterdir():
        if file.suffix in (".tar", ".parquet"):
            shutil.copy(file, server.folder)
    faults = {3: "503", 7: "truncate", 11: "reset", 17: "short", 23: "stall"}
    server.fault = lambda number, _: faults.get(number % 29)
    marker = tmp_path / "marker"
    marker.touch()

    class Dying(Scorer):  # not at the top of the module, so that workers get its source
        def score(self, *args: Any) -> Any:
            result = super().score(*args)
            if marker.exists():  # it has written, and not yet answered
                marker.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    told = world.faults(*FAULTS)
    unlucky = Fleet(replace(fleet.options, timeout=40.0), scorer=Dying)
    cache = [f"data.cache_dir={tmp_path / 'cache'}", "data.cache_bytes=10000000"]
    purify(world.config(*cache, train=server.url), tmp_path / "run", told, fleet=unlucky)
    world.require_happened(told)
    assert not marker.exists()
    assert len(server.requests) > max(faults)
    said = [x for x in told.lines if "another one is started" in x or "going on from" in x]
    # But for the splitting, and with the one who did not answer.
    assert len(said) == len(FAULTS), said
    world.same(tmp_path / "run", expected)


def test_mining_that_does_not_fit_into_memory_is_done_in_halves(
    world: Any, tmp_path: Path, fleet: Fleet
) -> None:
    """A smaller batch may be rounded otherwise, so the bytes may differ."""
    expected = world.undisturbed(fleet)

    class Enough(BaseException):
        pass

    def stop() -> None:
        raise Enough

    told = world.faults(("round 0", "eval-memory-0"))
    told.to_do.append(("score 0", stop))
    with pytest.raises(Enough):
        purify(world.config(), tmp_path / "run", told, fleet=fleet)
    world.require_happened(told)
    ours = world.losses(tmp_path / "run")
    theirs = world.losses(expected)[: len(ours)]
    assert len(ours) >= 2
    assert [x[:3] for x in ours] == [x[:3] for x in theirs]
    np.testing.assert_allclose([x[3] for x in ours], [x[3] for x in theirs], rtol=0.05)


def test_mistakes_come_back_as_they_are(world: Any, tmp_path: Path, fleet: Fleet) -> None:
    """Without another attempt: the same would happen again."""
    with pytest.raises(DivergenceError, match=r"pbe\.lr"):
        purify(world.config("pbe.lr=1e30"), tmp_path / "run", fleet=fleet)


def test_a_shard_that_changes_after_the_start_is_noticed(
    world: Any, tmp_path: Path, fleet: Fleet
) -> None:
    bad = tmp_path / "bad"
    world.poison(bad)
    shard = sorted(bad.glob("*.tar"))[-1]

    def change() -> None:
        content = bytearray(shard.read_bytes())
        content[-2000] ^= 1
        shard.write_bytes(content)

    told = world.told(("score 0", change))
    with pytest.raises(ShardError, match="has changed"):
        purify(world.config(train=bad), tmp_path / "run", told, fleet=fleet)


def test_undecodable_images_that_workers_meet_are_counted(
    world: Any, tmp_path: Path, fleet: Fleet
) -> None:
    damaged = [
        sample if index != 7 else replace(sample, image=sample.image[:-40])
        for index, sample in enumerate(
            signs(num_classes=world.classes, per_class=40, size=16, seed=0, split="train")
        )
    ]
    write_shards(damaged, tmp_path / "bad", classes=sign_names(world.classes), shard_bytes=60_000)
    with pytest.raises(QuarantineError, match="1 undecodable images"):
        purify(world.config(train=tmp_path / "bad"), tmp_path / "run", fleet=fleet)
    assert (tmp_path / "run" / "quarantine.jsonl").read_text().count("\n") == 1


def test_a_fleet_that_the_cluster_cannot_hold_says_so(
    world: Any, tmp_path: Path, fleet: Fleet
) -> None:
    greedy = Fleet(replace(fleet.options, cpus=999, timeout=5.0))
    with pytest.raises(FleetError, match=r"999 CPU.*--cpus-per-worker"):
        purify(world.config(), tmp_path / "run", fleet=greedy)


@pytest.mark.parametrize(("stop", "error"), [(False, WorkersLostError), (True, StoppedError)])
def test_ranks_that_are_not_there_yet_can_be_given_up(
    fleet: Fleet, stop: bool, error: type[Exception]
) -> None:
    """A thread that is still inside of Ray when a driver ends may crash it."""

    class Busy:
        def ready(self) -> None: ...

    everything = ray.cluster_resources()["CPU"]
    busy: Any = ray.remote(num_cpus=everything)(Busy).remote()  # type: ignore[attr-defined]  # Ray's stub
    ray.get(busy.ready.remote())
    nothing: Any = None
    ears = Ears(*[lambda *_: None] * 6, stop=lambda: stop)  # type: ignore[list-item]
    with pytest.raises(error):
        finetune_on_ranks(nothing, nothing, replace(fleet.options, timeout=5.0), ears)
    assert "ray-train" not in [thread.name for thread in threading.enumerate()]
    ray.kill(busy)


def test_nothing_is_left_behind(world: Any, fleet: Fleet) -> None:
    """Actors and ranks of the tests before are gone."""
    world.wait_for_end_of(world.family(os.getpid()), "Scorer", "Dying", "RayTrainWorker")
