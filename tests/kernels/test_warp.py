"""Sampling at a grid, against a loop over pixels in float64."""

import importlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from kernels import warp


def identity(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack((x, y), -1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (4, 4)])
def test_is_the_formula(size: tuple[int, int]) -> None:
    images = random(2, 3, *size)
    grid = random(2, *size, 2, seed=1) * 3 - 1.5  # also outside
    np.testing.assert_allclose(warp(images, grid).numpy(), formula(images, grid), atol=1e-5)


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
def test_a_broken_warp_is_noticed(
    mutant: Any, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    module = importlib.import_module("kernels.warp")
    monkeypatch.setitem(globals(), "warp", mutant(module, "warp", old, new))
    with pytest.raises(AssertionError):
        test_is_the_formula((7, 5))
