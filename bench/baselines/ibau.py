"""I-BAU, implicit backdoor adversarial unlearning: a minimax over one perturbation for all images.

Y. Zeng, S. Chen, W. Park, Z. M. Mao, M. Jin, R. Jia, "Adversarial Unlearning of Backdoors via
Implicit Hypergradient", ICLR 2022 (arXiv 2110.03735), section 3:

    min over theta of  max over |d|_2 <= C of  H(d, theta) = mean of L(f_theta(x + d), y)

The perturbation d depends on theta, so the gradient of the outer problem (eq. 5) has a second part,

    grad_theta H + (d'(theta))^T grad_d H,

which is computed without d'(theta): with Phi(d, theta) = d + step * grad_d H, of which the
maximiser is a fixed point, it is (dPhi/dtheta)^T v for the v that solves v = (dPhi/dd)^T v +
grad_d H. That is found by iterating (Grazzi et al., ICML 2020): the Neumann series cut short.

The paper's: d starts at zero in each round, one ascent step a batch; K = 5 iterations; 5 rounds;
Adam. The authors' code has C = 10 for 32x32 images in [0, 1] (here in proportion to the side), an
ascent with learning rate 10, a step of 0.1 in Phi, and a learning rate of 1e-3. Ours: batches of
128, and the outer loss is the mean of H(d) and H(0), as clean images are mixed in there as well.
Everything is computed in float32 and with the statistics of batch norm as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.baselines._common import Ids, minibatches
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress

__all__ = ["DEFAULTS", "Unlearning", "hypergradient", "implicit_unlearning", "projected"]


@dataclass(frozen=True)
class Unlearning:
    """Its numbers.

    Attributes:
        radius_32: C for images of 32 pixels, in pixel values.
        ascent: learning rate of the perturbation.
        step: length of the gradient step that the fixed point is one of.
        iterations: of the fixed-point equation, K.
        lr: of Adam, for the weights.
    """

    rounds: int = 5
    batch_size: int = 128
    radius_32: float = 10.0
    ascent: float = 10.0
    step: float = 0.1
    iterations: int = 5
    lr: float = 1e-3


DEFAULTS = Unlearning()

Loss = Callable[[Tensor], Tensor]


def implicit_unlearning(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: Unlearning = DEFAULTS,
) -> None:
    """Unlearn in rounds; see :class:`bench.baselines._common.Erase` for the arguments."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, settings.lr)
    radius = settings.radius_32 * clean.size / 32
    model.eval()

    def mean_loss(images: Tensor, labels: Tensor) -> Tensor:
        # No autocast: products with second derivatives do not survive 8 bits of mantissa.
        return functional.cross_entropy(model(images), labels)

    for number in range(settings.rounds):
        delta = torch.zeros(1, 3, clean.size, clean.size, device=device.torch)
        for batch in minibatches(
            clean, ids, device, seed, progress,
            phase=f"perturbation {number}", epochs=1, batch_size=settings.batch_size,
        ):  # fmt: skip
            delta.requires_grad_()
            (up,) = torch.autograd.grad(mean_loss(batch.images + delta, batch.labels), delta)
            delta = projected(delta.detach() + settings.ascent * up, radius)
        for batch in minibatches(
            clean, ids, device, seed, progress,
            phase=f"unlearning {number}", epochs=1, batch_size=settings.batch_size,
        ):  # fmt: skip
            images, labels = batch.images, batch.labels

            def inner(delta: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
                return mean_loss(images + delta, labels)

            def outer(delta: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
                return (mean_loss(images + delta, labels) + mean_loss(images, labels)) / 2

            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                gradients = hypergradient(
                    outer, inner, delta, parameters, settings.step, settings.iterations
                )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def projected(delta: Tensor, radius: float) -> Tensor:
    """Into the ball ``|d|_2 <= radius``; a zero stays one."""
    length = delta.norm()
    return delta * torch.where(length > radius, radius / length, 1.0)


def hypergradient(
    outer: Loss,
    inner: Loss,
    delta: Tensor,
    parameters: Sequence[Tensor],
    step: float,
    iterations: int,
) -> list[Tensor]:
    """The gradient of ``outer(d(theta), theta)`` by theta, where d(theta) maximises ``inner``.

    Args:
        outer, inner: losses, as functions of d; theta is what they close over.
        delta: the maximiser, or something near it.
        parameters: theta.
        step: of the ascent step Phi; small enough to make it a contraction.
        iterations: K of the fixed-point equation. With one, v is the gradient of ``outer`` by d.

    Returns:
        a gradient of each parameter's shape.
    """
    delta = delta.detach().requires_grad_()
    by_delta, *direct = torch.autograd.grad(
        outer(delta), [delta, *parameters], materialize_grads=True
    )
    (up,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    stepped = delta + step * up  # Phi
    v = by_delta
    for _ in range(iterations - 1):
        (through,) = torch.autograd.grad(stepped, delta, v, retain_graph=True)
        v = through + by_delta
    indirect = torch.autograd.grad(stepped, parameters, v, materialize_grads=True)
    return [a + b for a, b in zip(direct, indirect, strict=True)]
