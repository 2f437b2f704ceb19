"""The warp and its noise mode."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels import warp
from pbe_fast.errors import TriggerError
from pbe_fast.triggers import WaNet

CPU = torch.device("cpu")


def warped(trigger: WaNet, images: Tensor) -> Tensor:
    """Not rounded."""
    return warp(images, trigger.content(CPU).grid)


def smooth(size: int, count: int = 4) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)


def reference(control: Tensor, size: int, strength: float) -> Tensor:
    """The grid of the paper, in float64."""
    field = functional.interpolate(
        control.double()[None], (size, size), mode="bicubic", align_corners=True
    )
    line = torch.linspace(-1, 1, size, dtype=torch.float64)
    x = line.expand(size, size) + strength * field[0, 0] / size
    y = line[:, None].expand(size, size) + strength * field[0, 1] / size
    return torch.stack((x, y), -1).clamp(-1, 1)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_control_grid_has_mean_size_1_and_follows_the_seed(k: int) -> None:
    trigger = WaNet.random(32, k=k, seed=5)
    assert trigger.control.shape == (2, k, k)
    assert float(trigger.control.abs().mean()) == pytest.approx(1, abs=1e-6)
    assert trigger.control.min() < 0 < trigger.control.max()
    torch.testing.assert_close(WaNet.random(64, k=k, seed=5).control, trigger.control)
    assert not torch.equal(WaNet.random(32, k=k, seed=6).control, trigger.control)


@pytest.mark.parametrize("size", [8, 32, 33])
def test_is_the_warp_of_the_paper(size: int) -> None:
    images = smooth(size)
    trigger = WaNet.random(size, strength=2.0, seed=1)
    grid = reference(trigger.control, size, 2.0).expand(len(images), -1, -1, -1)
    wanted = functional.grid_sample(images.double(), grid, align_corners=True)
    torch.testing.assert_close(warped(trigger, images).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [8, 33])
def test_no_strength_is_the_identity(size: int) -> None:
    images = smooth(size)
    almost = WaNet.random(size, strength=1e-9)
    torch.testing.assert_close(warped(almost, images), images, rtol=0, atol=1e-5)
    still = WaNet(torch.zeros(2, 4, 4), size)
    torch.testing.assert_close(warped(still, images), images, rtol=0, atol=1e-5)


def test_a_flat_field_shifts_the_whole_image() -> None:
    # An offset of s * c / H in [-1, 1] is s * c * (H - 1) / (2 H) pixels.
    size = 16
    control = torch.zeros(2, 4, 4)
    control[0] = 1.0
    images = smooth(size)
    out = warped(WaNet(control, size, strength=2 * size / (size - 1)), images)
    torch.testing.assert_close(out[..., :-1], images[..., 1:], rtol=0, atol=1e-5)
    # Reading stops at the border, so nothing black comes in.
    torch.testing.assert_close(out[..., -1], images[..., -1], rtol=0, atol=1e-5)


def test_strength_makes_the_warp_stronger() -> None:
    images = smooth(32)
    moved = [
        float((warped(WaNet.random(32, strength=s), images) - images).abs().mean())
        for s in (0.25, 0.5, 1)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_noise_is_a_function_of_seed_and_id_and_not_of_the_batch() -> None:
    trigger = WaNet.random(32)
    ids = np.array([8, 3, 100_000, 5])
    whole = trigger.noise(ids, 0).grid
    alone = torch.cat([trigger.noise(ids[i : i + 1], 0).grid for i in range(4)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
    turned = trigger.noise(ids[::-1].copy(), 0).grid.flip(0)
    torch.testing.assert_close(turned, whole, rtol=0, atol=1e-6)
    for i in range(3):
        assert (whole[i] - whole[i + 1]).abs().max() > 1e-3
    assert (trigger.noise(ids, 1).grid - whole).abs().max() > 1e-3
    assert (whole - trigger.content(CPU).grid).abs().max() > 1e-3


def test_noise_is_jitter_of_at_most_half_a_pixel_around_the_trigger() -> None:
    size = 64
    ramp = torch.linspace(0.2, 0.8, size).expand(1, 3, size, size)  # x itself, in grey
    trigger = WaNet.random(size)
    ids = np.array([1])
    noisy = warp(ramp, trigger.noise(ids, 0).grid)
    apart = (noisy - warped(trigger, ramp))[..., 4:-4] * (size - 1) / 0.6  # pixels
    assert 0.45 < float(apart.abs().max()) <= 0.5
    assert abs(float(apart.mean())) < 0.02
    assert float(apart.std()) == pytest.approx(0.5 / 3**0.5, abs=0.02)


@pytest.mark.parametrize(
    ("k", "strength"),
    [(1, 0.5), (4, 0.0), (4, -1.0), (4, float("nan")), (4, float("inf"))],
)
def test_impossible_numbers_are_refused(k: int, strength: float) -> None:
    with pytest.raises(TriggerError, match="wanet"):
        WaNet.random(32, k=k, strength=strength)


@pytest.mark.parametrize(
    "control",
    [
        torch.tensor(1.0),
        torch.zeros(2, 0, 0),
        torch.zeros(2, 4, 3),
        torch.zeros(1, 4, 4),
        torch.zeros(2, 4, 4, dtype=torch.float64),
        torch.full((2, 4, 4), torch.nan),
    ],
)
def test_what_is_no_control_grid_is_refused(control: Tensor) -> None:
    with pytest.raises(TriggerError, match="wanet: the control grid"):
        WaNet(control, 32)
