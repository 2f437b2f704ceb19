"""Classes that fall apart, on activations whose truth is known."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.erase._clusters import first_component, two_gaussians
from pbe_fast.erase.split import ClassSplit, Split, look_again, split_classes, swollen_classes
from tests.erase._activations import WIDTH, activations, whitened


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whole_classes_stay_whole(seed: int) -> None:
    features, labels, _ = activations(150, {}, seed)
    split = split_classes(features, labels)
    assert split.classes == ()
    assert (split.log_odds == -50).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(15, 90))
def test_one_poisoned_class_is_found_however_much_of_it_is_poisoned(seed: int, count: int) -> None:
    sources = {(0, 1): count, (2, 1): count, (3, 1): count}
    features, labels, truth = activations(150, sources, seed)
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


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_the_first_component_is_that_of_largest_variance(shape: tuple[int, int]) -> None:
    z = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1])
    along = first_component(z)
    left = np.linalg.svd(z - z.mean(0))[0][:, 0]
    assert abs(along @ left) == pytest.approx(np.linalg.norm(along))


def test_poison_in_every_class_is_found() -> None:
    sources = {(k, (k + 1) % 4): 20 for k in range(4)}
    features, labels, truth = activations(150, sources)
    split = split_classes(features, labels)
    assert sorted(c.label for c in split.classes) == [0, 1, 2, 3]
    assert ((split.log_odds > 0) == truth).mean() > 0.99


def tight_beside_wide(
    distance: float, spread: float = 2.5
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
    """A class of which 100 images lie close together and 200 do not, and two that are whole."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [300, 100, 100])
    features = random.normal(size=(500, 8))
    features[:100, 0] *= 0.3
    features[100:300, 0] = random.normal(distance, spread, 200)
    return features, labels


def test_a_tight_cluster_beside_a_wide_one_falls_apart() -> None:
    """As own images beside those of many classes do, and triggered ones in a large network."""
    split = split_classes(*tight_beside_wide(5))
    [found] = split.classes
    assert found.label == 0
    assert (split.log_odds[:300] > 0).sum() == pytest.approx(100, abs=10)
    assert split_classes(*tight_beside_wide(5), ashman=True).classes == ()


def test_two_spreads_around_one_middle_are_one_cluster() -> None:
    features, labels = tight_beside_wide(0, spread=6)
    assert split_classes(features, labels).classes == ()
    found = two_gaussians(features[:300, 0])
    assert found is not None
    assert found.gain > 0.3
    assert found.separation < 0.5


def test_swollen_classes_have_more_than_five_times_the_usual_images() -> None:
    labels = np.repeat([3, 5, 7, 8], [20, 20, 100, 101])
    assert swollen_classes(np.repeat([3, 5, 7, 8, 9], [20, 20, 20, 100, 101])) == {9}
    assert swollen_classes(labels) == set()
    assert swollen_classes(labels[:0]) == set()


def test_rows_that_are_not_there_change_nothing() -> None:
    features, labels, _ = activations(150, {(0, 1): 60})
    whole = split_classes(features, labels)
    more = np.insert(features, [0, 100], np.nan, axis=0)
    split = split_classes(more, np.insert(labels, [0, 100], 1))
    gone = np.isnan(split.log_odds)
    assert np.flatnonzero(gone).tolist() == [0, 101]
    np.testing.assert_array_equal(split.log_odds[~gone], whole.log_odds)


def test_small_classes_and_nothing_at_all_are_left_alone() -> None:
    features, labels, _ = activations(9, {(0, 1): 9})
    assert split_classes(features, labels).classes == ()
    nothing = split_classes(np.full((5, WIDTH), np.nan), np.zeros(5, int))
    assert nothing.classes == ()
    assert np.isnan(nothing.log_odds).all()


def test_activations_that_are_all_alike_are_no_clusters() -> None:
    features, labels = np.ones((80, WIDTH), np.float16), np.repeat([0, 1], 40)
    split = split_classes(features, labels)
    assert split.classes == ()
    assert look_again(whitened(features, labels, split), split, np.arange(80.0)).classes == ()


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
    again = look_again(whitened(features, labels, split), split, losses)
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
    split = split_classes(far, labels)
    again = look_again(whitened(far, labels, split), split, losses)
    assert [c.label for c in again.classes] == [1]
    found = again.log_odds > 0
    assert planted[found].mean() > 0.9
    assert found[planted].mean() > 0.9


def test_a_second_look_is_at_classes_that_seemed_whole() -> None:
    features, labels, _, losses = _faint(0)
    whole = split_classes(features, labels)
    known = Split(whole.log_odds, whole.apart, (ClassSplit(1, 100, 0.1, 1.0, 9.0),))
    assert look_again(whitened(features, labels, known), known, losses).classes == ()


def test_a_second_look_leaves_a_cluster_alone_that_is_easier_than_the_rest() -> None:
    features, labels, planted, _ = _faint(0)
    more = np.flatnonzero((labels == 1) & ~planted)[:80]
    features[more, 0] += 9
    planted[more] = True
    losses = np.random.default_rng(0).uniform(0, 1, len(labels)) + ~planted
    whole = Split(np.full(len(labels), -50, np.float32), np.zeros(len(labels), bool), ())
    assert look_again(whitened(features, labels, whole), whole, losses).classes == ()
    assert [
        c.label for c in look_again(whitened(features, labels, whole), whole, -losses).classes
    ] == [1]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_second_look_finds_nothing_where_losses_mean_nothing(seed: int) -> None:
    features, labels, _ = activations(150, {}, seed)
    split = split_classes(features, labels)
    losses = np.random.default_rng(seed).exponential(1.0, len(labels))
    assert look_again(whitened(features, labels, split), split, losses).classes == ()


def test_the_order_of_images_does_not_matter() -> None:
    features, labels, _ = activations(100, {(0, 1): 40, (2, 1): 40})
    order = np.random.default_rng(1).permutation(len(labels))
    first, second = split_classes(features, labels), split_classes(features[order], labels[order])
    np.testing.assert_allclose(second.log_odds, first.log_odds[order], rtol=1e-4, atol=1e-3)
