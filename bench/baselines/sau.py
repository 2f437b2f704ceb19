"""SAU, shared adversarial unlearning: unlearn what fools the infected and the current model alike.

S. Wei, M. Zhang, H. Zha, B. Wu, "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning
Shared Adversarial Examples", NeurIPS 2023 (arXiv 2307.10562), section 3. Triggered images are
adversarial examples of the infected model, and for as long as the backdoor is there, of the current
one too, with the same wrong label. So examples shared by both are mined,

    max over |e|_inf <= eps of  lambda_3 (CE(infected) + CE(current)) / 2 - lambda_4 JS,

with the Jensen-Shannon divergence JS of the two predictions, and unlearned,

    min over theta of  lambda_1 CE(current on clean)
        - lambda_2 mean of [y' != y] log(1 - p_current(y' | x + e)),

where y' is what the infected model says of x + e, and y is the true label.

The paper's: PGD with 5 steps and eps 0.2, lambda_1 = lambda_2 = lambda_4 = 1, lambda_3 = 0.01. The
authors' configuration has steps of length 0.2 and Adam with a learning rate of 1e-4 that falls to
zero by a cosine, in 100 epochs of batches of 256, and leaves batch norm its statistics. Ours: 20
epochs of batches of 64, which are almost as many updates for a fifth of the mining.
"""

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.baselines._common import Ids, logits_of, minibatches, reproducible
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress
from pbe_fast.randomness import torch_generator
from pbe_fast.training import cosine

__all__ = ["DEFAULTS", "Unlearning", "divergence", "shared_examples", "shared_loss",
           "shared_unlearning"]  # fmt: skip


@dataclass(frozen=True)
class Unlearning:
    """Its numbers.

    Attributes:
        eps, step: of the L-inf PGD, in pixel values.
        clean: lambda_1, of the cross-entropy on clean images.
        shared: lambda_2, of the loss on shared examples.
        wrong: lambda_3, of the cross-entropy while mining.
        agree: lambda_4, of the divergence while mining.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-4
    steps: int = 5
    eps: float = 0.2
    step: float = 0.2
    clean: float = 1.0
    shared: float = 1.0
    wrong: float = 0.01
    agree: float = 1.0


DEFAULTS = Unlearning()


def shared_unlearning(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: Unlearning = DEFAULTS,
) -> None:
    """Mine and unlearn; see :class:`bench.baselines._common.Erase` for the arguments."""
    infected = deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(model.parameters(), settings.lr)
    generator = torch_generator(seed, "shared examples")
    epochs, size = settings.epochs, settings.batch_size
    model.eval()
    with reproducible(device, seed):
        for batch in minibatches(
            clean, ids, device, seed, progress, phase="sau", epochs=epochs, batch_size=size
        ):
            images, labels = batch.images, batch.labels
            start = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
            examples = shared_examples(
                infected, model, images, labels, start * settings.eps, device, settings
            )
            with torch.no_grad():
                wrong = logits_of(infected, examples, device).argmax(1)
            on_clean, on_shared = logits_of(model, torch.cat([images, examples]), device).chunk(2)
            loss = settings.clean * functional.cross_entropy(on_clean, labels)
            loss = loss + settings.shared * shared_loss(on_shared, wrong, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            for group in optimizer.param_groups:
                group["lr"] = cosine(settings.lr, batch.done)
            optimizer.step()


def shared_examples(
    infected: Classifier,
    current: Classifier,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    device: Device,
    settings: Unlearning,
) -> Tensor:
    """Images that fool both models into the same label, if there are such nearby.

    Args:
        images: ``(N, 3, H, W)`` in [0, 1].
        start: ``(N, 3, H, W)``, where the perturbation begins.

    Returns:
        ``(N, 3, H, W)`` in [0, 1], at most eps from the images.
    """
    examples = (images + start).clamp(0, 1)
    for _ in range(settings.steps):
        examples = examples.detach().requires_grad_()
        first, second = logits_of(infected, examples, device), logits_of(current, examples, device)
        wrong = functional.cross_entropy(first, labels, reduction="sum")
        wrong = (wrong + functional.cross_entropy(second, labels, reduction="sum")) / 2
        gain = settings.wrong * wrong - settings.agree * divergence(first, second).sum()
        (gradient,) = torch.autograd.grad(gain, examples)
        examples = examples.detach() + settings.step * gradient.sign()
        examples = examples.clamp(images - settings.eps, images + settings.eps).clamp(0, 1)
    return examples.detach()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the predictions of two logits ``(N, K)``: ``(N,)``, in nats."""
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    apart = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return apart.sum(1) / 2


def shared_loss(logits: Tensor, wrong: Tensor, labels: Tensor) -> Tensor:
    """What the current model still believes of the infected model's wrong labels (L_sar).

    Args:
        logits: ``(N, K)`` of the current model.
        wrong: ``(N,)``, the infected model's labels; where they are the true ones, nothing is lost.
        labels: ``(N,)``, the true ones.

    Returns:
        a scalar, zero or more.
    """
    taken = functional.one_hot(wrong, logits.shape[1]).bool()
    # log(1 - p) as a sum over the other classes, which stays finite where p rounds to one.
    others = logits.masked_fill(taken, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    return -(others * (wrong != labels)).mean()
