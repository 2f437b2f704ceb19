"""The cosine of logits against float64."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import agreement


def formula(first: Tensor, second: Tensor) -> list[float]:
    out = []
    for a, b in zip(first.double().numpy(), second.double().numpy(), strict=True):
        lengths = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
        out.append(float((a * b).sum() / lengths) if lengths else 0.0)
    return out


def logits(count: int, classes: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * scale


def check(function: Callable[..., Tensor]) -> None:
    for shape in [(1, 1), (5, 2), (33, 43), (7, 1000)]:
        for scale in (1e-18, 1e-3, 1.0, 1e4, 1e30):
            first, second = logits(*shape, 1, scale), logits(*shape, 2)
            if shape[0] > 1:
                first[1] = 0.0
            out = function(first, second)
            assert out.shape == shape[:1]
            assert out.dtype == torch.float32
            np.testing.assert_allclose(out.numpy(), formula(first, second), rtol=0, atol=1e-6)


def test_is_the_formula_at_every_scale() -> None:
    check(agreement)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a = a / a.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)", "pass"),
        ("amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)", "amax(1, keepdim=True)"),
        (" * torch.linalg.vector_norm(b, dim=1)", ""),
        (" / norms.clamp_min(1e-12)", ""),
        ("(a * b)", "(a * b).abs()"),
    ],
)
def test_a_broken_cosine_is_noticed(mutant: Any, old: str, new: str) -> None:
    broken = mutant(importlib.import_module("kernels.agreement"), "agreement", old, new)
    with pytest.raises(AssertionError):
        check(broken)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    first, second = logits(9, 10, 1).to(dtype), logits(9, 10, 2).to(dtype)
    out = agreement(first, second)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), formula(first, second), rtol=0, atol=1e-6)


def test_extreme_logits() -> None:
    huge = torch.tensor([[3e38, -3e38, 3e38], [3e38, 0.0, 0.0], [1e38, 1e38, 0.0]])
    other = torch.tensor([[1e-30, -1e-30, 1e-30], [0.0, 3e38, 0.0], [-1e-20, -1e-20, 0.0]])
    np.testing.assert_allclose(agreement(huge, other).numpy(), [1, 0, -1], rtol=0, atol=1e-6)


def test_zero_rows_agree_with_nothing_and_spoil_no_other() -> None:
    first, second = logits(4, 6, 1), logits(4, 6, 2)
    first[1], second[2] = 0.0, 0.0
    out = agreement(first, second)
    assert out[1] == 0
    assert out[2] == 0
    np.testing.assert_allclose(out.numpy(), formula(first, second), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(value: float) -> None:
    first, second = logits(3, 6, 1), logits(3, 6, 2)
    first[1, 4] = value
    assert agreement(first, second).isnan().tolist() == [False, True, False]


def test_zero_rows_are_0_where_subnormals_are_flushed() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        out = agreement(torch.zeros(1, 3), torch.ones(1, 3))
    finally:
        torch.set_flush_denormal(False)
    assert out.tolist() == [0.0]


def test_no_rows() -> None:
    assert agreement(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-20, 1e20), classes=st.integers(1, 50))
def test_range_symmetry_and_scale(seed: int, scale: float, classes: int) -> None:
    first, second = logits(5, classes, seed), logits(5, classes, seed + 1)
    out = agreement(first, second)
    assert ((out >= -1) & (out <= 1)).all()
    torch.testing.assert_close(out, agreement(second, first), rtol=0, atol=1e-6)
    torch.testing.assert_close(out, agreement(first * scale, second), rtol=0, atol=1e-6)
    torch.testing.assert_close(out, -agreement(-first, second), rtol=0, atol=1e-6)
    torch.testing.assert_close(agreement(first, first), torch.ones(5), rtol=0, atol=1e-6)
