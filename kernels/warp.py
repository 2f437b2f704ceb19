"""Bilinear warp of images by a sampling grid, in gather form.

    x'[c, i, j] = sum over the four neighbours of grid[i, j] of weight * x[c, neighbour]

Used by the WaNet trigger (Nguyen and Tran, ICLR 2021). Coordinates are those of
``torch.nn.functional.grid_sample`` with ``align_corners=True``: -1 is the centre of the first
pixel and 1 the centre of the last; outside is 0.
"""

from torch import Tensor
from torch.nn import functional

__all__ = ["warp"]


def warp(images: Tensor, grid: Tensor) -> Tensor:
    """Sample images at a grid.

    Args:
        images: ``(N, 3, H, W)`` float in [0, 1].
        grid: ``(H, W, 2)`` or ``(N, H, W, 2)``, the x and y to read for each pixel.

    Returns:
        ``(N, 3, H, W)``, same dtype as ``images``, in [0, 1] but for one rounding of the weights.
    """
    if grid.ndim == 3:
        grid = grid.expand(len(images), *grid.shape)
    return functional.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=True
    )
