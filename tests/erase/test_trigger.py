"""What a known trigger tells of single images, on activations whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.erase._clusters import cluster_ahead, cluster_around
from pbe_fast.erase._space import Space
from pbe_fast.erase.split import split_classes
from pbe_fast.erase.trigger import find_triggered, part_shown, trigger_in_common
from tests.erase._activations import activations, whitened


def _found(
    space: Space, suspects: np.ndarray, differs: np.ndarray, hints: np.ndarray | None = None
) -> np.ndarray:
    hints = np.zeros_like(suspects) if hints is None else hints
    return find_triggered(space, suspects, differs, hints)


IN_MANY = {(0, 1): 60, (1, 2): 60, (2, 3): 60, (3, 0): 6}  # too few in class 0 to fall apart


def _known(seed: int) -> tuple[np.ndarray, ...]:
    """Poison in every class, of which that of three is known, by labels that are mostly right.

    Returns:
        features, labels, truth, suspects, and which show something else than their label.
    """
    features, labels, truth = activations(200, IN_MANY, seed)
    random = np.random.default_rng(seed)
    differs = random.random(len(labels)) < np.where(truth, 0.9, 0.03)
    return features, labels, truth, truth & (labels != 0), differs


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_trigger_that_is_known_from_other_classes_is_found_in_a_few_images(seed: int) -> None:
    features, labels, truth, suspects, differs = _known(seed)
    odds = _found(whitened(features, labels), suspects, differs)
    assert odds.dtype == np.float32
    assert (odds[truth] > 0).mean() > 0.97
    assert (odds[truth & (labels == 0)] > 0).mean() > 0.6
    assert (odds[~truth] > 0).mean() < 0.01


def test_the_other_way_along_the_trigger_is_no_trigger() -> None:
    """Where triggers are of very different strengths, their Gaussian reaches there, too."""
    features, labels, truth, suspects, differs = _known(0)
    split, moved = split_classes(features, labels), features.astype(np.float32)
    trigger = moved[suspects].mean(0) - moved[~suspects].mean(0)
    moved[suspects] += np.linspace(-0.8, 3, suspects.sum())[:, None] * trigger
    moved[truth & ~suspects] += trigger
    image = np.flatnonzero(~truth & (labels == 0) & ~differs)[0]
    for lengths, found in ((0.0, False), (1.0, True), (-3.0, False)):
        there = moved.copy()
        there[image] += lengths * trigger
        odds = _found(whitened(there, labels, split), suspects, differs)
        assert (odds[image] > 0) == found


def test_where_a_class_lies_does_not_count() -> None:
    features, labels, truth, suspects, differs = _known(0)
    trigger = features[suspects].astype(float).mean(0) - features[~suspects].astype(float).mean(0)
    far = (features + np.array([3, -2, 1, 0])[labels][:, None] * trigger).astype(np.float32)
    odds = _found(whitened(far, labels), suspects, differs)
    assert (odds[truth] > 0).mean() > 0.97
    assert (odds[~truth] > 0).mean() < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_a_direction_that_means_nothing_tells_nothing(seed: int) -> None:
    """Suspects at random must not pull it to themselves; what they show is not enough alone."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 100)
    features = random.normal(size=(400, 300))
    suspects = random.random(400) < 0.1
    found = _found(whitened(features, labels), suspects, suspects)
    assert (found == 0).all()


@pytest.mark.parametrize("step", [None, 1, "0"])
@pytest.mark.parametrize("learned", [0.0, 0.4])
def test_wrong_labels_have_no_trigger_in_common(step: object, learned: float) -> None:
    """Each image lies where its own class does, or some way to the class that it was given.

    Wrong is any label, the next one, or any label of images that are all of class 0.
    """
    random = np.random.default_rng(0)
    true = np.repeat(np.arange(6), 200)
    wrong = random.random(len(true)) < 0.1
    if step == "0":
        wrong = np.arange(len(true)) % 200 < 20
        true[wrong & (true > 0)] = 0
    steps = 1 if step == 1 else random.integers(1, 6, len(true))
    labels = np.where(wrong, (true + steps) % 6, true)
    middles = random.normal(0, 6, (6, 12))
    rows = (1 - learned) * middles[true] + learned * middles[labels]
    rows += random.normal(size=rows.shape)
    shown = true.astype(np.float32)
    if not (step == "0" and learned):  # where all of them lead away from one class
        assert trigger_in_common(whitened(rows, labels), wrong, shown) is False
    rows[wrong] += 3
    assert trigger_in_common(whitened(rows, labels), wrong, shown)
    shown[3] = np.nan
    few = np.zeros_like(wrong)
    few[np.flatnonzero(wrong & (shown != labels))[:19]] = True
    assert trigger_in_common(whitened(rows, labels), few, shown) is None
    assert trigger_in_common(whitened(np.ones_like(rows), labels), wrong, shown) is None


def test_a_wide_cluster_ahead_does_not_reach_behind_the_other() -> None:
    random = np.random.default_rng(0)
    along = np.concatenate([random.normal(size=300), random.normal(9, 3, 60), [-8.0, 12.0]])
    mixture = cluster_ahead(along)
    assert mixture is not None
    odds = mixture.odds
    assert (odds[300:360] > 0).mean() > 0.9
    assert odds[-2] == -50
    assert odds[-1] > 3
    assert cluster_ahead(-along) is None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), hinted=st.booleans())
def test_a_class_where_the_trigger_does_something_else_is_split_along_it(
    seed: int, hinted: bool
) -> None:
    """In class 0 it points mostly elsewhere, so that few images are plainly ahead of the others."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 300)
    truth = np.arange(len(labels)) % 300 < 30
    rows = random.normal(size=(len(labels), 20))
    rows[truth & (labels > 0), 0] += 12
    rows[truth & (labels == 0), 0] += 0 if hinted else 2.5
    rows[truth & (labels == 0), 1] += 5
    hints = truth & (labels == 0) & (np.arange(len(labels)) < 8)
    hints = hints if hinted else np.zeros_like(hints)
    odds = _found(whitened(rows, labels), truth & (labels > 0), truth, hints)
    assert ((odds > 0) == truth)[:300].mean() > 0.97
    assert (odds[truth & (labels == 0)] > 0).mean() > 0.8


def test_a_class_where_the_trigger_is_weaker_is_split_along_that_of_the_others() -> None:
    """Half as strong, and a quarter of the class has it, so that it whitens itself away there."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 600)
    place = np.arange(len(labels)) % 600
    truth = place < np.where(labels == 0, 150, 60)
    rows = random.normal(size=(len(labels), 20))
    rows[truth, 0] += np.where(labels == 0, 6, 12)[truth]
    odds = _found(whitened(rows, labels), truth & (labels > 0), truth)
    assert (odds[truth & (labels == 0)] > 0).mean() > 0.95
    assert (odds[~truth] > 0).mean() < 0.01


def test_towards_some_images_lies_the_cluster_that_most_of_them_are_in() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 20))
    rows[:40, 3] += 6
    some = np.zeros(400, bool)
    some[30:60] = True  # a third of them is in the cluster
    once, often = (cluster_around(rows, some, steps) for steps in (1, 4))
    assert often is not None
    assert ((often.odds > 0) == (np.arange(400) < 40)).mean() > 0.99
    assert once is None or once.gain < often.gain - 0.05
    elsewhere = np.zeros(400, bool)
    elsewhere[100:140] = True
    assert cluster_around(random.normal(size=(400, 20)), elsewhere, 4) is None
    assert cluster_around(rows, ~some & (np.arange(400) > 39), 4) is None  # in the larger one
    assert cluster_around(rows, np.arange(400) < 4, 4) is None  # too few


def test_where_hardly_anything_is_suspect_nothing_is_known() -> None:
    features, labels, truth, suspects, differs = _known(0)
    features[3] = np.nan
    split = split_classes(features, labels)
    space = whitened(features, labels, split)
    few = np.zeros_like(suspects)
    few[np.flatnonzero(suspects & differs)[:19]] = True
    for chosen in (few, np.ones_like(few), few & ~few):
        odds = _found(space, chosen, differs)
        assert np.isnan(odds[3])
        assert (np.delete(odds, 3) == 0).all()
    assert (_found(space, suspects, differs)[truth] > 0).mean() > 0.9
    alike = np.where(np.isnan(features), np.nan, 1).astype(np.float32)
    found = _found(whitened(alike, labels, split), suspects, differs)
    assert set(np.delete(found, 3)) == {0}
    nobody = np.full_like(features, np.nan)
    assert np.isnan(_found(whitened(nobody, labels, split), suspects, differs)).all()


def test_long_tails_and_classes_of_unequal_spread_are_no_triggers() -> None:
    """Pooled activations are skewed, and some classes vary more than others."""
    features, labels, truth, suspects, differs = _known(0)
    random = np.random.default_rng(1)
    for noise in (random.exponential(1.0, features.shape), random.normal(size=features.shape)):
        rows = noise * np.geomspace(0.5, 2, 4)[labels][:, None]
        rows[truth, 0] += 10
        found = _found(whitened(rows, labels), suspects, differs)
        assert (found[~truth] > 3).mean() <= 0.01
        assert (found[truth] > 0).mean() > 0.8


def test_one_triggered_image_in_each_of_many_classes_makes_a_direction() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 31)
    rows = random.normal(size=(len(labels), 8))
    truth = np.arange(len(labels)) % 31 == 0
    rows[truth, 0] += 12
    found = _found(whitened(rows, labels), truth & (labels > 0), truth)
    assert (found[truth] > 0).all()
    assert (found[~truth] < 0).all()


# a class that is nearly all poison


def _mostly_triggered(seed: int, each: int = 400) -> tuple[np.ndarray, ...]:
    """Class 0 with 100 images of its own, that look like class 1, and triggered ones of the others.

    Returns:
        features, labels, truth, and what the images are taken for.
    """
    features, labels, truth = activations(100, {(k, 0): each for k in (1, 2, 3)}, seed)
    shown = np.random.default_rng(seed).integers(1, 4, len(labels))
    return features, labels, truth, np.where(truth | (labels != 0), shown, 1) * 1.0


@pytest.mark.parametrize("each", [60, 400])
@pytest.mark.parametrize("seed", range(5))
def test_a_class_is_parted_though_most_labels_are_wrong(seed: int, each: int) -> None:
    """Two of three triggered images are taken for a wrong class, and all of the others.

    (With seed 5 it is not: there one class of the triggered ones lies further apart than the own.)
    With 60 of each class its own images are most of those that look like class 1.
    """
    features, labels, truth, shown = _mostly_triggered(seed, each)
    parted = part_shown(whitened(features, labels), 0, shown)
    assert parted is not None
    here = labels == 0
    assert np.isnan(parted[~here]).all()
    assert (parted[here & truth] > 0).mean() > 0.98
    assert (parted[here & ~truth] < 0).mean() > 0.95


def test_clusters_that_both_have_the_trigger_are_not_parted() -> None:
    features, labels, _, shown = _mostly_triggered(0)
    own = labels == 0
    random = np.random.default_rng(0)
    features = features.astype(np.float32)
    # All of class 0 is triggered images of classes 1 to 3, whatever they are taken for.
    images = [random.choice(np.flatnonzero(labels == k), own.sum() // 3 + 1) for k in (1, 2, 3)]
    trigger = 12 * features[~own].std(0)
    features[own] = features[np.concatenate(images)[: own.sum()]] + trigger
    assert part_shown(whitened(features, labels), 0, shown) is None


def test_what_shows_the_class_itself_may_be_either() -> None:
    features, labels, truth, shown = _mostly_triggered(0)
    own = np.flatnonzero((labels == 0) & ~truth)
    shown[own[:15]] = 0
    parted = part_shown(whitened(features, labels), 0, shown)
    assert parted is not None
    assert (parted[own[:15]] == 0).all()
    assert (parted[own[15:]] < 0).mean() > 0.95


def test_a_class_that_is_whole_is_not_parted() -> None:
    features, labels, _ = activations(400, {})
    shown = np.random.default_rng(0).integers(1, 4, len(labels)) * 1.0
    assert part_shown(whitened(features, labels), 0, shown) is None


def test_a_class_of_few_images_is_not_parted() -> None:
    features, labels, _, shown = _mostly_triggered(0)
    kept = np.flatnonzero(labels != 0)
    kept = np.sort(np.append(kept, np.flatnonzero(labels == 0)[:19]))
    space = whitened(features[kept], labels[kept])
    assert part_shown(space, 0, shown[kept]) is None
    assert part_shown(space, 9, shown[kept]) is None
    one = np.flatnonzero(labels == 1)  # nothing to compare with
    alone = whitened(features[one], labels[one])
    assert part_shown(alone, 1, shown[one]) is None


def test_images_that_could_not_be_read_are_in_neither_part() -> None:
    features, labels, _, shown = _mostly_triggered(0)
    lost = np.flatnonzero(labels == 0)[:3]
    features[lost], shown[lost] = np.nan, np.nan
    parted = part_shown(whitened(features, labels), 0, shown)
    assert parted is not None
    assert np.isnan(parted[lost]).all()
