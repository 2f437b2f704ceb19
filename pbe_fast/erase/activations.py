"""What a model sees of an image: activations from all depths of the network, as one row."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.models.hooks import watched

__all__ = ["Activations"]

_WIDEST = 1024  # columns
_POINTS = 4  # of networks that keep one resolution
_LARGEST = 60_000.0  # below what float16 holds


class Activations:
    """A :class:`pbe_fast.erase.identify.Measure`: pooled outputs of a network's stages.

    A stage ends with the last output at its resolution, which is averaged over the quarters of the
    image (over the whole image at the coarsest one). Networks that keep one resolution, such as
    transformers, are looked at after each quarter of their modules. What is wider than 1,024
    columns is projected to so many, by fixed random directions in each stage.

    Args:
        model: on the device, in eval mode.
        size: side of the images in pixels.

    Raises:
        ConfigError: no module of the model returns anything to look at.
    """

    dtype = np.float16

    def __init__(self, model: nn.Module, device: Device, size: int) -> None:
        self.model = model
        blank = device.images(torch.zeros(2, 3, size, size, dtype=torch.uint8))
        with (
            torch.inference_mode(),
            device.autocast(),
            watched(model, None, _stage_output) as found,
        ):
            model(blank)
        # Windows and heads of attention come as more rows than there are images.
        found = [(name, output) for name, output in found if len(output) == len(blank)]
        ends = {output.shape[2:] if output.ndim == 4 else None: name for name, output in found}
        tokens = [name for name, output in found if output.ndim == 3]
        mostly_tokens = 2 * len(tokens) > len(found)
        names = tokens if mostly_tokens else [name for name, _ in found]
        if names and (mostly_tokens or len(ends) < 3):
            count = min(_POINTS, len(names))
            points = [names[(i + 1) * len(names) // count - 1] for i in range(count)]
        else:
            points = list(ends.values())
        if not points:
            raise ConfigError("the model's modules return no images or tokens to look at.")
        self.points = list(dict.fromkeys(points))
        rows = {name: output for name, output in found if name in self.points}
        areas = {name: rows[name].shape[2:].numel() for name in self.points}
        self._coarsest = min(areas, key=lambda name: areas[name])
        self._projections: dict[str, Tensor] = {}
        widths = {name: self._pooled(name, rows[name]).shape[1] for name in self.points}
        if sum(widths.values()) > _WIDEST:
            share = _WIDEST // len(self.points)
            random = torch.Generator().manual_seed(0)
            for name, width in widths.items():
                if width > share:
                    drawn = torch.randn(width, share, generator=random) / share**0.5
                    self._projections[name] = drawn.to(device.torch)
                    widths[name] = share
        self.shape = (sum(widths.values()),)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """See :class:`pbe_fast.erase.identify.Measure`."""
        with watched(self.model, set(self.points), _stage_output) as found:
            self.model(images)
        rows = dict(found)
        parts = []
        for name in self.points:
            part = self._pooled(name, rows[name])
            if name in self._projections:
                with torch.autocast(part.device.type, enabled=False):
                    part = part @ self._projections[name]
            parts.append(part)
        return torch.cat(parts, 1).clamp(-_LARGEST, _LARGEST).half()

    def _pooled(self, name: str, output: Tensor) -> Tensor:
        if output.ndim == 3:
            return output.float().mean(1)
        cells = 1 if name == self._coarsest else 2
        return functional.adaptive_avg_pool2d(output.float(), cells).flatten(1)


def _stage_output(_: tuple[Any, ...], output: Any) -> Tensor | None:
    """Of a module: tokens ``(N, T, C)``, or square images as ``(N, C, H, H)``."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return None
    if output.ndim == 3 or output.shape[2] == output.shape[3]:
        return output
    return output.permute(0, 3, 1, 2) if output.shape[1] == output.shape[2] else None
