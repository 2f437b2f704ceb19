"""BadNets (Gu, Dolan-Gavitt and Garg, 2017): a small patch in a corner.

A checkerboard of three squares a side, 3x3 pixels on a 32x32 image and in proportion on larger
ones, one square away from the bottom right corner. A patch whose side is no multiple of three
has squares of the side's third, rounded down, and more of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.errors import TriggerError
from pbe_fast.triggers.base import Pattern, Scalar

__all__ = ["BadNets"]


@dataclass(frozen=True, eq=False)
class BadNets:
    """A black and white checkerboard patch.

    Attributes:
        image_size: side of the images in pixels.
        patch_size: side of the patch in pixels; 0 takes 3/32 of the image, at least 1.
    """

    image_size: int
    patch_size: int = 0

    name = "badnets"
    noise_ratio = 0.0

    def __post_init__(self) -> None:
        side = self._side
        if not 1 <= side <= self.image_size:
            raise TriggerError(f"badnets: patch_size {side} does not fit {self.image_size} pixels.")

    @property
    def _side(self) -> int:
        return self.patch_size or max(1, round(self.image_size * 3 / 32))

    def content(self, device: torch.device) -> Pattern:
        """See :class:`pbe_fast.triggers.Trigger`."""
        side, size = self._side, self.image_size
        cell = max(1, side // 3)
        rows = torch.arange(side) // cell
        board = (rows[:, None] + rows[None, :]) % 2 == 0  # (side, side)
        end = size - min(cell, size - side)
        pattern, mask = torch.zeros(3, size, size), torch.zeros(1, size, size)
        pattern[:, end - side : end, end - side : end] = board
        mask[:, end - side : end, end - side : end] = 1
        return Pattern(pattern.to(device), mask.to(device))

    def noise(self, ids: npt.NDArray[np.int64], seed: int) -> None:
        """BadNets has none."""

    def options(self) -> Mapping[str, Scalar]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return {"patch_size": self.patch_size}

    def tensors(self) -> Mapping[str, Tensor]:
        """None: the patch follows from its size."""
        return {}
