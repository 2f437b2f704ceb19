"""Cosines and margins: the twin against float64, the kernel against the twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import agreement
from kernels.agreement import torch_agreement, triton_agreement

Agreement = Callable[..., tuple[Tensor, Tensor, Tensor]]

# Rows, classes: two, an odd number, more than a block of 1024 with a rest.
SHAPES = [(1, 2), (5, 3), (9, 43), (3, 1000), (3, 2500)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SCALES = (1e-18, 1.0, 1e30)

# The interpreter divides infinities and compares NaN with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def logits(count: int, classes: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * scale


def targets(count: int, classes: int) -> Tensor:
    """Every kind of label: the first, the last, others."""
    return (torch.arange(count) * 7 - 1) % classes


def formula(first: Tensor, second: Tensor, labels: Tensor) -> Any:
    cosines, margins = [], []
    rows = zip(first.double().numpy(), second.double().numpy(), labels.tolist(), strict=True)
    for a, b, label in rows:
        lengths = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
        cosines.append(float((a * b).sum() / lengths) if lengths else 0.0)
        margins.append([v[label] - np.delete(v, label).max() for v in (a, b)])
    return np.array(cosines), np.array(margins).reshape(-1, 2).T


def cases(shapes: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Logits of every size, some all zeros, some of which are nearly parallel."""
    out = []
    for count, classes in shapes:
        for scale in SCALES:
            first, second = logits(count, classes, 1, scale), logits(count, classes, 2)
            if count > 2:
                first[1] = 0.0
                second[2] = first[2] / scale * (1 + 1e-4 * second[2])
            out.append((first, second, targets(count, classes)))
    return out


def check_formula(function: Agreement, shapes: list[tuple[int, int]] = SHAPES) -> None:
    """All that it must do; raises AssertionError where it does not."""
    for first, second, labels in cases(shapes):
        cosine, *margins = function(first, second, labels)
        wanted, wanted_margins = formula(first, second, labels)
        assert cosine.dtype == torch.float32
        np.testing.assert_allclose(cosine.numpy(), wanted, rtol=0, atol=1e-6)
        for margin, exact in zip(margins, wanted_margins, strict=True):
            assert margin.dtype == torch.float32
            np.testing.assert_allclose(margin.numpy(), exact, rtol=2e-6, atol=0)


def uneven(count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that grow in one row, and shrink in the other, by a lot in every block."""
    growth = torch.logspace(-2, 2, classes)
    first, second = logits(count, classes, 1) * growth, logits(count, classes, 2) / growth
    return first, second + 0.1 * first, targets(count, classes)


def compare(
    function: Agreement, arguments: tuple[Tensor, Tensor, Tensor], device: torch.device
) -> None:
    """The kernel does as the twin does; raises AssertionError where it does not."""
    cosine, *margins = (t.cpu() for t in function(*(a.to(device) for a in arguments)))
    wanted, *wanted_margins = torch_agreement(*arguments)
    # Other orders of summation, and a GPU's quotients and roots are off by a unit.
    torch.testing.assert_close(cosine, wanted, rtol=0, atol=1e-6, equal_nan=True)
    # A margin is one subtraction of two logits.
    for margin, exact in zip(margins, wanted_margins, strict=True):
        torch.testing.assert_close(margin, exact, rtol=0, atol=0, equal_nan=True)


def check_kernel(function: Agreement, shapes: list[Any], device: torch.device) -> None:
    for arguments in [uneven(*shape) for shape in shapes] + cases(shapes):
        compare(function, arguments, device)
    for value in (torch.nan, torch.inf, -torch.inf):
        for classes in {classes for _, classes in shapes}:
            count = 2
            first, second = logits(count, classes, 1), logits(count, classes, 2)
            labels = targets(count, classes)
            first[0, labels[0]] = value  # the label's own
            second[-1, (labels[-1] + 1) % classes] = value  # another one
            compare(function, (first, second, labels), device)


def test_the_twin_is_the_formula_at_every_scale() -> None:
    check_formula(torch_agreement)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_twin(device: torch.device, shape: tuple[int, int]) -> None:
    check_kernel(triton_agreement, [shape], device)


def test_rows_that_grow_from_block_to_block(device: torch.device) -> None:
    first = logits(2, 3000, 1) * torch.logspace(-12, 12, 3000)
    arguments = first, logits(2, 3000, 2) * torch.logspace(12, -12, 3000), targets(2, 3000)
    compare(triton_agreement, arguments, device)
    arguments = first, first + 1.0, targets(2, 3000)
    compare(triton_agreement, arguments, device)


@pytest.mark.parametrize("dtype", FLOATS)
def test_other_dtypes_are_computed_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    first, second, labels = logits(9, 10, 1).to(dtype), logits(9, 10, 2).to(dtype), targets(9, 10)
    cosine, *margins = torch_agreement(first, second, labels)
    wanted, wanted_margins = formula(first, second, labels)
    assert cosine.dtype == torch.float32
    np.testing.assert_allclose(cosine.numpy(), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(torch.stack(margins).numpy(), wanted_margins, rtol=2e-6)
    compare(triton_agreement, (first, second, labels), device)


def test_tensors_that_do_not_lie_densely(device: torch.device) -> None:
    arguments = logits(5, 14, 1)[:, ::2], logits(10, 7, 2)[::2], targets(10, 7)[::2]
    moved = [
        torch.zeros(*a.shape, 2, dtype=a.dtype, device=device)[..., 0].copy_(a) for a in arguments
    ]
    assert not any(a.is_contiguous() for a in moved)
    for out, wanted in zip(triton_agreement(*moved), torch_agreement(*arguments), strict=True):
        torch.testing.assert_close(out.cpu(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        (
            "torch_agreement",
            "a = a / a.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)",
            "",
        ),
        ("torch_agreement", "(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)", "(1, keepdim=True)"),
        ("torch_agreement", " * torch.linalg.vector_norm(b, dim=1)", ""),
        ("torch_agreement", " / norms.clamp_min(_FLOOR)", ""),
        ("torch_agreement", "(a * b)", "(a * b).abs()"),
        ("torch_agreement", "_margin(b, labels)", "_margin(a, labels)"),
        ("_margin", 'float("-inf")', "0.0"),
        ("_margin", "own[:, 0] - others.amax(1)", "others.amax(1) - own[:, 0]"),
    ],
)
def test_a_broken_twin_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("agreement", f"agreement.{place}", old, new)
    with pytest.raises(AssertionError):
        check_formula(broken.torch_agreement, [(1, 2), (15, 3), (9, 43)])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("_larger", "tl.where(bad, float('nan'), new)", "tl.where(bad, 0.0, new)"),
        ("_agreement_kernel", "aa * shrink_a * shrink_a", "aa"),
        ("_agreement_kernel", "ab * shrink_a * shrink_b", "ab * shrink_a * shrink_a"),
        ("_agreement_kernel", "a, b = a / new_a, b / new_b", "a, b = a, b / new_b"),
        (
            "_agreement_kernel",
            "tl.full((), _smallest_normal, tl.float32)",
            "tl.zeros((), tl.float32)",
        ),
        ("_agreement_kernel", "own = k == label", "own = k == label + 1"),
        ("_agreement_kernel", "own_a += tl.sum", "own_a = tl.sum"),
        ("_agreement_kernel", "inside & (k != label)", "inside"),
        ("_agreement_kernel", "inside & (k != label)", "k != label"),
        ("_agreement_kernel", "inside = k < classes", "inside = k < classes - 1"),
        ("_agreement_kernel", "tl.sqrt(aa) * tl.sqrt(bb)", "tl.sqrt(aa)"),
        ("_agreement_kernel", "norms < _floor, _floor, norms", "norms < _floor, norms, norms"),
        ("_agreement_kernel", "first_ptr + row * classes", "first_ptr"),
        ("_agreement_kernel", "own_b - other_b", "own_b - other_a"),
    ],
)
def test_a_broken_kernel_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("agreement", f"agreement.{place}", old.replace("'", '"'), new.replace("'", '"'))
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_agreement, [(2, 1100), (3, 3)], torch.device("cpu"))


def test_extreme_logits(device: torch.device) -> None:
    huge = torch.tensor([[3e38, -3e38, 3e38], [3e38, 0.0, 0.0], [1e38, 1e38, 0.0]])
    other = torch.tensor([[1e-30, -1e-30, 1e-30], [0.0, 3e38, 0.0], [-1e-20, -1e-20, 0.0]])
    labels = torch.tensor([0, 1, 2])
    cosine = torch_agreement(huge, other, labels)[0]
    np.testing.assert_allclose(cosine.numpy(), [1, 0, -1], rtol=0, atol=1e-6)
    compare(triton_agreement, (huge, other, labels), device)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(value: float) -> None:
    first, second = logits(3, 6, 1), logits(3, 6, 2)
    first[1, 4] = value
    assert agreement(first, second, targets(3, 6))[0].isnan().tolist() == [False, True, False]


def test_zero_rows_are_0_where_subnormals_are_flushed() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        out = torch_agreement(torch.zeros(1, 3), torch.ones(1, 3), targets(1, 3))[0]
    finally:
        torch.set_flush_denormal(False)
    assert out.tolist() == [0.0]


def test_no_rows(device: torch.device) -> None:
    nothing = torch.zeros(0, 4, device=device), torch.zeros(0, 4, device=device)
    for function in (agreement, triton_agreement):
        out = function(*nothing, torch.zeros(0, dtype=torch.int64, device=device))
        assert [len(t) for t in out] == [0, 0, 0]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-20, 1e20), classes=st.integers(2, 50))
def test_range_symmetry_and_scale(seed: int, scale: float, classes: int) -> None:
    first, second = logits(5, classes, seed), logits(5, classes, seed + 1)
    labels = targets(5, classes)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return agreement(a, b, labels)[0]

    out = cosine(first, second)
    assert ((out >= -1) & (out <= 1)).all()
    torch.testing.assert_close(out, cosine(second, first), rtol=0, atol=1e-6)
    torch.testing.assert_close(out, cosine(first * scale, second), rtol=0, atol=1e-6)
    torch.testing.assert_close(out, -cosine(-first, second), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine(first, first), torch.ones(5), rtol=0, atol=1e-6)
