"""Orders are pure functions of (ids, seed, epoch) that lose and repeat nothing."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.data.order import batches, epoch_order

Ids = npt.NDArray[np.int64]


def _shard_index(counts: list[int]) -> npt.NDArray[np.int32]:
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


def _runs(shards: npt.NDArray[np.int32]) -> list[int]:
    """The shards in the order in which they come, neighbours that are equal taken together."""
    return [int(s) for i, s in enumerate(shards) if i == 0 or shards[i - 1] != s]


COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(
    counts=COUNTS, seed=st.integers(0, 2**40), epoch=st.integers(0, 99), block=st.integers(1, 40)
)
def test_each_sample_comes_exactly_once(
    counts: list[int], seed: int, epoch: int, block: int
) -> None:
    ids = np.arange(sum(counts), dtype=np.int64)
    order = epoch_order(ids, _shard_index(counts), seed, "epoch", epoch, block=block)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == ids.tolist()


@settings(deadline=None, max_examples=60)
@given(counts=COUNTS, seed=st.integers(0, 99), block=st.integers(1, 40), data=st.data())
def test_a_subset_in_any_order_gives_its_own_samples_alone(
    counts: list[int], seed: int, block: int, data: st.DataObject
) -> None:
    everything = list(range(sum(counts)))
    subset = data.draw(st.lists(st.sampled_from(everything), unique=True)) if everything else []
    ids = np.array(subset, np.int64)
    order = epoch_order(ids, _shard_index(counts), seed, "epoch", 0, block=block)
    assert sorted(order.tolist()) == sorted(subset)
    again = epoch_order(np.sort(ids), _shard_index(counts), seed, "epoch", 0, block=block)
    np.testing.assert_array_equal(order, again)
    assert ids.tolist() == subset  # the caller's array is left alone


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_block_of_one_keeps_each_shard_together(counts: list[int], seed: int) -> None:
    index = _shard_index(counts)
    order = epoch_order(np.arange(len(index), dtype=np.int64), index, seed, block=1)
    assert sorted(_runs(index[order])) == list(range(len(counts)))


def test_blocks_mix_as_many_shards_as_they_need_and_no_more() -> None:
    index = _shard_index([10] * 12)
    order = epoch_order(np.arange(120, dtype=np.int64), index, 3, block=25)
    for start in range(0, 120, 30):  # three shards of 10 make a block of at least 25
        shards = index[order[start : start + 30]]
        assert len(set(shards.tolist())) == 3
        assert len(_runs(shards)) > 3  # and they are mixed


def test_a_set_that_fits_one_block_is_mixed_completely() -> None:
    index = _shard_index([50] * 4)
    order = epoch_order(np.arange(200, dtype=np.int64), index, 0, "epoch", 0)
    quarters = index[order].reshape(4, 50)
    assert all(len(set(quarter.tolist())) == 4 for quarter in quarters)
    assert len(_runs(index[order])) > 100  # 151 are expected


def test_shards_and_samples_in_them_are_both_shuffled() -> None:
    index = _shard_index([20] * 10)
    order = epoch_order(np.arange(200, dtype=np.int64), index, 0, block=1)
    assert _runs(index[order]) != list(range(10))
    assert any((np.diff(part) < 0).any() for part in order.reshape(10, 20))


def test_seeds_epochs_and_rounds_have_orders_of_their_own() -> None:
    ids, index = np.arange(100, dtype=np.int64), _shard_index([100])
    streams: list[tuple[int, tuple[int | str, ...]]] = [
        (seed, ("round", part, "epoch", epoch))
        for seed in (0, 1)
        for part in (0, 1)
        for epoch in (0, 1, 2)
    ]
    orders = {tuple(epoch_order(ids, index, seed, *stream).tolist()) for seed, stream in streams}
    assert len(orders) == len(streams)


def test_an_order_is_the_same_today_as_when_runs_were_begun() -> None:
    # A resumed run depends on it: a change of these numbers must be meant.
    order = epoch_order(np.arange(8, dtype=np.int64), _shard_index([4, 4]), 7, "epoch", 1)
    assert order.tolist() == [3, 5, 1, 6, 4, 7, 2, 0]
    small = epoch_order(np.arange(8, dtype=np.int64), _shard_index([4, 4]), 7, "epoch", 1, block=1)
    assert small.tolist() == [1, 3, 2, 0, 5, 6, 4, 7]


def test_no_samples_have_an_empty_order() -> None:
    order = epoch_order(np.array([], np.int64), _shard_index([3]), 0)
    assert order.tolist() == []
    assert batches(order, 4) == []


@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, 50), size=st.integers(1, 60))
def test_batches_cut_an_order_in_place(count: int, size: int) -> None:
    order = np.arange(count, dtype=np.int64)[::-1]
    cut = batches(order, size)
    assert [i for batch in cut for i in batch.tolist()] == order.tolist()
    assert all(len(batch) == size for batch in cut[:-1])
    assert all(1 <= len(batch) <= size for batch in cut)


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        batches(np.arange(3, dtype=np.int64), 0)
