"""How alike two images' features are: L2, cosine, and how many of the strongest neurons agree.

All functions take ``(N, C)`` float features of N images, or of N pairs row by row, and return
``(N,)`` float32. A *neuron* is one of the C numbers: a unit of a fully connected layer, or a
channel of a map, averaged over its positions (:mod:`pbe_fast.analysis.features.layers`).
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cosine", "l2", "top_count", "top_overlap"]


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Length of the difference, in the unit of the features; 0 where they are the same."""
    return (a.float() - b.float()).square().sum(1).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle, in [-1, 1]; 0 where one of the two is zero, as it has no direction."""
    # Each is brought to length one by itself: a product of lengths overflows, or vanishes, sooner.
    a, b = (x / x.abs().amax(1, keepdim=True).clamp_min(1e-30) for x in (a.double(), b.double()))
    a, b = functional.normalize(a, dim=1), functional.normalize(b, dim=1)
    return (a * b).sum(1).clamp(-1.0, 1.0).float()


def top_count(width: int, share: float) -> int:
    """How many of ``width`` neurons are the strongest ``share``: rounded, and at least one."""
    return max(1, min(width, round(share * width)))


def top_overlap(a: Tensor, b: Tensor, count: int) -> Tensor:
    """Share of the ``count`` strongest neurons that both have in common, in [0, 1].

    "The same subset of neurons" as a number. Strong is what is far from zero: after a ReLU the most
    active, and where features have a sign, in either direction. A neuron that is zero is not
    strong, so where fewer are active, it is the share of those, of the image that has more. Of
    equals the first count. Two random subsets of C neurons share ``count / C`` on average.

    Raises:
        ValueError: ``count`` is not in 1 to C.
    """
    if not 1 <= count <= a.shape[1]:
        raise ValueError(f"count is {count}, not in 1 to {a.shape[1]}")
    first, second = _top(a, count), _top(b, count)
    strong = torch.maximum(first.sum(1), second.sum(1)).clamp_min(1)
    return (first & second).sum(1).float() / strong


def _top(features: Tensor, count: int) -> Tensor:
    """Which neurons are the strongest, ``(N, C)`` bool; none that is zero."""
    order = features.abs().sort(dim=1, descending=True, stable=True).indices
    chosen = torch.zeros_like(features, dtype=torch.bool)
    return chosen.scatter(1, order[:, :count], True) & (features != 0)
