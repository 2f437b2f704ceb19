"""What a norm supplies to the adversary's loop: a random start and one projected step."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernels import pgd_step_l2, pgd_step_linf
from pbe_fast.randomness import numpy_generator, uniform

__all__ = ["L2", "Linf", "Norm"]


class Norm(Protocol):
    """An eps ball around the clean image. All lengths are in units of pixel values."""

    @property
    def eps(self) -> float:
        """The ball's radius."""

    def start(self, clean: Tensor, ids: Tensor, seed: int) -> Tensor:
        """A random perturbation inside the ball, a function of (seed, sample id)."""

    def step(self, clean: Tensor, perturbation: Tensor, gradient: Tensor, step: float) -> Tensor:
        """One step along the gradient, projected to the ball and to [0, 1]."""


@dataclass(frozen=True)
class Linf:
    """``max |d| <= eps``, over all pixels and channels."""

    eps: float

    def start(self, clean: Tensor, ids: Tensor, seed: int) -> Tensor:
        """Uniform in the cube."""
        noise = _uniform_like(clean, ids, seed)
        return (clean + (2 * noise - 1) * self.eps).clamp(0, 1) - clean

    def step(self, clean: Tensor, perturbation: Tensor, gradient: Tensor, step: float) -> Tensor:
        """See :func:`kernels.pgd_step_linf`."""
        return pgd_step_linf(clean, perturbation, gradient, eps=self.eps, step=step)


@dataclass(frozen=True)
class L2:
    """``|d|_2 <= eps``, per sample; eps in pixel values, so 0.5 is a usual size at 32x32."""

    eps: float

    def start(self, clean: Tensor, ids: Tensor, seed: int) -> Tensor:
        """Uniform in the ball: a Gaussian direction, and a radius of eps * u^(1 / dimension)."""
        count, dimension = len(clean), clean[0].numel() if len(clean) else 1
        rows = [numpy_generator(seed, "start-l2", int(i)).standard_normal(dimension) for i in ids]
        gauss = np.stack(rows) if rows else np.zeros((0, dimension))
        direction = torch.from_numpy(gauss)  # (N, dimension)
        radius = torch.from_numpy(uniform(ids.cpu().numpy(), 1, seed, "radius-l2"))
        ball: Tensor = direction / direction.norm(dim=1, keepdim=True) * radius ** (1 / dimension)
        noise = (ball * self.eps).reshape(count, *clean.shape[1:]).to(clean)
        return (clean + noise).clamp(0, 1) - clean

    def step(self, clean: Tensor, perturbation: Tensor, gradient: Tensor, step: float) -> Tensor:
        """See :func:`kernels.pgd_step_l2`."""
        return pgd_step_l2(clean, perturbation, gradient, eps=self.eps, step=step)


def _uniform_like(clean: Tensor, ids: Tensor, seed: int) -> Tensor:
    dimension = clean[0].numel() if len(clean) else 1
    noise = torch.from_numpy(uniform(ids.cpu().numpy(), dimension, seed, "start-linf"))
    return noise.reshape(clean.shape).to(clean)
