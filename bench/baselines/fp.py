"""FP, fine-pruning: cut the channels that clean images leave dormant, then fine-tune.

K. Liu, B. Dolan-Gavitt, S. Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep
Neural Networks", RAID 2018 (arXiv 1805.12185), sections 4.1 and 4.3. A backdoor sits in channels of
the last convolution that clean images do not use, so the channels are cut in the order of their
mean activation on clean images, for as long as the accuracy allows; fine-tuning repairs the rest.

In a residual network the output of the last convolution is added to a shortcut, past which the
channel would live on. So a channel is measured and cut where it reaches the last linear layer,
behind the addition, the activation and the pooling, as in BackdoorBench (Wu et al., NeurIPS 2022);
in a network without shortcuts that is the same. The paper leaves it to the defender how much
accuracy pruning may cost. Ours: 4 points, on a fifth of the clean images that the activations are
not measured on; a 64th of the channels at a time; then :data:`bench.baselines.ft.STAGE` on all
clean images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bench.baselines._common import Ids, finetune, logits_of
from bench.baselines._layers import blank, last_linear
from bench.baselines.ft import STAGE
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.evaluate import evaluate
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress
from pbe_fast.randomness import permutation
from pbe_fast.training import Stage

__all__ = ["DEFAULTS", "FinePruning", "channel_activity", "fine_pruning", "prune_dormant"]

_BATCH = 256


@dataclass(frozen=True)
class FinePruning:
    """Its numbers.

    Attributes:
        tolerance: accuracy that pruning may cost on the held-out clean images, as a fraction.
        held_out: share of the clean images that accuracy is measured on while pruning.
        rounds: channels are cut in about so many parts; each costs a pass over those images.
        stage: the fine-tuning.
    """

    tolerance: float = 0.04
    held_out: float = 0.2
    rounds: int = 64
    stage: Stage = STAGE


DEFAULTS = FinePruning()


def fine_pruning(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: FinePruning = DEFAULTS,
) -> None:
    """Prune, then fine-tune; see :class:`bench.baselines._common.Erase` for the arguments.

    Raises:
        ConfigError: the network has no last linear layer, or there are too few clean images.
    """
    if len(ids) < 2:
        raise ConfigError(f"fine-pruning: {len(ids)} clean images; it needs two or more.")
    order = permutation(len(ids), seed, "held out")
    count = min(len(ids) - 1, max(1, round(settings.held_out * len(ids))))
    held, rest = np.sort(ids[order[:count]]), np.sort(ids[order[count:]])
    model.eval()
    layer = last_linear(model, blank(clean, device))
    activity = channel_activity(model, layer, clean, rest, device)

    def accuracy(mask: Tensor) -> float:
        with _masked(layer, mask):
            return evaluate(model, clean, device, ids=held, batch_size=_BATCH).acc

    progress.phase("pruning", 0)
    mask = prune_dormant(activity, accuracy, settings.tolerance, settings.rounds)
    progress.detail(f"{int((mask == 0).sum())} of {len(mask)} channels cut")
    _cut(layer, mask)
    # No gradient passes the mask, so what is cut stays zero; weight decay leaves zero alone.
    with _masked(layer, mask):
        stage = replace(settings.stage, name="fine-pruning")
        finetune(model, clean, ids, device, seed, progress, stage)


@torch.no_grad()
def channel_activity(
    model: nn.Module, layer: nn.Linear, clean: ImageData, ids: Ids, device: Device
) -> Tensor:
    """Mean of each feature that the layer takes over images: ``(C,)`` float32."""
    total = torch.zeros(layer.in_features, device=device.torch)

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(inputs[0].float().sum(0))

    handle = layer.register_forward_pre_hook(add)
    try:
        for batch in clean.read(ids, _BATCH):
            if len(batch.ids):
                logits_of(model, device.images(batch.images), device)
    finally:
        handle.remove()
    return total / len(ids)


def prune_dormant(
    activity: Tensor, accuracy: Callable[[Tensor], float], tolerance: float, rounds: int
) -> Tensor:
    """Cut channels, the most dormant first, until that costs more than the tolerance.

    Args:
        activity: ``(C,)``.
        accuracy: of the network with a mask over the layer's channels.
        rounds: in how many parts.

    Returns:
        the last mask that was within the tolerance, ``(C,)`` of zeros and ones. At least one
        channel is left.
    """
    mask = torch.ones_like(activity)
    allowed = accuracy(mask) - tolerance
    order = activity.argsort(stable=True)[:-1]
    for part in torch.split(order, -(-len(activity) // rounds)):
        fewer = mask.clone()
        fewer[part] = 0
        if accuracy(fewer) < allowed:
            break
        mask = fewer
    return mask


@contextmanager
def _masked(layer: nn.Linear, mask: Tensor) -> Iterator[None]:
    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0] * mask.to(inputs[0].dtype)

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _cut(layer: nn.Linear, mask: Tensor) -> None:
    layer.weight[:, mask == 0] = 0
