"""One step of projected gradient descent in L2, with each sample's norms, in two passes.

With x the clean image, d the perturbation, g the gradient of the loss, all of one sample:

    d' = d + step * g / |g|;   d' = d' * min(1, eps / |d'|);   d' = clip(x + d', 0, 1) - x
    z  = (clip(x + d', 0, 1) - mean) / std          the next input of the model

``gradient`` is taken with respect to z, so g = gradient / std. Clamping moves every element
towards the clean image, so d never leaves the ball. A gradient that is not finite says nothing:
its element has no share of the direction.

The first pass leaves, for every block of a sample, max|g|, and the sums of (g/max)^2, d*g/max and
d^2; the second combines them, since |d + s g/|g||^2 = |d|^2 + 2 s <d, g>/|g| + s^2. Dividing by
the largest element keeps the squares of tiny gradients from vanishing. Nothing waits for the
host, and the order of every sum is fixed.

Traffic, in bytes per element: first pass d 2 (float16), g 2 (bfloat16); second pass x 1 (uint8),
d 2 + 2, g 2, z 2: 13 together.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._common import channel_of, load_unit, of_channel, operation, reciprocals
from kernels._step import Launch, fake_step, finish_step, slot_place, torch_finish, torch_samples

__all__ = ["pgd_step_l2", "torch_pgd_step_l2", "triton_pgd_step_l2"]

_TINY = 1e-12  # below any float32 gradient norm that carries information
# A subnormal floor would become 0, and the quotient NaN, where subnormals are flushed to 0.
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
_tiny = tl.constexpr(_TINY)
_smallest_normal = tl.constexpr(_SMALLEST_NORMAL)


def torch_pgd_step_l2(
    clean: Tensor,
    perturbation: Tensor,
    gradient: Tensor,
    eps: float,
    step: float,
    mean: Sequence[float],
    std: Sequence[float],
    rows: Tensor | None = None,
    following: Tensor | None = None,
) -> Tensor:
    """The step above; arguments and result as in :func:`kernels.pgd_step_linf`.

    A 16-bit ``perturbation`` is projected a little inside the ball, so that rounding, which is
    relative, does not take it out.
    """
    radius = inner_radius(eps, perturbation.dtype)
    x, d = torch_samples(clean, perturbation, rows)
    scale = torch.tensor(reciprocals(std), device=d.device).view(1, 3, 1, 1)
    g = torch.nan_to_num(gradient.float() * scale, nan=0.0, posinf=0.0, neginf=0.0)
    over_sample = (1, 2, 3)
    if g.numel():
        g = g / g.abs().amax(over_sample, keepdim=True).clamp_min(_SMALLEST_NORMAL)
    norm: Tensor = torch.linalg.vector_norm(g, dim=over_sample, keepdim=True)
    direction = g / norm.clamp_min(_TINY)
    moved = d + step * direction
    length: Tensor = torch.linalg.vector_norm(moved, dim=over_sample, keepdim=True)
    moved = moved * (radius / length.clamp_min(_TINY)).clamp_max(1.0)
    return torch_finish(clean, x, moved, perturbation, rows, following, mean, std, gradient)


def inner_radius(eps: float, dtype: torch.dtype) -> float:
    """eps, less what rounding to a 16-bit type can add to a norm, and as much again."""
    if dtype not in (torch.float16, torch.bfloat16):
        return eps
    return eps * (1 - torch.finfo(dtype).eps)


@triton.jit
def _load_gradient(pointer, mask, channel, scale0, scale1, scale2):
    """Of the loss by the pixels; what is not finite is 0."""
    g = tl.load(pointer, mask=mask, other=0).to(tl.float32)
    g = g * of_channel(channel, scale0, scale1, scale2)
    return tl.where(tl.abs(g) < float("inf"), g, 0.0)  # NaN compares false


@triton.jit
def _sums_kernel(
    perturbation_ptr,  # (M, 3, H, W) float
    gradient_ptr,  # (N, 3, H, W) float
    rows_ptr,  # (N,) int64
    sums_ptr,  # (N, 4, blocks) float32: max|g|, (g/max)^2, d*g/max, d^2
    elements,  # 3 * H * W
    blocks,  # programs a sample
    scale0,
    scale1,
    scale2,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEXED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0) // blocks
    element, here, there, mask = slot_place(rows_ptr, elements, blocks, INDEXED, BLOCK)
    d = tl.load(perturbation_ptr + there + element, mask=mask, other=0).to(tl.float32)
    channel = channel_of(element, HW, CHANNELS_LAST)
    g = _load_gradient(gradient_ptr + here + element, mask, channel, scale0, scale1, scale2)
    largest = tl.max(tl.abs(g), axis=0)
    g = g / tl.maximum(largest, _smallest_normal)
    place = sums_ptr + slot.to(tl.int64) * 4 * blocks + tl.program_id(0) % blocks
    tl.store(place, largest)
    tl.store(place + blocks, tl.sum(g * g, axis=0))
    tl.store(place + 2 * blocks, tl.sum(d * g, axis=0))
    tl.store(place + 3 * blocks, tl.sum(d * d, axis=0))


@triton.jit
def _pgd_step_l2_kernel(
    clean_ptr,  # (M, 3, H, W) uint8 or float
    perturbation_ptr,  # (M, 3, H, W) float
    gradient_ptr,  # (N, 3, H, W) float
    rows_ptr,  # (N,) int64
    following_ptr,  # (N,) int64
    sums_ptr,  # (N, 4, blocks) float32
    out_ptr,  # (N, 3, H, W), like the gradient
    elements,  # 3 * H * W
    blocks,  # programs a sample
    eps,
    step,
    mean0,
    mean1,
    mean2,
    scale0,
    scale1,
    scale2,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEXED: tl.constexpr,
    BLOCKS: tl.constexpr,  # power of two, at least ``blocks``
    BLOCK: tl.constexpr,
):
    element, here, there, mask = slot_place(rows_ptr, elements, blocks, INDEXED, BLOCK)
    slot = tl.program_id(0) // blocks
    part = tl.arange(0, BLOCKS)
    place = sums_ptr + slot.to(tl.int64) * 4 * blocks + part
    largest = tl.load(place, mask=part < blocks, other=0)
    overall = tl.maximum(tl.max(largest, axis=0), _smallest_normal)
    share = largest / overall
    gg = tl.sum(tl.load(place + blocks, mask=part < blocks, other=0) * share * share, axis=0)
    dg = tl.sum(tl.load(place + 2 * blocks, mask=part < blocks, other=0) * share, axis=0)
    dd = tl.sum(tl.load(place + 3 * blocks, mask=part < blocks, other=0), axis=0)
    norm = tl.maximum(tl.sqrt(gg), _tiny)
    along = step / norm  # d' = d + along * g / overall
    # Rounding may make the square of a length that is nearly 0 negative.
    length = tl.sqrt(tl.maximum(dd + 2 * along * dg + along * along * gg, 0.0))
    shrink = tl.minimum(eps / tl.maximum(length, _tiny), 1.0)

    x = load_unit(clean_ptr + there + element, mask)
    d = tl.load(perturbation_ptr + there + element, mask=mask, other=0).to(tl.float32)
    channel = channel_of(element, HW, CHANNELS_LAST)
    g = _load_gradient(gradient_ptr + here + element, mask, channel, scale0, scale1, scale2)
    moved = (d + along * (g / overall)) * shrink
    finish_step(
        clean_ptr,
        perturbation_ptr,
        rows_ptr,
        following_ptr,
        out_ptr,
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
        HW,
        CHANNELS_LAST,
        INDEXED,
    )


def triton_pgd_step_l2(
    clean: Tensor,
    perturbation: Tensor,
    gradient: Tensor,
    eps: float,
    step: float,
    mean: Sequence[float],
    std: Sequence[float],
    rows: Tensor | None = None,
    following: Tensor | None = None,
) -> Tensor:
    """The kernels on a CUDA device; as :func:`torch_pgd_step_l2`."""
    launch = Launch.of(clean, perturbation, gradient, rows, following)
    if launch.count and launch.elements:
        grid = (launch.count * launch.blocks,)
        scale = reciprocals(std)
        sums = torch.empty(launch.count, 4, launch.blocks, device=gradient.device)
        _sums_kernel[grid](
            launch.perturbation,
            launch.gradient,
            launch.rows,
            sums,
            launch.elements,
            launch.blocks,
            *scale,
            **launch.constants,
        )
        _pgd_step_l2_kernel[grid](
            launch.clean,
            launch.perturbation,
            launch.gradient,
            launch.rows,
            launch.following,
            sums,
            launch.out,
            launch.elements,
            launch.blocks,
            inner_radius(eps, perturbation.dtype),
            step,
            *mean,
            *scale,
            BLOCKS=triton.next_power_of_2(launch.blocks),
            **launch.constants,
        )
    return launch.done(perturbation)


pgd_step_l2 = operation(
    "pgd_step_l2", torch_pgd_step_l2, triton_pgd_step_l2, fake_step, mutates=["perturbation"]
)
