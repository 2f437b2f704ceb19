"""Input-aware dynamic backdoor (Nguyen and Tran, NeurIPS 2020): a patch made for each image.

A generator draws a pattern g(x) and a second one a mask m(x) for the image at hand:

    x' = x + m(x) (g(x) - x)

Training (:func:`train_input_aware`) minimises cross-entropy on clean, triggered and *cross*
images (the pattern of another image, label kept), plus the diversity loss

    L_div = mean |x - x2| / (|g(x) - g(x2)| + eps)

so that patterns differ as images do, plus a hinge that keeps the mask small. The classifier
trained along with the generators is only their sparring partner; it is thrown away, and the
poisoned data set is written with the finished generators.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import mix_pattern
from pbe_fast.device import Device
from pbe_fast.errors import TriggerError
from pbe_fast.randomness import permutation, torch_generator
from pbe_fast.triggers.base import Pattern, Scalar

__all__ = ["InputAware", "train_input_aware"]


class _Generator(nn.Module):
    """A small encoder and decoder, ``(N, 3, H, W)`` to ``(N, channels, H, W)`` in [0, 1]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down1 = _block(3, width)
        self.down2 = _block(width, 2 * width)
        self.middle = _block(2 * width, 2 * width)
        self.up2 = _block(2 * width, width)
        self.up1 = _block(width, width)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        full = images.shape[-2:]
        x = self.down1(images * 2 - 1)
        half = -(-full[0] // 2), -(-full[1] // 2)
        x = self.down2(functional.adaptive_avg_pool2d(x, half))
        quarter = -(-half[0] // 2), -(-half[1] // 2)
        x = self.middle(functional.adaptive_avg_pool2d(x, quarter))
        x = self.up2(functional.interpolate(x, half, mode="bilinear", align_corners=False))
        x = self.up1(functional.interpolate(x, full, mode="bilinear", align_corners=False))
        result: Tensor = self.out(x)
        return torch.sigmoid(2 * result)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


@dataclass(frozen=True, eq=False)
class InputAware:
    """Finished generators, used in eval mode.

    Attributes:
        pattern, mask: the two networks.
        width: their width, needed to build them again.
    """

    pattern: nn.Module
    mask: nn.Module
    width: int

    name = "input_aware"
    noise_ratio = 1.0  # the paper: as many cross-trigger samples as poisoned ones

    @classmethod
    def build(cls, width: int = 16) -> "InputAware":
        """Untrained generators."""
        if not 1 <= width <= 256:
            raise TriggerError(f"input_aware: width {width} is not in 1 to 256.")
        return cls(_Generator(3, width), _Generator(1, width), width)

    def content(self, device: torch.device) -> Callable[[Tensor], Pattern]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        pattern, mask = (copy.deepcopy(net).to(device) for net in (self.pattern, self.mask))
        return lambda images: Pattern(pattern(images), mask(images))

    def noise(self, ids: npt.NDArray[np.int64], seed: int) -> Callable[[Tensor], Pattern] | None:
        """Cross-trigger mode: each image gets the pattern of its neighbour in the batch."""
        if len(ids) < 2:
            return None
        draw = self.content(torch.device("cpu"))
        return lambda images: draw(images.roll(1, 0))

    def options(self) -> Mapping[str, Scalar]:
        """See :class:`pbe_fast.triggers.Trigger`."""
        return {"width": self.width}

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights of both generators."""
        return {
            f"{name}.{key}": value
            for name, net in (("pattern", self.pattern), ("mask", self.mask))
            for key, value in net.state_dict().items()
        }


@dataclass(frozen=True, kw_only=True)
class InputAwareTraining:
    """How the generators are trained.

    Attributes:
        steps, batch_size, lr: Adam for the generators, SGD with momentum for the classifier.
        warm_up: the first part of the steps trains the classifier alone.
        diversity: weight of the diversity loss; the paper uses 1.
        density: share of pixels the mask may cover before it costs; the paper uses 0.032.
        sparsity: weight of the mask's hinge; the paper uses 100.
    """

    steps: int = 1500
    batch_size: int = 96
    lr: float = 2e-3
    warm_up: float = 0.3
    diversity: float = 1.0
    density: float = 0.032
    sparsity: float = 100.0


def train_input_aware(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacker_labels: Callable[[Tensor], Tensor],
    device: Device,
    *,
    seed: int,
    plan: InputAwareTraining,
    width: int = 16,
    on_step: Callable[[int, float], None] | None = None,
) -> InputAware:
    """Train the generators against a fresh classifier.

    Args:
        classifier: takes images in [0, 1]; changed by this and of no use afterwards.
        images: uint8 ``(N, 3, H, W)``; labels: ``(N,)`` int64.
        attacker_labels: true labels to the attacker's.
        seed: of the batches and the generators' start.
        on_step: called with (steps done, loss).

    Returns:
        the trigger, on the CPU in eval mode.

    Raises:
        TriggerError: there are fewer than three images, one each to be triggered, cross and clean.
    """
    if len(images) < 3 or plan.batch_size < 3:
        raise TriggerError(
            f"input_aware: {len(images)} images in batches of {plan.batch_size} are too few to "
            "train the generators; give 3 or more."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch_generator(seed, "input-aware").initial_seed()) & 0x7FFFFFFF)
        trigger = InputAware.build(width)
    for net in (trigger.pattern, trigger.mask, classifier):
        device.place(net).train()
    makers = [*trigger.pattern.parameters(), *trigger.mask.parameters()]
    maker_sgd = torch.optim.Adam(makers, lr=plan.lr, betas=(0.5, 0.9))
    classifier_sgd = torch.optim.SGD(
        classifier.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    per_epoch = max(1, len(images) // plan.batch_size)
    warm_up = int(plan.warm_up * plan.steps)
    order = permutation(len(images), seed, "input-aware", 0)
    for step in range(plan.steps):
        if step % per_epoch == 0:
            order = permutation(len(images), seed, "input-aware", step // per_epoch)
        chosen = order[(step % per_epoch) * plan.batch_size :][: plan.batch_size]
        x, y = device.images(images[chosen]), labels[chosen].to(device.torch)
        share = 1.0 - step / plan.steps
        classifier_sgd.param_groups[0]["lr"] = 0.05 * share
        if step < warm_up:
            with device.autocast():
                loss = functional.cross_entropy(classifier(x).float(), y)
        else:
            loss = _joint_loss(classifier, trigger, x, y, attacker_labels, device, plan)
        classifier_sgd.zero_grad()
        maker_sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        classifier_sgd.step()
        if step >= warm_up:
            maker_sgd.step()
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))
    return InputAware(
        trigger.pattern.eval().cpu().requires_grad_(False),
        trigger.mask.eval().cpu().requires_grad_(False),
        width,
    )


def _joint_loss(
    classifier: nn.Module,
    trigger: InputAware,
    x: Tensor,
    y: Tensor,
    attacker_labels: Callable[[Tensor], Tensor],
    device: Device,
    plan: InputAwareTraining,
) -> Tensor:
    """Cross-entropy of a batch of which a third each is triggered, cross and clean."""
    third = len(x) // 3
    with device.autocast():
        patterns, masks = trigger.pattern(x[: 2 * third]), trigger.mask(x[: 2 * third])
    patterns, masks = patterns.float(), masks.float()
    bad = mix_pattern(x[:third], patterns[:third], masks[:third])
    cross = mix_pattern(x[third : 2 * third], patterns[:third], masks[:third])
    inputs = torch.cat((bad, cross, x[2 * third :]))
    wanted = torch.cat((attacker_labels(y[:third]), y[third:]))
    with device.autocast():
        logits = classifier(inputs)
    apart = (x[:third] - x[third : 2 * third]).square().mean((1, 2, 3)).sqrt()
    # Equal images get equal patterns, and the slope of the root at 0 is infinite.
    drawn = (patterns[:third] - patterns[third:]).square().mean((1, 2, 3)).clamp_min(1e-12).sqrt()
    diversity = (apart / (drawn + 1e-3)).mean()
    covered = masks.mean((1, 2, 3))
    sparsity = functional.relu(covered - plan.density).mean()
    loss: Tensor = (
        functional.cross_entropy(logits.float(), wanted)
        + plan.diversity * diversity
        + plan.sparsity * sparsity
    )
    return loss
