"""Projected gradient descent on the cross-entropy (Madry et al., ICLR 2018): one loop.

This is the adversary of adversarial fine-tuning (DESIGN section 2, AFT): untargeted, L-inf,
7 steps, eps 6/255, step eps/5, no random start, against the current model in eval mode.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.adversary.norms import Norm
from pbe_fast.device import Device

__all__ = ["PGD"]


@dataclass(frozen=True, kw_only=True)
class PGD:
    """How adversarial examples are mined.

    Attributes:
        norm: the ball that perturbations stay in.
        steps: gradient steps.
        step: length of a step, in the norm's unit.
        random_start: begin at a random point of the ball instead of the clean image.
        targeted: descend towards the given labels instead of climbing away from them.
    """

    norm: Norm
    steps: int
    step: float
    random_start: bool = False
    targeted: bool = False

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        device: Device,
        *,
        ids: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Mine one adversarial example for each image.

        Args:
            model: takes images in [0, 1] and returns logits ``(N, K)``. It is used in eval mode
                without gradients for its parameters; both are restored afterwards.
            images: clean images, ``(N, 3, H, W)`` float32 in [0, 1], on the model's device.
            labels: the true labels (untargeted) or the wanted ones (targeted), ``(N,)`` int64.
            device: gives the precision of the model's arithmetic.
            ids, seed: of what the random start is a function; needed with ``random_start``.

        Returns:
            the adversarial examples, same shape and dtype as ``images``, in [0, 1] and in the
            ball around ``images``.

        Raises:
            ValueError: ``random_start`` without ``ids``.
        """
        if self.random_start and ids is None:
            raise ValueError("random_start needs the samples' ids, so that it can be repeated")
        images = images.detach()
        if self.random_start and ids is not None:
            perturbation = self.norm.start(images, ids, seed)
        else:
            perturbation = torch.zeros_like(images)
        step = -self.step if self.targeted else self.step
        with _frozen(model), torch.enable_grad():
            for _ in range(self.steps):
                adversarial = (images + perturbation).requires_grad_()
                with device.autocast():
                    logits = model(adversarial)
                # A sum, so that one sample's gradient does not shrink with the batch.
                loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, adversarial)
                perturbation = self.norm.step(images, perturbation, gradient, step)
        # The clamp inside the step is undone by one rounding of x + (x' - x) at most.
        return (images + perturbation).clamp_(0.0, 1.0)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside the block; all as it was after it."""
    training = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, grad in wanted:
            parameter.requires_grad_(grad)
