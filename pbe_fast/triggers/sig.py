"""SIG (Barni, Kallas and Tondi, 2019): a sinusoid added along the image's width.

    x'[i, j] = clip(x[i, j] + (amplitude / 255) sin(2 pi j f / W), 0, 1)

The original is a clean-label attack: only images of the target class carry the signal, and
their labels stay. ``Attack.clean_label`` selects that; without it the labels are changed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.errors import TriggerError
from pbe_fast.triggers.base import Pattern, Scalar

__all__ = ["SIG"]


@dataclass(frozen=True, eq=False)
class SIG:
    """A horizontal sinusoid.

    Attributes:
        image_size: side of the images in pixels.
        amplitude_255: amplitude in pixel values of 255; the paper uses 10 to 20.
        frequency: periods over the image's width.
    """

    image_size: int
    amplitude_255: float = 20.0
    frequency: float = 6.0

    name = "sig"
    noise_ratio = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.amplitude_255 <= 255:
            raise TriggerError(f"sig: amplitude_255 {self.amplitude_255} is not in (0, 255].")
        if not 0 < self.frequency < math.inf:
            raise TriggerError(f"sig: frequency {self.frequency} is not a positive number.")

    def content(self, device: torch.device) -> Pattern:
        """See :class:`pbe_fast.triggers.Trigger`."""
        size = self.image_size
        column = torch.arange(size, dtype=torch.float32)
        wave = torch.sin(2 * math.pi * self.frequency * column / size)
        signal = (self.amplitude_255 / 255) * wave  # (W,)
        return Pattern(signal.expand(3, size, size).to(device), None)

    def noise(self, ids: npt.NDArray[np.int64], seed: int) -> None:
        """SIG has none."""

    def options(self) -> Mapping[str, Scalar]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return {"amplitude_255": self.amplitude_255, "frequency": self.frequency}

    def tensors(self) -> Mapping[str, Tensor]:
        """None: the signal follows from its numbers."""
        return {}
