"""Which training images are clean: those on which purification changed little.

Mu et al., CVPR 2023, section 4.2: the infected and the current model agree on clean images and
disagree on poisoned ones, so images are ranked by the cosine of the two models' logits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import agreement
from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.device import Device
from pbe_fast.errors import DivergenceError
from pbe_fast.memory import in_parts

__all__ = ["Agreement", "Measure", "Outcome", "score_shards", "select_top"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[Any]  # floating


class Measure(Protocol):
    """What is told of every image."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is told of one image."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of what is told, as NumPy has it."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of images ``(n, 3, H, W)`` on the device, within the device's autocast."""


@dataclass(frozen=True)
class Agreement:
    """The cosine of two models' logits in [-1, 1], high for clean (PBE, section 4.2)."""

    infected: nn.Module
    current: nn.Module
    shape: tuple[int, ...] = ()
    dtype: npt.DTypeLike = np.float32

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Measure`."""
        return agreement(self.infected(images), self.current(images), labels)[0]


@dataclass(frozen=True)
class Outcome:
    """What a model makes of an image.

    The loss of its label in nats, and the likeliest label.
    """

    current: nn.Module
    shape: tuple[int, ...] = (2,)
    dtype: npt.DTypeLike = np.float32

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Measure`."""
        logits = self.current(images).float()
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return torch.stack([losses, logits.argmax(1).float()], 1)


def score_shards(
    measure: Measure,
    data: ImageData,
    device: Device,
    shards: Sequence[int],
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Scores]]:
    """Measure every image of some shards, without augmentation.

    No batch crosses the end of a shard, so that a shard's scores do not depend on who scores it
    nor on what else is scored.

    Args:
        measure: its models are on the device, in eval mode.
        shards: indices into ``data.manifest.shards``.
        advance: told how many more images are done.

    Yields:
        a shard and its scores, ``(samples, *measure.shape)``; NaN where an image is undecodable.

    Raises:
        DivergenceError: a model's logits are not finite.
        ShardError: a shard is no longer what the manifest says.
    """
    manifest = data.manifest
    bounds = np.searchsorted(manifest.shard_index, np.arange(len(manifest.shards) + 1))
    for shard in shards:
        data.require_unchanged(shard)
        first = int(bounds[shard])
        ids = np.arange(first, bounds[shard + 1], dtype=np.int64)
        scores = np.full((len(ids), *measure.shape), np.nan, measure.dtype)
        for batch in data.read(ids, batch_size):
            if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
                continue
            found = _measured(measure, device, batch)
            wrong = ~np.isfinite(found).reshape(len(found), -1).all(1)
            if wrong.any():
                where = manifest.describe(int(batch.ids[int(wrong.argmax())]))
                raise DivergenceError(
                    f"{where}: a model's logits are not finite, so the image cannot be scored. "
                    "Check the model, or lower the learning rate."
                )
            scores[batch.ids.numpy() - first] = found
            advance(len(batch.ids))
        yield shard, scores


def _measured(measure: Measure, device: Device, batch: Batch) -> Scores:
    def work(part: slice) -> Tensor:
        images = device.images(batch.images[part])
        with torch.inference_mode(), device.autocast():
            return measure(images, batch.labels[part].to(device.torch))

    found: Scores = in_parts(len(batch.ids), work).cpu().numpy()
    return found


def select_top(scores: Scores, share: float) -> Ids:
    """The ids of the ``share`` of samples with the highest scores, in file order.

    Equal scores are decided by id, the lower first; NaN is never selected.
    """
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
    count = min(round(share * len(scores)), int((~np.isnan(scores)).sum()))
    return np.sort(order[:count]).astype(np.int64)
