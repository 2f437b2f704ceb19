"""What holds for every attack, and the labels of an attack."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pbe_fast.errors import TriggerError
from pbe_fast.triggers import ATTACKS, SIG, Attack, Grid, Pattern, plant, planted_input

CPU = torch.device("cpu")
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
def test_shape_range_kind_and_determinism(
    make_trigger: Any, changed: Any, name: str, size: int
) -> None:
    trigger = make_trigger(name, size)
    assert trigger.name == name
    images = pixels(size).float() / 255
    before = images.clone()
    out = changed(trigger.content(CPU), images)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1 + ROUNDING
    assert (out != images).flatten(1).any(1).all()
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    torch.testing.assert_close(
        changed(make_trigger(name, size).content(CPU), images), out, rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_does_not_depend_on_its_batch(make_trigger: Any, changed: Any, name: str) -> None:
    content = make_trigger(name, 32).content(CPU)
    images = pixels(32).float() / 255
    alone = torch.cat([changed(content, image[None]) for image in images])
    torch.testing.assert_close(alone, changed(content, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_images(make_trigger: Any, name: str) -> None:
    trigger, none = make_trigger(name, 32), torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    noise = trigger.noise(np.zeros(0, np.int64), 0)
    for content in (trigger.content(CPU), *([] if noise is None else [noise])):
        assert plant(content, none).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("badnets", 0), ("blend", 0), ("sig", 0), ("wanet", 2), ("input_aware", 1)],
)
def test_noise(make_trigger: Any, changed: Any, name: str, ratio: float) -> None:
    trigger = make_trigger(name, 32)
    assert trigger.noise_ratio == ratio
    images = pixels(32).float() / 255
    out = changed(trigger.noise(np.array([3, 9, 4]), 0), images)
    assert out.shape == images.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1 + ROUNDING
    if ratio:
        assert (out != changed(trigger.content(CPU), images)).flatten(1).any(1).all()
    else:
        torch.testing.assert_close(out, images, rtol=0, atol=0)


def by_hand(change: Any, content: Any, images: Tensor) -> Tensor:
    """Planted in float, in the layout of the images, and stored in uint8."""
    return (change(content, images.float() / 255) * 255).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ATTACKS)
def test_plant_is_the_formula_in_whole_pixel_values(
    make_trigger: Any, changed: Any, name: str, size: int, last: bool
) -> None:
    images = pixels(size)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    content, before = make_trigger(name, size).content(CPU), images.clone()
    out = plant(content, images)
    assert out.dtype == torch.uint8
    assert torch.equal(out, by_hand(changed, content, images))
    assert not torch.equal(out, images)
    assert torch.equal(images, before)
    # The model's input is what the stored images are when they are read.
    z = planted_input(content, images)
    assert z.dtype == torch.float32
    assert z.stride() == images.stride()
    assert torch.equal(z, out.float() * (1 / 255))


def test_what_lies_between_two_levels_is_rounded_as_in_a_poisoned_data_set() -> None:
    # Every level mixed with every level; many of the mixes end in a half.
    level = torch.arange(256, dtype=torch.uint8)
    images = level.view(1, 1, 256, 1).expand(1, 3, 256, 256)
    pattern = (level.float() / 255).view(1, 1, 256).expand(3, 256, 256)
    x, p = images.float() / 255, pattern
    for alpha in (0.1, 0.15, 0.25, 0.5):
        out = plant(Pattern(pattern, torch.full((1, 1, 1), alpha)), images)
        assert torch.equal(out, ((x + alpha * (p - x)) * 255).round().to(torch.uint8))


def test_plant_rounds_to_nearest_and_clamps() -> None:
    pattern = torch.tensor([0.4, 0.6, 254.6, 300.0, -7.0, 254.4]).view(1, 1, 6) / 255
    black = torch.zeros(1, 3, 1, 6, dtype=torch.uint8)
    out = plant(Pattern(pattern.expand(3, 1, 6), None), black)
    assert out[0, 0, 0].tolist() == [0, 1, 255, 255, 0, 254]


def test_content_is_made_on_the_device_and_the_trigger_stays(make_trigger: Any) -> None:
    there = torch.device("meta")  # it stands for any other than the CPU
    for name in ATTACKS:
        trigger = make_trigger(name, 8)
        content = trigger.content(there)
        if not isinstance(content, Grid | Pattern):
            content = content(torch.zeros(2, 3, 8, 8, device=there))
        parts = vars(content).values()
        assert all(part.device == there for part in parts if part is not None)
        assert all(value.device == CPU for value in trigger.tensors().values())


def test_all_to_one_leads_to_the_target() -> None:
    attack = Attack(SIG(32), "all_to_one", 3, 5, 32)
    labels = torch.arange(5)
    assert attack.labels(labels).tolist() == [3] * 5
    assert attack.labels(labels).dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_all_to_all_leads_to_the_next_class_and_ignores_the_target() -> None:
    for target in (0, 4):
        attack = Attack(SIG(32), "all_to_all", target, 5, 32)
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
    Attack(SIG(32), **good)
    with pytest.raises(TriggerError, match=message):
        Attack(SIG(32), **good | change)
