"""A random perturbation inside the eps ball: where PGD with random start begins.

L-inf, uniform in the cube:   d = eps * (2 u - 1)
L2, uniform in the ball:      d = eps * v^(1/D) * n / |n|,   D elements, n standard normal

and then d = clip(x + d, 0, 1) - x. The uniform numbers are words of the counter-based generator
Philox4x32-10 (Salmon et al., SC 2011) with the seed as its key and (element, sample id, purpose)
as its counter; the element is counted in NCHW order whatever the memory format. So d is a
function of (seed, sample id, element), and independent of the batch, its layout and the device.
The normal numbers are Box and Muller's, of two words.

Traffic, in bytes per element: x 1 (uint8), d 2 (float16). A program does one sample, as the start
is made once for several steps.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._common import (
    BLOCK,
    WARPS,
    channel_of,
    channels_last,
    floor_to,
    in_layout,
    load_unit,
    operation,
    unit,
)
from kernels._philox import philox
from kernels.pgd_step_l2 import inner_radius

__all__ = ["pgd_start", "torch_pgd_start", "triton_pgd_start"]

_UNIFORM, _NORMAL, _RADIUS = 0, 1, 2  # what a word is drawn for
_STEP = 2.0**-24  # of a float32 in [0, 1)
_step = tl.constexpr(_STEP)
_turn = tl.constexpr(2 * math.pi)


def torch_pgd_start(
    clean: Tensor, ids: Tensor, seed: int, eps: float, norm: str, dtype: torch.dtype
) -> Tensor:
    """A random start.

    Args:
        clean: images, ``(N, 3, H, W)``, uint8, or float in [0, 1].
        ids: ``(N,)`` int64, the samples' ids, at least 0.
        seed: from 0 to 2^63 - 1.
        eps: the ball's radius in pixel values.
        norm: ``linf`` or ``l2``.
        dtype: of the result; the ball's surface is rounded inwards to a 16-bit type.

    Returns:
        d, ``(N, 3, H, W)`` in the memory format of ``clean``.
    """
    shape = clean.shape
    dimension = shape[1] * shape[2] * shape[3]
    counter = ids.view(-1, 1), torch.arange(dimension, device=clean.device).view(1, -1)
    if norm == "linf":
        radius = floor_to(eps, dtype)
        word, _ = philox(seed, *counter, _UNIFORM)
        d = radius * (2 * _uniform(word) - 1)
    else:
        first, second = philox(seed, *counter, _NORMAL)
        size = torch.sqrt(-2 * torch.log(_uniform(first) + _STEP / 2))
        normal = size * torch.cos(2 * math.pi * _uniform(second))
        length = normal.square().sum(1, keepdim=True).sqrt()
        word, _ = philox(seed, ids.view(-1, 1), torch.zeros_like(ids).view(-1, 1), _RADIUS)
        share = torch.exp2(torch.log2(_uniform(word) + _STEP / 2) / max(1, dimension))
        d = normal * (inner_radius(eps, dtype) * share / length.clamp_min(_STEP))
    x = unit(clean)
    d = (x + d.view(shape)).clamp(0.0, 1.0) - x
    return torch.empty_like(clean, dtype=dtype).copy_(d)


def _uniform(word: Tensor) -> Tensor:
    """A 32-bit word in int64 to float32 in [0, 1): 24 bits, so exactly."""
    return (word >> 8).float() * _STEP


@triton.jit
def _word(word):
    return (word >> 8).to(tl.int32).to(tl.float32) * _step


@triton.jit
def _logical(element, elements, HW: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """An element's number in NCHW order."""
    number = element
    if CHANNELS_LAST:
        number = channel_of(element, HW, CHANNELS_LAST) * HW + element // 3
    return number


@triton.jit
def _normal(seed, number, low, high, purpose: tl.constexpr):
    first, second, _, _ = tl.philox(seed, number, low, high, number * 0 + purpose)
    return tl.sqrt(-2 * tl.log(_word(first) + _step / 2)) * tl.cos(_word(second) * _turn)


@triton.jit
def _pgd_start_kernel(
    clean_ptr,  # (N, 3, H, W) uint8 or float
    ids_ptr,  # (N,) int64
    out_ptr,  # (N, 3, H, W) float
    elements,  # 3 * H * W
    seed,
    eps,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EUCLIDEAN: tl.constexpr,
    UNIFORM: tl.constexpr,
    NORMAL: tl.constexpr,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    here = tl.program_id(0).to(tl.int64) * elements
    sample = tl.load(ids_ptr + tl.program_id(0))
    offset = tl.arange(0, BLOCK)
    low = offset * 0 + (sample & 0xFFFFFFFF).to(tl.int32)
    high = offset * 0 + (sample >> 32).to(tl.int32)
    factor = eps
    if EUCLIDEAN:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, elements, BLOCK):
            number = _logical(start + offset, elements, HW, CHANNELS_LAST)
            n = _normal(seed, number, low, high, NORMAL)
            total += tl.where(start + offset < elements, n * n, 0.0)
        length = tl.sqrt(tl.sum(total, axis=0))
        zero = offset * 0
        word, _, _, _ = tl.philox(seed, zero, low, high, zero + RADIUS)
        share = tl.exp2(tl.log2(_word(word) + _step / 2) / elements)
        factor = eps * tl.max(share, axis=0) / tl.maximum(length, _step)
    for start in range(0, elements, BLOCK):
        element = start + offset
        mask = element < elements
        number = _logical(element, elements, HW, CHANNELS_LAST)
        if EUCLIDEAN:
            d = _normal(seed, number, low, high, NORMAL) * factor
        else:
            word, _, _, _ = tl.philox(seed, number, low, high, offset * 0 + UNIFORM)
            d = factor * (2 * _word(word) - 1)
        x = load_unit(clean_ptr + here + element, mask)
        d = tl.minimum(tl.maximum(x + d, 0.0), 1.0) - x
        tl.store(out_ptr + here + element, d.to(out_ptr.dtype.element_ty), mask=mask)


def triton_pgd_start(
    clean: Tensor, ids: Tensor, seed: int, eps: float, norm: str, dtype: torch.dtype
) -> Tensor:
    """The kernel on a CUDA device; as :func:`torch_pgd_start`."""
    last = channels_last(clean)
    clean = in_layout(clean, last)
    out = torch.empty_like(clean, dtype=dtype)
    count, _, height, width = clean.shape
    if count and height * width:
        _pgd_start_kernel[(count,)](
            clean,
            ids.contiguous(),
            out,
            3 * height * width,
            seed,
            floor_to(eps, dtype) if norm == "linf" else inner_radius(eps, dtype),
            HW=height * width,
            CHANNELS_LAST=last,
            EUCLIDEAN=norm == "l2",
            UNIFORM=_UNIFORM,
            NORMAL=_NORMAL,
            RADIUS=_RADIUS,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out


def _fake(
    clean: Tensor, ids: Tensor, seed: int, eps: float, norm: str, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(clean, dtype=dtype)


pgd_start = operation("pgd_start", torch_pgd_start, triton_pgd_start, _fake)
