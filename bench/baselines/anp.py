"""ANP, adversarial neuron pruning: cut the neurons that a small push turns against clean images.

D. Wu, Y. Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021 (arXiv
2110.14430), section 4 and algorithm 1. A neuron here is a channel of a batch norm, with weight w
and bias b. Masks m in [0, 1] are learned against the worst push of all neurons within eps:

    min over m of  alpha L(m w, b)
        + (1 - alpha) max over |d|, |x| <= eps of L((m + d) w, (1 + x) b)

and neurons whose mask ends below the threshold are cut: their weight becomes zero, their bias
stays. Nothing is fine-tuned.

The paper's: eps 0.4, alpha 0.2, one step for the push, from a random start; masks by SGD with
learning rate 0.2 and momentum 0.9 in 2000 iterations of batches of 128; threshold 0.2. As in the
authors' code the images of a batch are drawn anew for each, so that all are of one size, batch
norms normalise by them while masks are learned (their statistics do not change), and a push ends
where its step of eps from a start within eps does, up to 2 eps away. In float32, as masks start at
a loss that is almost zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from bench.baselines._common import Ids, drawn_batches, frozen_statistics, reproducible
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress
from pbe_fast.randomness import numpy_generator, torch_generator

__all__ = ["DEFAULTS", "Neurons", "Pruning", "learn_masks", "neuron_pruning"]


@dataclass(frozen=True)
class Pruning:
    """Its numbers.

    Attributes:
        eps: how far a neuron's weight and bias are pushed, relative to themselves.
        alpha: weight of the loss without a push.
        threshold: of the masks, below which a neuron is cut.
    """

    eps: float = 0.4
    alpha: float = 0.2
    iterations: int = 2000
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    threshold: float = 0.2


DEFAULTS = Pruning()


class Neurons:
    """The batch norm channels of a network, in one line.

    Raises:
        ConfigError: the network has no batch norm with a weight and a bias.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and module.affine
        }
        if not self.norms:
            raise ConfigError(
                "neuron pruning works on the channels of batch norms, and the network has none."
            )
        self.sizes = [norm.num_features for norm in self.norms.values()]
        self.count = sum(self.sizes)

    def logits(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Logits ``(N, K)`` with each neuron's weight and bias multiplied; factors ``(count,)``."""
        values = {}
        factors = zip(torch.split(weight, self.sizes), torch.split(bias, self.sizes), strict=True)
        for (name, norm), (w, b) in zip(self.norms.items(), factors, strict=True):
            values[f"{name}.weight"] = norm.weight.detach() * w
            values[f"{name}.bias"] = norm.bias.detach() * b
        logits: Tensor = functional_call(self.model, values, (images,))
        return logits.float()

    @torch.no_grad()
    def cut(self, chosen: Tensor) -> None:
        """Set the weights of some neurons, ``(count,)`` bool, to zero."""
        for norm, part in zip(self.norms.values(), torch.split(chosen, self.sizes), strict=True):
            norm.weight[part] = 0


def neuron_pruning(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: Pruning = DEFAULTS,
) -> None:
    """Learn masks and prune; see :class:`bench.baselines._common.Erase` for the arguments.

    Raises:
        ConfigError: the network has no batch norm.
    """
    neurons = Neurons(model)
    masks = learn_masks(neurons, clean, ids, device, seed, progress, settings)
    chosen = masks < settings.threshold
    neurons.cut(chosen)
    progress.detail(f"{int(chosen.sum())} of {neurons.count} neurons cut")


def learn_masks(
    neurons: Neurons,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: Pruning,
) -> Tensor:
    """The masks of all neurons, ``(count,)`` in [0, 1]; the network is not changed."""
    size = min(settings.batch_size, len(ids))
    masks = torch.ones(neurons.count, device=device.torch, requires_grad=True)
    ones = torch.ones(neurons.count, device=device.torch)
    optimizer = torch.optim.SGD([masks], settings.lr, momentum=settings.momentum)
    generator = torch_generator(seed, "push")
    drawn = numpy_generator(seed, "masks").choice(ids, (settings.iterations, size))
    neurons.model.eval()
    for norm in neurons.norms.values():
        norm.train()
    batches = drawn_batches(clean, drawn, device, seed, progress, phase="masks")
    with reproducible(device, seed), frozen_statistics(neurons.model):
        for batch in batches:

            def loss(weight: Tensor, bias: Tensor, batch: tuple[Tensor, ...] = batch[:2]) -> Tensor:
                images, labels = batch
                logits = neurons.logits(images, weight, bias)
                return functional.cross_entropy(logits, labels)

            start = torch.rand((2, neurons.count), generator=generator).to(device.torch)
            pushed = ((2 * start - 1) * settings.eps).requires_grad_()
            worse = loss(masks.detach() + pushed[0], 1 + pushed[1])
            (gradient,) = torch.autograd.grad(worse, pushed)
            pushed = pushed.detach() + settings.eps * gradient.sign()
            total = settings.alpha * loss(masks, ones)
            total = total + (1 - settings.alpha) * loss(masks + pushed[0], 1 + pushed[1])
            (masks.grad,) = torch.autograd.grad(total, masks)
            optimizer.step()
            with torch.no_grad():
                masks.clamp_(0, 1)
    neurons.model.eval()
    return masks.detach()
