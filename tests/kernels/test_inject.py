"""Mixing and adding a pattern, against numpy."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import add_pattern, mix_pattern

SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (0, 3, 4, 4)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_image", [False, True])
def test_mix_is_the_formula(shape: tuple[int, ...], per_image: bool) -> None:
    n, c, h, w = shape
    x = random(*shape)
    lead = (n,) if per_image else ()
    p, m = random(*lead, c, h, w, seed=1), random(*lead, 1, h, w, seed=2)
    out = mix_pattern(x, p, m)
    x64, p64, m64 = (t.double().numpy() for t in (x, p, m))
    assert out.shape == x.shape
    np.testing.assert_allclose(out.numpy(), (1 - m64) * x64 + m64 * p64, rtol=0, atol=2e-7)


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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_image", [False, True])
def test_add_is_the_formula(shape: tuple[int, ...], per_image: bool) -> None:
    x = random(*shape)
    p = 2 * random(*(shape if per_image else shape[1:]), seed=1) - 1
    wanted = np.clip(x.double().numpy() + p.double().numpy(), 0, 1)
    np.testing.assert_allclose(add_pattern(x, p).numpy(), wanted, rtol=0, atol=1.2e-7)


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
def test_a_broken_injection_is_noticed(
    mutant: Any, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    module = importlib.import_module("kernels.inject")
    monkeypatch.setitem(globals(), name, mutant(module, name, old, new))
    check = test_mix_is_the_formula if name == "mix_pattern" else test_add_is_the_formula
    with pytest.raises(AssertionError):
        check((3, 3, 7, 5), True)
