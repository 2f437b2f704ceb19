"""The perturbations of appendix A.2, found by the project's own adversary.

:class:`pbe_fast.adversary.Miner` perturbs images in [0, 1] and descends or climbs a cross-entropy;
A.2 has vectors of R^d and an objective of its own. Both are bridged without a change to the
adversary, by the network that it is given:

- A vector z is an image of ceil(sqrt(d / 3)) pixels a side with the values 1/2 + c z, and grey
  where d ends. c is such that the ball of radius delta stays inside (0, 1), so the clamp never
  acts; eps is c delta.
- The image is r itself, grey at the start, and the network knows the examples: in single precision
  a small r would be lost beside them.
- (8) asks for one r for all examples. The network has two logits, 0 and b (L(r) - L(0)) with L of
  (9), the minimum over j included. The cross-entropy of the second is a falling function of L, and
  a step of L2 is as long as the gradient is not, so a targeted descent makes the same steps as an
  ascent of L. b keeps it from saturating.

L is a mean of minima of linear functions, so it is concave, and where it is linear in the whole
ball, as (12) says, the ascent turns to its gradient by a constant factor a step.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pbe_fast.adversary import L2, PGD, Miner
from pbe_fast.analysis.linear.quantities import Analysis
from pbe_fast.analysis.linear.setting import Array, Problem
from pbe_fast.device import Device

__all__ = ["Ascent", "Untargeted", "ascend", "gap", "untargeted"]

_CPU = Device(torch.device("cpu"), "float32", "contiguous")
_STEPS = 60
_STEP = 0.5  # of the radius; the angle to the gradient shrinks by 1 / (1 + _STEP) a step


@dataclass(frozen=True)
class Ascent:
    """The r of (8) as the adversary found it.

    Attributes:
        r: ``(d,)``.
        along: |r_perp|, the length of its projection on P.
        gain: L(r) - L(0), with L of (9).
        outside: the largest distance of a pixel from grey; below 1/2 no clamp has acted.
    """

    r: Array
    along: float
    gain: float
    outside: float


@dataclass(frozen=True)
class Untargeted:
    """Untargeted examples, one r an example of (9), which is what AFT mines.

    Attributes:
        share: the mean of |<r_i, P>| / (|P| |r_i|).
        to_target: the part of the examples that the model then takes for the target class.
        fooled: the part that it gets wrong.
    """

    share: float
    to_target: float
    fooled: float


def gap(task: Problem, weights: Array, r: Array) -> float:
    """L(r) of (9) with k = l: the mean over y_i != l of min over j != l of <w_l - w_j, x_i + r>."""
    logits = (task.points[task.labels != task.target] + r) @ weights
    others = np.delete(logits, task.target, axis=1)
    return float((logits[:, task.target] - others.max(1)).mean())


class _Gap(nn.Module):
    """An image of r to the logits 0 and b (L(r) - L(0))."""

    columns: Tensor  # (d, K - 1): w_l - w_j
    at_zero: Tensor  # (N, K - 1): of the examples of (9), without r
    before: Tensor  # L(0)

    def __init__(self, a: Analysis, scale: float) -> None:
        super().__init__()
        weights, target = a.infected.weights, a.task.target
        columns = weights[:, [target]] - np.delete(weights, target, axis=1)  # (d, K - 1)
        at_zero = a.task.points[a.task.labels != target] @ columns
        steep = float(np.linalg.norm(columns, axis=0).max()) * a.delta
        self.scale, self.steep = scale, max(steep, 1e-30)
        self.register_buffer("columns", torch.from_numpy(columns))
        self.register_buffer("at_zero", torch.from_numpy(at_zero))
        self.register_buffer("before", torch.tensor(at_zero.min(1).mean()))

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, side, side) to (N, 2)
        r = _vectors(images, len(self.columns), self.scale)
        reached = (self.at_zero + (r @ self.columns)[:, None]).amin(2).mean(1)
        gained = (reached - self.before) / self.steep
        return torch.stack([torch.zeros_like(gained), gained], 1)


class _Linear(nn.Module):
    """The i-th image, of r, to W^T (x_i + r)."""

    points: Tensor  # (N, d)
    weights: Tensor  # (d, K)

    def __init__(self, points: Array, weights: Array, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("points", torch.from_numpy(points))
        self.register_buffer("weights", torch.from_numpy(weights))

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, side, side) to (N, K)
        r = _vectors(images, len(self.weights), self.scale)
        return (self.points + r) @ self.weights


def ascend(a: Analysis) -> Ascent:
    """The maximiser of (9) in the ball of radius delta, for the infected model."""
    scale = 0.45 / a.delta
    image = _images(np.zeros((1, len(a.task.patch))), scale)
    found = _mined(_Gap(a, scale), image, torch.ones(1, dtype=torch.int64), scale * a.delta, True)
    r = _vectors(found, len(a.task.patch), scale).numpy()[0]
    along = abs(float(r @ a.task.patch)) / a.task.rho
    weights = a.infected.weights
    gained = gap(a.task, weights, r) - gap(a.task, weights, np.zeros_like(r))
    return Ascent(r, along, gained, float((found - 0.5).abs().max()))


def untargeted(task: Problem, weights: Array, delta: float) -> Untargeted:
    """An untargeted example of radius delta for each example of (9), as AFT would mine it in L2.

    Args:
        weights: of the model that is attacked, ``(d, K)``.
    """
    chosen = task.labels != task.target
    points, labels = task.points[chosen], torch.from_numpy(task.labels[chosen])
    scale = 0.45 / delta
    images = _images(np.zeros_like(points), scale)
    found = _mined(_Linear(points, weights, scale), images, labels, scale * delta, False)
    r = _vectors(found, len(task.patch), scale).numpy()
    lengths = np.maximum(np.linalg.norm(r, axis=1), 1e-300)
    answers = ((points + r) @ weights).argmax(1)
    return Untargeted(
        float((np.abs(r @ task.patch) / (task.rho * lengths)).mean()),
        float((answers == task.target).mean()),
        float((answers != labels.numpy()).mean()),
    )


def _mined(net: nn.Module, images: Tensor, labels: Tensor, eps: float, targeted: bool) -> Tensor:
    rule = PGD(
        norm=L2(eps), steps=_STEPS, step=_STEP * eps, targeted=targeted, fold=False, compile=False
    )
    return Miner(rule, net, _CPU)(images, labels)


def _images(vectors: Array, scale: float) -> Tensor:
    """``(N, d)`` to ``(N, 3, side, side)`` float32."""
    count, d = vectors.shape
    side = math.ceil(math.sqrt(d / 3))
    flat = torch.zeros(count, 3 * side * side, dtype=torch.float64)
    flat[:, :d] = torch.from_numpy(vectors)
    return (0.5 + scale * flat).view(count, 3, side, side).float()


def _vectors(images: Tensor, d: int, scale: float) -> Tensor:
    """``(N, 3, side, side)`` to ``(N, d)`` float64."""
    return (images.double().flatten(1)[:, :d] - 0.5) / scale
