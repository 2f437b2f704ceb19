"""Work in parts where memory does not suffice, and freed memory that is kept."""

import ctypes
import subprocess
import sys

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


_FAULTS = """
import resource, sys, torch
from pbe_fast.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first, second = torch.ones(12_000_000), torch.ones(9_000_000)
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", _FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") * 10 < faults("give back")
