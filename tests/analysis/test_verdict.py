"""The verdict on a model: what counts as evidence, and how often it is wrong of benign ones."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.analysis import verdict as module
from pbe_fast.analysis.predictions import Predictions
from pbe_fast.analysis.verdict import (
    FEWEST_CLASSES,
    LEVEL,
    Evidence,
    benign_scores,
    evidence,
    judge,
)
from pbe_fast.erase.split import ClassSplit

CLASSES, EACH = 10, 40
MOST = math.log(CLASSES - 1)
Goes = Callable[[int, int], int]  # label and number of an image, to the label its example gets


def _scan(
    goes: Goes, *, second: npt.NDArray[np.bool_] | None = None, split: tuple[int, ...] = ()
) -> Predictions:
    """40 images of each of 10 labels, at one size."""
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), EACH)
    gone = np.array([goes(k, i) for k in range(CLASSES) for i in range(EACH)], np.int32)
    return Predictions(
        tuple(str(k) for k in range(CLASSES)),
        (8.0,),
        labels,
        np.stack([labels, gone], 1),
        np.zeros((len(labels), 2), np.float32),
        second,
        tuple(ClassSplit(k, EACH, 0.5, 1.0, 5.0) for k in split),
    )


def _evenly(label: int, image: int) -> int:
    return (label + 1 + image % (CLASSES - 1)) % CLASSES


def _of(found: Predictions, kind: str) -> Evidence:
    return next(one for one in evidence(found) if one.kind == kind)


BENIGN = tuple({"pull": 0.25 * i / 19, "shift": 0.2} for i in range(20))


# where adversarial examples go


def test_an_even_spread_is_no_evidence() -> None:
    found = _scan(_evenly)
    assert _of(found, "pull").score == pytest.approx(0, abs=0.15)
    assert _of(found, "shift").score == pytest.approx(0, abs=0.15)
    assert {one.kind for one in evidence(found)} == {"pull", "shift"}


def test_a_label_that_draws_all_classes_is_the_target() -> None:
    found = _scan(lambda k, i: 3 if k != 3 and i % 2 else _evenly(k, i))
    pull = _of(found, "pull")
    assert (pull.label, pull.eps_255) == (3, 8.0)
    assert pull.times == pytest.approx(math.exp(MOST * pull.score))
    assert 4 < pull.times < 5
    said = judge(found, BENIGN)
    assert (said.infected, said.mode, said.targets) == (True, "all_to_one", (3,))
    assert said.p_value == pytest.approx(1 / 21)


def test_a_label_that_two_classes_look_like_is_none() -> None:
    # It gets as many examples as half of two classes, but those of no other.
    found = _scan(lambda k, i: 3 if k in (2, 4) else (_evenly(k, i) if _evenly(k, i) != 3 else k))
    assert found.share[0].argmax() == 3
    assert not any(
        one.label == 3 and one.score > 0 for one in evidence(found) if one.kind == "pull"
    )


def test_the_next_label_for_all_is_all_to_all() -> None:
    found = _scan(lambda k, i: (k + 1) % CLASSES if i % 2 else _evenly(k, i))
    shift = _of(found, "shift")
    assert shift.label == 1
    said = judge(found, BENIGN)
    assert (said.mode, said.targets) == ("all_to_all", ())
    back = _scan(lambda k, i: (k - 1) % CLASSES if i % 2 else _evenly(k, i))
    assert _of(back, "shift").label == CLASSES - 1


def test_a_shift_that_no_benign_model_has_is_all_to_all_where_a_label_stands_out() -> None:
    """Single labels stand out more than the shift with a trigger for every label, too."""
    gone = _scan(lambda k, i: (k + 1) % CLASSES if i % 13 == 0 else _evenly(k, i))
    found = replace(_kinds(2.0, (4.0, -4.0)), predicted=gone.predicted)
    shift = _of(found, "shift").score
    assert _of(found, "pull").score < shift < 0.5
    for benign_shift, mode in ((shift - 0.01, "all_to_all"), (shift, "all_to_one")):
        said = judge(found, [{"pull": 0.5, "shift": benign_shift}] * 20)
        assert (said.mode, said.targets) == (mode, (4,) if mode == "all_to_one" else ())


def test_a_stronger_pull_than_shift_is_all_to_one() -> None:
    found = _scan(lambda k, i: (3 if k != 3 else 4) if i % 5 < 3 else (k + 1) % CLASSES)
    pull, shift = _of(found, "pull"), _of(found, "shift")
    assert pull.score < shift.score, "in their units"
    assert (shift.times or 0) < (pull.times or 0)
    said = judge(found, BENIGN)
    assert (said.mode, said.targets) == ("all_to_one", (3,))


def test_a_score_as_high_as_a_benign_one_can_name_a_label() -> None:
    """Of 40 benign models one may exceed it at the level of one in twenty."""
    found = _scan(lambda k, i: 3 if k != 3 and i % 2 else _evenly(k, i))
    high = ({"pull": 0.9, "shift": 0.0},)
    said = judge(found, (*BENIGN, *BENIGN[1:], *high))
    assert said.evidence[0].score < 0.9
    assert said.p_value == pytest.approx(2 / 41)
    assert (said.infected, said.mode, said.targets) == (True, "all_to_one", (3,))


def test_there_is_no_verdict_on_few_classes() -> None:
    whole = _scan(lambda k, i: 3 if k != 3 and i % 2 else _evenly(k, i))
    assert judge(whole, BENIGN).enough
    some = whole.labels < FEWEST_CLASSES - 1
    fewer = Predictions(
        whole.classes, whole.eps_255, whole.labels[some], whole.predicted[some],
        whole.margins[some],
    )  # fmt: skip
    said = judge(fewer, BENIGN)
    assert said.p_value <= LEVEL
    assert (said.infected, said.mode, said.targets, said.enough) == (False, None, (), False)


def test_by_hand() -> None:
    # Two images of label 0 and four of label 1 of two; one of the four is given label 0.
    labels = np.array([0, 0, 1, 1, 1, 1], np.int32)
    predicted = np.array([[0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [1, 1]], np.int32)
    found = Predictions(("a", "b"), (2.0,), labels, predicted, np.zeros((6, 2), np.float32))
    times = {(one.kind, one.label): one.times for one in evidence(found)}
    assert times["pull", 0] == pytest.approx(1.5 / 5)
    assert times["pull", 1] == pytest.approx(0.5 / 3)
    assert times["shift", 1] == pytest.approx(math.sqrt(1.5 / 5 * 0.5 / 3))


def test_by_hand_of_four_classes() -> None:
    # Of each of four labels three images, of which two are given the next label and one stays.
    labels = np.repeat(np.arange(4, dtype=np.int32), 3)
    gone = np.where(np.arange(12) % 3, (labels + 1) % 4, labels)
    found = Predictions(
        tuple("abcd"), (2.0,), labels, np.stack([labels, gone], 1),
        np.zeros((12, 2), np.float32),
    )  # fmt: skip
    of = {(one.kind, one.label): one for one in evidence(found)}
    drawn, other = math.log(2.5 / 5 * 3), math.log(0.5 / 5 * 3)
    assert of["shift", 1].score == pytest.approx(2 * drawn / math.log(3))
    assert of["shift", 1].times == pytest.approx(1.5)
    assert of["pull", 0].score == pytest.approx((drawn + 2 * other) / 3 / math.log(3))


def test_classes_without_images_say_nothing() -> None:
    found = _scan(lambda k, i: 3 if k != 3 else 0)
    some = found.labels < 5
    fewer = Predictions(
        found.classes, found.eps_255, found.labels[some], found.predicted[some],
        found.margins[some],
    )  # fmt: skip
    assert all(np.isfinite(one.score) for one in evidence(fewer))
    assert _of(fewer, "pull").label == 3
    assert _of(fewer, "pull").score == pytest.approx(_of(found, "pull").score)


# two kinds of images in a label


def _kinds(
    gain: float, margins: tuple[float, float], images: int = EACH // 2, of: int = 1000
) -> Predictions:
    """Some images of label 4 are one kind, the rest another; by their margin when perturbed.

    Args:
        of: images of the label, of which these are a part.
    """
    first = 4 * EACH + np.arange(images)
    second = np.isin(np.arange(CLASSES * EACH), first)
    found = _scan(_evenly, second=second, split=(4,))
    noise = np.random.default_rng(0).normal(0, 1, (len(second), 2)).astype(np.float32)
    noise[:, 1] += np.where(second, *margins)
    return replace(found, margins=noise, split=(ClassSplit(4, of, images / EACH, gain, 5.0),))


@pytest.mark.parametrize("margins", [(4.0, -4.0), (-4.0, 4.0)])
def test_two_kinds_that_differ_in_both_ways_are_a_trigger(margins: tuple[float, float]) -> None:
    found = _kinds(2.0, margins)
    gap = _of(found, "gap")
    assert (gap.label, gap.eps_255) == (4, 8.0)
    assert gap.score == pytest.approx(math.log(1 + 2 * 8) * 2 / 7, abs=0.05)
    said = judge(found, BENIGN)
    assert (said.mode, said.targets, said.clusters) == ("all_to_one", (4,), True)
    assert not judge(found.without_clusters(), BENIGN).infected


def test_margins_count_as_they_are_and_at_the_smallest_size_alone() -> None:
    found = _kinds(2.0, (0.0, 0.0))
    assert found.second is not None
    clean, large = (np.where(found.second, 6, 0) * (np.arange(3) == i)[:, None] for i in (0, 2))
    margins = np.c_[found.margins, found.margins[:, 1]]
    more = replace(
        found, eps_255=(2.0, 8.0), predicted=np.c_[found.predicted, found.predicted[:, 1]]
    )
    gap = _of(replace(more, margins=margins + clean.T), "gap")
    assert (gap.eps_255, gap.score) == (None, pytest.approx(math.log(1 + 2 * 6) * 2 / 7, abs=0.1))
    assert _of(replace(more, margins=margins + large.T), "gap").score < math.log(3) * 2 / 7


def test_one_of_the_two_differences_alone_is_not() -> None:
    assert _of(_kinds(0.2, (4.0, -4.0)), "gap").score < math.log(3) * 2 / 7
    assert _of(_kinds(2.0, (0.1, -0.1)), "gap").score < math.log(2) * 2 / 7


@pytest.mark.parametrize(("images", "counts"), [(7, False), (8, True)])
def test_too_few_images_of_a_kind_are_no_evidence(images: int, counts: bool) -> None:
    seen = evidence(_kinds(2.0, (4.0, -4.0), images))
    assert [one.label for one in seen if one.kind == "gap"] == [4] * counts


@pytest.mark.parametrize(("of", "counts"), [(38, False), (40, True)])
def test_photographs_of_one_thing_are_no_evidence(of: int, counts: bool) -> None:
    """A kind of half of an image's label, with 19 or 20 among all of them."""
    seen = evidence(_kinds(2.0, (4.0, -4.0), of=of))
    assert [one.label for one in seen if one.kind == "gap"] == [4] * counts


def test_that_classes_fall_apart_says_nothing() -> None:
    """So do those of a benign model that was trained on photographs of a few things."""
    second = np.arange(CLASSES * EACH) % EACH < EACH // 2
    found = _scan(_evenly, second=second, split=tuple(range(CLASSES)))
    said = judge(found, BENIGN)
    assert (said.infected, said.clusters) == (False, True)
    assert json.loads(json.dumps(asdict(said)))["mode"] is None  # plain values alone


@pytest.mark.parametrize(("labels", "mode"), [(5, "all_to_one"), (6, "all_to_all")])
def test_gaps_of_more_than_half_of_the_labels_are_all_to_all(labels: int, mode: str) -> None:
    second = np.tile(np.arange(EACH) < EACH // 2, CLASSES)
    found = _scan(_evenly, second=second)
    margins = np.random.default_rng(0).normal(0, 1, (len(second), 2)) + 8 * second[:, None]
    split = tuple(ClassSplit(k, EACH, 0.5, 2.0, 5.0) for k in range(labels))
    said = judge(replace(found, margins=margins.astype(np.float32), split=split), BENIGN)
    assert said.mode == mode
    assert set(said.targets) == (set(range(labels)) if mode == "all_to_one" else set())


# the test


def _pulled(score: float, monkeypatch: pytest.MonkeyPatch) -> Predictions:
    """A scan whose strongest evidence has a given score."""
    monkeypatch.setattr(module, "evidence", lambda _: (Evidence("pull", score, 0, 8.0, 2.0),))
    return _scan(_evenly)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3, 3), min_size=20, max_size=60))
def test_few_benign_models_are_called_infected(scores: list[float]) -> None:
    # Whichever of these models is the one in question, and the others the known ones.
    with pytest.MonkeyPatch.context() as patch:
        found = [
            judge(
                _pulled(score, patch),
                [{"pull": s, "shift": -9.0} for s in (*scores[:i], *scores[i + 1 :])],
            ).infected
            for i, score in enumerate(scores)
        ]
    assert sum(found) <= LEVEL * len(scores)


def test_as_much_as_a_benign_model_is_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not judge(_pulled(0.25, monkeypatch), BENIGN).infected
    assert judge(_pulled(0.25, monkeypatch), BENIGN).p_value == pytest.approx(2 / 21)
    assert judge(_pulled(0.251, monkeypatch), BENIGN).infected
    # Of 19 models even the most extreme cannot be told from one in twenty, but for a hair.
    assert judge(_pulled(9.0, monkeypatch), BENIGN[:18]).p_value == pytest.approx(1 / 19)
    assert not judge(_pulled(9.0, monkeypatch), BENIGN[:18]).infected


def test_a_size_of_its_own_can_be_the_one_that_shows() -> None:
    one, other = _scan(_evenly), _scan(lambda k, i: 3 if k != 3 else 0)
    both = Predictions(
        one.classes, (2.0, 8.0), one.labels, np.c_[one.predicted, other.predicted[:, 1]],
        np.zeros((len(one.labels), 3), np.float32),
    )  # fmt: skip
    assert _of(both, "pull").eps_255 == 8.0
    assert _of(both, "pull").score == _of(other, "pull").score
    assert not judge(both, BENIGN).comparable


def test_the_benign_models_are_enough_and_whole() -> None:
    benign = benign_scores()
    assert 1 / (1 + len(benign)) <= LEVEL, "too few to find anything"
    for scores in benign:
        assert {"pull", "shift"} <= set(scores) <= {"pull", "shift", "gap"}
        assert all(math.isfinite(score) for score in scores.values())
