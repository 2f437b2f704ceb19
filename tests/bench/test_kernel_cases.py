"""The kernel benchmark calls every operation as it wants to be called; shown on the twins."""

import pytest
import torch

from bench import kernels as bench_kernels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_case_can_be_called(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    monkeypatch.setattr(bench_kernels, "PLACE", "cpu")
    monkeypatch.setattr(bench_kernels, "SETS", 1)
    cases = bench_kernels.cases((2, 3, 8, 8), layout)
    assert len(cases) == 7
    for case in cases.values():
        case.twin()
        case.kernel()  # the operation, which is the twin on a CPU
        assert case.bytes > 0
