"""Bilinear warp of images by a sampling grid, in gather form, and fused with normalisation.

    x'[c, i, j] = sum over the four neighbours of grid[i, j] of weight * x[c, neighbour]
    z = (round(255 x') / 255 - mean) / std

Used by the WaNet trigger (Nguyen and Tran, ICLR 2021). Coordinates are those of
``torch.nn.functional.grid_sample`` with ``align_corners=True``: -1 is the centre of the first
pixel and 1 the centre of the last; outside is 0. Every output element gathers its own
neighbours, so the result does not depend on the order of threads. Rounding makes z the same as if
the warped image had been stored in uint8 and read again.

Traffic of ``warp_normalise``, in bytes per element: x 1 (uint8; neighbours share their reads in
the cache), z 2 (bfloat16), and for a grid of its own for each image 8 / 3 (float32).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels._common import (
    BLOCK,
    PIXEL,
    WARPS,
    channel_of,
    channels_last,
    in_layout,
    nearest,
    normalised,
    operation,
    pixel,
    reciprocals,
    store_normalised,
)

__all__ = ["torch_warp_normalise", "triton_warp_normalise", "warp", "warp_normalise"]


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


def torch_warp_normalise(
    images: Tensor,
    grid: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Warp uint8 images into a model's input.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        grid: ``(H, W, 2)`` or ``(N, H, W, 2)`` float32.
        mean, std: the model's normalisation, a number a channel.
        dtype: of z.

    Returns:
        z ``(N, 3, H, W)`` in the memory format of ``images``.
    """
    warped = warp(images.float() / 255, grid) if images.numel() else images.float()
    levels = (warped * 255).round().clamp(0, 255)
    return normalised(levels * PIXEL, mean, std, images, dtype)


@triton.jit
def _neighbour(image_ptr, row, column, channel, weight, height, width, inside, CHANNELS_LAST):
    """One neighbour's share; nothing where it lies outside the image."""
    there = (row >= 0) & (row < height) & (column >= 0) & (column < width) & inside
    if CHANNELS_LAST:
        offset = (row * width + column) * 3 + channel
    else:
        offset = (channel * height + row) * width + column
    return tl.load(image_ptr + offset, mask=there, other=0).to(tl.float32) * weight


@triton.jit
def _warp_kernel(
    images_ptr,  # (N, 3, H, W) uint8
    x_ptr,  # (H, W) or (N, H, W) float32
    y_ptr,  # (H, W) or (N, H, W) float32
    out_ptr,  # (N, 3, H, W) float
    height,
    width,
    blocks,  # programs a sample
    mean0,
    mean1,
    mean2,
    scale0,
    scale1,
    scale2,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    element = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = element < 3 * HW
    channel = channel_of(element, HW, CHANNELS_LAST)
    if CHANNELS_LAST:
        place = element // 3
    else:
        place = element % HW
    grid = sample * HW
    if SHARED:
        grid = grid * 0
    # From [-1, 1] to pixels, as grid_sample does with align_corners.
    x = (tl.load(x_ptr + grid + place, mask=inside, other=0) + 1.0) * 0.5 * (width - 1)
    y = (tl.load(y_ptr + grid + place, mask=inside, other=0) + 1.0) * 0.5 * (height - 1)
    left, top = tl.floor(x), tl.floor(y)
    column, row = left.to(tl.int32), top.to(tl.int32)
    right, low = x - left, y - top  # shares of the right and of the lower neighbours
    image = images_ptr + sample * 3 * HW
    # 255 x': the weights are as good for levels, so nothing is divided and multiplied again.
    level = _neighbour(
        image, row, column, channel, (1 - low) * (1 - right), height, width, inside, CHANNELS_LAST
    )
    level += _neighbour(
        image, row, column + 1, channel, (1 - low) * right, height, width, inside, CHANNELS_LAST
    )
    level += _neighbour(
        image, row + 1, column, channel, low * (1 - right), height, width, inside, CHANNELS_LAST
    )
    level += _neighbour(
        image, row + 1, column + 1, channel, low * right, height, width, inside, CHANNELS_LAST
    )
    value = tl.minimum(tl.maximum(nearest(level), 0.0), 255.0) * pixel
    here = sample * 3 * HW + element
    store_normalised(
        out_ptr + here, value, channel, mean0, mean1, mean2, scale0, scale1, scale2, inside
    )


def triton_warp_normalise(
    images: Tensor,
    grid: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The kernel on a CUDA device; as :func:`torch_warp_normalise`."""
    last = channels_last(images)
    images = in_layout(images, last)
    out = torch.empty_like(images, dtype=dtype)
    count, _, height, width = images.shape
    blocks = triton.cdiv(3 * height * width, BLOCK)
    if count and height * width:
        x, y = grid.float().unbind(-1)
        _warp_kernel[(count * blocks,)](
            images,
            x.contiguous(),
            y.contiguous(),
            out,
            height,
            width,
            blocks,
            *mean,
            *reciprocals(std),
            HW=height * width,
            CHANNELS_LAST=last,
            SHARED=grid.ndim == 3,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out


def _fake(
    images: Tensor,
    grid: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(images, dtype=dtype)


warp_normalise = operation("warp_normalise", torch_warp_normalise, triton_warp_normalise, _fake)
