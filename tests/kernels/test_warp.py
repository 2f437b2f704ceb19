"""Sampling at a grid: the twin against a loop over pixels in float64, the kernel against it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from kernels import warp
from kernels.warp import torch_warp_normalise, triton_warp_normalise

Warp = Callable[..., Tensor]

SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (0, 3, 4, 4), (1, 3, 40, 40)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.31, 0.27)
PLAIN = (0.0,) * 3, (1.0,) * 3  # z is then the image


def identity(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack((x, y), -1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int, last: bool = False) -> Tensor:
    out = (random(*shape) * 255).round().to(torch.uint8)
    return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def formula(images: Tensor, grid: Tensor) -> npt.NDArray[np.float64]:
    """Bilinear, gather form; 0 outside."""
    x = images.double().numpy()
    n, c, h, w = x.shape
    out = np.zeros((n, c, *grid.shape[1:3]))
    for b in range(n):
        for i in range(grid.shape[1]):
            for j in range(grid.shape[2]):
                column = (float(grid[b, i, j, 0]) + 1) / 2 * (w - 1)
                row = (float(grid[b, i, j, 1]) + 1) / 2 * (h - 1)
                for r in (math.floor(row), math.floor(row) + 1):
                    for k in (math.floor(column), math.floor(column) + 1):
                        if 0 <= r < h and 0 <= k < w:
                            weight = (1 - abs(row - r)) * (1 - abs(column - k))
                            out[b, :, i, j] += weight * x[b, :, r, k]
    return out


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 33), (2, 9)])
def test_identity(size: tuple[int, int]) -> None:
    images = random(3, 3, *size)
    out = warp(images, identity(*size))
    torch.testing.assert_close(out, images, rtol=0, atol=1e-5)


def test_x_comes_before_y_and_a_shift_reads_from_the_right() -> None:
    images = random(2, 3, 6, 9)
    grid = identity(6, 9)
    grid[..., 0] += 2 / 8  # one pixel of nine along x
    out = warp(images, grid)
    torch.testing.assert_close(out[..., :-1], images[..., 1:], rtol=0, atol=1e-5)
    assert out[..., -1].abs().max() < 1e-5  # outside is 0
    grid = identity(6, 9)
    grid[..., 1] -= 2 / 5  # one row of six up
    out = warp(images, grid)
    torch.testing.assert_close(out[..., 1:, :], images[..., :-1, :], rtol=0, atol=1e-5)


def check_warp(function: Warp, size: tuple[int, int]) -> None:
    images = random(2, 3, *size)
    grid = random(2, *size, 2, seed=1) * 3 - 1.5  # also outside
    np.testing.assert_allclose(function(images, grid).numpy(), formula(images, grid), atol=1e-5)


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (4, 4)])
def test_is_the_formula(size: tuple[int, int]) -> None:
    check_warp(warp, size)


def test_one_grid_is_for_all_images_and_many_are_for_one_each() -> None:
    images = random(3, 3, 7, 5)
    grids = random(3, 7, 5, 2, seed=1) * 2 - 1
    whole = warp(images, grids)
    for i in range(3):
        torch.testing.assert_close(warp(images, grids[i])[i], whole[i], rtol=0, atol=1e-6)


def test_no_images() -> None:
    assert warp(torch.zeros(0, 3, 7, 5), identity(7, 5)).shape == (0, 3, 7, 5)


def test_dtype_follows_the_images() -> None:
    images = random(1, 3, 4, 4).double()
    out = warp(images, identity(4, 4))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("align_corners=True", "align_corners=False"),
        ('"zeros"', '"border"'),
        ('"bilinear"', '"nearest"'),
        ("grid.to(", "grid.flip(-1).to("),
    ],
)
def test_a_broken_warp_is_noticed(mutant: Any, old: str, new: str) -> None:
    broken = mutant("warp", "warp.warp", old, new)
    with pytest.raises(AssertionError):
        check_warp(broken.warp, (7, 5))


def check_levels(levels: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> None:
    """uint8 levels are the same but where a rounding is a near thing, and there by one."""
    apart = np.abs(levels - wanted)
    assert not apart.size or apart.max() < 1.001, apart.max()
    assert (apart > 0.001).sum() <= 0.002 * apart.size


def check_stored(function: Warp) -> None:
    """As if the warped images had been stored in uint8 and read again."""
    for shape, last, shared in itertools.product(
        [(2, 3, 1, 1), (3, 3, 7, 5)], [False, True], [False, True]
    ):
        images = pixels(*shape, last=last)
        count, _, height, width = shape
        grid = random(*(() if shared else (count,)), height, width, 2, seed=1) * 2.6 - 1.3
        every = grid.expand(count, height, width, 2)
        before = images.clone()
        z = function(images, grid, *PLAIN, torch.float32)
        check_levels(z.double().numpy() * 255, np.round(formula(images, every)))
        assert z.stride() == images.stride()
        assert torch.equal(images, before)
        for dtype in FLOATS:
            out = function(images, grid, MEAN, STD, dtype)
            assert out.dtype == dtype
            mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
            slack = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
            torch.testing.assert_close(
                out.double(), (z.double() - mean) / std, rtol=slack, atol=1e-6
            )


def check_kernel(function: Warp, shapes: list[Any], device: torch.device) -> None:
    """The kernel does as the twin does; raises AssertionError where it does not."""
    for turn, (shape, last, shared) in enumerate(
        itertools.product(shapes, [False, True], [False, True])
    ):
        images = pixels(*shape, last=last)
        count, _, height, width = shape
        lead = () if shared else (count,)
        grid = random(*lead, height, width, 2, seed=turn) * 2.6 - 1.3
        z = function(images.to(device), grid.to(device), *PLAIN, torch.float32).cpu()
        # grid_sample weighs its neighbours in another order, so a value halfway between two
        # levels may round to the other one.
        wanted = torch_warp_normalise(images, grid, *PLAIN, torch.float32)
        check_levels(z.double().numpy() * 255, wanted.double().numpy() * 255)
        assert z.stride() == wanted.stride()
        # The same levels are normalised by the same operations, and rounded; the interpreter
        # cuts at bfloat16 instead.
        dtype = FLOATS[turn % 3]
        out = function(images.to(device), grid.to(device), MEAN, STD, dtype).cpu()
        mean, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        exact = ((z - mean) * (1 / scale)).to(dtype)
        cuts = dtype == torch.bfloat16 and device.type == "cpu"
        torch.testing.assert_close(
            out, exact, rtol=torch.finfo(dtype).eps if cuts else 0, atol=0, check_stride=False
        )


def test_the_twin_is_the_way_by_a_file() -> None:
    check_stored(torch_warp_normalise)


def check_halves(function: Warp) -> None:
    """Halfway between two levels it is rounded as division by 255 says: every pair of levels."""
    images = torch.empty(1, 3, 256, 512, dtype=torch.uint8)
    images[..., ::2] = torch.arange(256).view(256, 1)
    images[..., 1::2] = torch.arange(256)
    grid = identity(256, 512)
    grid[..., 0] += 1 / 511  # half a pixel
    z = function(images, grid, *PLAIN, torch.float32)
    wanted = (warp(images.float() / 255, grid[None]) * 255).round()
    assert torch.equal((z * 255).round(), wanted)


def test_the_twin_rounds_halves_as_a_poisoned_data_set(mutant: Any) -> None:
    check_halves(torch_warp_normalise)
    broken = mutant("warp", "warp.torch_warp_normalise", "images.float() / 255", "images * PIXEL")
    with pytest.raises(AssertionError):
        check_halves(broken.torch_warp_normalise)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_twin(device: torch.device, shape: Any) -> None:
    check_kernel(triton_warp_normalise, [shape], device)


def test_many_tiny_images(device: torch.device) -> None:
    images, grid = pixels(60, 3, 2, 3), random(60, 2, 3, 2, seed=1) * 2.6 - 1.3
    z = triton_warp_normalise(images.to(device), grid.to(device), *PLAIN, torch.float32)
    wanted = torch_warp_normalise(images, grid, *PLAIN, torch.float32)
    check_levels(z.cpu().double().numpy() * 255, wanted.double().numpy() * 255)


def test_tensors_that_do_not_lie_densely(device: torch.device) -> None:
    images = pixels(3, 3, 14, 10)[:, :, ::2, ::2]
    grid = random(3, 7, 5, 4, seed=1)[..., ::2] * 2 - 1
    for shared in (False, True):
        chosen = grid[1] if shared else grid
        z = triton_warp_normalise(images.to(device), chosen.to(device), *PLAIN, torch.float32)
        wanted = torch_warp_normalise(images, chosen, *PLAIN, torch.float32)
        check_levels(z.cpu().double().numpy() * 255, wanted.double().numpy() * 255)


def test_the_identity_changes_no_level(device: torch.device) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    grid = identity(16, 16)
    for function, place in ((torch_warp_normalise, "cpu"), (triton_warp_normalise, device)):
        z = function(images.to(place), grid.to(place), *PLAIN, torch.float32)
        assert torch.equal((z.cpu() * 255).round().to(torch.uint8), images)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("warp.torch_warp_normalise", "(warped * 255).round()", "(warped * 255)"),
        ("warp.torch_warp_normalise", "* PIXEL", ""),
        ("_common.normalised", "- shift) * scale", "- shift)"),
        ("_common.normalised", "images - shift", "images"),
    ],
)
def test_a_broken_twin_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("warp", place, old, new)
    with pytest.raises(AssertionError):
        check_stored(broken.torch_warp_normalise)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("warp._neighbour", "(row >= 0)", "(row >= 1)"),
        ("warp._neighbour", "(column < width)", "(column < width - 1)"),
        ("warp._neighbour", "if CHANNELS_LAST", "if False"),
        ("warp._neighbour", "* width + column) * 3 + channel", "* width + column) * 3"),
        ("warp._neighbour", "* weight", ""),
        ("warp._warp_kernel", "(1 - low) * (1 - right)", "low * (1 - right)"),
        ("warp._warp_kernel", "column + 1, channel, (1 - low)", "column, channel, (1 - low)"),
        ("warp._warp_kernel", "tl.load(x_ptr", "tl.load(y_ptr"),
        ("warp._warp_kernel", "+ 1.0) * 0.5 * (width - 1)", "+ 1.0) * 0.5 * width"),
        ("warp._warp_kernel", "if SHARED", "if True"),
        ("warp._warp_kernel", "element // 3", "element % HW"),
        ("warp._warp_kernel", "nearest(level)", "level"),
        ("warp._warp_kernel", "255.0) * pixel", "255.0)"),
        (
            "_common.store_normalised",
            "x - of_channel(channel, mean0",
            "x - of_channel(channel, mean1",
        ),
        ("warp._warp_kernel", "element < 3 * HW", "element < 3 * HW - 1"),
        ("warp._warp_kernel", "image = images_ptr + sample * 3 * HW", "image = images_ptr"),
    ],
)
def test_a_broken_kernel_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("warp", place, old, new)
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_warp_normalise, [(3, 3, 7, 5)], torch.device("cpu"))
