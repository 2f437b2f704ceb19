"""The driver against a worker that only takes notes, and the numbers of the paper."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.config import AftConfig, PbeConfig
from pbe_fast.erase import (
    Place,
    aft_stage,
    first_subset,
    pbe_rounds,
    run_rounds,
    select_top,
)
from pbe_fast.training import Position, Stage

COUNT = 1000


class Notes:
    """A worker whose score of a sample is its id, so the top is the end of the set."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, int]] = []
        self.positions: list[Position] = []

    def restart(self) -> None:
        self.done.append(("restart", -1, 0))

    def finetune(self, stage: Stage, place: Place) -> None:
        self.done.append(("finetune", stage.round, len(place.subset)))
        self.positions.append(place.position)

    def score(self, place: Place, look: str) -> np.ndarray:
        assert look == "agreement"
        self.done.append(("score", place.round, len(place.subset)))
        return np.arange(COUNT, dtype=np.float32)

    def note(self, facts: Mapping[str, Any]) -> None:
        assert not facts


def test_pbe_runs_the_rounds_of_the_paper() -> None:
    worker, saved = Notes(), []
    start = Place(0, "finetune", first_subset(COUNT, 0.05, seed=0))
    scores, last = run_rounds(pbe_rounds(PbeConfig(), "none", False), worker, start, saved.append)
    assert last is saved[-1]
    assert worker.done == [
        ("finetune", 0, 50), ("score", 0, 50),
        ("finetune", 1, 200), ("score", 1, 200),
        ("finetune", 2, 500), ("score", 2, 500),
        ("finetune", 3, 700), ("score", 3, 700),
    ]  # fmt: skip
    assert scores is not None
    assert len(scores) == COUNT
    assert [(p.round, p.part) for p in saved] == [
        (0, "score"), (1, "finetune"), (1, "score"), (2, "finetune"),
        (2, "score"), (3, "finetune"), (3, "score"),
    ]  # fmt: skip
    assert saved[1].subset.tolist() == list(range(800, 1000))


@pytest.mark.parametrize("stop", range(8))
def test_a_run_goes_on_from_every_place_it_saved(stop: int) -> None:
    rounds, saved = pbe_rounds(PbeConfig(), "none", False), []
    start = Place(0, "finetune", first_subset(COUNT, 0.05, seed=0))
    whole = Notes()
    run_rounds(rounds, whole, start, saved.append)
    rest = Notes()
    run_rounds(rounds, rest, [start, *saved][stop], lambda _place: None)
    assert rest.done == whole.done[stop:]


def test_only_the_first_unit_after_a_stop_starts_inside_its_stage() -> None:
    worker = Notes()
    place = Place(1, "finetune", np.arange(200), Position(epoch=3, batch=7))
    run_rounds(pbe_rounds(PbeConfig(), "none", False), worker, place, lambda _place: None)
    assert [(p.epoch, p.batch) for p in worker.positions] == [(3, 7), (0, 0), (0, 0)]


@pytest.mark.parametrize(("epoch", "batch", "restarts"), [(0, 0, 1), (0, 3, 0), (1, 0, 0)])
def test_a_fresh_round_begins_with_the_infected_weights_once(
    epoch: int, batch: int, restarts: int
) -> None:
    rounds = [replace(r, fresh=r.stage.round == 2) for r in pbe_rounds(PbeConfig(), "none", False)]
    worker = Notes()
    place = Place(2, "finetune", np.arange(200), Position(epoch, batch))
    run_rounds(rounds, worker, place, lambda _place: None)
    assert worker.done.count(("restart", -1, 0)) == restarts
    assert worker.done[restarts] == ("finetune", 2, 200)


@pytest.mark.parametrize("start", ["finetune", "score"])
def test_a_round_that_has_nothing_more_to_do_is_the_last(
    start: Literal["finetune", "score"],
) -> None:
    rounds = pbe_rounds(PbeConfig(), "none", False)
    rounds[1] = replace(rounds[1], select=lambda _scores, _place: None)
    worker = Notes()
    scores, last = run_rounds(rounds, worker, Place(1, start, np.arange(200)), lambda _place: None)
    assert worker.done[-1] == ("score", 1, 200)
    assert scores is not None
    assert (last.round, last.part) == (1, "score")


def test_the_schedule_of_pbe() -> None:
    first, *later = [r.stage for r in pbe_rounds(PbeConfig(), "crop_rotate", False)]
    assert len(later) == 3
    assert all(stage.epochs == 10 for stage in (first, *later))
    assert all(first.is_adversarial(epoch, batch) for epoch in range(10) for batch in (0, 500))
    for stage in later:
        assert [stage.is_adversarial(0, b) for b in (0, 29, 30)] == [True, True, False]
        assert not stage.is_adversarial(1, 0)


def test_the_schedule_of_aft() -> None:
    stage = aft_stage(AftConfig(), "crop_rotate", False)
    assert (stage.epochs, stage.batch_size, stage.momentum, stage.weight_decay) == (
        20, 128, 0.9, 5e-4,
    )  # fmt: skip
    assert [stage.is_adversarial(e, 10) for e in range(4)] == [True, True, True, False]
    assert stage.lr_at(0.0) == stage.lr_at(0.9) == stage.lr == 0.001
    falling = aft_stage(AftConfig(schedule="cosine", lr=0.1), "none", False)
    assert falling.lr_at(0.5) == pytest.approx(0.05)


@given(st.integers(1, 500), st.floats(0.001, 1), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_the_first_subset_is_a_random_share(count: int, fraction: float, seed: int) -> None:
    ids = first_subset(count, fraction, seed)
    assert len(ids) == max(1, round(fraction * count))
    assert (np.diff(ids) > 0).all()
    assert 0 <= ids[0] <= ids[-1] < count
    assert (ids == first_subset(count, fraction, seed)).all()


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, np.nan]), min_size=1, max_size=40),
    st.floats(0.01, 1),
)
@settings(deadline=None)
def test_the_top_is_the_top(values: list[float], share: float) -> None:
    scores = np.array(values, np.float32)
    top = select_top(scores, share)
    known = np.flatnonzero(~np.isnan(scores))
    assert len(top) == min(round(share * len(scores)), len(known))
    assert set(top) <= set(known)
    assert (np.diff(top) > 0).all()
    rest = np.setdiff1d(known, top)
    for inside in top:
        for outside in rest:
            assert (scores[inside], -inside) > (scores[outside], -outside)
