"""Where in a network: its last linear layer, and the ends of its stages, found by running it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.models.hooks import watched

__all__ = ["blank", "last_linear", "outputs", "stages"]


def blank(clean: ImageData, device: Device) -> Tensor:
    """Two grey images, to see how a network is built."""
    grey = torch.full((2, 3, clean.size, clean.size), 127, dtype=torch.uint8)
    return device.images(grey)


def last_linear(model: nn.Module, images: Tensor) -> nn.Linear:
    """The linear layer that is computed last, on one row of features for each image.

    Raises:
        ConfigError: there is none.
    """
    found: list[nn.Linear] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
            found.append(module)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ConfigError(
            "fine-pruning cuts features that a last linear layer takes, and the network has none."
        )
    return found[-1]


def stages(model: nn.Module, images: Tensor) -> list[str]:
    """The names of the modules that end a stage, from the finest resolution to the coarsest.

    At each resolution that is the block computed last, else the layer computed last where there is
    no block: the first layers of the next block still see the old resolution.

    Raises:
        ConfigError: there are fewer than two.
    """
    ends: dict[int, tuple[str, bool]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        # Images are square, so what is not is no map of features with its channels first.
        if not isinstance(output, Tensor) or output.ndim != 4:
            return
        side = output.shape[-1]
        block = next(module.children(), None) is not None
        if output.shape[-2] == side > 1 and (block or not ends.get(side, ("", False))[1]):
            ends[side] = (name, block)

    handles = [
        module.register_forward_hook(partial(note, name)) for name, module in model.named_modules()
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if len(ends) < 2:
        raise ConfigError(
            "attention distillation compares maps of features at several resolutions, and the "
            f"network has {len(ends)}. It is for convolutional networks."
        )
    return [ends[side][0] for side in sorted(ends, reverse=True)]


@contextmanager
def outputs(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """What these modules return inside the block; filled at its end."""
    found: dict[str, Tensor] = {}
    with watched(model, names, lambda _, output: cast(Tensor, output)) as seen:
        yield found
    found.update(seen)
