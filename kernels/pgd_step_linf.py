"""One step of projected gradient descent in L-inf (Madry et al., ICLR 2018), in one pass.

With x the clean image, d the perturbation, g the gradient of the loss:

    d' = clip(d + step * sign(g), -eps, eps);   d' = clip(x + d', 0, 1) - x
    z  = (clip(x + d', 0, 1) - mean) / std          the next input of the model

The caller gives the sign of ``step``: positive climbs the loss (untargeted), negative descends
it (targeted). The clamp is part of the step; the public PBE code omits it and leaves the image
range. A gradient that is NaN says nothing and leaves the pixel where it was; an infinite one
counts by its sign. g may be taken with respect to z: a positive std does not change its sign.

Traffic, in bytes per element: x 1 (uint8), d 2 + 2 (float16), g 2 and z 2 (bfloat16), 9 together.

With ``rows`` the images and perturbations are a pool and slot i steps sample rows[i]; its z is
that of sample following[i]. So a finished sample is exchanged for another by writing one index
(see ``retire``), and d needs no copying.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._common import floor_to, load_unit, operation, reciprocals
from kernels._step import Launch, fake_step, finish_step, slot_place, torch_finish, torch_samples

__all__ = ["pgd_step_linf", "torch_pgd_step_linf", "triton_pgd_step_linf"]


def torch_pgd_step_linf(
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
    """The step above; ``perturbation`` is changed in place.

    Args:
        clean: images, uint8, or float in [0, 1]; ``(N, 3, H, W)``, or ``(M, 3, H, W)`` with
            ``rows``.
        perturbation: d, of the shape of ``clean``, any float dtype. The ball's surface is
            rounded inwards to a 16-bit type, so that d never leaves it.
        gradient: ``(N, 3, H, W)``, any float dtype.
        eps, step: in units of pixel values, so 8/255 and not 8.
        mean, std: the model's normalisation, a number a channel; std positive.
        rows: ``(N,)`` int64, each sample at most once; -1 for a slot that steps none.
        following: ``(N,)`` int64, with ``rows`` only: whose z to return, -1 for nobody's. Where
            it differs from ``rows`` it is a sample that no slot steps. ``rows`` by default.

    Returns:
        z, ``(N, 3, H, W)`` in the gradient's dtype and memory format; nobody's is some finite
        image.
    """
    radius = floor_to(eps, perturbation.dtype)
    x, d = torch_samples(clean, perturbation, rows)
    direction = torch.nan_to_num(gradient.sign().float(), nan=0.0)
    moved = (d + step * direction).clamp(-radius, radius)
    return torch_finish(clean, x, moved, perturbation, rows, following, mean, std, gradient)


@triton.jit
def _pgd_step_linf_kernel(
    clean_ptr,  # (M, 3, H, W) uint8 or float
    perturbation_ptr,  # (M, 3, H, W) float
    gradient_ptr,  # (N, 3, H, W) float
    rows_ptr,  # (N,) int64
    following_ptr,  # (N,) int64
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
    BLOCK: tl.constexpr,
):
    element, here, there, mask = slot_place(rows_ptr, elements, blocks, INDEXED, BLOCK)
    x = load_unit(clean_ptr + there + element, mask)
    d = tl.load(perturbation_ptr + there + element, mask=mask, other=0).to(tl.float32)
    g = tl.load(gradient_ptr + here + element, mask=mask, other=0).to(tl.float32)
    direction = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))  # NaN is neither
    moved = tl.minimum(tl.maximum(d + step * direction, -eps), eps)
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


def triton_pgd_step_linf(
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
    """The kernel on a CUDA device; as :func:`torch_pgd_step_linf`."""
    launch = Launch.of(clean, perturbation, gradient, rows, following)
    if launch.count and launch.elements:
        _pgd_step_linf_kernel[(launch.count * launch.blocks,)](
            launch.clean,
            launch.perturbation,
            launch.gradient,
            launch.rows,
            launch.following,
            launch.out,
            launch.elements,
            launch.blocks,
            floor_to(eps, perturbation.dtype),
            step,
            *mean,
            *reciprocals(std),
            **launch.constants,
        )
    return launch.done(perturbation)


pgd_step_linf = operation(
    "pgd_step_linf", torch_pgd_step_linf, triton_pgd_step_linf, fake_step, mutates=["perturbation"]
)
