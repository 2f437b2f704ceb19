"""What the L-inf and the L2 step share: addressing samples, clamping, writing d and z."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._common import (
    BLOCK,
    WARPS,
    channel_of,
    channels_last,
    in_layout,
    load_unit,
    normalised,
    store_normalised,
    unit,
)

__all__ = ["Launch", "fake_step", "finish_step", "slot_place", "torch_finish", "torch_samples"]


def torch_samples(
    clean: Tensor, perturbation: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x and d of every slot, in float32; an idle slot reads sample 0."""
    if rows is None:
        return unit(clean), perturbation.float()
    rows = rows.clamp_min(0)
    return unit(clean[rows]), perturbation[rows].float()


def torch_finish(
    clean: Tensor,
    x: Tensor,
    moved: Tensor,
    perturbation: Tensor,
    rows: Tensor | None,
    following: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    gradient: Tensor,
) -> Tensor:
    """Clamp, keep d in ``perturbation``, and return z."""
    d = ((x + moved).clamp(0.0, 1.0) - x).to(perturbation.dtype)
    if rows is None:
        perturbation.copy_(d)
    else:
        perturbation[rows[rows >= 0]] = d[rows >= 0]
    if following is not None:
        x, d = torch_samples(clean, perturbation, following)
    # The model sees what was stored, not what was meant, so that the result is what was tried.
    return normalised((x + d.float()).clamp(0.0, 1.0), mean, std, gradient)


@triton.jit
def slot_place(rows_ptr, elements, blocks, INDEXED: tl.constexpr, BLOCK: tl.constexpr):
    """Of one program: its elements within the sample, the sample's start in g and in x, a mask."""
    slot = tl.program_id(0) // blocks
    element = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    here = slot.to(tl.int64) * elements  # a batch may have more than 2^31 elements
    there = here
    if INDEXED:
        row = tl.load(rows_ptr + slot)
        mask = element < tl.where(row >= 0, elements, 0)
        there = tl.maximum(row, 0) * elements
    return element, here, there, mask


@triton.jit
def finish_step(
    clean_ptr,  # (M, 3, H, W)
    perturbation_ptr,  # (M, 3, H, W)
    rows_ptr,  # (N,)
    following_ptr,  # (N,)
    out_ptr,  # (N, 3, H, W)
    x,
    moved,
    element,
    here,
    there,
    mask,
    elements,
    blocks,
    mean0,
    mean1,
    mean2,
    scale0,
    scale1,
    scale2,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEXED: tl.constexpr,
):
    """As :func:`torch_finish`."""
    stored = tl.minimum(tl.maximum(x + moved, 0.0), 1.0) - x
    stored = stored.to(perturbation_ptr.dtype.element_ty)
    tl.store(perturbation_ptr + there + element, stored, mask=mask)
    d = stored.to(tl.float32)
    if INDEXED:
        # Another sample takes the slot: z is made of that one's pixels.
        slot = tl.program_id(0) // blocks
        row, following = tl.load(rows_ptr + slot), tl.load(following_ptr + slot)
        if following != row:
            other = element < tl.where(following >= 0, elements, 0)
            start = tl.maximum(following, 0) * elements
            x = load_unit(clean_ptr + start + element, other)
            d = tl.load(perturbation_ptr + start + element, mask=other, other=0).to(tl.float32)
    channel = channel_of(element, HW, CHANNELS_LAST)
    x = tl.minimum(tl.maximum(x + d, 0.0), 1.0)
    inside = element < elements
    store_normalised(
        out_ptr + here + element, x, channel, mean0, mean1, mean2, scale0, scale1, scale2, inside
    )


@dataclass(frozen=True)
class Launch:
    """A step's tensors in one memory layout, and the sizes of the launch."""

    clean: Tensor
    perturbation: Tensor
    gradient: Tensor
    rows: Tensor
    following: Tensor
    out: Tensor
    count: int
    elements: int
    blocks: int
    constants: dict[str, Any]

    @classmethod
    def of(
        cls,
        clean: Tensor,
        perturbation: Tensor,
        gradient: Tensor,
        rows: Tensor | None,
        following: Tensor | None,
    ) -> "Launch":
        """Everything in the gradient's layout; a copy only of what lies otherwise."""
        if rows is not None and following is None:
            following = rows
        last = channels_last(gradient)
        gradient = in_layout(gradient, last)
        count, _, height, width = gradient.shape
        elements = 3 * height * width
        return cls(
            clean=in_layout(clean, last),
            perturbation=in_layout(perturbation, last),
            gradient=gradient,
            rows=gradient if rows is None else rows.contiguous(),  # never read where there are none
            following=gradient if following is None else following.contiguous(),
            out=torch.empty_like(gradient),
            count=count,
            elements=elements,
            blocks=triton.cdiv(elements, BLOCK),
            constants={
                "HW": height * width,
                "CHANNELS_LAST": last,
                "INDEXED": rows is not None,
                "BLOCK": BLOCK,
                "num_warps": WARPS,
                # A fused multiply-add would round differently from the twin.
                "enable_fp_fusion": False,
            },
        )

    def done(self, perturbation: Tensor) -> Tensor:
        """z, with d written back where a copy was worked on."""
        if self.perturbation is not perturbation:
            perturbation.copy_(self.perturbation)
        return self.out


def fake_step(
    clean: Tensor, perturbation: Tensor, gradient: Tensor, *numbers: object, **more: object
) -> Tensor:
    """The shape of z."""
    return torch.empty_like(gradient)
