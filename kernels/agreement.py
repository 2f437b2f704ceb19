"""How far two models agree on an image: the cosine of their logits, and each one's margin.

    cos_i = <a_i, b_i> / (|a_i| |b_i|)
    margin(a)_i = a_i[y_i] - max over k != y_i of a_i[k]

PBE scores every training image by the cosine, with a the infected model's logits and b the
current model's (Mu et al., CVPR 2023, section 4): low agreement means that erasing the backdoor
changed what the model sees in the image. The margin says how sure a model is of the image's label.

Traffic, in bytes per pair of logits: 4 (bfloat16) or 8 (float32), each read once. Squares of
extreme logits stay finite, since every block of a row is divided by its largest element before
it is added to the row's sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._common import WARPS, operation

__all__ = ["agreement", "torch_agreement", "triton_agreement"]

# A subnormal floor would become 0, and the quotient NaN, where subnormals are flushed to 0.
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
_smallest_normal = tl.constexpr(_SMALLEST_NORMAL)
_FLOOR = 1e-12
_floor = tl.constexpr(_FLOOR)
_BLOCK = 1024


def torch_agreement(first: Tensor, second: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and margins of each row, computed in float32.

    Args:
        first, second: logits, ``(N, K)``, any float dtype, K at least 2.
        labels: ``(N,)`` int64, from 0 to K - 1.

    Returns:
        three ``(N,)`` float32: the cosine in [-1, 1], 0 where a row is all zeros and NaN where
        one is not finite; the margin of ``first``; the margin of ``second``.
    """
    a, b = first.float(), second.float()
    margins = [_margin(a, labels), _margin(b, labels)]
    # Scaling by the largest element keeps the squares of extreme logits finite.
    a = a / a.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)
    b = b / b.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosine = ((a * b).sum(1) / norms.clamp_min(_FLOOR)).clamp(-1.0, 1.0)
    return cosine, margins[0], margins[1]


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own[:, 0] - others.amax(1)


@triton.jit
def _larger(old, values):
    """The larger of a number and the largest of a block; NaN if either has one."""
    new = tl.max(values, axis=0)
    bad = tl.sum((values != values).to(tl.int32), axis=0) > 0
    new = tl.where(bad, float("nan"), new)
    return tl.where(new > old, new, tl.where(new != new, new, old))


@triton.jit
def _agreement_kernel(
    first_ptr,  # (N, K) float
    second_ptr,  # (N, K) float
    labels_ptr,  # (N,) int64
    cosine_ptr,  # (N,) float32
    first_margin_ptr,  # (N,) float32
    second_margin_ptr,  # (N,) float32
    classes: tl.constexpr,  # K; known, so that loads are wide where it is a multiple of 8
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    # Of what was read so far: the largest |a| and |b|, and sums of products of a / |a|max and
    # b / |b|max.
    top_a = tl.full((), _smallest_normal, tl.float32)
    top_b = tl.full((), _smallest_normal, tl.float32)
    aa = tl.zeros((), tl.float32)
    bb = tl.zeros((), tl.float32)
    ab = tl.zeros((), tl.float32)
    own_a = tl.zeros((), tl.float32)
    own_b = tl.zeros((), tl.float32)
    other_a = tl.full((), float("-inf"), tl.float32)
    other_b = tl.full((), float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < classes
        a = tl.load(first_ptr + row * classes + k, mask=inside, other=0).to(tl.float32)
        b = tl.load(second_ptr + row * classes + k, mask=inside, other=0).to(tl.float32)
        own = k == label
        own_a += tl.sum(tl.where(own, a, 0.0), axis=0)
        own_b += tl.sum(tl.where(own, b, 0.0), axis=0)
        rest = inside & (k != label)
        other_a = _larger(other_a, tl.where(rest, a, float("-inf")))
        other_b = _larger(other_b, tl.where(rest, b, float("-inf")))
        new_a = _larger(top_a, tl.abs(a))
        new_b = _larger(top_b, tl.abs(b))
        shrink_a, shrink_b = top_a / new_a, top_b / new_b
        a, b = a / new_a, b / new_b
        aa = aa * shrink_a * shrink_a + tl.sum(a * a, axis=0)
        bb = bb * shrink_b * shrink_b + tl.sum(b * b, axis=0)
        ab = ab * shrink_a * shrink_b + tl.sum(a * b, axis=0)
        top_a, top_b = new_a, new_b
    norms = tl.sqrt(aa) * tl.sqrt(bb)
    cosine = ab / tl.where(norms < _floor, _floor, norms)
    cosine = tl.where(cosine > 1.0, 1.0, tl.where(cosine < -1.0, -1.0, cosine))  # keeps NaN
    tl.store(cosine_ptr + row, cosine)
    tl.store(first_margin_ptr + row, own_a - other_a)
    tl.store(second_margin_ptr + row, own_b - other_b)


def triton_agreement(
    first: Tensor, second: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel on a CUDA device; as :func:`torch_agreement`."""
    count, classes = first.shape
    out = _fake(first, second, labels)
    if count:
        block = min(_BLOCK, triton.next_power_of_2(classes))
        _agreement_kernel[(count,)](
            first.contiguous(),
            second.contiguous(),
            labels.contiguous(),
            *out,
            classes,
            BLOCK=block,
            num_warps=1 if block <= 256 else 2 * WARPS,  # 16 bytes of bfloat16 a thread
            enable_fp_fusion=False,
        )
    return out


def _fake(first: Tensor, second: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def row() -> Tensor:
        return first.new_empty(len(first), dtype=torch.float32)

    return row(), row(), row()


agreement = operation("agreement", torch_agreement, triton_agreement, _fake)
