"""Blend (Chen et al., 2017): a whole picture mixed in at a low ratio.

x' = (1 - alpha) x + alpha p,   alpha = 0.1 to 0.2
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels import mix_pattern
from pbe_fast.errors import TriggerError
from pbe_fast.triggers.base import Scalar

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

    def __call__(self, images: Tensor) -> Tensor:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return mix_pattern(images, self.picture.to(images.device, images.dtype) / 255, self.alpha)

    def noise(self, images: Tensor, ids: npt.NDArray[np.int64], seed: int) -> Tensor:
        """Blend has none: the images as they are."""
        return images

    def options(self) -> Mapping[str, Scalar]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return {"alpha": self.alpha}

    def tensors(self) -> Mapping[str, Tensor]:
        """The picture."""
        return {"picture": self.picture}
