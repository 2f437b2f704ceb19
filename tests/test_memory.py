"""Work in parts where memory does not suffice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pbe_fast.memory import in_parts


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100))
def test_every_sample_is_done_once_and_in_order(count: int, fits: int) -> None:
    sizes: list[int] = []

    def work(part: slice) -> Tensor:
        size = part.stop - part.start
        if size > fits:
            raise torch.OutOfMemoryError("no")
        sizes.append(size)
        return torch.arange(count)[part]

    assert in_parts(count, work).tolist() == list(range(count))
    assert all(2 * size >= min(fits, count) for size in sizes)  # no smaller than need be


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    def work(part: slice) -> Tensor:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        in_parts(5, work)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def work(part: slice) -> Tensor:
        calls.append(part)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        in_parts(4, work)
    assert len(calls) == 1
