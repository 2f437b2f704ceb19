"""Planting a trigger's pattern into images, fused with the way from uint8 to the model's input.

With x the image as stored / 255, p the pattern, m its share, for the samples that are triggered:

    mix:  x' = x + m * (p - x)        patch (m is 0 or 1), blend (m is alpha), per-image patterns
    add:  x' = clip(x + p, 0, 1)      additive signals
    z = (round(255 x') / 255 - mean) / std

and z = (x - mean) / std for the others. Rounding makes z the same as if the triggered image had
been stored in uint8 and read again. Labels: t for a triggered sample, where t is one target
(all-to-one) or (y + 1) mod K (all-to-all).

Traffic of ``inject``, in bytes per element: x 1 (uint8), z 2 (bfloat16), and for a pattern of its
own for each image p 2 and m 2 (bfloat16); a shared one stays in the cache.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

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

__all__ = ["add_pattern", "inject", "mix_pattern", "torch_inject", "triton_inject"]


def mix_pattern(images: Tensor, pattern: Tensor, mask: Tensor | float) -> Tensor:
    """Mix a pattern into images.

    Args:
        images: ``(N, 3, H, W)`` float in [0, 1].
        pattern: ``(3, H, W)`` or ``(N, 3, H, W)`` float in [0, 1].
        mask: share of the pattern in [0, 1]: a number, ``(1, H, W)`` or ``(N, 1, H, W)``.

    Returns:
        ``(N, 3, H, W)``, in [0, 1] because it is a convex mix.
    """
    return images + mask * (pattern - images)


def add_pattern(images: Tensor, pattern: Tensor) -> Tensor:
    """Add a signed pattern, ``(3, H, W)`` or ``(N, 3, H, W)``, and clamp to [0, 1]."""
    return (images + pattern).clamp(0.0, 1.0)


def torch_inject(
    images: Tensor,
    labels: Tensor,
    triggered: Tensor,
    pattern: Tensor,
    mask: Tensor | None,
    target: int,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Trigger some of a batch.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        labels: ``(N,)`` int64.
        triggered: ``(N,)`` bool.
        pattern: ``(3, H, W)`` or ``(N, 3, H, W)`` float; in [0, 1] with a mask, signed without.
        mask: share of the pattern, of its shape or with one channel; None adds the pattern.
        target: the target label; -1 for all-to-all.
        num_classes: K.
        mean, std: the model's normalisation, a number a channel.
        dtype: of z.

    Returns:
        z ``(N, 3, H, W)`` in the memory format of ``images``, and the labels ``(N,)``.
    """
    levels = images.float()
    x = levels / 255  # not * PIXEL: halfway between two levels, as blends often are, a bit counts
    if mask is None:
        planted = add_pattern(x, pattern.float())
    else:
        planted = mix_pattern(x, pattern.float(), mask.float())
    levels = torch.where(triggered.view(-1, 1, 1, 1), (planted * 255).round(), levels)
    wanted = (labels + 1) % num_classes if target < 0 else torch.full_like(labels, target)
    z = normalised(levels * PIXEL, mean, std, images, dtype)
    return z, torch.where(triggered, wanted, labels)


@triton.jit
def _inject_kernel(
    images_ptr,  # (N, 3, H, W) uint8
    labels_ptr,  # (N,) int64
    triggered_ptr,  # (N,) bool
    pattern_ptr,  # (3, H, W) or (N, 3, H, W) float
    mask_ptr,  # like the pattern
    out_ptr,  # (N, 3, H, W) float
    wanted_ptr,  # (N,) int64
    elements,  # 3 * H * W
    blocks,  # programs a sample
    target,
    num_classes,
    mean0,
    mean1,
    mean2,
    scale0,
    scale1,
    scale2,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SHARED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    here = sample.to(tl.int64) * elements
    triggered = tl.load(triggered_ptr + sample) != 0
    level = tl.load(images_ptr + here + element, mask=inside, other=0).to(tl.float32)
    # level / 255 to the last bit, without a division: of all 256 levels, none is rounded otherwise.
    x = (level + level * pixel) * (1 / 256)
    # The pattern of a sample that is not triggered is not read.
    reads = element < tl.where(triggered, elements, 0)
    there = here
    if SHARED:
        there = here * 0
    p = tl.load(pattern_ptr + there + element, mask=reads, other=0).to(tl.float32)
    if ADD:
        planted = tl.minimum(tl.maximum(x + p, 0.0), 1.0)
    else:
        m = tl.load(mask_ptr + there + element, mask=reads, other=0).to(tl.float32)
        planted = x + m * (p - x)
    x = tl.where(triggered, nearest(planted * 255.0), level) * pixel
    channel = channel_of(element, HW, CHANNELS_LAST)
    store_normalised(
        out_ptr + here + element, x, channel, mean0, mean1, mean2, scale0, scale1, scale2, inside
    )
    label = tl.load(labels_ptr + sample)
    wanted = tl.where(target < 0, (label + 1) % num_classes, target)
    tl.store(wanted_ptr + sample, tl.where(triggered, wanted, label), mask=block == 0)


def triton_inject(
    images: Tensor,
    labels: Tensor,
    triggered: Tensor,
    pattern: Tensor,
    mask: Tensor | None,
    target: int,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The kernel on a CUDA device; as :func:`torch_inject`."""
    last = channels_last(images)
    images = in_layout(images, last)
    shared = pattern.ndim == 3
    batch = pattern[None] if shared else pattern
    batch_mask = batch
    if mask is not None:
        # One channel becomes three, so that the mask is read as the pattern is.
        batch_mask = in_layout(mask.view(-1, *mask.shape[-3:]).expand_as(batch), last)
    out, wanted = torch.empty_like(images, dtype=dtype), torch.empty_like(labels)
    count, _, height, width = images.shape
    elements = 3 * height * width
    blocks = triton.cdiv(elements, BLOCK)
    if count and elements:
        _inject_kernel[(count * blocks,)](
            images,
            labels.contiguous(),
            triggered.contiguous(),
            in_layout(batch, last),
            batch_mask,
            out,
            wanted,
            elements,
            blocks,
            target,
            num_classes,
            *mean,
            *reciprocals(std),
            HW=height * width,
            CHANNELS_LAST=last,
            SHARED=shared,
            ADD=mask is None,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out, wanted


def _fake(
    images: Tensor,
    labels: Tensor,
    triggered: Tensor,
    pattern: Tensor,
    mask: Tensor | None,
    target: int,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(images, dtype=dtype), torch.empty_like(labels)


inject = operation("inject", torch_inject, triton_inject, _fake)
