"""One trigger of each attack, at any size, and what it does before pixels are rounded."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import add_pattern, mix_pattern, warp
from pbe_fast.triggers import (
    SIG,
    BadNets,
    Blend,
    Content,
    Grid,
    InputAware,
    Pattern,
    Trigger,
    WaNet,
)
from pbe_fast.triggers.pictures import picture

MakeTrigger = Callable[[str, int], Trigger]
Change = Callable[[Content | None, Tensor], Tensor]


@pytest.fixture
def make_trigger() -> MakeTrigger:
    """(name, image size) to a trigger; the Input-aware generators are untrained."""

    def make(name: str, size: int) -> Trigger:
        if name == "badnets":
            return BadNets(size)
        if name == "blend":
            return Blend(picture("kitten", (size, size)), 0.2)
        if name == "sig":
            return SIG(size)
        if name == "wanet":
            return WaNet.random(size, strength=0.5, seed=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trigger = InputAware.build(4)
            # Untrained statistics and a flat last layer would make every pattern nearly grey.
            for net in (trigger.pattern, trigger.mask):
                for parameter in net.parameters():
                    parameter.data.mul_(2)
                net.eval().requires_grad_(False)
        return trigger

    return make


@pytest.fixture
def changed() -> Change:
    """(content, images in [0, 1]) to the changed images, not rounded."""

    def change(content: Content | None, images: Tensor) -> Tensor:
        if content is None:
            return images
        if isinstance(content, Grid):
            return warp(images, content.grid)
        if not isinstance(content, Pattern):
            content = content(images)
        if content.mask is None:
            return add_pattern(images, content.pattern)
        return mix_pattern(images, content.pattern, content.mask)

    return change
