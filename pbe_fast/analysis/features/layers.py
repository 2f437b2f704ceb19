"""Features by the name of a layer, as one row of numbers an image, for any kind of network.

A name is that of a module of the network, as in its checkpoint (``layer4.1.conv2``), or
``penultimate``: what goes into the layer that computes the logits.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.models import Classifier
from pbe_fast.models.hooks import watched

__all__ = ["PENULTIMATE", "Layers", "as_maps", "as_rows"]

PENULTIMATE = "penultimate"
_SHOWN = 8


class Layers:
    """Layers of a model: an image's features at each of them, and its logits.

    A module that is called several times, such as a shared ReLU, counts with its last call.

    Args:
        model: on the device, in eval mode; its network's modules are named.
        names: of modules, or :data:`PENULTIMATE`.
        size: side of the images in pixels.

    Attributes:
        names: without repetitions, in the order given.
        widths: C of each.

    Raises:
        ConfigError: the network has no such module (close names are listed), or what it returns
            is no features of images.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], device: Device, size: int) -> None:
        self.model, self.device = model, device
        self.net = model.net if isinstance(model, Classifier) else model
        self.names = list(dict.fromkeys(names))
        known = [name for name, _ in self.net.named_modules() if name]
        for name in self.names:
            if name != PENULTIMATE and name not in known:
                raise ConfigError(_unknown(name, known))
        blank = device.images(torch.full((2, 3, size, size), 127, dtype=torch.uint8))
        self._head = self._find_head(blank) if PENULTIMATE in self.names else ""
        self.widths = {name: rows.shape[1] for name, rows in self(blank)[1].items()}

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, K)`` and each layer's rows ``(N, C)``, both float32.

        Args:
            images: ``(N, 3, H, W)`` float in [0, 1], on the device.
        """
        logits, found = self.raw(images)
        return logits, {name: as_rows(value, name) for name, value in found.items()}

    def raw(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and each layer's output as the network computes it; float32."""
        ends = {self._head if name == PENULTIMATE else name for name in self.names}
        with (
            torch.no_grad(),
            self.device.autocast(),
            watched(self.net, ends, _inputs_and_output) as seen,
        ):
            logits = self.model(images)
        last = dict(seen)
        found = {}
        for name in self.names:
            inside = name == PENULTIMATE
            value = last.get(self._head if inside else name, (None, None))[0 if inside else 1]
            if value is None or value.ndim not in (2, 3, 4) or len(value) != len(images):
                shape = "nothing" if value is None else f"a tensor of shape {tuple(value.shape)}"
                raise ConfigError(
                    f"layer {name!r} gives {shape} for {len(images)} images. Name one that "
                    "returns (B, C), (B, C, H, W) or (B, T, C)."
                )
            found[name] = value
        return logits.float(), found

    def _find_head(self, blank: Tensor) -> str:
        """The module with weights that is called last and returns one number a class."""
        leaves = {
            name
            for name, module in self.net.named_modules()
            if not any(True for _ in module.children()) and any(True for _ in module.parameters())
        }
        with (
            torch.no_grad(),
            self.device.autocast(),
            watched(self.net, leaves, lambda _, output: output) as seen,
        ):
            classes = self.model(blank).shape[1]
        heads = [
            name
            for name, output in seen
            if isinstance(output, Tensor) and output.ndim >= 2 and output.shape[1] == classes
        ]
        if not heads:
            raise ConfigError(
                "the network has no module that returns its logits, so its penultimate layer "
                "cannot be found. Name a layer instead."
            )
        return heads[-1]


def as_rows(output: Tensor, name: str = "") -> Tensor:
    """A layer's output as ``(N, C)`` float32: maps and tokens are averaged over their positions.

    Args:
        output: ``(N, C)``, ``(N, C, H, W)``, ``(N, H, W, C)`` (which is told by its sides, as
            images are square), or ``(N, T, C)``.

    Raises:
        ConfigError: another shape.
    """
    if output.ndim == 2:
        return output.float()
    if output.ndim == 3:
        return output.float().mean(1)
    if output.ndim == 4:
        return as_maps(output).mean((2, 3))
    raise ConfigError(f"layer {name!r} returns a tensor of shape {tuple(output.shape)}.")


def as_maps(output: Tensor) -> Tensor:
    """A layer's output as maps ``(N, C, H, W)`` float32; ``(N, C)`` gives maps of one pixel.

    Of tokens the last square number of them is a map: what stands before are a class token and
    registers. Where they are no square, they are one row.
    """
    value = output.float()
    if value.ndim == 2:
        return value[:, :, None, None]
    if value.ndim == 3:
        side = int(value.shape[1] ** 0.5)
        prefix = value.shape[1] - side * side
        if prefix > 5 or side < 2:  # more registers than any network has
            return value.transpose(1, 2)[:, :, None]
        return value[:, prefix:].transpose(1, 2).reshape(len(value), -1, side, side)
    if value.shape[1] == value.shape[2] != value.shape[3]:  # channels last, as Swin has them
        return value.permute(0, 3, 1, 2)
    return value


def _inputs_and_output(inputs: tuple[Any, ...], output: Any) -> tuple[Tensor | None, Tensor | None]:
    """Copies, as networks work in place."""
    first = inputs[0] if inputs else None
    return (
        first.float().clone() if isinstance(first, Tensor) else None,
        output.float().clone() if isinstance(output, Tensor) else None,
    )


def _unknown(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, [*known, PENULTIMATE], _SHOWN, 0.5)
    if not close:  # the outermost ones, which are few
        close = [other for other in known if "." not in other][:_SHOWN]
    return f"the network has no layer {name!r}. Near: {', '.join(close)}; or {PENULTIMATE}."
