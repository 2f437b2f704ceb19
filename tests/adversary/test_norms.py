"""The random starts of the eps balls."""

import pytest
import torch
from torch import Tensor

from pbe_fast.adversary import L2, Linf, Norm

EPS = 8 / 255
ROUNDING = 1.2e-7
ZERO, ONE = [0.0] * 3, [1.0] * 3
NORMS = [Linf(EPS), L2(0.5)]


def length(norm: Norm, d: Tensor) -> Tensor:
    return d.flatten(1).abs().amax(1) if isinstance(norm, Linf) else d.flatten(1).norm(dim=1)


def images(count: int, size: int = 8) -> Tensor:
    x = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return (x * 1.4 - 0.2).clamp(0, 1)


@pytest.mark.parametrize("norm", NORMS)
def test_start_lies_in_the_ball_and_in_the_image_range(norm: Norm) -> None:
    clean = images(50)
    d = norm.start(clean, torch.arange(50), 1, torch.float32)
    assert d.shape == clean.shape
    assert d.dtype == torch.float32
    assert float(length(norm, d).max()) <= norm.eps + ROUNDING
    assert float((clean + d).min()) >= 0
    assert float((clean + d).max()) <= 1 + ROUNDING


@pytest.mark.parametrize("norm", NORMS)
def test_start_is_a_function_of_seed_and_id_alone(norm: Norm) -> None:
    clean = images(1).expand(6, -1, -1, -1)
    ids = torch.tensor([5, 9, 2, 1_000_000, 0, 7])
    whole = norm.start(clean, ids, 3, torch.float32)
    turned = norm.start(clean, ids.flip(0), 3, torch.float32).flip(0)
    torch.testing.assert_close(whole, turned, rtol=0, atol=0)
    for i in range(6):
        one = norm.start(clean[i : i + 1], ids[i : i + 1], 3, torch.float32)
        torch.testing.assert_close(one[0], whole[i], rtol=0, atol=0)
    for i in range(5):
        assert not torch.equal(whole[i], whole[i + 1])
    assert not torch.equal(whole, norm.start(clean, ids, 4, torch.float32))


def test_linf_start_fills_the_cube() -> None:
    d = Linf(EPS).start(torch.full((200, 3, 8, 8), 0.5), torch.arange(200), 0, torch.float32) / EPS
    assert abs(float(d.mean())) < 0.02
    assert abs(float(d.var()) - 1 / 3) < 0.01


def test_l2_start_fills_the_ball() -> None:
    # In three dimensions, so that the radius is not always near eps.
    d = L2(0.5).start(torch.full((2000, 3, 1, 1), 0.5), torch.arange(2000), 0, torch.float32) / 0.5
    radius = d.flatten(1).norm(dim=1)
    inside = [float((radius < r).float().mean()) for r in (0.5, 0.8)]
    assert inside == pytest.approx([0.5**3, 0.8**3], abs=0.03)
    assert d.flatten(1).mean(0).abs().max() < 0.03


@pytest.mark.parametrize("norm", NORMS)
def test_no_images(norm: Norm) -> None:
    empty = torch.zeros(0, 3, 4, 4)
    assert (
        norm.start(empty, torch.zeros(0, dtype=torch.int64), 0, torch.float32).shape == empty.shape
    )
    assert norm.step(empty, empty.clone(), empty, 0.1, ZERO, ONE).shape == empty.shape


@pytest.mark.parametrize("make", [Linf, L2])
def test_norms_hand_their_eps_to_the_step(make: type[Linf] | type[L2]) -> None:
    clean, up = torch.full((1, 3, 2, 2), 0.5), torch.ones(1, 3, 2, 2)
    d = torch.zeros_like(clean)
    z = make(0.1).step(clean, d, up, 1.0, [0.5] * 3, [0.1] * 3)
    size = 0.1 if make is Linf else 0.1 / 12**0.5
    torch.testing.assert_close(d, size * up)
    torch.testing.assert_close(z, size * up * 10)
