"""What a norm supplies to the adversary's loop: a random start and one projected step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels import pgd_start, pgd_step_l2, pgd_step_linf

__all__ = ["L2", "Linf", "Norm"]


class Norm(Protocol):
    """An eps ball around the clean image. All lengths are in units of pixel values."""

    @property
    def eps(self) -> float:
        """The ball's radius."""

    def start(self, clean: Tensor, ids: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
        """A random perturbation inside the ball, a function of (seed, sample id)."""

    def step(
        self,
        clean: Tensor,
        perturbation: Tensor,
        gradient: Tensor,
        step: float,
        mean: Sequence[float],
        std: Sequence[float],
        rows: Tensor | None = None,
        following: Tensor | None = None,
    ) -> Tensor:
        """One step, projected to the ball and to [0, 1], and the model's next input.

        See :func:`kernels.pgd_step_linf` for the arguments.
        """


@dataclass(frozen=True)
class Linf:
    """``max |d| <= eps``, over all pixels and channels."""

    eps: float

    def start(self, clean: Tensor, ids: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
        """Uniform in the cube."""
        return pgd_start(clean, ids, seed, self.eps, "linf", dtype)

    def step(
        self,
        clean: Tensor,
        perturbation: Tensor,
        gradient: Tensor,
        step: float,
        mean: Sequence[float],
        std: Sequence[float],
        rows: Tensor | None = None,
        following: Tensor | None = None,
    ) -> Tensor:
        """See :func:`kernels.pgd_step_linf`."""
        return pgd_step_linf(
            clean, perturbation, gradient, self.eps, step, mean, std, rows, following
        )


@dataclass(frozen=True)
class L2:
    """``|d|_2 <= eps``, per sample; eps in pixel values, so 0.5 is a usual size at 32x32."""

    eps: float

    def start(self, clean: Tensor, ids: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
        """Uniform in the ball: a Gaussian direction, and a radius of eps * u^(1 / dimension)."""
        return pgd_start(clean, ids, seed, self.eps, "l2", dtype)

    def step(
        self,
        clean: Tensor,
        perturbation: Tensor,
        gradient: Tensor,
        step: float,
        mean: Sequence[float],
        std: Sequence[float],
        rows: Tensor | None = None,
        following: Tensor | None = None,
    ) -> Tensor:
        """See :func:`kernels.pgd_step_l2`."""
        return pgd_step_l2(
            clean, perturbation, gradient, self.eps, step, mean, std, rows, following
        )
