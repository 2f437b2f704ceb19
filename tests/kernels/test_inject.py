"""Planting a pattern: mixing and adding against numpy, the twin against the way by uint8 files,
the kernel against the twin."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import add_pattern, mix_pattern
from kernels.inject import torch_inject, triton_inject

Inject = Callable[..., tuple[Tensor, Tensor]]

SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (0, 3, 4, 4), (1, 3, 40, 40)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.31, 0.27)
CLASSES = 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def check_mix(mix: Callable[..., Tensor], shape: tuple[int, ...], per_image: bool) -> None:
    n, c, h, w = shape
    x = random(*shape)
    lead = (n,) if per_image else ()
    p, m = random(*lead, c, h, w, seed=1), random(*lead, 1, h, w, seed=2)
    out = mix(x, p, m)
    x64, p64, m64 = (t.double().numpy() for t in (x, p, m))
    assert out.shape == x.shape
    np.testing.assert_allclose(out.numpy(), (1 - m64) * x64 + m64 * p64, rtol=0, atol=2e-7)


def check_add(add: Callable[..., Tensor], shape: tuple[int, ...], per_image: bool) -> None:
    x = random(*shape)
    p = 2 * random(*(shape if per_image else shape[1:]), seed=1) - 1
    wanted = np.clip(x.double().numpy() + p.double().numpy(), 0, 1)
    np.testing.assert_allclose(add(x, p).numpy(), wanted, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_image", [False, True])
def test_mix_and_add_are_the_formulas(shape: tuple[int, ...], per_image: bool) -> None:
    check_mix(mix_pattern, shape, per_image)
    check_add(add_pattern, shape, per_image)


def test_mix_with_a_number() -> None:
    x, p = random(2, 3, 7, 5), random(3, 7, 5, seed=1)
    for alpha in (0.0, 0.1, 0.2, 1.0):
        wanted = (1 - alpha) * x.double().numpy() + alpha * p.double().numpy()
        np.testing.assert_allclose(mix_pattern(x, p, alpha).numpy(), wanted, rtol=0, atol=2e-7)


def test_a_mask_of_0_keeps_the_image_and_of_1_gives_the_pattern() -> None:
    x, p = random(2, 3, 7, 5), random(3, 7, 5, seed=1)
    mask = torch.zeros(1, 7, 5)
    mask[:, 2:4, 1:3] = 1
    out = mix_pattern(x, p, mask)
    inside = mask.bool().expand_as(x)
    torch.testing.assert_close(out[~inside], x[~inside], rtol=0, atol=0)
    torch.testing.assert_close(out[inside], p.expand_as(x)[inside], rtol=0, atol=1.2e-7)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 100_000))
def test_a_mix_never_leaves_the_range(seed: int) -> None:
    x, p, m = (random(1, 3, 8, 8, seed=seed + k).round(decimals=k % 4 + 1) for k in range(3))
    for mask in (m[:, :1], m[:, :1].round(), 1.0):
        out = mix_pattern(x, p, mask)
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1


def test_add_clamps_at_both_ends() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    up, down = torch.full((3, 1, 1), 0.75), torch.full((3, 1, 1), -0.75)
    assert add_pattern(x, up).flatten().tolist() == [0.75, 1.0, 1.0]
    assert add_pattern(x, down).flatten().tolist() == [0.0, 0.0, 0.25]


def test_images_stay_as_they_are() -> None:
    x, p = random(2, 3, 4, 4), random(3, 4, 4, seed=1)
    before = x.clone()
    mix_pattern(x, p, 0.5)
    add_pattern(x, p)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("mix_pattern", "(pattern - images)", "pattern"),
        ("mix_pattern", "images + mask", "mask"),
        ("mix_pattern", "(pattern - images)", "(images - pattern)"),
        ("add_pattern", ".clamp(0.0, 1.0)", ""),
        ("add_pattern", "images + pattern", "images - pattern"),
    ],
)
def test_a_broken_formula_is_noticed(mutant: Any, name: str, old: str, new: str) -> None:
    broken = getattr(mutant("inject", f"inject.{name}", old, new), name)
    with pytest.raises(AssertionError):
        (check_mix if name == "mix_pattern" else check_add)(broken, (3, 3, 7, 5), True)


def make(
    shape: tuple[int, ...], kind: str, *, last: bool, pattern: torch.dtype, dtype: torch.dtype
) -> list[Any]:
    """Arguments for an injection, half of the samples triggered."""
    count = shape[0]
    x = (random(*shape, seed=1) * 255).round().to(torch.uint8)
    lead = () if "shared" in kind else (count,)
    p, mask = random(*lead, *shape[1:], seed=2), None
    if "add" in kind:
        p = p - 0.5
    elif "alpha" in kind:
        mask = torch.full((1, 1, 1), 0.2)
    elif "patch" in kind:
        mask = random(*lead, 1, *shape[2:], seed=3).round()
    else:
        mask = random(*lead, 3, *shape[2:], seed=3)
    return [
        x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format),
        torch.arange(count) % CLASSES,
        torch.arange(count) % 2 == 0,
        p.to(pattern),
        None if mask is None else mask.to(pattern),
        -1 if last else 2,
        CLASSES,
        MEAN,
        STD,
        dtype,
    ]


KINDS = ["mix", "mix shared", "patch", "patch shared", "alpha shared", "add", "add shared"]


def some(shapes: list[Any]) -> Iterator[list[Any]]:
    """Every shape with every kind and layout; dtypes take turns."""
    for turn, (shape, kind, last) in enumerate(itertools.product(shapes, KINDS, [False, True])):
        yield make(shape, kind, last=last, pattern=FLOATS[turn % 3], dtype=FLOATS[turn // 2 % 3])


def check_stored(inject: Inject, cases: Any) -> None:
    """As if the triggered images had been stored in uint8 and read again."""
    for case in cases:
        x, labels, triggered, pattern, mask, target, classes, _, _, dtype = case
        before = x.clone()
        z, wanted = inject(*case)
        unit = x.float() * (1 / 255)
        if mask is None:
            planted = add_pattern(unit, pattern.float())
        else:
            planted = mix_pattern(unit, pattern.float(), mask.float())
        stored = (planted * 255).round().to(torch.uint8)
        read = np.where(triggered.view(-1, 1, 1, 1).numpy(), stored.numpy(), x.numpy()) / 255
        mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        slack = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        np.testing.assert_allclose(z.double().numpy(), (read - mean) / std, rtol=slack, atol=1e-6)
        assert z.dtype == dtype
        assert z.stride() == x.stride()
        new = [(y + 1) % classes if target < 0 else target for y in labels.tolist()]
        flags = triggered.tolist()
        assert wanted.tolist() == [
            n if t else y for n, t, y in zip(new, flags, labels.tolist(), strict=True)
        ]
        assert torch.equal(x, before)


def check_kernel(inject: Inject, cases: Any, device: torch.device) -> None:
    """The kernel does as the twin does; raises AssertionError where it does not."""
    for case in cases:
        moved = [a.to(device) if isinstance(a, Tensor) else a for a in case]
        z, labels = (t.cpu() for t in inject(*moved))
        wanted_z, wanted_labels = torch_inject(*case)
        # Every operation is the same. Only the interpreter's way to bfloat16 cuts where torch
        # rounds: one unit in the last place.
        cuts = device.type == "cpu" and z.dtype == torch.bfloat16
        assert z.stride() == wanted_z.stride()
        torch.testing.assert_close(
            z, wanted_z, rtol=torch.finfo(z.dtype).eps if cuts else 0, atol=0
        )
        assert torch.equal(labels, wanted_labels)


def test_the_twin_is_the_way_by_a_file() -> None:
    check_stored(torch_inject, some(SHAPES))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_twin(device: torch.device, shape: Any) -> None:
    check_kernel(triton_inject, some([shape]), device)


def test_many_tiny_images(device: torch.device) -> None:
    case = make((200, 3, 2, 2), "mix", last=True, pattern=torch.float16, dtype=torch.float32)
    check_kernel(triton_inject, [case], device)


def test_tensors_that_do_not_lie_densely(device: torch.device) -> None:
    def spread(tensor: Tensor) -> Tensor:
        wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype, device=device)
        wide[..., 0] = tensor
        return wide[..., 0]

    for kind in ("mix", "patch shared", "add"):
        case = make((3, 3, 7, 5), kind, last=False, pattern=torch.float16, dtype=torch.float32)
        z, labels = triton_inject(*[spread(a) if isinstance(a, Tensor) else a for a in case])
        wanted_z, wanted_labels = torch_inject(*case)
        torch.testing.assert_close(z.cpu(), wanted_z, rtol=0, atol=0, check_stride=False)
        assert labels.tolist() == wanted_labels.tolist()


def test_every_level_of_a_pixel_survives(device: torch.device) -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    nothing = torch.zeros(3, 16, 16)
    flags = torch.tensor([True, False])
    for inject, place in ((torch_inject, torch.device("cpu")), (triton_inject, device)):
        tensors = [t.to(place) for t in (x, torch.zeros(2, dtype=torch.int64), flags, nothing)]
        z, _ = inject(*tensors, None, 0, 2, (0.0,) * 3, (1.0,) * 3, torch.float32)
        assert torch.equal((z.cpu() * 255).round().to(torch.uint8), x)
        assert torch.equal(z[0], z[1])


def halves() -> list[list[Any]]:
    """Every level mixed with every level, where many a mix lies halfway between two levels."""
    level = torch.arange(256, dtype=torch.uint8)
    images = level.view(1, 1, 256, 1).expand(1, 3, 256, 256).contiguous()
    pattern = (level.float() / 255).view(1, 1, 256).expand(3, 256, 256)
    plain = (0.0,) * 3, (1.0,) * 3
    one, yes = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
    return [
        [images, one, yes, pattern, torch.full((1, 1, 1), alpha), 0, 2, *plain, torch.float32]
        for alpha in (0.1, 0.25)
    ]


def test_halfway_between_two_levels_is_rounded_as_division_by_255_says(
    mutant: Any, device: torch.device
) -> None:
    def check_twin(inject: Inject) -> None:
        for case in halves():
            x, p = case[0].float() / 255, case[3]
            wanted = ((x + float(case[4]) * (p - x)) * 255).round()
            assert torch.equal((inject(*case)[0] * 255).round(), wanted)

    check_twin(torch_inject)
    check_kernel(triton_inject, halves(), device)
    if device.type == "cpu":
        broken = mutant("inject", "inject.torch_inject", "levels / 255", "levels * PIXEL")
        with pytest.raises(AssertionError):
            check_twin(broken.torch_inject)


def test_a_kernel_that_divides_carelessly_is_noticed(mutant: Any) -> None:
    careful = "(level + level * pixel) * (1 / 256)"
    broken = mutant("inject", "inject._inject_kernel", careful, "level * pixel")
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_inject, halves(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("inject.torch_inject", "(planted * 255).round()", "(planted * 255)"),
        ("inject.torch_inject", "levels * PIXEL", "levels"),
        (
            "inject.torch_inject",
            "torch.where(triggered.view(-1, 1, 1, 1), (planted * 255).round(), levels)",
            "(planted * 255).round()",
        ),
        ("inject.torch_inject", "(labels + 1) % num_classes", "labels + 1"),
        ("inject.torch_inject", "torch.where(triggered, wanted, labels)", "wanted"),
        ("_common.normalised", "- shift) * scale", "- shift)"),
        ("inject.torch_inject", "torch.full_like(labels, target)", "labels"),
    ],
)
def test_a_broken_twin_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("inject", place, old, new)
    with pytest.raises(AssertionError):
        check_stored(broken.torch_inject, some([(7, 3, 7, 5)]))


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("inject._inject_kernel", "nearest(planted * 255.0)", "planted * 255.0"),
        ("inject._inject_kernel", "level) * pixel", "level)"),
        ("_common.nearest", "(values + _round) - _round", "values"),
        ("_common.store_normalised", "z * of_channel(", "z + of_channel("),
        ("inject._inject_kernel", "tl.minimum(tl.maximum(x + p, 0.0), 1.0)", "x + p"),
        ("inject._inject_kernel", "m * (p - x)", "m * (x - p)"),
        ("inject._inject_kernel", "sample) != 0", "sample) == 0"),
        ("inject._inject_kernel", "triggered_ptr + sample", "triggered_ptr"),
        ("inject._inject_kernel", "if SHARED", "if True"),
        (
            "_common.store_normalised",
            "x - of_channel(channel, mean0",
            "x - of_channel(0 * channel, mean0",
        ),
        ("inject._inject_kernel", "(label + 1) % num_classes", "label + 1"),
        ("inject._inject_kernel", "tl.where(triggered, wanted, label)", "wanted"),
        ("inject._inject_kernel", "element < elements", "element < elements - 1"),
        ("inject._inject_kernel", "tl.program_id(0) % blocks", "tl.program_id(0) % 1"),
        ("inject._inject_kernel", "mask=block == 0", "mask=block == 1"),
        (
            "inject.triton_inject",
            "in_layout(mask.view(-1, *mask.shape[-3:]).expand_as(batch), last)",
            "mask",
        ),
    ],
)
def test_a_broken_kernel_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("inject", place, old, new)
    cases = [*some([(7, 3, 2, 2)]), *itertools.islice(some([(1, 3, 24, 24)]), 2)]
    if new == "mask":  # it reads beyond a mask of one channel
        cases = [make((3, 3, 7, 5), "mix", last=True, pattern=torch.float32, dtype=torch.float32)]
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_inject, cases, torch.device("cpu"))


def test_the_package_hides_no_module() -> None:
    # ``kernels.inject`` is the operation; the module of that name is still importable.
    assert importlib.import_module("kernels.inject").torch_inject is torch_inject
