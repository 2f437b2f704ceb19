"""One L-inf step: the twin against float64, the kernel against the twin, broken ones noticed."""

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

from kernels import pgd_step_linf
from kernels.pgd_step_linf import torch_pgd_step_linf, triton_pgd_step_linf

Floats = npt.NDArray[np.float64]
Step = Callable[..., Tensor]

# One pixel, odd sizes, samples of several blocks with a rest, nothing, one sample.
SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (0, 3, 4, 4), (1, 3, 40, 40)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
EPS = 6 / 255
STEP = EPS / 5
ROUNDING = 1.2e-7  # two roundings of numbers up to 1 in float32

# The interpreter compares NaN and casts infinities with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def slack(dtype: torch.dtype) -> float:
    """What one rounding to a dtype changes, relative to the number."""
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps


def formula(case: Any) -> Floats:
    """The pool's d after the step, in float64."""
    x, d, g = (t.double().numpy() for t in (case.clean, case.perturbation, case.gradient))
    x, d = (x / 255 if case.clean.dtype == torch.uint8 else x), d.copy()
    rows = range(len(g)) if case.rows is None else case.rows.tolist()
    for slot, row in enumerate(rows):
        if row >= 0:
            direction = np.where(g[slot] > 0, 1.0, np.where(g[slot] < 0, -1.0, 0.0))
            moved = np.clip(d[row] + case.step * direction, -case.eps, case.eps)
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
        # Rounding to 16 bits is relative to d; float16 has a fixed grid near 0.
        np.testing.assert_allclose(
            d.double().numpy(), formula(case), rtol=kind, atol=ROUNDING + (kind and 6e-8)
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


def check_kernel(
    kernel: Step, cases: list[Any], device: torch.device, twin: Step = torch_pgd_step_linf
) -> None:
    """The kernel does as the twin does; raises AssertionError where it does not."""
    for case in cases:
        z, d = case.run(kernel, device)
        wanted_z, wanted_d = case.run(twin)
        # Every operation is the same. Only the interpreter's way to bfloat16 cuts where torch
        # rounds: one unit in the last place there.
        cuts = device.type == "cpu" and torch.bfloat16 in (d.dtype, z.dtype)
        loose = slack(d.dtype) if cuts and d.dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(d, wanted_d, rtol=loose, atol=0)
        shown = case.shown()
        assert z.stride() == wanted_z.stride()
        assert z.isfinite().all()
        torch.testing.assert_close(
            z[shown],
            wanted_z[shown],
            rtol=slack(z.dtype) if cuts else 0.0,
            atol=loose * case.eps / min(case.std),
        )


def some(step_case: Any, shapes: list[tuple[int, ...]] | None = None) -> list[Any]:
    """Every shape with every layout, dtype of d and indexing; the other dtypes take turns."""
    product = itertools.product(shapes or SHAPES, FLOATS, [False, True], [False, True])
    return [
        step_case(
            shape,
            EPS,
            (STEP, -STEP, 3 * EPS)[turn % 5 % 3],
            last=last,
            clean=(torch.uint8, torch.float32)[turn // 2 % 2],
            perturbation=dtype,
            gradient=FLOATS[turn % 3],
            indexed=indexed,
            seed=turn,
        )
        for turn, (shape, dtype, last, indexed) in enumerate(product)
    ]


def few(step_case: Any) -> list[Any]:
    """What a broken step stumbles over."""
    return [
        step_case((3, 3, 7, 5), EPS, STEP),
        step_case((3, 3, 19, 19), EPS, -STEP, clean=torch.uint8, perturbation=torch.float16),
        step_case((3, 3, 7, 5), EPS, STEP, last=True, indexed=True, perturbation=torch.float16),
        step_case((3, 3, 7, 5), 0.5, 0.4, gradient=torch.float16, clean=torch.uint8),
    ]


def test_the_twin_is_the_formula(step_case: Any) -> None:
    check_formula(torch_pgd_step_linf, some(step_case) + few(step_case))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_twin(step_case: Any, device: torch.device, shape: Any) -> None:
    check_kernel(triton_pgd_step_linf, some(step_case, [shape]), device)


def test_the_kernel_is_the_twin_in_hard_cases(step_case: Any, device: torch.device) -> None:
    check_kernel(triton_pgd_step_linf, few(step_case), device)


def test_many_tiny_images(step_case: Any, device: torch.device) -> None:
    cases = [step_case((200, 3, 2, 2), EPS, STEP, clean=torch.uint8, indexed=True)]
    check_kernel(triton_pgd_step_linf, cases, device)


@pytest.mark.parametrize("indexed", [False, True])
def test_tensors_that_do_not_lie_densely(
    step_case: Any, device: torch.device, indexed: bool
) -> None:
    case = step_case((3, 3, 7, 5), EPS, STEP, clean=torch.uint8, indexed=indexed)

    def spread(tensor: Tensor) -> Tensor:
        wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype, device=device)
        wide[..., 0] = tensor
        return wide[..., 0]

    arguments = case.arguments()
    arguments = [spread(a) if isinstance(a, Tensor) else a for a in arguments]
    z = triton_pgd_step_linf(*arguments)
    state = arguments[1]
    assert not state.is_contiguous()
    wanted_z, wanted_d = case.run(torch_pgd_step_linf)
    torch.testing.assert_close(state.cpu(), wanted_d, rtol=0, atol=0, check_stride=False)
    shown = case.shown()
    torch.testing.assert_close(z.cpu()[shown], wanted_z[shown], rtol=0, atol=0, check_stride=False)


def test_layouts_may_differ(step_case: Any, device: torch.device) -> None:
    case = step_case((3, 3, 7, 5), EPS, STEP, indexed=True)
    last = torch.channels_last
    for name in ("clean", "perturbation", "gradient"):
        moved = getattr(case, name).contiguous(memory_format=last)
        check_kernel(triton_pgd_step_linf, [dataclasses.replace(case, **{name: moved})], device)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("pgd_step_linf.torch_pgd_step_linf", "d + step", "d - step"),
        ("pgd_step_linf.torch_pgd_step_linf", "d + step", "0 * d + step"),
        ("pgd_step_linf.torch_pgd_step_linf", ".clamp(-radius, radius)", ""),
        ("pgd_step_linf.torch_pgd_step_linf", "clamp(-radius, radius)", "clamp(-step, step)"),
        ("pgd_step_linf.torch_pgd_step_linf", "gradient.sign()", "gradient"),
        ("pgd_step_linf.torch_pgd_step_linf", "gradient.sign()", "gradient.lt(0)"),
        ("_step.torch_finish", "(x + moved).clamp(0.0, 1.0) - x", "moved"),
        ("_step.torch_finish", "clamp(0.0, 1.0)", "clamp(0.0, 255.0)"),
        ("_step.torch_finish", "perturbation.copy_(d)", "pass"),
        ("_step.torch_finish", "rows[rows >= 0]", "rows[rows >= 0].flip(0)"),
        ("_step.torch_finish", "perturbation, following", "perturbation, rows"),
        ("_step.torch_finish", "(x + d.float())", "(x + moved)"),
        ("_step.torch_samples", "perturbation[rows]", "perturbation[: len(rows)]"),
        ("_common.unit", "images.float() * PIXEL", "images.float()"),
        ("_common.normalised", "* scale", ""),
        ("_common.normalised", "- shift", "- shift.flip(1)"),
    ],
)
def test_a_broken_twin_is_noticed(
    mutant: Any, step_case: Any, place: str, old: str, new: str
) -> None:
    broken = mutant("pgd_step_linf", place, old, new)
    with pytest.raises(AssertionError):
        check_formula(broken.torch_pgd_step_linf, few(step_case))


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("pgd_step_linf._pgd_step_linf_kernel", "d + step", "d - step"),
        ("pgd_step_linf._pgd_step_linf_kernel", "tl.maximum(d + step * direction, -eps)", "d"),
        ("pgd_step_linf._pgd_step_linf_kernel", "direction, -eps), eps)", "direction, -eps), 1.0)"),
        ("pgd_step_linf._pgd_step_linf_kernel", "g < 0, -1.0, 0.0", "g == 0, 0.0, -1.0"),
        ("pgd_step_linf._pgd_step_linf_kernel", "gradient_ptr + here", "gradient_ptr + there"),
        ("pgd_step_linf._pgd_step_linf_kernel", "clean_ptr + there", "clean_ptr + here"),
        ("pgd_step_linf.triton_pgd_step_linf", "floor_to(eps, perturbation.dtype)", "eps"),
        ("pgd_step_linf.triton_pgd_step_linf", "*reciprocals(std)", "*std"),
        ("_step.finish_step", "tl.maximum(x + moved, 0.0), 1.0)", "x + moved, 1.0)"),
        ("_step.finish_step", "x + moved, 0.0), 1.0)", "x + moved, 0.0), 255.0)"),
        ("_step.finish_step", "d = stored.to(tl.float32)", "d = moved"),
        ("_step.finish_step", "mask=mask", "mask=mask & (element < elements - 1)"),
        ("_step.finish_step", "following != row", "following == row + 1"),
        ("_step.finish_step", "clean_ptr + start", "clean_ptr + there"),
        ("_step.finish_step", "inside = element < elements", "inside = element < elements - 1"),
        (
            "_common.store_normalised",
            "x - of_channel(channel, mean0",
            "x - of_channel(channel, mean1",
        ),
        ("_step.slot_place", "tl.where(row >= 0, elements, 0)", "elements"),
        ("_step.slot_place", "% blocks", "% 1"),
        ("_step.slot_place", "if INDEXED", "if False"),
        ("_step.of", "if rows is not None and following is None", "if rows is not None"),
        ("_step.done", "perturbation.copy_(self.perturbation)", "pass"),
        ("_common.channel_of", "if CHANNELS_LAST", "if False"),
        ("_common.of_channel", "channel == 1", "channel == 2"),
        ("_common.load_unit", "values * pixel", "values"),
    ],
)
def test_a_broken_kernel_is_noticed(
    mutant: Any, step_case: Any, place: str, old: str, new: str
) -> None:
    broken = mutant("pgd_step_linf", place, old, new)
    case = step_case((3, 3, 7, 5), EPS, STEP, indexed=True)
    alone = dataclasses.replace(case, following=None)
    mixed = dataclasses.replace(
        case, perturbation=case.perturbation.contiguous(memory_format=torch.channels_last)
    )
    cases = [*few(step_case), case, alone, mixed]
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_pgd_step_linf, cases, torch.device("cpu"))


def test_at_the_boundary_of_the_ball_a_step_outwards_changes_nothing(step_case: Any) -> None:
    case = step_case((1, 3, 2, 2), EPS, STEP)
    clean, ones = torch.full((1, 3, 2, 2), 0.5), torch.ones(1, 3, 2, 2)
    for sign in (1.0, -1.0):
        edge = torch.full_like(clean, sign * EPS)
        at = dataclasses.replace(case, clean=clean, perturbation=edge, gradient=sign * ones)
        _, d = at.run(torch_pgd_step_linf)
        torch.testing.assert_close(d, edge, rtol=0, atol=ROUNDING)
        _, d = dataclasses.replace(at, gradient=-sign * ones).run(torch_pgd_step_linf)
        torch.testing.assert_close(d, edge - sign * STEP, rtol=0, atol=ROUNDING)


def test_eps_0_stays_at_the_clean_image(step_case: Any, device: torch.device) -> None:
    for dtype in FLOATS:
        case = step_case((2, 3, 5, 5), 0.0, STEP, perturbation=dtype)
        assert not case.run(torch_pgd_step_linf)[1].any()
        assert not case.run(triton_pgd_step_linf, device)[1].any()


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_gradient_that_says_nothing_moves_nothing(
    step_case: Any, device: torch.device, value: float
) -> None:
    case = step_case((2, 3, 7, 5), 10.0, STEP, size=EPS)
    case = dataclasses.replace(case, gradient=torch.full_like(case.gradient, value))
    for step, place in ((torch_pgd_step_linf, "cpu"), (triton_pgd_step_linf, device)):
        _, d = case.run(step, place)
        torch.testing.assert_close(d, case.perturbation, rtol=0, atol=ROUNDING)


def test_samples_that_no_slot_steps_keep_their_bits(step_case: Any) -> None:
    case = step_case((3, 3, 7, 5), EPS, STEP, indexed=True, size=10 * EPS)
    _, d = case.run(torch_pgd_step_linf)
    stepped = case.rows[case.rows >= 0]
    others = [i for i in range(len(d)) if i not in stepped]
    assert torch.equal(d[others], case.perturbation[others])
    assert not torch.equal(d[stepped], case.perturbation[stepped])


def test_a_pool_in_any_order_is_the_batch(step_case: Any) -> None:
    case = step_case((4, 3, 7, 5), EPS, STEP)
    rows = torch.tensor([2, 0, 3, 1])
    shuffled = dataclasses.replace(case, gradient=case.gradient[rows], rows=rows)
    z, d = shuffled.run(torch_pgd_step_linf)
    wanted_z, wanted_d = case.run(torch_pgd_step_linf)
    assert torch.equal(d, wanted_d)
    assert torch.equal(z, wanted_z[rows])


def test_arguments_but_the_perturbation_stay_as_they_are(step_case: Any) -> None:
    case = step_case((3, 3, 7, 5), EPS, STEP, indexed=True)
    before = [t.clone() for t in (case.clean, case.gradient, case.rows, case.following)]
    case.run(torch_pgd_step_linf)
    for tensor, copy in zip(
        (case.clean, case.gradient, case.rows, case.following), before, strict=True
    ):
        assert torch.equal(tensor.nan_to_num(7.0), copy.nan_to_num(7.0))


def test_zeros_are_no_nan_where_subnormals_are_flushed(step_case: Any) -> None:
    zeros = torch.zeros(1, 3, 4, 4)
    case = dataclasses.replace(
        step_case((1, 3, 4, 4), EPS, STEP), perturbation=zeros, gradient=zeros
    )
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        _, d = case.run(torch_pgd_step_linf)
    finally:
        torch.set_flush_denormal(False)
    assert not d.any()  # NaN would be true


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(1e-3, 2.0),
    ratio=st.floats(-3.0, 3.0),
    dtype=st.sampled_from(FLOATS),
    clean=st.sampled_from([torch.uint8, torch.float32]),
)
def test_the_result_lies_in_the_ball_and_in_the_image_range(
    step_case: Any, seed: int, eps: float, ratio: float, dtype: torch.dtype, clean: torch.dtype
) -> None:
    case = step_case(
        (2, 3, 4, 3), eps, ratio * eps, size=2 * eps, seed=seed, perturbation=dtype, clean=clean
    )
    _, d = case.run(pgd_step_linf)
    # In float32 x + d - x is not quite d; 16 bits are too coarse for that to show.
    surface = eps + (ROUNDING if dtype == torch.float32 else 0)
    assert float(d.double().abs().max()) <= surface
    x = case.clean.double() / (255 if clean == torch.uint8 else 1)
    # d is rounded to its dtype after the clamp; the operation clamps once more when it reads d.
    beyond = ROUNDING + slack(dtype) * eps
    assert float((x + d.double()).min()) >= -beyond
    assert float((x + d.double()).max()) <= 1 + beyond
