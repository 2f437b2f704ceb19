"""Classes that fall apart, on activations whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.erase.split import ClassSplit, Split, look_again, part_shown, split_classes

WIDTH = 24


def _activations(
    per_class: int, poisoned: dict[tuple[int, int], int], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four classes in a space stretched at random, and images with a trigger.

    Args:
        poisoned: so many images of a class (first) that have the label of another (second).

    Returns:
        features, labels, and which are poisoned.
    """
    random = np.random.default_rng(seed)
    stretch = (
        np.exp(random.normal(0, 1.5, WIDTH)) * np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
    )
    centres, trigger = random.normal(0, 1, (4, WIDTH)), np.zeros(WIDTH)
    trigger[0] = 12  # as in an infected network, it outweighs what classes differ by
    rows, labels, truth = [], [], []

    def add(shown: int, label: int, count: int, planted: bool) -> None:
        rows.append(centres[shown] + planted * trigger + random.normal(size=(count, WIDTH)))
        labels.extend([label] * count)
        truth.extend([planted] * count)

    for k in range(4):
        add(k, k, per_class, planted=False)
    for (shown, label), count in poisoned.items():
        add(shown, label, count, planted=True)
    order = random.permutation(len(labels))
    features = (np.concatenate(rows) @ stretch).astype(np.float16)
    return features[order], np.array(labels)[order], np.array(truth)[order]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whole_classes_stay_whole(seed: int) -> None:
    features, labels, _ = _activations(150, {}, seed)
    split = split_classes(features, labels)
    assert split.classes == ()
    assert (split.log_odds == -50).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(15, 90))
def test_one_poisoned_class_is_found_however_much_of_it_is_poisoned(seed: int, count: int) -> None:
    sources = {(0, 1): count, (2, 1): count, (3, 1): count}
    features, labels, truth = _activations(150, sources, seed)
    split = split_classes(features, labels)
    [found] = split.classes
    assert found.label == 1
    assert found.separation > 3
    here = labels == 1
    assert found.share == pytest.approx(min(truth[here].mean(), 1 - truth[here].mean()), abs=0.02)
    small = split.log_odds > 0
    assert not small[~here].any()
    same = (small == truth)[here].mean()
    assert max(same, 1 - same) > 0.98


def test_poison_in_every_class_is_found() -> None:
    sources = {(k, (k + 1) % 4): 20 for k in range(4)}
    features, labels, truth = _activations(150, sources)
    split = split_classes(features, labels)
    assert sorted(c.label for c in split.classes) == [0, 1, 2, 3]
    assert ((split.log_odds > 0) == truth).mean() > 0.99


def test_rows_that_are_not_there_change_nothing() -> None:
    features, labels, _ = _activations(150, {(0, 1): 60})
    whole = split_classes(features, labels)
    more = np.insert(features, [0, 100], np.nan, axis=0)
    split = split_classes(more, np.insert(labels, [0, 100], 1))
    gone = np.isnan(split.log_odds)
    assert np.flatnonzero(gone).tolist() == [0, 101]
    np.testing.assert_array_equal(split.log_odds[~gone], whole.log_odds)


def test_small_classes_and_nothing_at_all_are_left_alone() -> None:
    features, labels, _ = _activations(9, {(0, 1): 9})
    assert split_classes(features, labels).classes == ()
    nothing = split_classes(np.full((5, WIDTH), np.nan), np.zeros(5, int))
    assert nothing.classes == ()
    assert np.isnan(nothing.log_odds).all()


def test_activations_that_are_all_alike_are_no_clusters() -> None:
    features, labels = np.ones((80, WIDTH), np.float16), np.repeat([0, 1], 40)
    split = split_classes(features, labels)
    assert split.classes == ()
    assert look_again(features, labels, split, np.arange(80.0)).classes == ()


def _faint(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Class 1 holds a cluster, but its images differ more along another direction.

    Returns:
        features, labels, which are in the cluster, and losses that are higher there on average.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(4), 300))
    planted = np.zeros(1200, bool)
    planted[np.flatnonzero(labels == 1)[::8]] = True
    features = random.normal(0, 1, (1200, WIDTH))
    features[labels == 1, 1] *= 8
    features[planted, 0] += 9
    losses = random.exponential(1.0, 1200) + 3 * planted
    return features.astype(np.float16), labels, planted, losses


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_cluster_within_a_cluster_of_a_class_that_falls_apart_is_told(seed: int) -> None:
    random = np.random.default_rng(seed)
    features, labels, planted, _ = _faint(seed)
    features[labels == 1, 1] /= 8
    falls_apart = (labels == 1) & ~planted & (random.random(len(labels)) < 0.5)
    features[falls_apart, 2] += 20
    split = split_classes(features, labels)
    assert [c.label for c in split.classes] == [1]
    assert (falls_apart == (split.log_odds > 0))[labels == 1].mean() in (0.0, 1.0)
    assert split.apart[planted].mean() > 0.9
    assert split.apart[~planted].mean() < 0.01


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_second_look_finds_what_the_hardest_images_point_to(seed: int) -> None:
    features, labels, planted, losses = _faint(seed)
    split = split_classes(features, labels)
    assert split.classes == ()
    again = look_again(features, labels, split, losses)
    assert [c.label for c in again.classes] == [1]
    found = again.log_odds > 0
    assert planted[found].mean() > 0.9
    assert found[planted].mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_where_classes_lie_far_apart_a_second_look_sees_the_same(seed: int) -> None:
    """Where a class lies must not count: each fold looks in a direction of its own."""
    features, labels, planted, losses = _faint(seed)
    centres = np.random.default_rng(seed).normal(0, 40, (4, WIDTH))
    far = (features + centres[labels]).astype(np.float32)
    again = look_again(far, labels, split_classes(far, labels), losses)
    assert [c.label for c in again.classes] == [1]
    found = again.log_odds > 0
    assert planted[found].mean() > 0.9
    assert found[planted].mean() > 0.9


def test_a_second_look_goes_along_what_a_trigger_adds_in_other_classes() -> None:
    """Class 2 hides it behind something larger, and its losses tell nothing."""
    features, labels, planted, _ = _faint(0)
    features[labels == 2, 2] *= 8
    hidden = np.flatnonzero(labels == 2)[::8]
    features[hidden, 0] += 9
    flat = np.random.default_rng(0).exponential(1.0, len(labels))
    known = Split(np.where(planted, 50, -50).astype(np.float32), np.zeros(len(labels), bool),
                  (ClassSplit(1, 100, 0.1, 1.0, 9.0),))  # fmt: skip
    assert look_again(features, labels, known, flat).classes == ()
    again = look_again(features, labels, known, flat, planted)
    assert [c.label for c in again.classes] == [2]
    assert set(np.flatnonzero(again.log_odds > 0)) == set(hidden)
    # A cluster that is further away the other way has no trigger.
    features[hidden, 0] -= 18
    assert look_again(features, labels, known, flat, planted).classes == ()


def test_a_second_look_is_at_classes_that_seemed_whole() -> None:
    features, labels, _, losses = _faint(0)
    whole = split_classes(features, labels)
    known = Split(whole.log_odds, whole.apart, (ClassSplit(1, 100, 0.1, 1.0, 9.0),))
    assert look_again(features, labels, known, losses).classes == ()


def test_a_second_look_leaves_a_cluster_alone_that_is_easier_than_the_rest() -> None:
    features, labels, planted, _ = _faint(0)
    more = np.flatnonzero((labels == 1) & ~planted)[:80]
    features[more, 0] += 9
    planted[more] = True
    losses = np.random.default_rng(0).uniform(0, 1, len(labels)) + ~planted
    whole = Split(np.full(len(labels), -50, np.float32), np.zeros(len(labels), bool), ())
    assert look_again(features, labels, whole, losses).classes == ()
    assert [c.label for c in look_again(features, labels, whole, -losses).classes] == [1]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_second_look_finds_nothing_where_losses_mean_nothing(seed: int) -> None:
    features, labels, _ = _activations(150, {}, seed)
    split = split_classes(features, labels)
    losses = np.random.default_rng(seed).exponential(1.0, len(labels))
    assert look_again(features, labels, split, losses).classes == ()


def test_the_order_of_images_does_not_matter() -> None:
    features, labels, _ = _activations(100, {(0, 1): 40, (2, 1): 40})
    order = np.random.default_rng(1).permutation(len(labels))
    first, second = split_classes(features, labels), split_classes(features[order], labels[order])
    np.testing.assert_allclose(second.log_odds, first.log_odds[order], rtol=1e-4, atol=1e-3)


# a class that is nearly all poison


def _mostly_triggered(seed: int) -> tuple[np.ndarray, ...]:
    """Class 0 with 40 images of its own and 1,200 with a trigger, and what they are taken for."""
    features, labels, truth = _activations(40, {(k, 0): 400 for k in (1, 2, 3)}, seed)
    return features, labels, truth, np.random.default_rng(seed).integers(1, 4, len(labels)) * 1.0


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_a_class_is_parted_though_all_labels_are_wrong(seed: int) -> None:
    """Two of three triggered images are taken for a wrong class, and all of the others."""
    features, labels, truth, shown = _mostly_triggered(seed)
    split = split_classes(features, labels)
    assert 0 not in [found.label for found in split.classes]
    parted = part_shown(features, labels, split, 0, shown)
    assert parted is not None
    here = labels == 0
    assert np.isnan(parted[~here]).all()
    assert ((parted > 0) == truth)[here].mean() > 0.98
    assert (parted[here & ~truth] < 0).mean() > 0.9


def test_a_class_that_is_whole_is_not_parted() -> None:
    features, labels, _ = _activations(400, {})
    shown = np.random.default_rng(0).integers(1, 4, len(labels)) * 1.0
    assert part_shown(features, labels, split_classes(features, labels), 0, shown) is None


def test_a_class_of_few_images_is_not_parted() -> None:
    features, labels, _, shown = _mostly_triggered(0)
    kept = np.flatnonzero(labels != 0)
    kept = np.sort(np.append(kept, np.flatnonzero(labels == 0)[:19]))
    split = split_classes(features[kept], labels[kept])
    assert part_shown(features[kept], labels[kept], split, 0, shown[kept]) is None
    assert part_shown(features[kept], labels[kept], split, 9, shown[kept]) is None
    one = np.flatnonzero(labels == 1)  # nothing to compare with
    alone = split_classes(features[one], labels[one])
    assert part_shown(features[one], labels[one], alone, 1, shown[one]) is None


def test_images_that_could_not_be_read_are_in_neither_part() -> None:
    features, labels, _, shown = _mostly_triggered(0)
    lost = np.flatnonzero(labels == 0)[:3]
    features[lost], shown[lost] = np.nan, np.nan
    parted = part_shown(features, labels, split_classes(features, labels), 0, shown)
    assert parted is not None
    assert np.isnan(parted[lost]).all()
