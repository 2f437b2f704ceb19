"""FT-SAM: fine-tuning where the loss is flat, which shrinks the large weights of a backdoor.

M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, "Enhancing Fine-Tuning Based Backdoor Defense with
Sharpness-Aware Minimization", ICCV 2023 (arXiv 2304.11823), section 4:

    min over w of  max over |T_w^-1 e|_2 <= rho of  L(w + e),    T_w = diag(|w|)

Neurons of a backdoor have large weights, and the ball is wide along large weights (adaptive SAM,
Kwon et al., ICML 2021). To first order the worst e is rho T_w^2 g / |T_w g|_2, with g the gradient
at w; the step is then taken with the gradient at w + e.

The paper's: SGD with momentum 0.9, weight decay 5e-4 and a learning rate of 0.01 that falls to zero
by a cosine; rho is 8 for GTSRB and 2 for CIFAR-10, with a ResNet-18 of 11 million weights. The ball
is of all weights together, so the same push of each has a smaller one where there are fewer: rho is
that of GTSRB, times the root of the share of 11 million. Its 50 to 100 epochs of batches of 256 are
25 epochs of batches of 128 here, as many updates as 50. Batch norm learns its statistics at w, not
at w + e.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.baselines._common import (
    Ids,
    frozen_statistics,
    logits_of,
    minibatches,
    reproducible,
)
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress
from pbe_fast.training import cosine

__all__ = ["DEFAULTS", "SharpnessAware", "climb", "sharpness_aware_tuning"]


@dataclass(frozen=True)
class SharpnessAware:
    """Its numbers.

    Attributes:
        rho: radius of the ball for 11.2 million weights, in multiples of the weights.
    """

    epochs: int = 25
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    rho: float = 8.0


DEFAULTS = SharpnessAware()
_WEIGHTS = 11.2e6


def sharpness_aware_tuning(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: SharpnessAware = DEFAULTS,
) -> None:
    """Fine-tune; see :class:`bench.baselines._common.Erase` for the arguments."""
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(
        weights, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    epochs, size = settings.epochs, settings.batch_size
    rho = settings.rho * (sum(weight.numel() for weight in weights) / _WEIGHTS) ** 0.5
    model.train()
    with reproducible(device, seed):
        for batch in minibatches(
            clean, ids, device, seed, progress, phase="ft_sam", epochs=epochs, batch_size=size
        ):
            gradients = _gradients(model, batch.images, batch.labels, device)
            with frozen_statistics(model):
                steps = climb(weights, gradients, rho)
                kept = [weight.detach().clone() for weight in weights]
                _put(weights, [w + e for w, e in zip(kept, steps, strict=True)])
                gradients = _gradients(model, batch.images, batch.labels, device)
                _put(weights, kept)  # exactly, which subtracting the step would not be
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            for group in optimizer.param_groups:
                group["lr"] = cosine(settings.lr, batch.done)
            optimizer.step()
    model.eval()
    for weight in weights:
        weight.grad = None


@torch.no_grad()
def climb(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """The step e to the worst weights nearby: ``rho T^2 g / |T g|``, with T = diag(|w|)."""
    scaled = [w.abs() * g for w, g in zip(weights, gradients, strict=True)]
    length = torch.stack([s.norm() for s in scaled]).norm()
    return [
        rho * w.abs() * s / (length + 1e-12)  # at a minimum there is nowhere to climb
        for w, s in zip(weights, scaled, strict=True)
    ]


def _gradients(
    model: Classifier, images: Tensor, labels: Tensor, device: Device
) -> tuple[Tensor, ...]:
    loss = functional.cross_entropy(logits_of(model, images, device), labels)
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)


@torch.no_grad()
def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
