"""What holds for every attack, and the labels of an attack."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pbe_fast.errors import TriggerError
from pbe_fast.triggers import ATTACKS, SIG, Attack, plant

SIZES = [8, 32, 33, 224]
ROUNDING = 2.4e-7  # of a warp's four weights, whose sum is 1


def pixels(size: int, count: int = 3, seed: int = 0) -> Tensor:
    """uint8 images, coarse like real ones, with black and white pixels among them."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=rng) * 400 - 70
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return smooth.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ATTACKS)
def test_shape_range_kind_and_determinism(make_trigger: Any, name: str, size: int) -> None:
    trigger = make_trigger(name, size)
    assert trigger.name == name
    images = pixels(size).float() / 255
    before = images.clone()
    out = trigger(images)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1 + ROUNDING
    assert (out != images).flatten(1).any(1).all()
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    torch.testing.assert_close(make_trigger(name, size)(images), out, rtol=0, atol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_does_not_depend_on_its_batch(make_trigger: Any, name: str) -> None:
    trigger = make_trigger(name, 32)
    images = pixels(32).float() / 255
    alone = torch.cat([trigger(image[None]) for image in images])
    torch.testing.assert_close(alone, trigger(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_images(make_trigger: Any, name: str) -> None:
    assert make_trigger(name, 32)(torch.zeros(0, 3, 32, 32)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("badnets", 0), ("blend", 0), ("sig", 0), ("wanet", 2), ("input_aware", 1)],
)
def test_noise(make_trigger: Any, name: str, ratio: float) -> None:
    trigger = make_trigger(name, 32)
    assert trigger.noise_ratio == ratio
    images = pixels(32).float() / 255
    out = trigger.noise(images, np.array([3, 9, 4]), 0)
    assert out.shape == images.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1 + ROUNDING
    if ratio:
        assert (out != trigger(images)).flatten(1).any(1).all()
    else:
        torch.testing.assert_close(out, images, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ATTACKS)
def test_plant_is_the_trigger_in_whole_pixel_values(
    make_trigger: Any, name: str, size: int
) -> None:
    trigger, images = make_trigger(name, size), pixels(size)
    out = plant(trigger, images)
    assert out.dtype == torch.uint8
    exact = trigger(images.double().float() / 255).double() * 255
    assert float((out.double() - exact).abs().max()) <= 0.5 + 1e-4
    assert not torch.equal(out, images)


class _Halves:
    """A trigger that gives half pixel values and numbers outside the range."""

    def __call__(self, images: Tensor) -> Tensor:
        return torch.tensor([0.4, 0.6, 254.6, 300.0, -7.0, 254.4]) / 255 + 0 * images


def test_plant_rounds_to_nearest_and_clamps() -> None:
    out = plant(_Halves(), torch.zeros(1, 3, 1, 6, dtype=torch.uint8))  # type: ignore[arg-type]  # all that plant uses
    assert out[0, 0, 0].tolist() == [0, 1, 255, 255, 0, 254]


def test_all_to_one_leads_to_the_target() -> None:
    attack = Attack(SIG(), "all_to_one", 3, 5, 32)
    labels = torch.arange(5)
    assert attack.labels(labels).tolist() == [3] * 5
    assert attack.labels(labels).dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_all_to_all_leads_to_the_next_class_and_ignores_the_target() -> None:
    for target in (0, 4):
        attack = Attack(SIG(), "all_to_all", target, 5, 32)
        assert attack.labels(torch.arange(5)).tolist() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "one_to_all"}, "attack mode 'one_to_all'; known: all_to_one, all_to_all"),
        ({"target": 5}, "target 5 is not a label from 0 to 4"),
        ({"target": -1}, "target -1 is not a label"),
        ({"num_classes": 0}, "target 3 is not a label"),
        ({"mode": "all_to_all", "clean_label": True}, "clean_label .* needs all_to_one"),
        ({"image_size": 0}, "image_size 0 is not in 1 to 4096"),
        ({"image_size": 5000}, "image_size 5000"),
    ],
)
def test_an_impossible_attack_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"mode": "all_to_one", "target": 3, "num_classes": 5, "image_size": 32}
    Attack(SIG(), **good)
    with pytest.raises(TriggerError, match=message):
        Attack(SIG(), **good | change)
