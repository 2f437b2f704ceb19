"""Blend (Chen et al., 2017): a whole picture mixed in at a low ratio.

x' = (1 - alpha) x + alpha p,   alpha = 0.1 to 0.2
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.errors import TriggerError
from pbe_fast.triggers.base import Pattern, Scalar

__all__ = ["Blend"]


@dataclass(frozen=True, eq=False)
class Blend:
    """A picture blended over the image.

    Attributes:
        picture: uint8 ``(3, H, W)`` at the images' size.
        alpha: share of the picture, in (0, 1].
    """

    picture: Tensor
    alpha: float = 0.2

    name = "blend"
    noise_ratio = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise TriggerError(f"blend: alpha {self.alpha} is not in (0, 1].")
        if self.picture.ndim != 3 or len(self.picture) != 3 or self.picture.dtype != torch.uint8:
            raise TriggerError(
                f"blend: the picture is {tuple(self.picture.shape)} {self.picture.dtype}, expected "
                "(3, H, W) torch.uint8."
            )

    def content(self, device: torch.device) -> Pattern:
        """See :class:`pbe_fast.triggers.Trigger`."""
        share = torch.full((1, 1, 1), self.alpha, device=device)
        return Pattern((self.picture.float() / 255).to(device), share)

    def noise(self, ids: npt.NDArray[np.int64], seed: int) -> None:
        """Blend has none."""

    def options(self) -> Mapping[str, Scalar]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return {"alpha": self.alpha}

    def tensors(self) -> Mapping[str, Tensor]:
        """The picture."""
        return {"picture": self.picture}
