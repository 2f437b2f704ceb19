"""What the baselines share: batches of clean images, plain fine-tuning, batch norm held still."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pbe_fast._jobs import augment_for
from pbe_fast.config import DataConfig
from pbe_fast.data.augment import Augment, View
from pbe_fast.data.loader import ImageData
from pbe_fast.data.order import epoch_order
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.models import Classifier
from pbe_fast.progress import Clock, Progress
from pbe_fast.training import Stage, fit

__all__ = [
    "Erase",
    "Ids",
    "Minibatch",
    "drawn_batches",
    "finetune",
    "frozen_statistics",
    "logits_of",
    "minibatches",
    "reproducible",
]

Ids = npt.NDArray[np.int64]


class Erase(Protocol):
    """A defence: changes the model in place and leaves it in eval mode.

    The model is on the device; ``ids`` are the clean images that it may look at, with the labels of
    their manifest. The same seed gives the same bytes.
    """

    def __call__(
        self,
        model: Classifier,
        clean: ImageData,
        ids: Ids,
        device: Device,
        seed: int,
        progress: Progress,
    ) -> None:
        """Erase."""


class Minibatch(NamedTuple):
    """Augmented clean images, on the device."""

    images: Tensor  # (N, 3, H, W) float32 in [0, 1]
    labels: Tensor  # (N,) int64
    epoch: int
    done: float  # share of all batches that came before, in [0, 1)


def minibatches(
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    *,
    phase: str,
    epochs: int,
    batch_size: int,
) -> Iterator[Minibatch]:
    """Epochs over the clean images, each in an order and with an augmentation of its own.

    Args:
        phase: for the progress, and part of what order and augmentation depend on.

    Raises:
        ConfigError: there are fewer than two images.
    """
    _require_two(ids, phase)
    per_epoch = -(-len(ids) // batch_size)
    progress.phase(phase, epochs * len(ids))
    for epoch in range(epochs):
        stream = (phase, "epoch", epoch)
        order = epoch_order(ids, clean.manifest.shard_index, seed, *stream)
        view = View(clean.size, _augment(clean), False, seed, stream)
        for index, batch in enumerate(clean.read(order, batch_size, view)):
            if len(batch.ids) > 1:  # batch norm needs two; a last batch of one teaches nothing
                done = (epoch + index / per_epoch) / epochs
                labels = batch.labels.to(device.torch)
                yield Minibatch(device.images(batch.images), labels, epoch, done)
            progress.advance(len(batch.ids))


def drawn_batches(
    clean: ImageData,
    drawn: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    *,
    phase: str,
) -> Iterator[Minibatch]:
    """Batches that were drawn, ``(batches, size)`` of sample ids, each augmented in its own way.

    Raises:
        ConfigError: a batch is of one image.
    """
    _require_two(drawn[0], phase)
    progress.phase(phase, drawn.size)
    for number, ids in enumerate(drawn):
        view = View(clean.size, _augment(clean), False, seed, (phase, "batch", number))
        (batch,) = clean.read(ids, len(ids), view)
        labels = batch.labels.to(device.torch)
        yield Minibatch(device.images(batch.images), labels, 0, number / len(drawn))
        progress.advance(len(ids))


def _require_two(ids: Ids, phase: str) -> None:
    if len(ids) < 2:
        raise ConfigError(
            f"{phase}: {len(ids)} clean images, and batch norm needs two. Give more images, or "
            "raise data.clean_fraction."
        )


def finetune(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    stage: Stage,
) -> None:
    """The project's own training loop on the clean images, without an adversary."""
    fit(
        model,
        clean,
        ids,
        replace(stage, augment=_augment(clean)),
        device,
        pgd=None,
        seed=seed,
        progress=progress,
        clock=Clock(),
        on_step=lambda step: None,
        on_epoch=lambda epochs: None,
        checkpoint=lambda position: None,
        checkpoint_seconds=math.inf,
    )


def _augment(clean: ImageData) -> Augment:
    """What AFT's ``auto`` takes for images of this size."""
    return augment_for(DataConfig(image_size=clean.size))


def logits_of(model: nn.Module, images: Tensor, device: Device) -> Tensor:
    """Logits ``(N, K)`` float32, in the precision of the device."""
    with device.autocast():
        logits: Tensor = model(images)
    return logits.float()


@contextmanager
def reproducible(device: Device, seed: int) -> Iterator[None]:
    """What a network draws inside the block, such as for dropout, depends on the seed alone."""
    with device.own_randomness():
        torch.manual_seed(seed)
        yield


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms in train mode normalise by their batch inside the block, and learn nothing."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, _count(norm)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def _count(norm: nn.modules.batchnorm._BatchNorm) -> Tensor | None:
    return None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
