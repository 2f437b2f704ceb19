"""Random numbers are functions of their arguments, and look random."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.randomness import numpy_generator, permutation, torch_generator, uniform

STREAMS: list[tuple[int | str, ...]] = [
    ("a",),
    ("b",),
    ("a", 1),
    ("a", 2),
    ("a", "b"),
    ("b", "a"),
    ("round", 1, "epoch", 2),
    ("round", 2, "epoch", 1),
]


def test_known_values() -> None:
    """These bytes are kept in runs and poisoned sets; a change would make others of them."""
    assert permutation(8, 0, "poison").tolist() == [4, 1, 6, 0, 5, 3, 7, 2]
    np.testing.assert_array_equal(
        uniform(np.array([0, 7]), 2, 3, "augment", 1),
        [[0.5597438404246434, 0.4153002848855011], [0.5310346716308179, 0.004106020796338816]],
    )
    assert torch_generator(0, "wanet").initial_seed() == 8800963466839670734


@pytest.mark.parametrize("kind", ["numpy", "torch", "uniform"])
def test_streams_and_seeds_give_different_numbers(kind: str) -> None:
    def draw(seed: int, stream: tuple[int | str, ...]) -> float:
        if kind == "numpy":
            return float(numpy_generator(seed, *stream).random())
        if kind == "torch":
            return float(torch.rand((), generator=torch_generator(seed, *stream)))
        return float(uniform(np.array([0]), 1, seed, *stream)[0, 0])

    numbers = [draw(seed, stream) for seed in (0, 1, 2**31) for stream in STREAMS]
    assert len(set(numbers)) == len(numbers)
    assert numbers == [draw(seed, stream) for seed in (0, 1, 2**31) for stream in STREAMS]


def test_generators_leave_the_global_ones_alone() -> None:
    before, torch_before = str(np.random.get_state()), torch.random.get_rng_state()
    numpy_generator(0, "a").random(5)
    torch.rand(5, generator=torch_generator(0, "a"))
    permutation(5, 0)
    uniform(np.arange(5), 2, 0)
    assert str(np.random.get_state()) == before
    assert torch.equal(torch.random.get_rng_state(), torch_before)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 200), seed=st.integers(0, 2**40))
def test_permutation_holds_each_once(count: int, seed: int) -> None:
    order = permutation(count, seed, "x")
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(order, permutation(count, seed, "x"))


@settings(deadline=None, max_examples=30)
@given(
    ids=st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
    columns=st.integers(1, 7),
    seed=st.integers(0, 2**63),
)
def test_uniform_depends_on_the_id_and_not_on_its_neighbours(
    ids: list[int], columns: int, seed: int
) -> None:
    rows = uniform(np.array(ids, np.int64), columns, seed, "crop", 1)
    assert rows.shape == (len(ids), columns)
    assert rows.dtype == np.float64
    assert ((rows >= 0) & (rows < 1)).all()
    for i, sample_id in enumerate(ids):
        alone = uniform(np.array([sample_id], np.int64), columns, seed, "crop", 1)
        np.testing.assert_array_equal(alone[0], rows[i])


def test_uniform_gives_the_same_first_columns_for_more_columns() -> None:
    ids = np.arange(10)
    np.testing.assert_array_equal(uniform(ids, 5, 1, "x")[:, :3], uniform(ids, 3, 1, "x"))


def test_uniform_is_even_and_uncorrelated() -> None:
    draws = uniform(np.arange(20_000), 4, 0, "x")
    for column in draws.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared, 19 degrees of freedom
    next_stream = uniform(np.arange(20_000), 1, 0, "x", 1)
    next_seed = uniform(np.arange(20_000), 1, 1, "x")
    shifted = draws[1:, :1]
    together = np.hstack((draws[:-1], shifted, next_stream[:-1], next_seed[:-1]))
    correlation = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.abs(correlation).max() < 0.03


def test_uniform_of_no_ids() -> None:
    assert uniform(np.zeros(0, np.int64), 3, 0).shape == (0, 3)
