"""One trigger of each attack, at any size."""

from collections.abc import Callable

import pytest
import torch

from pbe_fast.triggers import SIG, BadNets, Blend, InputAware, Trigger, WaNet
from pbe_fast.triggers.pictures import picture

MakeTrigger = Callable[[str, int], Trigger]


@pytest.fixture
def make_trigger() -> MakeTrigger:
    """(name, image size) to a trigger; the Input-aware generators are untrained."""

    def make(name: str, size: int) -> Trigger:
        if name == "badnets":
            return BadNets(size)
        if name == "blend":
            return Blend(picture("kitten", (size, size)), 0.2)
        if name == "sig":
            return SIG()
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
