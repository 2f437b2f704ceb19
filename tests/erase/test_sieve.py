"""The decisions of Sieve, against a split and outcomes that are given."""

import json

import numpy as np
import pytest

from pbe_fast.config import SieveConfig
from pbe_fast.erase import Place, Sieve
from pbe_fast.erase.split import ClassSplit, Split

CLASSES, EACH = 6, 100
LABELS = np.repeat(np.arange(CLASSES), EACH).astype(np.int32)


def _sieve(shares: dict[int, float], **settings: object) -> Sieve:
    """The first images of these classes are in their smaller clusters; image 599 is unreadable."""
    odds = np.full(len(LABELS), -50, np.float32)
    for label, share in shares.items():
        odds[label * EACH : label * EACH + round(share * EACH)] = 50
    odds[-1] = np.nan
    classes = tuple(ClassSplit(label, share, 1.0, 9.0) for label, share in shares.items())
    config = SieveConfig.model_validate(settings)
    return Sieve(LABELS, CLASSES, Split(odds, classes), config, seed=0)


def _outcome(changes: dict[int, int] | None = None) -> np.ndarray:
    """Every image gets its label but for some; losses tell which."""
    outcome = np.stack([np.full(len(LABELS), 0.1), LABELS], 1).astype(np.float32)
    for image, label in (changes or {}).items():
        outcome[image] = 4.0, label
    outcome[-1] = np.nan
    return outcome


def _place(ids: np.ndarray, labels: np.ndarray | None = None) -> Place:
    return Place(1, "score", ids, labels=labels)


def test_the_first_subset_is_a_share_of_each_class_without_what_was_split_off() -> None:
    first = _sieve({1: 0.1, 4: 0.4}, initial_fraction=0.5).first()
    assert (np.diff(first) > 0).all()
    assert np.bincount(LABELS[first], minlength=6).tolist() == [50, 45, 50, 50, 0, 50]
    assert not np.isin(first, np.arange(100, 110)).any()
    assert 599 not in first


def test_where_many_classes_are_split_the_smaller_clusters_are_left_out() -> None:
    first = _sieve(dict.fromkeys(range(3), 0.3), initial_fraction=0.5).first()
    assert np.bincount(LABELS[first], minlength=6).tolist() == [35, 35, 35, 50, 50, 50]


def test_small_classes_are_taken_whole() -> None:
    first = _sieve({}, initial_fraction=0.01).first()
    assert np.bincount(LABELS[first]).tolist() == [20] * 6


def test_a_cluster_that_gets_its_label_unseen_is_natural() -> None:
    sieve = _sieve({1: 0.1, 2: 0.1})
    outcome = _outcome(dict.fromkeys(range(200, 206), 5) | dict.fromkeys(range(100, 105), 0))
    one, two = sieve.verdicts(outcome)
    assert (one.poisoned, two.poisoned) == ("none", "smaller")
    assert two.measured == pytest.approx((0.6, 0.0))
    chosen = sieve.judged(outcome, _place(sieve.first()))
    assert chosen.labels is not None
    assert (chosen.labels[np.isin(chosen.ids, np.arange(200, 206))] == 5).all()
    assert np.setdiff1d(np.arange(600), chosen.ids).tolist() == [*range(206, 210), 599]
    assert (chosen.facts["suspects"], chosen.facts["relabelled"]) == (10, 6)
    json.dumps(chosen.facts)


@pytest.mark.parametrize(
    ("small", "large", "poisoned"),
    [
        ([0, 2, 3, 5], [0], "smaller"),
        ([0], [0, 2, 3, 5], "larger"),
        ([0, 2], [3, 5], "none"),
    ],
)
def test_of_a_whole_class_the_cluster_that_shows_many_classes_is_poisoned(
    small: list[int], large: list[int], poisoned: str
) -> None:
    """It was not learned, so both clusters get other labels."""
    sieve = _sieve({1: 0.4})
    seen = {100 + i: (small if i < 40 else large)[i % len(small if i < 40 else large)]
            for i in range(100)}  # fmt: skip
    outcome = _outcome(seen)
    [verdict] = sieve.verdicts(outcome)
    assert verdict.poisoned == poisoned
    assert verdict.measured == pytest.approx((len(small), len(large)), rel=0.01)
    chosen = sieve.judged(outcome, _place(sieve.first()))
    suspects = sieve.suspects(_place(chosen.ids, chosen.labels))
    expected = {"smaller": range(100, 140), "larger": range(140, 200), "none": range(0)}[poisoned]
    assert np.flatnonzero(suspects).tolist() == list(expected)


def test_a_better_model_judges_again() -> None:
    """Class 2's suspects are as labelled by now; one more of class 1 is not."""
    sieve = _sieve({1: 0.1, 2: 0.1})
    trusted = np.setdiff1d(np.arange(599), [*range(100, 110), *range(200, 210)])
    outcome = _outcome(dict.fromkeys([*range(100, 108), 150, 300], 5))
    chosen = sieve.judged_again(outcome, _place(trusted))
    assert chosen.labels is not None
    assert chosen.facts == {"suspects": 11, "relabelled": 9}
    assert np.setdiff1d(np.arange(599), chosen.ids).tolist() == [108, 109]
    changed = np.isin(chosen.ids, [*range(100, 108), 150])
    assert (chosen.labels[changed] == 5).all()
    assert (chosen.labels[~changed] == LABELS[chosen.ids[~changed]]).all()

    last = _place(chosen.ids, chosen.labels)
    assert np.flatnonzero(sieve.suspects(last)).tolist() == [*range(100, 110), 150]
    ranking = sieve.ranking(outcome, last)
    assert np.isnan(ranking[599])
    assert ranking[sieve.suspects(last)].max() < -0.5 <= np.nanmin(ranking[~sieve.suspects(last)])
    assert np.nanmin(ranking) >= -1
    assert np.nanmax(ranking) <= 0
    assert ranking[300] < ranking[301]  # another label is likelier, in a class that is whole


def test_doubtful_images_of_a_poisoned_class_wait_for_a_better_model() -> None:
    sieve = _sieve({1: 0.1, 2: 0.1})
    sieve.split.log_odds[[108, 150, 151, 250]] = 2, -2, -2, -2  # class 2 will be natural
    sieve = Sieve(LABELS, CLASSES, sieve.split, sieve.config, seed=0)
    outcome = _outcome(dict.fromkeys(range(100, 110), 5))
    first = sieve.judged(outcome, _place(sieve.first()))
    assert np.setdiff1d(np.arange(599), first.ids).tolist() == [150, 151]

    outcome = _outcome(dict.fromkeys([*range(100, 108), 151], 5))
    second = sieve.judged_again(outcome, _place(first.ids, first.labels))
    assert second.labels is not None
    assert np.setdiff1d(np.arange(599), second.ids).tolist() == [109]
    suspects = sieve.suspects(_place(second.ids, second.labels))
    assert np.flatnonzero(suspects).tolist() == [*range(100, 108), 109, 151]


def test_suspects_can_be_left_out_instead() -> None:
    sieve = _sieve({1: 0.1}, relabel=False)
    chosen = sieve.judged(_outcome(dict.fromkeys(range(100, 110), 5)), _place(sieve.first()))
    assert np.setdiff1d(np.arange(599), chosen.ids).tolist() == list(range(100, 110))
    assert chosen.facts["relabelled"] == 0


def test_rounds() -> None:
    rounds = _sieve({}).rounds("none", flip=False)
    stages = [r.stage for r in rounds]
    assert [(s.epochs, s.lr) for s in stages] == [(5, 0.1), (2, 0.05), (2, 0.05)]
    assert [s.adversarial_epochs for s in stages] == [1, 0, 0]
    assert [r.fresh for r in rounds] == [False, True, False]


def test_without_the_split_what_disagrees_is_suspect() -> None:
    """The ablation: as PBE begins."""
    sieve = _sieve({}, split=False, initial_fraction=0.1)
    assert len(sieve.first()) == 60
    chosen = sieve.judged(_outcome({7: 3}), _place(sieve.first()))
    assert np.flatnonzero(sieve.suspects(_place(chosen.ids, chosen.labels))).tolist() == [7]
