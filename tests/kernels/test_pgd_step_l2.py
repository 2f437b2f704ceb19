"""One L2 step: the twin against float64, the kernels against the twin, broken ones noticed."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import pgd_step_l2
from kernels.pgd_step_l2 import torch_pgd_step_l2, triton_pgd_step_l2

Floats = npt.NDArray[np.float64]
Step = Callable[..., Tensor]

SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (0, 3, 4, 4), (1, 3, 40, 40)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
EPS = 0.5
# A step inwards or outwards, one far beyond the ball, one that only projects.
PAIRS = [(0.5, 0.1), (0.5, -0.1), (0.5, 2.0), (0.05, 0.0)]
# Sums of up to 4800 squares in float32, and norms of up to 3 by which elements up to 1 are scaled.
ROUNDING = 6e-7

# The interpreter compares NaN and casts infinities with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def slack(dtype: torch.dtype) -> float:
    """What one rounding to a dtype changes, relative to the number."""
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps


def formula(case: Any, radius: float) -> Floats:
    """The pool's d after the step, in float64."""
    x, d, g = (t.double().numpy() for t in (case.clean, case.perturbation, case.gradient))
    x, d = (x / 255 if case.clean.dtype == torch.uint8 else x), d.copy()
    rows = range(len(g)) if case.rows is None else case.rows.tolist()
    for slot, row in enumerate(rows):
        if row >= 0:
            direction = np.where(np.isfinite(g[slot]), g[slot], 0.0)
            direction = direction / np.array(case.std).reshape(3, 1, 1)
            norm = float(np.sqrt((direction**2).sum()))
            moved = d[row] + (case.step * direction / norm if norm else 0.0)
            length = float(np.sqrt((moved**2).sum()))
            if length > radius:
                moved = moved * (radius / length)
            d[row] = np.clip(x[row] + moved, 0.0, 1.0) - x[row]
    return d


def images(case: Any, d: Tensor) -> Floats:
    """z of every slot, from the d that was stored."""
    x = case.clean.double().numpy() / (255 if case.clean.dtype == torch.uint8 else 1)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (case.mean, case.std))
    z = (np.clip(x + d.double().numpy(), 0, 1) - mean) / std
    if case.following is None:
        return z
    return z[case.following.clamp_min(0).numpy()]


def check_formula(step: Step, cases: list[Any]) -> None:
    """All that a step must do; raises AssertionError where it does not."""
    for case in cases:
        z, d = case.run(step)
        kind = slack(d.dtype)
        # In 16 bits the ball is smaller, by a rounding of every element.
        np.testing.assert_allclose(
            d.double().numpy(),
            formula(case, case.eps * (1 - kind)),
            rtol=kind,
            atol=ROUNDING + (kind and 6e-8),
        )
        assert z.shape == case.gradient.shape
        assert z.dtype == case.gradient.dtype
        assert z.stride() == case.gradient.stride()
        assert z.isfinite().all()
        shown = case.shown()
        np.testing.assert_allclose(
            z[shown].double().numpy(),
            images(case, d)[shown.numpy()],
            rtol=slack(z.dtype),
            atol=2e-6,
        )


def check_kernel(kernel: Step, cases: list[Any], device: torch.device) -> None:
    """The kernels do as the twin does; raises AssertionError where they do not."""
    for case in cases:
        z, d = case.run(kernel, device)
        wanted_z, wanted_d = case.run(torch_pgd_step_l2)
        # The kernels sum by blocks and find |d'| from three sums, so float32 differs by some
        # units, and a 16-bit number now and then by one.
        kind = slack(d.dtype)
        torch.testing.assert_close(d, wanted_d, rtol=kind, atol=ROUNDING + (kind and 6e-8))
        shown = case.shown()
        assert z.stride() == wanted_z.stride()
        assert z.isfinite().all()
        largest = float(wanted_d.float().abs().max()) if d.numel() else 0.0
        torch.testing.assert_close(
            z[shown],
            wanted_z[shown],
            rtol=slack(z.dtype),
            atol=2 * (ROUNDING + kind * largest) / min(case.std),
        )


def some(step_case: Any, shapes: list[tuple[int, ...]] | None = None) -> list[Any]:
    """Every shape with every pair of layout, dtype of d and indexing; other dtypes take turns."""
    product = itertools.product(shapes or SHAPES, FLOATS, [False, True], [False, True])
    return [
        step_case(
            shape,
            *PAIRS[turn % 4],
            size=2 * PAIRS[turn % 4][0] / max(1, shape[2]),  # near the ball's surface
            last=last,
            clean=(torch.uint8, torch.float32)[turn // 2 % 2],
            perturbation=dtype,
            gradient=FLOATS[turn % 3],
            indexed=indexed,
            seed=turn,
        )
        for turn, (shape, dtype, last, indexed) in enumerate(product)
        if (FLOATS.index(dtype) + last + indexed) % 2 == 0
    ]


def few(step_case: Any) -> list[Any]:
    """What a broken step stumbles over."""
    uneven = step_case((1, 3, 24, 24), 0.5, 0.3, size=0.05)  # two blocks of unlike gradients
    uneven.gradient[:, 2] *= 0.02
    uneven.perturbation[:] = uneven.gradient.nan_to_num(0.0).sign() * 0.01
    uneven.clean.clamp_(0.1, 0.9)
    return [
        uneven,
        step_case((3, 3, 7, 5), 0.5, 0.3, size=0.05),
        step_case((2, 3, 19, 19), 0.5, -0.3, size=0.02, clean=torch.uint8),
        step_case((3, 3, 7, 5), 0.5, 0.3, size=0.1, last=True, indexed=True),
        step_case((2, 3, 7, 5), 0.5, 0.3, size=0.1, gradient=torch.float16, clean=torch.uint8),
    ]


def test_the_twin_is_the_formula(step_case: Any) -> None:
    check_formula(torch_pgd_step_l2, some(step_case) + few(step_case))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_twin(step_case: Any, device: torch.device, shape: Any) -> None:
    check_kernel(triton_pgd_step_l2, some(step_case, [shape]), device)


def test_the_kernel_is_the_twin_in_hard_cases(step_case: Any, device: torch.device) -> None:
    check_kernel(triton_pgd_step_l2, few(step_case), device)


def test_many_tiny_images(step_case: Any, device: torch.device) -> None:
    cases = [step_case((60, 3, 2, 2), 0.5, 0.1, clean=torch.uint8, indexed=True)]
    check_kernel(triton_pgd_step_l2, cases, device)


def test_tensors_that_do_not_lie_densely(step_case: Any, device: torch.device) -> None:
    case = step_case((3, 3, 7, 5), 0.5, 0.1, size=0.05, clean=torch.uint8, indexed=True)

    def spread(tensor: Tensor) -> Tensor:
        wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype, device=device)
        wide[..., 0] = tensor
        return wide[..., 0]

    arguments = [spread(a) if isinstance(a, Tensor) else a for a in case.arguments()]
    z = triton_pgd_step_l2(*arguments)
    state = arguments[1]
    assert not state.is_contiguous()
    wanted_z, wanted_d = case.run(torch_pgd_step_l2)
    torch.testing.assert_close(state.cpu(), wanted_d, rtol=0, atol=ROUNDING, check_stride=False)
    shown = case.shown()
    torch.testing.assert_close(
        z.cpu()[shown], wanted_z[shown], rtol=0, atol=10 * ROUNDING, check_stride=False
    )


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("pgd_step_l2.torch_pgd_step_l2", "d + step", "d - step"),
        ("pgd_step_l2.torch_pgd_step_l2", "d + step", "step"),
        ("pgd_step_l2.torch_pgd_step_l2", "direction = g / norm.clamp_min(_TINY)", "direction = g"),
        ("pgd_step_l2.torch_pgd_step_l2", "g / norm.clamp_min(_TINY)", "g.sign()"),
        ("pgd_step_l2.torch_pgd_step_l2", ".clamp_max(1.0)", ""),
        ("pgd_step_l2.torch_pgd_step_l2", "(radius / length", "(1.0 / length"),
        ("pgd_step_l2.torch_pgd_step_l2", "over_sample = (1, 2, 3)", "over_sample = (0, 1, 2, 3)"),
        ("pgd_step_l2.torch_pgd_step_l2", "posinf=0.0, neginf=0.0", "posinf=1.0"),
        ("pgd_step_l2.torch_pgd_step_l2", "nan=0.0", "nan=5.0"),
        ("pgd_step_l2.torch_pgd_step_l2", "gradient.float() * scale", "gradient.float()"),
        ("_step.torch_finish", "(x + moved).clamp(0.0, 1.0) - x", "moved"),
    ],
)
def test_a_broken_twin_is_noticed(
    mutant: Any, step_case: Any, place: str, old: str, new: str
) -> None:
    broken = mutant("pgd_step_l2", place, old, new)
    with pytest.raises(AssertionError):
        check_formula(broken.torch_pgd_step_l2, few(step_case))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("pgd_step_l2._load_gradient", "g = g * of_channel(channel, scale0, scale1, scale2)", "g"),
        ("pgd_step_l2._load_gradient", "scale0, scale1", "scale1, scale0"),
        ("pgd_step_l2._load_gradient", "tl.where(tl.abs(g) < float('inf'), g, 0.0)", "g"),
        ("pgd_step_l2._sums_kernel", "g / tl.maximum(largest, _smallest_normal)", "g"),
        ("pgd_step_l2._sums_kernel", "tl.sum(g * g", "tl.sum(g"),
        ("pgd_step_l2._sums_kernel", "tl.sum(d * g", "tl.sum(d * tl.abs(g)"),
        ("pgd_step_l2._sums_kernel", "perturbation_ptr + there", "perturbation_ptr + here"),
        ("pgd_step_l2._sums_kernel", "* 4 * blocks", "* 3 * blocks"),
        ("pgd_step_l2._pgd_step_l2_kernel", "* share * share", "* share"),
        ("pgd_step_l2._pgd_step_l2_kernel", "other=0) * share, axis=0)", "other=0), axis=0)"),
        ("pgd_step_l2._pgd_step_l2_kernel", "2 * along * dg", "along * dg"),
        ("pgd_step_l2._pgd_step_l2_kernel", "along * along * gg", "along * gg"),
        ("pgd_step_l2._pgd_step_l2_kernel", "part < blocks", "part < blocks - 1"),
        (
            "pgd_step_l2._pgd_step_l2_kernel",
            "tl.minimum(eps / tl.maximum(length, _tiny), 1.0)",
            "1",
        ),
        ("pgd_step_l2._pgd_step_l2_kernel", "_tiny), 1.0)", "_tiny), 2.0)"),
        ("pgd_step_l2._pgd_step_l2_kernel", "(d + along", "(d - along"),
        ("pgd_step_l2._pgd_step_l2_kernel", "(g / overall)", "g"),
        ("pgd_step_l2._pgd_step_l2_kernel", "gradient_ptr + here", "gradient_ptr + there"),
    ],
)
def test_a_broken_kernel_is_noticed(
    mutant: Any, step_case: Any, place: str, old: str, new: str
) -> None:
    broken = mutant("pgd_step_l2", place, old.replace("'", '"'), new)
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_pgd_step_l2, few(step_case), torch.device("cpu"))


def test_eps_0_stays_at_the_clean_image(step_case: Any, device: torch.device) -> None:
    for dtype in FLOATS:
        case = step_case((2, 3, 5, 5), 0.0, 0.1, perturbation=dtype)
        assert not case.run(torch_pgd_step_l2)[1].any()
        assert not case.run(triton_pgd_step_l2, device)[1].any()


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_gradient_that_says_nothing_moves_nothing(
    step_case: Any, device: torch.device, value: float
) -> None:
    case = step_case((2, 3, 7, 5), 10.0, 0.1, size=0.05)
    case = dataclasses.replace(case, gradient=torch.full_like(case.gradient, value))
    for step, place in ((torch_pgd_step_l2, "cpu"), (triton_pgd_step_l2, device)):
        _, d = case.run(step, place)
        torch.testing.assert_close(d, case.perturbation, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-12, 1e12, 1e37])
def test_the_size_of_the_gradient_does_not_matter(
    step_case: Any, device: torch.device, scale: float
) -> None:
    case = step_case((2, 3, 19, 19), 0.5, 0.1, size=0.01)
    plain = torch.randn(case.gradient.shape, generator=torch.Generator().manual_seed(3))
    plain[:, :, :9] *= 1e-3  # blocks of a sample differ
    case = dataclasses.replace(case, gradient=plain)
    scaled = dataclasses.replace(case, gradient=plain * scale)
    for step, place in ((torch_pgd_step_l2, "cpu"), (triton_pgd_step_l2, device)):
        _, wanted = case.run(step, place)
        _, d = scaled.run(step, place)
        assert not torch.equal(wanted, case.perturbation)
        torch.testing.assert_close(d, wanted, rtol=0, atol=1e-6)


def test_samples_do_not_see_each_other(step_case: Any, device: torch.device) -> None:
    case = step_case((4, 3, 7, 5), 0.3, 0.02, size=0.05)
    case.gradient[1] *= 1e6
    case.gradient[2] = torch.nan
    for step, place in ((torch_pgd_step_l2, "cpu"), (triton_pgd_step_l2, device)):
        _, whole = case.run(step, place)
        for i in range(4):
            fields = "clean", "perturbation", "gradient"
            one = dataclasses.replace(case, **{k: getattr(case, k)[i : i + 1] for k in fields})
            torch.testing.assert_close(one.run(step, place)[1][0], whole[i], rtol=0, atol=1.2e-7)


def test_zeros_are_no_nan_where_subnormals_are_flushed(step_case: Any) -> None:
    zeros = torch.zeros(1, 3, 4, 4)
    case = dataclasses.replace(
        step_case((1, 3, 4, 4), 0.5, 0.1), perturbation=zeros, gradient=zeros
    )
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        _, d = case.run(torch_pgd_step_l2)
    finally:
        torch.set_flush_denormal(False)
    assert not d.any()  # NaN would be true


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(1e-2, 2.0),
    ratio=st.floats(-3.0, 3.0),
    dtype=st.sampled_from(FLOATS),
    clean=st.sampled_from([torch.uint8, torch.float32]),
)
def test_the_result_lies_in_the_ball_and_in_the_image_range(
    step_case: Any, seed: int, eps: float, ratio: float, dtype: torch.dtype, clean: torch.dtype
) -> None:
    case = step_case(
        (2, 3, 4, 3), eps, ratio * eps, seed=seed, perturbation=dtype, clean=clean, size=eps
    )
    check_ball(case, pgd_step_l2, torch.device("cpu"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_kernel_stays_in_the_ball(
    step_case: Any, device: torch.device, dtype: torch.dtype
) -> None:
    for eps, step in [*PAIRS, (0.5, -1.0), (0.5, -0.5)]:
        case = step_case((1, 3, 19, 19), eps, step, size=eps, perturbation=dtype)
        check_ball(case, triton_pgd_step_l2, device)
        # A step along d itself, where the sums cancel each other most.
        along = dataclasses.replace(case, gradient=case.perturbation.float())
        check_ball(along, triton_pgd_step_l2, device)


def check_ball(case: Any, step: Step, device: torch.device) -> None:
    _, d = case.run(step, device)
    kind = slack(d.dtype)
    # In float32 there is no room for rounding: of the norm, and of every x + d - x.
    norms = d.double().flatten(1).norm(dim=1)
    room = 0.0 if kind else 1e-6 * case.eps + 6e-8 * d[0].numel() ** 0.5
    assert float(norms.max()) <= case.eps + room
    x = case.clean.double() / (255 if case.clean.dtype == torch.uint8 else 1)
    # d is rounded to its dtype after the clamp; the operation clamps once more when it reads d.
    beyond = 1.2e-7 + kind * case.eps
    assert float((x + d.double()).min()) >= -beyond
    assert float((x + d.double()).max()) <= 1 + beyond
