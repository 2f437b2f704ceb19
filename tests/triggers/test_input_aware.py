"""The generators and their training."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.device import Device
from pbe_fast.errors import TriggerError
from pbe_fast.triggers import InputAware, InputAwareTraining, train_input_aware

HERE = torch.device("cpu")
CPU = Device(HERE, "float32")
SHORT = InputAwareTraining(steps=24, batch_size=12)


def partner() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def some_images(count: int = 24, size: int = 16) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=rng) * 255
    images = functional.interpolate(coarse, (size, size), mode="bilinear").to(torch.uint8)
    return images, torch.arange(count) % 4


def train(seed: int = 0, plan: InputAwareTraining = SHORT, **more: Any) -> InputAware:
    images, labels = some_images()
    arguments: dict[str, Any] = {"images": images, "labels": labels} | more
    return train_input_aware(
        partner(),
        attacker_labels=torch.zeros_like,
        device=CPU,
        seed=seed,
        plan=plan,
        width=4,
        **arguments,
    )


def same(first: InputAware, second: InputAware) -> bool:
    theirs = second.tensors()
    return all(torch.equal(value, theirs[key]) for key, value in first.tensors().items())


@pytest.mark.parametrize("size", [8, 32, 33, 224])
def test_pattern_and_mask_depend_on_the_image(make_trigger: Any, changed: Any, size: int) -> None:
    trigger = make_trigger("input_aware", size)
    images = some_images(3, size)[0].float() / 255
    pattern, mask = trigger.pattern(images), trigger.mask(images)
    assert pattern.shape == (3, 3, size, size)
    assert mask.shape == (3, 1, size, size)
    for drawn in (pattern, mask):
        assert float(drawn.min()) >= 0
        assert float(drawn.max()) <= 1
        for i in range(2):
            assert (drawn[i] - drawn[i + 1]).abs().max() > 1e-3
    wanted = images.double() + mask.double() * (pattern.double() - images.double())
    out = changed(trigger.content(HERE), images)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)


def test_cross_mode_plants_the_pattern_of_another_image(make_trigger: Any, changed: Any) -> None:
    trigger = make_trigger("input_aware", 16)
    images = some_images(3)[0].float() / 255
    out = changed(trigger.noise(np.arange(3), 0), images)
    for i in range(3):
        other = images[[i - 1]]
        m = trigger.mask(other)
        wanted = (1 - m) * images[[i]] + m * trigger.pattern(other)
        torch.testing.assert_close(out[[i]], wanted, rtol=0, atol=1e-5)
    assert trigger.noise(np.arange(1), 0) is None  # it has no other image


def test_training_shrinks_the_mask_and_lowers_the_loss() -> None:
    images, _ = some_images()
    steps: list[tuple[int, float]] = []
    plan = InputAwareTraining(steps=40, batch_size=12, warm_up=0.25)
    trained = train(plan=plan, on_step=lambda step, loss: steps.append((step, loss)))
    start = train(plan=InputAwareTraining(steps=1, batch_size=12, warm_up=1.0))
    x = images.float() / 255
    assert float(trained.mask(x).mean()) < 0.5 * float(start.mask(x).mean())
    assert [step for step, _ in steps] == list(range(1, 41))
    joint = [loss for step, loss in steps if step > 10]  # after the warm-up
    assert np.mean(joint[-5:]) < 0.5 * np.mean(joint[:5])


def test_warm_up_leaves_the_generators_alone() -> None:
    short = InputAwareTraining(steps=2, batch_size=12, warm_up=1.0)
    more = InputAwareTraining(steps=5, batch_size=12, warm_up=1.0)
    for first, second in zip(
        train(plan=short).pattern.parameters(), train(plan=more).pattern.parameters(), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_training_is_a_function_of_the_seed_and_draws_no_global_number() -> None:
    first = train()
    torch.manual_seed(99)
    torch.rand(7)
    classifier = partner()
    torch.manual_seed(98)
    state = torch.random.get_rng_state()
    images, labels = some_images()
    second = train_input_aware(
        classifier, images, labels, torch.zeros_like, CPU, seed=0, plan=SHORT, width=4
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first, second)
    assert not same(first, train(seed=1))


def test_the_result_is_frozen_and_in_eval_mode() -> None:
    trigger = train()
    for net in (trigger.pattern, trigger.mask):
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert all(parameter.device.type == "cpu" for parameter in net.parameters())
    content = trigger.content(HERE)(some_images(2)[0].float() / 255)
    assert not content.pattern.requires_grad
    assert content.mask is not None
    assert not content.mask.requires_grad


def test_equal_images_do_not_spoil_the_weights() -> None:
    """Two equal images in a batch have equal patterns, where the diversity loss has a root of 0."""
    images, labels = some_images()
    trigger = train(
        plan=InputAwareTraining(steps=3, batch_size=12, warm_up=0),
        images=images[:1].expand_as(images),
        labels=labels,
    )
    assert all(value.isfinite().all() for value in trigger.tensors().values())


def test_too_few_images_are_refused() -> None:
    images, labels = some_images()
    with pytest.raises(TriggerError, match="2 images in batches of 12 are too few"):
        train(images=images[:2], labels=labels[:2])
    with pytest.raises(TriggerError, match="24 images in batches of 2 are too few"):
        train(plan=InputAwareTraining(batch_size=2))


@pytest.mark.parametrize("width", [0, -4, 257, 10**9])
def test_an_impossible_width_is_refused(width: int) -> None:
    with pytest.raises(TriggerError, match="input_aware: width"):
        InputAware.build(width)
