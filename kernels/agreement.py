"""How far two models agree on an image: the cosine of their logits.

    cos_i = <a_i, b_i> / (|a_i| |b_i|)

PBE scores every training image so, with a the infected model's logits and b the current
model's (Mu et al., CVPR 2023, section 4): low agreement means that erasing the backdoor
changed what the model sees in the image.
"""

import torch
from torch import Tensor

__all__ = ["agreement"]

# A subnormal floor would become 0, and the quotient NaN, where subnormals are flushed to 0.
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Row-wise cosine similarity, computed in float32.

    Args:
        first, second: logits, ``(N, K)``, any float dtype.

    Returns:
        ``(N,)`` float32 in [-1, 1]; 0 where a row is all zeros, NaN where one is not finite.
    """
    a, b = first.float(), second.float()
    # Scaling by the largest element keeps the squares of extreme logits finite.
    a = a / a.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)
    b = b / b.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_NORMAL)
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return ((a * b).sum(1) / norms.clamp_min(1e-12)).clamp(-1.0, 1.0)
