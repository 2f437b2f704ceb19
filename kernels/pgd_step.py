"""One step of projected gradient descent: move, project to the eps ball, clamp to [0, 1].

L-inf (Madry et al., ICLR 2018), with x the clean image, d the perturbation, g the gradient:

    d' = clip(d + step * sign(g), -eps, eps);   d' = clip(x + d', 0, 1) - x

L2, with the norm taken over all elements of one sample:

    d' = d + step * g / |g|;   d' = d' * min(1, eps / |d'|);   d' = clip(x + d', 0, 1) - x

The caller gives the sign of ``step``: positive climbs the loss (untargeted), negative descends
it (targeted). Clamping moves every element towards the clean image, so it never leaves the
ball. The clamp is part of the step; the public PBE code omits it and leaves the image range.

A gradient that is NaN says nothing, so it leaves the pixel (L-inf) or the sample's element
(L2) where it was. An infinite one counts by its sign in L-inf and like NaN in L2, where it has
no share of a direction.
"""

import torch
from torch import Tensor

__all__ = ["pgd_step_l2", "pgd_step_linf"]

_TINY = 1e-12  # below any float32 gradient norm that carries information
# A subnormal floor would become 0, and the quotient NaN, where subnormals are flushed to 0.
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def pgd_step_linf(
    clean: Tensor, perturbation: Tensor, gradient: Tensor, *, eps: float, step: float
) -> Tensor:
    """The L-inf step above.

    Args:
        clean: images in [0, 1], ``(N, 3, H, W)`` float32.
        perturbation: the current d, same shape, inside the eps ball.
        gradient: of the loss with respect to the adversary's image, same shape, any float.
        eps, step: in units of pixel values, so 8/255 and not 8.

    Returns:
        the next perturbation, same shape and dtype as ``perturbation``.
    """
    # The sign is cast before it is scaled: a step in bfloat16 would be 0.4 % off.
    sign = torch.nan_to_num(gradient.sign().to(perturbation.dtype), nan=0.0)
    moved = perturbation + step * sign
    moved = moved.clamp(-eps, eps)
    return (clean + moved).clamp(0.0, 1.0) - clean


def pgd_step_l2(
    clean: Tensor, perturbation: Tensor, gradient: Tensor, *, eps: float, step: float
) -> Tensor:
    """The L2 step above; arguments and result as in :func:`pgd_step_linf`."""
    gradient = torch.nan_to_num(gradient.float(), nan=0.0, posinf=0.0, neginf=0.0)
    over_sample = tuple(range(1, gradient.ndim))
    # Dividing by the largest element first keeps the squares of tiny gradients from vanishing.
    gradient = gradient / gradient.abs().amax(over_sample, keepdim=True).clamp_min(_SMALLEST_NORMAL)
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=over_sample, keepdim=True)
    moved = perturbation + step * gradient / norm.clamp_min(_TINY)
    length: Tensor = torch.linalg.vector_norm(moved, dim=over_sample, keepdim=True)
    moved = moved * (eps / length.clamp_min(_TINY)).clamp_max(1.0)
    return (clean + moved).clamp(0.0, 1.0) - clean
