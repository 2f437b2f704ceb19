"""WaNet (Nguyen and Tran, ICLR 2021): a smooth warp of the whole image, hard to see.

A control grid of k x k random offsets, divided by their mean size, is enlarged to the image's
size by bicubic interpolation and scaled:  grid = clip(identity + s * offsets / H, -1, 1).
In noise mode each image gets its own random jitter on top of the grid and keeps its label.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pbe_fast.errors import TriggerError
from pbe_fast.randomness import torch_generator, uniform
from pbe_fast.triggers.base import Grid, Scalar

__all__ = ["WaNet"]


@dataclass(frozen=True, eq=False)
class WaNet:
    """A fixed smooth warp.

    Attributes:
        control: the control grid's offsets, ``(2, k, k)`` float32, mean absolute value 1.
        image_size: side of the images in pixels.
        strength: s; in units of half a pixel on average, 0.5 in the paper.
    """

    control: Tensor
    image_size: int
    strength: float = 0.5

    name = "wanet"
    noise_ratio = 2.0  # the paper: noise mode at twice the poison rate

    def __post_init__(self) -> None:
        shape, k = tuple(self.control.shape), self.control.shape[-1] if self.control.ndim else 0
        if shape != (2, k, k) or k < 2 or self.control.dtype != torch.float32:
            raise TriggerError(
                f"wanet: the control grid is {shape} {self.control.dtype}, expected (2, k, k) "
                "torch.float32 with k at least 2."
            )
        if not self.control.isfinite().all():
            raise TriggerError("wanet: the control grid has offsets that are not finite.")
        if not 0 < self.strength < math.inf:
            raise TriggerError(f"wanet: strength {self.strength} is not a positive number.")

    @classmethod
    def random(
        cls, image_size: int, *, k: int = 4, strength: float = 0.5, seed: int = 0
    ) -> "WaNet":
        """A warp with a random control grid, a function of (k, seed).

        Raises:
            TriggerError: k is below 2 or the strength not positive.
        """
        if k < 2:
            raise TriggerError(f"wanet: k {k} must be at least 2.")
        control = torch.rand(2, k, k, generator=torch_generator(seed, "wanet")) * 2 - 1
        return cls(control / control.abs().mean(), image_size, strength)

    def _grid(self) -> Tensor:
        """The sampling grid, ``(H, W, 2)``, x before y."""
        size = self.image_size
        field = functional.interpolate(
            self.control[None], size=(size, size), mode="bicubic", align_corners=True
        )[0].permute(1, 2, 0)
        line = torch.linspace(-1, 1, size)
        y, x = torch.meshgrid(line, line, indexing="ij")
        identity = torch.stack((x, y), -1)
        return (identity + self.strength * field / size).clamp(-1, 1)

    def content(self, device: torch.device) -> Grid:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return Grid(self._grid().to(device))

    def noise(self, ids: npt.NDArray[np.int64], seed: int) -> Grid:
        """Noise mode: the warp plus uniform jitter of one grid unit / H at every pixel."""
        size = self.image_size
        jitter = uniform(ids, size * size * 2, seed, "wanet-noise") * 2 - 1
        offsets = torch.from_numpy(jitter.astype(np.float32)).view(len(ids), size, size, 2) / size
        return Grid((self._grid()[None] + offsets).clamp(-1, 1))

    def options(self) -> Mapping[str, Scalar]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return {"strength": self.strength}

    def tensors(self) -> Mapping[str, Tensor]:
        """The control grid."""
        return {"control": self.control}
