"""One PGD step against the formula in float64, and that broken steps are noticed."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import pgd_step_l2, pgd_step_linf

# The package hands on functions of the same name, which hide the modules.
pgd_step_module = importlib.import_module("kernels.pgd_step")

Floats = npt.NDArray[np.float64]
Step = Callable[..., Tensor]

SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (1, 1, 1, 1), (0, 3, 4, 4)]
EPS = 6 / 255
STEP = EPS / 5
ROUNDING = 1.2e-7  # two roundings of numbers up to 1 in float32


def linf_formula(x: Floats, d: Floats, g: Floats, eps: float, step: float) -> Floats:
    direction = np.where(g > 0, 1.0, np.where(g < 0, -1.0, 0.0))  # NaN is neither
    moved = np.minimum(np.maximum(d + step * direction, -eps), eps)
    return np.minimum(np.maximum(x + moved, 0.0), 1.0) - x


def l2_formula(x: Floats, d: Floats, g: Floats, eps: float, step: float) -> Floats:
    out = np.empty_like(d)
    for i in range(len(x)):
        direction = np.where(np.isfinite(g[i]), g[i], 0.0)
        norm = float(np.sqrt((direction**2).sum()))
        moved = d[i] + (step * direction / norm if norm else 0.0)
        length = float(np.sqrt((moved**2).sum()))
        if length > eps:
            moved = moved * (eps / length)
        out[i] = np.minimum(np.maximum(x[i] + moved, 0.0), 1.0) - x[i]
    return out


def case(shape: tuple[int, ...], eps: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images with pixels at 0 and 1, a perturbation inside the L-inf ball, a gradient."""
    rng = torch.Generator().manual_seed(seed)
    clean = torch.rand(shape, generator=rng)
    clean[torch.rand(shape, generator=rng) < 0.2] = 0.0
    clean[torch.rand(shape, generator=rng) < 0.2] = 1.0
    perturbation = ((2 * torch.rand(shape, generator=rng) - 1) * eps + clean).clamp(0, 1) - clean
    gradient = torch.randn(shape, generator=rng)
    gradient[torch.rand(shape, generator=rng) < 0.1] = 0.0
    return clean, perturbation, gradient


def into_l2_ball(d: Tensor, eps: float) -> Tensor:
    length: Tensor = d.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (d.ndim - 1))
    return d * (eps / length).clamp_max(1.0)


def as_float64(a: Tensor, b: Tensor, c: Tensor) -> tuple[Floats, Floats, Floats]:
    return a.double().numpy(), b.double().numpy(), c.double().numpy()


def check_linf(step_of: Step) -> None:
    """All that an L-inf step must do; raises AssertionError where it does not."""
    for shape in SHAPES:
        for step in (STEP, -STEP, 0.0, EPS, 3 * EPS):
            clean, d, g = case(shape, EPS)
            if g.numel() > 20:
                g.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            out = step_of(clean, d, g, eps=EPS, step=step)
            wanted = linf_formula(*as_float64(clean, d, g), EPS, step)
            assert out.shape == clean.shape
            assert out.dtype == torch.float32
            np.testing.assert_allclose(out.double().numpy(), wanted, rtol=0, atol=ROUNDING)


def check_l2(step_of: Step) -> None:
    """All that an L2 step must do; raises AssertionError where it does not."""
    for shape in SHAPES:
        for eps, step in ((0.5, 0.1), (0.5, -0.1), (0.5, 2.0), (0.05, 0.0)):
            clean, d, g = case(shape, 0.3)
            d = into_l2_ball(d, eps)
            if g.numel() > 20:
                g.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            out = step_of(clean, d, g, eps=eps, step=step)
            wanted = l2_formula(*as_float64(clean, d, g), eps, step)
            assert out.shape == clean.shape
            np.testing.assert_allclose(out.double().numpy(), wanted, rtol=0, atol=4 * ROUNDING)


def test_linf_is_the_formula() -> None:
    check_linf(pgd_step_linf)


def test_l2_is_the_formula() -> None:
    check_l2(pgd_step_l2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(clean + moved).clamp(0.0, 1.0) - clean", "moved"),
        ("moved = moved.clamp(-eps, eps)", "pass"),
        ("moved.clamp(-eps, eps)", "moved.clamp(-step, step)"),
        ("perturbation + step", "perturbation - step"),
        ("perturbation + step", "0 * perturbation + step"),
        (".clamp(0.0, 1.0)", ".clamp(0.0, 255.0)"),
        ("gradient.sign()", "gradient"),
        (".clamp(0.0, 1.0) - clean", ".clamp(0.0, 1.0)"),
    ],
)
def test_a_broken_linf_step_is_noticed(mutant: Any, old: str, new: str) -> None:
    broken = mutant(pgd_step_module, "pgd_step_linf", old, new)
    with pytest.raises(AssertionError):
        check_linf(broken)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(clean + moved).clamp(0.0, 1.0) - clean", "moved"),
        ("moved = moved * (eps / length.clamp_min(_TINY)).clamp_max(1.0)", "pass"),
        (".clamp_max(1.0)", ""),
        ("step * gradient / norm.clamp_min(_TINY)", "step * gradient"),
        ("step * gradient / norm.clamp_min(_TINY)", "step * gradient.sign()"),
        ("perturbation + step", "perturbation - step"),
        ("range(1, gradient.ndim)", "range(0, gradient.ndim)"),
        ("nan=0.0, posinf=0.0, neginf=0.0", "nan=0.0"),
    ],
)
def test_a_broken_l2_step_is_noticed(mutant: Any, old: str, new: str) -> None:
    broken = mutant(pgd_step_module, "pgd_step_l2", old, new)
    with pytest.raises(AssertionError):
        check_l2(broken)


def test_at_the_boundary_of_the_ball_a_step_outwards_changes_nothing() -> None:
    clean = torch.full((1, 3, 2, 2), 0.5)
    for sign in (1.0, -1.0):
        d = torch.full_like(clean, sign * EPS)
        out = pgd_step_linf(clean, d, sign * torch.ones_like(clean), eps=EPS, step=STEP)
        torch.testing.assert_close(out, d, rtol=0, atol=ROUNDING)
        inwards = pgd_step_linf(clean, d, -sign * torch.ones_like(clean), eps=EPS, step=STEP)
        torch.testing.assert_close(inwards, d - sign * STEP, rtol=0, atol=ROUNDING)


def test_eps_0_stays_at_the_clean_image() -> None:
    clean, _, g = case((2, 3, 5, 5), EPS)
    d = torch.zeros_like(clean)
    assert not pgd_step_linf(clean, d, g, eps=0.0, step=STEP).any()
    assert not pgd_step_l2(clean, d, g, eps=0.0, step=STEP).any()


@pytest.mark.parametrize("step_of", [pgd_step_linf, pgd_step_l2])
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_gradient_that_says_nothing_moves_nothing(step_of: Step, value: float) -> None:
    clean, d, _ = case((2, 3, 7, 5), EPS)
    out = step_of(clean, d, torch.full_like(clean, value), eps=10.0, step=STEP)
    torch.testing.assert_close(out, d, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e37])
def test_l2_does_not_depend_on_the_size_of_the_gradient(scale: float) -> None:
    clean, d, g = case((2, 3, 7, 5), 0.01)
    wanted = pgd_step_l2(clean, d, g, eps=0.5, step=0.1)
    out = pgd_step_l2(clean, d, g * scale, eps=0.5, step=0.1)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-6)


def test_samples_do_not_see_each_other() -> None:
    clean, d, g = case((4, 3, 7, 5), 0.05)
    g[1] *= 1e6
    g[2] = torch.nan
    for step_of, eps in ((pgd_step_linf, 0.05), (pgd_step_l2, 0.3)):
        whole = step_of(clean, d, g, eps=eps, step=0.02)
        single = [
            step_of(clean[i : i + 1], d[i : i + 1], g[i : i + 1], eps=eps, step=0.02)
            for i in range(4)
        ]
        torch.testing.assert_close(whole, torch.cat(single), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("step_of", [pgd_step_linf, pgd_step_l2])
def test_zeros_are_no_nan_where_subnormals_are_flushed(step_of: Step) -> None:
    clean = torch.full((1, 3, 4, 4), 0.5)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        zeros = torch.zeros_like(clean)
        out = step_of(clean, zeros, zeros, eps=EPS, step=STEP)
    finally:
        torch.set_flush_denormal(False)
    assert not out.any()  # NaN would be true


@pytest.mark.parametrize("step_of", [pgd_step_linf, pgd_step_l2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_gradient_may_have_another_dtype(step_of: Step, dtype: torch.dtype) -> None:
    clean, d, g = case((2, 3, 7, 5), EPS)
    g = g.to(dtype)
    out = step_of(clean, d, g, eps=EPS, step=STEP)
    wanted = step_of(clean, d, g.float(), eps=EPS, step=STEP)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("step_of", [pgd_step_linf, pgd_step_l2])
def test_channels_last_stays_and_changes_nothing(step_of: Step) -> None:
    clean, d, g = case((2, 3, 7, 5), EPS)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (clean, d, g)]
    out = step_of(*last, eps=EPS, step=STEP)
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = step_of(clean, d, g, eps=EPS, step=STEP)
    torch.testing.assert_close(out, wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("step_of", [pgd_step_linf, pgd_step_l2])
def test_arguments_stay_as_they_are(step_of: Step) -> None:
    arguments = case((2, 3, 7, 5), EPS)
    before = [t.clone() for t in arguments]
    step_of(*arguments, eps=EPS, step=STEP)
    for argument, copy in zip(arguments, before, strict=True):
        torch.testing.assert_close(argument, copy, rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(1e-4, 2.0),
    ratio=st.floats(-3.0, 3.0),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
)
def test_the_result_lies_in_the_ball_and_in_the_image_range(
    seed: int, eps: float, ratio: float, height: int, width: int
) -> None:
    clean, d, g = case((2, 3, height, width), eps, seed)
    out = pgd_step_linf(clean, d, g, eps=eps, step=ratio * eps)
    assert float(out.abs().max()) <= eps + ROUNDING
    assert float((clean + out).min()) >= -ROUNDING
    assert float((clean + out).max()) <= 1 + ROUNDING
    out = pgd_step_l2(clean, into_l2_ball(d, eps), g, eps=eps, step=ratio * eps)
    assert float(out.flatten(1).norm(dim=1).max()) <= eps + 3 * ROUNDING
    assert float((clean + out).min()) >= -ROUNDING
    assert float((clean + out).max()) <= 1 + ROUNDING
