"""The decisions of Sieve, against a split and outcomes that are given."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pbe_fast.config import SieveConfig
from pbe_fast.erase import Place, Sieve
from pbe_fast.erase._classes import Classes
from pbe_fast.erase.left_out import Verdict, judge_clusters
from pbe_fast.erase.ranking import SUSPECT, UNDECIDED, backdoor_found, rank_images
from pbe_fast.erase.split import ClassSplit, Split

CLASSES, EACH = 6, 100
LABELS = np.repeat(np.arange(CLASSES), EACH).astype(np.int32)


def _sieve(shares: dict[int, float], **settings: object) -> Sieve:
    """The first images of these classes are in their smaller clusters; image 599 is unreadable."""
    odds = np.full(len(LABELS), -50, np.float32)
    for label, share in shares.items():
        odds[label * EACH : label * EACH + round(share * EACH)] = 50
    odds[-1] = np.nan
    classes = tuple(ClassSplit(label, 100, share, 1.0, 9.0) for label, share in shares.items())
    config = SieveConfig.model_validate(settings)
    split = Split(odds, np.zeros(len(odds), bool), classes)
    return Sieve(LABELS, CLASSES, split, _activations, config, seed=0)


def _activations() -> np.ndarray:
    """Nothing but classes in them, and in class 5 images 510 to 529 are a cluster."""
    features = np.random.default_rng(0).normal(size=(len(LABELS), 3 + CLASSES))
    features[:, 3:] += 20 * np.eye(CLASSES)[LABELS]
    features[500:, 1] *= 8  # which the first look would see
    features[510:530, 0] += 9 * SECOND_LOOK
    return features


SECOND_LOOK = False


def _outcome(changes: dict[int, int] | None = None) -> np.ndarray:
    """Every image gets its label but for some; losses tell which."""
    outcome = np.stack([np.full(len(LABELS), 0.1), LABELS], 1).astype(np.float32)
    for image, label in (changes or {}).items():
        outcome[image] = 4.0, label
    outcome[-1] = np.nan
    return outcome


def _found(
    sieve: Sieve, judged: Mapping[str, Any], outcome: np.ndarray, place: Place
) -> dict[str, Any]:
    return backdoor_found(
        sieve.classes, judged, outcome, place, _ranking(sieve, judged, outcome, place)
    )


def _ranking(
    sieve: Sieve, judged: Mapping[str, Any], outcome: np.ndarray, place: Place
) -> np.ndarray:
    return rank_images(sieve.classes, judged, outcome, place, relabel=sieve.config.relabel)


def _verdicts(sieve: Sieve, outcome: np.ndarray) -> list[Verdict]:
    return judge_clusters(sieve.classes, sieve._whole, outcome)


def _place(ids: np.ndarray, labels: np.ndarray | None = None) -> Place:
    return Place(1, "score", ids, labels=labels)


def test_images_that_may_belong_to_either_cluster() -> None:
    """By e to the 8, either way; an image that could not be read is in none."""
    odds = np.array([-9, -7, 7, 9, np.nan], np.float32)
    classes = Classes(np.zeros(5, np.int32), 1, Split(odds, np.zeros(5, bool), ()))
    assert classes.between.tolist() == [False, True, True, False, False]
    assert classes.second.tolist() == [False, False, True, True, False]
    assert classes.known.tolist() == [True] * 4 + [False]


def test_the_first_subset_is_a_share_of_each_class_without_what_was_split_off() -> None:
    first = _sieve({1: 0.1, 4: 0.4}, initial_fraction=0.5).first()
    assert (np.diff(first) > 0).all()
    assert np.bincount(LABELS[first], minlength=6).tolist() == [50, 0, 50, 50, 0, 50]
    assert 599 not in first


def test_where_many_classes_are_split_the_smaller_clusters_are_left_out() -> None:
    first = _sieve({0: 0.3, 1: 0.1, 2: 0.3}, initial_fraction=0.5).first()
    assert np.bincount(LABELS[first], minlength=6).tolist() == [35, 45, 35, 50, 50, 50]
    assert not np.isin(first, np.arange(100, 110)).any()


def test_small_classes_are_taken_whole() -> None:
    first = _sieve({}, initial_fraction=0.01).first()
    assert np.bincount(LABELS[first]).tolist() == [20] * 6


def test_a_cluster_that_gets_other_labels_unseen_is_suspect_and_another_one_waits() -> None:
    """Class 3 as a whole is badly learned, so that its cluster means nothing."""
    sieve = _sieve({1: 0.1, 2: 0.1, 3: 0.1})
    badly = dict.fromkeys([*range(300, 308), *range(310, 370)], 4)
    outcome = _outcome(
        dict.fromkeys(range(200, 206), 5) | dict.fromkeys(range(100, 105), 0) | badly
    )
    verdicts = _verdicts(sieve, outcome)
    assert [v.poisoned for v in verdicts] == ["unclear", "smaller", "unclear"]
    assert verdicts[1].measured == pytest.approx((0.6, 0.0))
    assert verdicts[2].measured == pytest.approx((0.8, 60 / 90))
    chosen = sieve.judged(outcome, _place(sieve.first()))
    assert chosen.labels is not None
    assert (chosen.labels[np.isin(chosen.ids, np.arange(200, 206))] == 5).all()
    left = [*range(100, 110), *range(206, 210), *range(300, 310), 599]
    assert np.setdiff1d(np.arange(600), chosen.ids).tolist() == left
    counts = {name: chosen.facts[name] for name in ("suspects", "relabelled", "waiting")}
    assert counts == {"suspects": 10, "relabelled": 6, "waiting": 20}
    json.dumps(chosen.facts)


@pytest.mark.parametrize(
    ("small", "large", "poisoned"),
    [
        ([0, 2, 3, 5], [0], "smaller"),
        ([0], [0, 2, 3, 5], "larger"),
        ([0, 2], [0], "unclear"),  # too few
        ([0, 2, 3, 4], [0, 3, 5], "unclear"),
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
    [verdict] = _verdicts(sieve, outcome)
    assert verdict.poisoned == poisoned
    assert verdict.measured == pytest.approx((len(small), len(large)), rel=0.01)
    chosen = sieve.judged(outcome, _place(sieve.first()))
    suspects = sieve.classes.untrusted(_place(chosen.ids, chosen.labels))
    expected = range(140, 200) if poisoned == "larger" else range(100, 140)
    assert np.flatnonzero(suspects).tolist() == list(expected)
    assert chosen.facts["waiting"] == (40 if poisoned == "unclear" else 0)


# classes that are nearly all poison

OWN, SWOLLEN = 40, 960  # images of class 0: its own first, then those with a trigger


def _swollen(features: np.ndarray | None = None, **sizes: int) -> Sieve:
    """Ten classes of 100 images each but for class 0, that seem to be whole."""
    labels = np.repeat(np.arange(10), [OWN + SWOLLEN, *[sizes.get("others", 100)] * 9])
    return _unsplit(labels, features)


def _unsplit(labels: np.ndarray, features: np.ndarray | None = None) -> Sieve:
    """Classes that all seem to be whole."""
    odds = np.full(len(labels), -50, np.float32)
    split = Split(odds, np.zeros(len(labels), bool), ())
    given = np.zeros((len(labels), 3)) if features is None else features
    return Sieve(labels, labels.max() + 1, split, lambda: given, SieveConfig(), seed=0)


def _seen(sieve: Sieve, own: int = 0) -> np.ndarray:
    """The triggered images show what they are, the own ones of class 0 some label."""
    labels = sieve.labels.copy()
    labels[:OWN] = own
    labels[OWN : OWN + SWOLLEN] = 1 + np.arange(SWOLLEN) % 9
    losses = np.where(labels == sieve.labels, 0.1, 4.0)
    return np.stack([losses, labels], 1).astype(np.float32)


def _parted_features() -> np.ndarray:
    """The own images of class 0 lie apart, along an axis that is not the one with most spread."""
    features = np.random.default_rng(0).normal(size=(OWN + SWOLLEN + 900, 3))
    features[:, 1] *= 8
    features[OWN : OWN + SWOLLEN, 0] += 6
    return features


def test_a_class_with_many_more_images_than_usual_is_left_out_of_round_0() -> None:
    sieve = _swollen()
    assert set(sieve.labels[sieve.first()]) == set(range(1, 10))
    usual = _swollen(others=200)  # which makes it no more than five times as large
    assert set(usual.labels[usual.first()]) == set(range(10))


def test_where_many_classes_are_large_none_is_swollen() -> None:
    labels = np.repeat(np.arange(10), [1000] * 4 + [100] * 6)
    sieve = _unsplit(labels)
    assert set(labels[sieve.first()]) == set(range(10))


def test_a_swollen_class_that_shows_many_labels_is_parted() -> None:
    """Even where half of its own images are taken for one other label."""
    sieve = _swollen(_parted_features())
    outcome = _seen(sieve)
    outcome[: OWN // 2, 1] = 3
    chosen = sieve.judged(outcome, _place(sieve.first()))
    assert [(found["label"], found["poisoned"]) for found in chosen.facts["swollen"]] == [(0, True)]
    assert chosen.labels is not None
    suspects = sieve.classes.untrusted(_place(chosen.ids, chosen.labels))
    assert suspects[OWN : OWN + SWOLLEN].mean() > 0.99
    assert 10 <= (chosen.labels[chosen.ids < OWN] == 0).sum() <= OWN
    assert not (chosen.labels[chosen.ids < OWN] == 3).any()
    assert not suspects[OWN + SWOLLEN :].any()
    json.dumps(chosen.facts)


def test_a_swollen_class_whose_poison_falls_apart_is_judged_as_a_whole() -> None:
    """Both of its clusters show many labels, so that neither is plainly the poisoned one."""
    whole = _swollen(_parted_features())
    odds = whole.classes.split.log_odds.copy()
    odds[OWN : OWN + SWOLLEN // 3] = 50
    found = (ClassSplit(0, OWN + SWOLLEN, 0.32, 1.0, 9.0),)
    split = Split(odds, whole.classes.split.apart, found)
    sieve = Sieve(whole.labels, 10, split, whole.activations, SieveConfig(), seed=0)
    outcome = _seen(sieve)
    assert [v.poisoned for v in _verdicts(sieve, outcome)] == ["unclear"]
    chosen = sieve.judged(outcome, _place(sieve.first()))
    assert [(found["label"], found["poisoned"]) for found in chosen.facts["swollen"]] == [(0, True)]
    assert chosen.labels is not None
    suspects = sieve.classes.untrusted(_place(chosen.ids, chosen.labels))
    assert suspects[OWN : OWN + SWOLLEN].mean() > 0.99


@pytest.mark.parametrize(("shown", "poisoned"), [(14, False), (17, True)])
def test_a_swollen_class_is_poisoned_by_how_many_of_all_labels_it_shows(
    shown: int, poisoned: bool
) -> None:
    labels = np.repeat(np.arange(43), [600] + [50] * 42)
    sieve = _unsplit(labels)
    seen = np.where(labels == 0, 1 + np.arange(len(labels)) % shown, labels)
    outcome = np.stack([np.where(seen == labels, 0.1, 4.0), seen], 1).astype(np.float32)
    [found] = sieve.judged(outcome, _place(sieve.first())).facts["swollen"]
    assert found["poisoned"] is poisoned


def test_labels_that_few_images_show_count_where_a_class_may_be_nearly_all_poison() -> None:
    """Of most images a model that is led astray sees few labels, and of some all the others."""
    labels = np.repeat(np.arange(43), [600] + [50] * 42)
    sieve = _unsplit(labels)
    seen = np.where(labels == 0, 1 + np.arange(len(labels)) % 3, labels)
    seen[:150] = 1 + np.arange(150) % 42
    outcome = np.stack([np.where(seen == labels, 0.1, 4.0), seen], 1).astype(np.float32)
    [found] = sieve.judged(outcome, _place(sieve.first())).facts["swollen"]
    assert found["poisoned"]
    share = np.unique(seen[:600], return_counts=True)[1] / 600
    assert np.exp(-(share * np.log(share)).sum()) < 0.25 * 42  # what a clean class shows


def test_of_few_classes_none_is_called_nearly_all_poison() -> None:
    """A clean class that was not trained is taken for the others, whatever it looks like."""
    labels = np.repeat(np.arange(4), [1000, 100, 100, 100])
    sieve = _unsplit(labels)
    seen = np.where(labels == 0, 1 + np.arange(len(labels)) % 3, labels)
    outcome = np.stack([np.where(seen == labels, 0.1, 4.0), seen, seen], 1).astype(np.float32)
    assert sieve.judged(outcome, _place(sieve.first())).facts["suspects"] == 0


def test_a_swollen_class_that_cannot_be_parted_waits_where_it_is_not_suspect() -> None:
    sieve = _swollen()
    chosen = sieve.judged(_seen(sieve), _place(sieve.first()))
    counts = {name: chosen.facts[name] for name in ("suspects", "relabelled", "waiting")}
    assert counts == {"suspects": SWOLLEN, "relabelled": SWOLLEN, "waiting": OWN}


@pytest.mark.parametrize(
    "shows",
    ["its own label", "one other", "half of it many others", "most of it 4 others",
     "most of it 6 others"],
)  # fmt: skip
def test_a_large_class_that_is_no_poison_is_trusted(shows: str) -> None:
    """Round 0 did not train it, so the model may take it for what it looks like."""
    sieve = _swollen(_parted_features())
    outcome = _seen(sieve)
    here = sieve.labels == 0
    if shows == "its own label":
        outcome[here] = 0.1, 0
    elif shows == "one other":
        outcome[here] = 4.0, 7
    elif shows.startswith("most of it"):
        outcome[here, 1] = 1 + np.arange(here.sum()) % int(shows.split()[3])
    else:
        outcome[: (OWN + SWOLLEN) // 2 + 1] = 0.1, 0
    chosen = sieve.judged(outcome, _place(sieve.first()))
    [found] = chosen.facts["swollen"]
    assert (found["label"], found["poisoned"]) == (0, False)
    assert chosen.facts["suspects"] == 0
    assert here[chosen.ids].sum() > 0.9 * (OWN + SWOLLEN)


def test_without_witnesses_what_would_wait_is_suspect_where_many_classes_are_poisoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Class 3's cluster, and class 5's that a second look finds; a single image is left alone."""
    monkeypatch.setitem(globals(), "SECOND_LOOK", True)
    sieve = _sieve(dict.fromkeys(range(4), 0.1), witnesses=False)
    # Doubtful, and in the larger cluster of a class that is unclear.
    sieve.classes.split.log_odds[350] = -2
    outcome = _outcome(dict.fromkeys([*range(10), *range(100, 110), *range(510, 520), 450], 3))
    for more in (range(0), range(200, 210)):  # of class 2
        outcome[more] = 4.0, 3
        facts = sieve.judged(outcome, _place(sieve.first())).facts
        assert [c["label"] for c in facts["second_look"]] == [5]
        assert (facts["suspects"], facts["waiting"]) == ((60, 0) if more else (20, 40))
    clusters = [k * EACH + i for k in range(4) for i in range(10)]
    again = sieve.judged_again(outcome, _place(np.setdiff1d(np.arange(599), clusters)))
    assert again.facts["poisoned"] == [0, 1, 2, 5]
    assert 450 in again.ids
    assert "witnesses" not in again.facts


def _triggered(*images: int, shown: np.ndarray = LABELS) -> np.ndarray:
    """Features in which classes lie apart, and these images have a trigger."""
    features = np.random.default_rng(0).normal(size=(len(LABELS), 1 + CLASSES))
    features[:, 1:] += 9 * np.eye(CLASSES)[shown]
    features[list(images), 0] += 9
    features[-1] = np.nan
    return features


@pytest.mark.parametrize("relabel", [True, False])
@pytest.mark.parametrize("again", [False, True])
def test_where_a_trigger_leads_to_every_label_images_are_judged_by_three_witnesses(
    again: bool, relabel: bool
) -> None:
    """Each class is led to the one four before it. Image 450 needs no cluster.

    Image 10 shows yet another class, and most of class 3's show their label: all get the class that
    is led to theirs. Image 260 is hard, 270 lies between two clusters, 280 was left out before, and
    285 shows the class that is led to its label, and they are trusted: one witness is not enough.
    But image 20, which two acquit, is in a cluster: it waits.
    """
    clusters = [k * EACH + i for k in range(4) for i in range(30)]
    shown = LABELS.copy()
    shown[[*clusters, 450]] = (shown[[*clusters, 450]] + 2) % CLASSES
    shown[20] = 0
    sieve = _sieve(dict.fromkeys(range(4), 0.3), relabel=relabel)
    sieve.classes.split.log_odds[270] = -3
    features = _triggered(*clusters, 450, shown=shown)
    sieve = Sieve(LABELS, CLASSES, sieve.classes.split, lambda: features, sieve.config, seed=0)
    seen = {i: int(shown[i]) for i in [*clusters, 450] if i not in {20, *range(305, 330)}}
    outcome = _outcome(seen | {10: 4, 260: 5, 285: 4})
    trusted = _place(np.setdiff1d(np.arange(599), [*clusters, 280]))
    chosen = (sieve.judged_again if again else sieve.judged)(outcome, trusted)
    assert chosen.labels is not None
    got = dict(zip(chosen.ids.tolist(), chosen.labels.tolist(), strict=True))
    assert 20 not in got
    assert [got[image] for image in (260, 270, 280, 285)] == [2, 2, 2, 2]
    changed = {image: label for image, label in got.items() if label != LABELS[image]}
    suspects = {*clusters, 450} - {20}
    assert changed == ({i: (LABELS[i] + 2) % CLASSES for i in suspects} if relabel else {})
    assert (chosen.facts["suspects"], chosen.facts["waiting"]) == (len(suspects), 1)
    assert chosen.facts["witnesses"]["rate"] == pytest.approx(121 / 600, abs=0.01)
    assert np.isin(np.arange(4), chosen.facts["poisoned"]).all()


@pytest.mark.parametrize("lie", ["with their class", "elsewhere", "elsewhere in one class"])
def test_where_smaller_clusters_lie_elsewhere_there_is_a_trigger_for_every_label(lie: str) -> None:
    """Though round 0 tells nothing of them: it takes all images for what they are labelled."""
    classes = 3 if lie == "elsewhere in one class" else 4
    clusters = [k * EACH + i for k in range(classes) for i in range(20)]
    shown, elsewhere = LABELS.copy(), np.array(clusters)
    elsewhere = elsewhere[: {"with their class": 0, "elsewhere": 80}.get(lie, 20)]
    shown[elsewhere] = (shown[elsewhere] + 2) % CLASSES
    features = _triggered(*clusters, shown=shown)
    sieve = _sieve(dict.fromkeys(range(classes), 0.2))
    sieve = Sieve(LABELS, CLASSES, sieve.classes.split, lambda: features, sieve.config, seed=0)
    # Of ten images of each cluster at least two witnesses agree.
    outcome = _outcome({i: int(shown[i]) for i in clusters if i % EACH < 10 and lie == "elsewhere"})
    assert {verdict.poisoned for verdict in _verdicts(sieve, outcome)} == {"unclear"}
    chosen = sieve.judged(outcome, _place(sieve.first()))
    assert ("witnesses" in chosen.facts) == (lie == "elsewhere")
    own = chosen.ids[chosen.labels == LABELS[chosen.ids]]
    assert np.setdiff1d(np.arange(599), own).tolist() == clusters


def test_suspects_get_one_of_the_classes_that_lead_to_their_label_or_none() -> None:
    """Classes 4 and 5 both lead to label 0. Five of its images look like 3, which leads to 2."""
    clusters = [k * EACH + i for k in range(4) for i in range(30)]
    shown = LABELS.copy()
    shown[clusters] = np.repeat([4, 0, 3, 1], 30)
    shown[:10], shown[25:30] = 5, 3
    features = _triggered(*clusters, shown=shown)
    sieve = _sieve(dict.fromkeys(range(4), 0.3))
    sieve = Sieve(LABELS, CLASSES, sieve.classes.split, lambda: features, sieve.config, seed=0)
    outcome = _outcome({i: int(shown[i]) for i in clusters} | {0: 2, 24: 5})
    chosen = sieve.judged(outcome, _place(sieve.first()))
    assert chosen.labels is not None
    got = dict(zip(chosen.ids.tolist(), chosen.labels.tolist(), strict=True))
    # Image 0 looks like 5 to the infected model, and the other one cannot tell.
    assert [got[image] for image in (0, 1, 10, 24, 30)] == [5, 5, 4, 5, 0]
    assert not set(range(25, 30)) & got.keys()
    assert chosen.facts["suspects"] == 120


def test_without_a_trigger_in_common_many_suspects_are_mislabelled() -> None:
    clusters = [k * EACH + i for k in range(4) for i in range(30)]
    outcome = _outcome(_others(*clusters))
    shown = np.nan_to_num(outcome[:, 1]).astype(int)
    place = _place(np.setdiff1d(np.arange(599), clusters))
    for triggered in (False, True):
        sieve = _sieve(dict.fromkeys(range(4), 0.3))
        features = _triggered(*(clusters if triggered else []), shown=shown)
        sieve.activations = lambda features=features: features
        judged = sieve.judged_again(outcome, place).facts
        found = _found(sieve, judged, outcome, place)
        assert found["found"] == triggered
        assert found["labels"] == ([0, 1, 2, 3] if triggered else [])
        assert found["mislabelled"] == ([] if triggered else [0, 1, 2, 3])
        assert (found["kept"] is None) != triggered
    sieve = _sieve({1: 0.3})  # a trigger for one label is one
    few = _outcome(_others(*range(100, 130)))
    place = _place(np.setdiff1d(np.arange(599), range(100, 130)))
    judged = sieve.judged_again(few, place).facts
    found = _found(sieve, judged, few, place)
    assert (found["labels"], found["kept"]) == ([1], 0)
    fewer = _outcome(_others(*range(100, 124)))
    assert _found(sieve, judged, fewer, place)["kept"] == 0.2


def test_no_second_look_where_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SECOND_LOOK", True)
    sieve = _sieve({}, second_look=False)
    chosen = sieve.judged(_outcome(dict.fromkeys(range(510, 520), 3)), _place(sieve.first()))
    assert chosen.facts["second_look"] == []
    assert chosen.facts["waiting"] == 0
    assert len(chosen.ids) == 599


def test_where_there_was_a_trigger_for_every_label_it_stays_one() -> None:
    """By the labels of the last round, though few classes show it: too few for witnesses."""
    sieve = _sieve(dict.fromkeys(range(4), 0.1))
    labels = LABELS[:599].astype(np.int64)
    for label in range(4):
        labels[label * EACH : label * EACH + 10] = 5
    outcome = _outcome(dict.fromkeys(range(100, 110), 5))
    more = sieve.judged_more(outcome, _place(np.arange(599), labels))
    assert more is not None
    assert "second_look" in more.facts
    assert "witnesses" not in more.facts
    assert more.facts["poisoned"] == [0, 1, 2, 3]


def test_where_one_label_is_poisoned_nothing_gets_the_next_likely_label() -> None:
    sieve = _sieve({1: 0.3})
    sieve.activations = lambda: _triggered(*range(100, 130), 450)
    outcome = _outcome(_others(*range(100, 129)))
    place = _place(np.setdiff1d(np.arange(599), range(100, 130)))
    for chosen in (sieve.judged(outcome, place), sieve.judged_again(outcome, place)):
        assert chosen.labels is not None
        assert 129 not in chosen.ids
        assert chosen.labels[chosen.ids == 450] == 4


def test_what_a_second_look_finds_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _outcome(dict.fromkeys(range(510, 520), 3))
    for found in (False, True):
        monkeypatch.setitem(globals(), "SECOND_LOOK", found)
        sieve = _sieve({})
        chosen = sieve.judged(outcome, _place(sieve.first()))
        assert [c["label"] for c in chosen.facts["second_look"]] == [5] * found
        waiting = np.setdiff1d(np.arange(599), chosen.ids)
        assert (np.isin(waiting, np.arange(510, 530)).sum() > 18) == found
        assert len(waiting) < 24
        assert (chosen.facts["suspects"], chosen.facts["waiting"]) == (0, len(waiting))


def _others(*images: int) -> dict[int, int]:
    """Outcomes with all classes but 1, one after the other."""
    return {image: (0, 2, 3, 4, 5)[i % 5] for i, image in enumerate(images)}


def test_a_better_model_judges_again() -> None:
    """Class 2's suspects are as labelled by now; one more of class 1 is not."""
    sieve = _sieve({1: 0.3, 2: 0.1})
    trusted = np.setdiff1d(np.arange(599), [*range(100, 130), *range(200, 210)])
    seen = _others(*range(100, 128), 150, 300)
    outcome = _outcome(seen)
    chosen = sieve.judged_again(outcome, _place(trusted))
    assert chosen.labels is not None
    counts = {"suspects": 31, "relabelled": 29, "waiting": 0}
    assert chosen.facts == {"poisoned": [1], "odd": [], "unlearned": [], **counts}
    assert np.setdiff1d(np.arange(599), chosen.ids).tolist() == [128, 129]
    changed = np.isin(chosen.ids, [*range(100, 128), 150])
    assert chosen.labels[changed].tolist() == [seen[i] for i in (*range(100, 128), 150)]
    assert (chosen.labels[~changed] == LABELS[chosen.ids[~changed]]).all()

    last = _place(chosen.ids, chosen.labels)
    assert np.flatnonzero(sieve.classes.untrusted(last)).tolist() == [*range(100, 130), 150]
    ranking = _ranking(sieve, chosen.facts, outcome, last)
    assert np.isnan(ranking[599])
    assert np.flatnonzero(ranking <= SUSPECT).tolist() == list(range(100, 130))
    # Plainly in the trusted cluster, by the infected model.
    assert np.flatnonzero((ranking > SUSPECT) & (ranking <= UNDECIDED)).tolist() == [150]
    assert np.nanmin(ranking) >= -1
    assert np.nanmax(ranking) <= 0
    assert ranking[300] < ranking[301]  # another label is likelier, in a class that is whole


def test_a_few_images_with_different_labels_are_no_trigger() -> None:
    """Ten photographs of one sign, each taken for another one."""
    for images, poisoned in ((19, []), (20, [1])):
        sieve = _sieve({1: images / EACH})
        cluster = range(100, 100 + images)
        trusted = np.setdiff1d(np.arange(599), cluster)
        chosen = sieve.judged_again(_outcome(_others(*cluster)), _place(trusted))
        assert chosen.facts["poisoned"] == poisoned
        assert chosen.facts["odd"] == ([] if poisoned else [1])
        assert chosen.facts["waiting"] == (0 if poisoned else images)


@pytest.mark.parametrize(("images", "shown", "poisoned"), [
    (30, 9, []), (30, 10, [0]), (300, 9, []), (300, 10, [0]), (20, 8, []), (20, 9, [0])
])  # fmt: skip
def test_of_many_classes_a_cluster_shows_a_fifth_to_be_poisoned(
    images: int, shown: int, poisoned: list[int]
) -> None:
    """Photographs of one sign that are hard to tell show several; also where they are few."""
    labels = np.repeat(np.arange(43), [600] + [50] * 42)
    odds = np.full(len(labels), -50, np.float32)
    odds[:images] = 50
    split = Split(odds, odds > 99, (ClassSplit(0, 600, images / 600, 1.0, 9.0),))
    sieve = Sieve(labels, 43, split, lambda: np.zeros((len(labels), 3)), SieveConfig(), seed=0)
    seen = labels.copy()
    seen[:images] = 1 + np.arange(images) % shown
    outcome = np.stack([np.where(seen == labels, 0.1, 4.0), seen], 1).astype(np.float32)
    chosen = sieve.judged_again(outcome, _place(np.arange(images, len(labels))))
    assert chosen.facts["poisoned"] == poisoned


def test_what_got_many_labels_stays_suspect_when_the_backdoor_outlives_a_round() -> None:
    """Most triggered images look right again, which is no reason to train them as they came."""
    sieve = _sieve({1: 0.3, 2: 0.3})
    seen = _others(*range(100, 130)) | dict.fromkeys(range(200, 230), 4)
    first = sieve.judged(_outcome(seen), _place(sieve.first()))
    assert (first.facts["relabelled"], first.facts["waiting"]) == (30, 30)
    place = _place(first.ids, first.labels)
    outcome = _outcome(_others(*range(100, 105)))
    second = sieve.judged_again(outcome, place)
    assert (second.facts["poisoned"], second.facts["odd"]) == ([1], [])
    assert second.labels is not None
    own = second.ids[second.labels == LABELS[second.ids]]
    assert not np.isin(own, np.arange(100, 130)).any()
    assert np.isin(np.arange(200, 230), own).all()
    kept = sieve.judged_more(outcome, _place(second.ids, second.labels))
    assert kept is not None
    assert kept.facts["poisoned"] == [1]


@pytest.mark.parametrize(("classes", "poisoned"), [(3, False), (6, True)])
def test_two_classes_are_never_many(classes: int, poisoned: bool) -> None:
    """Clusters of one other label, in as many classes as are more than a third of six."""
    odd = 2 if classes == 3 else 3
    labels = np.repeat(np.arange(classes), EACH)
    odds = np.full(len(labels), -50, np.float32)
    outcome = np.stack([np.full(len(labels), 0.1), labels, labels], 1).astype(np.float32)
    for label in range(odd):
        odds[label * EACH : label * EACH + 5] = 50
        outcome[label * EACH : label * EACH + 5] = 4.0, classes - 1, classes - 1
    splits = tuple(ClassSplit(label, 100, 0.05, 1.0, 9.0) for label in range(odd))
    split = Split(odds, np.zeros(len(odds), bool), splits)
    features = np.zeros((len(labels), 3))
    sieve = Sieve(labels, classes, split, lambda: features, SieveConfig(), seed=0)
    facts = sieve.judged_again(outcome, _place(np.flatnonzero(odds < 0))).facts
    assert facts["poisoned"] == (list(range(odd)) if poisoned else [])


@pytest.mark.parametrize(
    ("classes", "each", "judges"), [(2, 100, False), (3, 100, True), (3, 19, False)]
)
def test_few_classes_or_images_cannot_be_judged(classes: int, each: int, judges: bool) -> None:
    labels = np.repeat(np.arange(classes), each)
    split = Split(np.full(len(labels), -50, np.float32), np.zeros(len(labels), bool), ())
    sieve = Sieve(labels, classes, split, _activations, SieveConfig(), seed=0)
    assert sieve.classes.can_judge() == judges


def test_a_cluster_with_one_other_label_stays_away_and_is_no_backdoor() -> None:
    sieve = _sieve({1: 0.1})
    trusted = np.setdiff1d(np.arange(599), range(100, 110))
    outcome = _outcome(dict.fromkeys([*range(100, 110), 150], 5))
    chosen = sieve.judged_again(outcome, _place(trusted))
    counts = {"suspects": 0, "relabelled": 0, "waiting": 10}
    assert chosen.facts == {"poisoned": [], "odd": [1], "unlearned": [], **counts}
    assert np.array_equal(chosen.ids, trusted)


def test_of_two_classes_a_cluster_with_the_other_label_tells_nothing() -> None:
    odds = np.full(200, -50, np.float32)
    odds[:10] = 50
    split = Split(odds, np.zeros(len(odds), bool), (ClassSplit(0, 100, 0.1, 1.0, 9.0),))
    labels = np.repeat([0, 1], 100)
    sieve = Sieve(labels, 2, split, _activations, SieveConfig(), seed=0)
    outcome = np.stack([np.full(200, 0.1), labels], 1).astype(np.float32)
    outcome[:8] = 4.0, 1
    facts = sieve.judged_again(outcome, _place(np.arange(10, 200))).facts
    assert (facts["poisoned"], facts["odd"]) == ([], [0])


def test_a_set_with_one_class_alone_has_a_first_subset() -> None:
    odds = np.full(100, -50, np.float32)
    odds[:10] = 50
    split = Split(odds, np.zeros(len(odds), bool), (ClassSplit(0, 100, 0.1, 1.0, 9.0),))
    sieve = Sieve(np.zeros(100, int), 3, split, _activations, SieveConfig(), seed=0)
    assert (sieve.first() >= 10).all()


def test_where_many_classes_are_poisoned_a_better_model_has_a_second_look_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "SECOND_LOOK", True)
    sieve = _sieve(dict.fromkeys(range(3), 0.1))
    split_off = [*range(10), *range(100, 110), *range(200, 210)]
    trusted = np.setdiff1d(np.arange(599), split_off)
    for poisoned in ([0, 1], [0, 1, 2]):
        images = [i for i in split_off if LABELS[i] in poisoned]
        outcome = _outcome(dict.fromkeys([*images, *range(510, 520)], 3))
        chosen = sieve.judged_again(outcome, _place(trusted))
        many = len(poisoned) == 3
        assert chosen.facts["poisoned"] == [*poisoned, 5] * many
        assert chosen.facts["odd"] == poisoned * (not many)
        assert [c["label"] for c in chosen.facts.get("second_look", [])] == [5] * many
        assert chosen.labels is not None
        suspects = sieve.classes.untrusted(_place(chosen.ids, chosen.labels))
        assert np.flatnonzero(suspects[500:599]).tolist() == (list(range(10, 30)) if many else [])


def test_doubtful_images_of_a_poisoned_class_stay_away_and_have_no_vote() -> None:
    """What a trigger may be in is not learned as labelled, though a model may fall for it."""
    odds = _sieve({0: 0.1, 1: 0.3, 2: 0.1}).classes.split
    odds.log_odds[[128, *range(150, 170), 250]] = [2, *[-2] * 20, -2]
    sieve = Sieve(LABELS, CLASSES, odds, _activations, SieveConfig(), seed=0)
    outcome = _outcome(dict.fromkeys(range(100, 130), 5))
    first = sieve.judged(outcome, _place(sieve.first()))
    waiting = [*range(10), *range(150, 170), *range(200, 210)]
    assert np.setdiff1d(np.arange(599), first.ids).tolist() == waiting

    outcome = _outcome(_others(*range(100, 128), 151))
    second = sieve.judged_again(outcome, _place(first.ids, first.labels))
    assert second.labels is not None
    assert second.facts["poisoned"] == [1]
    left = [128, 129, 150, *range(152, 170)]
    assert np.setdiff1d(np.arange(599), second.ids).tolist() == left
    suspects = sieve.classes.untrusted(_place(second.ids, second.labels))
    assert np.flatnonzero(suspects).tolist() == [*range(100, 130), *range(150, 170)]
    ranking = _ranking(sieve, second.facts, outcome, _place(second.ids, second.labels))
    assert np.flatnonzero(ranking <= SUSPECT).tolist() == [*range(100, 128), 129, 151]
    # Of 100 to 127 and 129, those that are not doubtful, the last one.
    kept, last = sieve.classes.kept, _place(second.ids, second.labels)
    assert kept(outcome, last, [1]) == pytest.approx(1 / 29)
    assert kept(outcome, last, []) is None
    assert kept(outcome, _place(np.arange(599)), [1]) is None


def test_images_that_lie_apart_in_the_trusted_cluster_of_a_poisoned_class_wait() -> None:
    """Triggered images of a class like the target lie with the clean ones, but apart."""
    sieve = _sieve({1: 0.3, 2: 0.1})
    sieve.classes.split.apart[[*range(100, 110), *range(140, 160), *range(240, 250)]] = True
    outcome = _outcome(_others(*range(100, 130)))
    first = sieve.judged(outcome, _place(sieve.first()))
    waiting = [*range(140, 160), *range(200, 210)]  # not 240: class 2 is not plainly poisoned
    assert np.setdiff1d(np.arange(599), first.ids).tolist() == waiting

    poison = [*range(100, 130), *range(140, 150)]
    outcome = _outcome(_others(*poison))
    second = sieve.judged_again(outcome, _place(first.ids, first.labels))
    assert second.facts["poisoned"] == [1]
    assert second.labels is not None
    place = _place(second.ids, second.labels)
    assert np.setdiff1d(np.arange(599), second.ids).tolist() == list(range(150, 160))
    # What lies apart is suspect where it shows something else; in the poisoned cluster anyway.
    outcome = _outcome(_others(*range(110, 130), *range(140, 150)))
    ranking = _ranking(sieve, second.facts, outcome, place)
    assert np.flatnonzero(ranking <= SUSPECT).tolist() == poison


def _hardly_learned(misread: Mapping[int, int]) -> tuple[Sieve, Place, np.ndarray]:
    """Of class 1 the first 40 images are poisoned, 140 to 149 lie apart, and 150 is in between."""
    sieve = _sieve({1: 0.4})
    split = sieve.classes.split
    split.apart[140:150] = True
    split.log_odds[150] = -2
    sieve = Sieve(LABELS, CLASSES, split, _activations, SieveConfig(), seed=0)
    poison = _others(*range(100, 140))
    labels = LABELS.copy()
    labels[100:140] = list(poison.values())
    first = np.setdiff1d(np.arange(599), range(140, 151))
    return sieve, _place(first, labels[first]), _outcome({**poison, **misread})


def test_a_poisoned_class_that_was_not_learned_is_not_given_away() -> None:
    """Else its own images are trained as the class that they look like, and it is lost."""
    alike, others = range(145, 175), range(180, 188)  # the latter may well be triggered
    sieve, place, outcome = _hardly_learned(dict.fromkeys(alike, 2) | dict.fromkeys(others, 3))
    chosen = sieve.judged_again(outcome, place)
    assert (chosen.facts["poisoned"], chosen.facts["unlearned"]) == ([1], [1])
    assert chosen.labels is not None
    waiting = [*range(140, 151), *others]
    assert np.setdiff1d(np.arange(599), chosen.ids).tolist() == waiting
    relabelled = chosen.ids[chosen.labels != LABELS[chosen.ids]]
    assert relabelled.tolist() == list(range(100, 140))

    last = _place(chosen.ids, chosen.labels)
    ranking = _ranking(sieve, chosen.facts, outcome, last)
    assert np.flatnonzero(ranking <= SUSPECT).tolist() == list(range(100, 140))
    undecided = (ranking <= UNDECIDED) & (ranking > SUSPECT)
    assert np.flatnonzero(undecided).tolist() == [*range(145, 151), *others]
    assert _found(sieve, chosen.facts, outcome, last)["unlearned"] == [1]
    # It is judged once more, until it is learned.
    again = sieve.judged_more(outcome, last)
    assert again is not None
    assert again.facts["unlearned"] == [1]
    learned = _outcome(_others(*range(100, 140)) | dict.fromkeys(others, 3))
    assert sieve.judged_more(learned, last) is None


@pytest.mark.parametrize(
    ("misread", "sizes"),
    [
        (dict.fromkeys(range(145, 175), 2), {}),  # half of the 60
        ({image: 2 + image % 2 for image in range(145, 195)}, {}),  # two classes
        # Of a class that is as large as all others a trigger may have brought so many.
        (dict.fromkeys(range(145, 176), 2), {2: 300}),
    ],
)
def test_what_a_trigger_may_have_brought_is_suspect(
    misread: dict[int, int], sizes: dict[int, int]
) -> None:
    sieve, place, outcome = _hardly_learned(misread)
    for label, size in sizes.items():  # at the cost of the others
        sieve.labels[200 : 200 + size] = outcome[200 : 200 + size, 1] = label
    chosen = sieve.judged_again(outcome, place)
    assert (chosen.facts["poisoned"], chosen.facts["unlearned"]) == ([1], [])
    assert chosen.labels is not None
    last = _place(chosen.ids, chosen.labels)
    assert sieve.classes.untrusted(last)[list(misread)].all()
    assert _found(sieve, chosen.facts, outcome, last)["unlearned"] == []


def test_what_waited_and_gets_its_label_is_undecided() -> None:
    """Suspects lie below it, the others above."""
    sieve = _sieve({1: 0.3, 2: 0.1})
    outcome = _outcome(_others(*range(120, 130), 205))
    labels = LABELS.copy()
    labels[100:130] = 3  # of these, 100 to 119 get the label that they came with
    ids = np.setdiff1d(np.arange(599), range(200, 210))
    place = _place(ids, labels[ids])
    for judged in ({"odd": [2]}, {"odd": [], "witnesses": {}}):
        ranking = _ranking(sieve, judged, outcome, place)
        assert np.flatnonzero(ranking <= SUSPECT).tolist() == [*range(100, 130), 205]
        undecided = (ranking <= UNDECIDED) & (ranking > SUSPECT)
        assert np.flatnonzero(undecided).tolist() == [*range(200, 205), *range(206, 210)]
    ranking = _ranking(sieve, {"odd": []}, outcome, place)
    assert np.flatnonzero(ranking <= SUSPECT).tolist() == [*range(100, 130), *range(200, 210)]
    # Where suspects were left out, too, nothing tells them from what waited.
    without = _sieve({1: 0.3, 2: 0.1}, relabel=False)
    left_out = _place(np.setdiff1d(ids, range(100, 130)))
    ranking = _ranking(without, {"odd": [], "witnesses": {}}, outcome, left_out)
    assert np.flatnonzero(ranking <= SUSPECT).tolist() == [*range(100, 130), *range(200, 210)]


def test_suspects_can_be_left_out_instead() -> None:
    sieve = _sieve({1: 0.1}, relabel=False)
    chosen = sieve.judged(_outcome(dict.fromkeys(range(100, 110), 5)), _place(sieve.first()))
    assert np.setdiff1d(np.arange(599), chosen.ids).tolist() == list(range(100, 110))
    assert chosen.facts["relabelled"] == 0


def test_rounds() -> None:
    rounds = _sieve({}).rounds("none", flip=False)
    stages = [r.stage for r in rounds]
    assert [(s.epochs, s.lr) for s in stages] == [(5, 0.1), *[(4, 0.05)] * 4]
    assert [s.adversarial_epochs for s in stages] == [1, 0, 0, 0, 0]
    assert [r.fresh for r in rounds] == [False, True, False, False, False]
    assert [s.round for s in stages] == list(range(5))
    assert [r.select is None for r in rounds] == [False, False, False, False, True]
    assert len(_sieve({}, more_rounds=0).rounds("none", flip=False)) == 3


def test_there_is_another_round_while_suspects_keep_their_labels() -> None:
    sieve = _sieve({1: 0.4})
    labels = LABELS.astype(np.int64)
    labels[100:140] = np.arange(40) % 5  # of which eight are the label that they came with
    place = _place(np.arange(599), labels[:599])
    suspects = [i for i in range(100, 140) if labels[i] != 1]
    gone = _others(*suspects[1:])  # one of 32 keeps its label
    assert sieve.judged_more(_outcome(gone), place) is None
    left = _others(*suspects[2:])
    more = sieve.judged_more(_outcome(left), place)
    assert more is not None
    assert more.facts["poisoned"] == [1]
    assert more.labels is not None
    assert np.setdiff1d(np.arange(599), more.ids).tolist() == suspects[:2]
    nobody = _place(np.arange(599), LABELS[:599].astype(np.int64))
    assert sieve.judged_more(_outcome(), nobody) is None
    assert sieve.judged_more(_outcome(), _place(np.arange(599))) is None


def test_without_the_split_what_disagrees_is_suspect() -> None:
    """The ablation: as PBE begins."""
    sieve = _sieve({}, split=False, initial_fraction=0.1)
    assert len(sieve.first()) == 60
    chosen = sieve.judged(_outcome({7: 3}), _place(sieve.first()))
    assert chosen.labels is not None
    assert chosen.labels.min() == 0  # and none for the image that cannot be read
    suspects = sieve.classes.untrusted(_place(chosen.ids, chosen.labels))
    assert np.flatnonzero(suspects).tolist() == [7]


def test_without_the_split_there_is_never_a_trigger_for_every_label() -> None:
    """Even where most classes are left out and seen as many others, and nothing is doubtful."""
    sieve = Sieve(
        LABELS, CLASSES, Split.of_nothing(len(LABELS)), _activations, SieveConfig(split=False), 0
    )
    suspects = [k * EACH + i for k in range(5) for i in range(30)]
    outcome = _outcome({i: (int(LABELS[i]) + 1 + i % 5) % CLASSES for i in suspects})
    chosen = sieve.judged_again(outcome, _place(np.setdiff1d(np.arange(599), suspects)))
    assert chosen.facts["poisoned"] == list(range(5))
    assert "second_look" not in chosen.facts
    assert chosen.facts["relabelled"] == len(suspects)
    assert chosen.labels is not None
    last = _place(chosen.ids, chosen.labels)
    assert sieve.classes.kept(_outcome(), last, [0]) == 1.0
