"""Which training images are clean: those on which purification changed little.

Mu et al., CVPR 2023, section 4.2: the infected and the current model agree on clean images and
disagree on poisoned ones, so images are ranked by the cosine of the two models' logits.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kernels import agreement
from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.device import Device
from pbe_fast.errors import DivergenceError
from pbe_fast.memory import in_parts

__all__ = ["score_shards", "select_top"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def score_shards(
    infected: nn.Module,
    current: nn.Module,
    data: ImageData,
    device: Device,
    shards: Sequence[int],
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Scores]]:
    """The agreement of two models on every image of some shards, without augmentation.

    No batch crosses the end of a shard, so that a shard's scores do not depend on who scores it
    nor on what else is scored.

    Args:
        shards: indices into ``data.manifest.shards``.
        advance: told how many more images are done.

    Yields:
        a shard and its scores, ``(samples,)`` float32 in [-1, 1], high for clean; NaN where an
        image is undecodable.

    Raises:
        DivergenceError: a model's logits are not finite.
        ShardError: a shard is no longer what the manifest says.
    """
    manifest = data.manifest
    bounds = np.searchsorted(manifest.shard_index, np.arange(len(manifest.shards) + 1))
    infected.eval()
    current.eval()
    for shard in shards:
        data.require_unchanged(shard)
        first = int(bounds[shard])
        ids = np.arange(first, bounds[shard + 1], dtype=np.int64)
        scores = np.full(len(ids), np.nan, np.float32)
        for batch in data.read(ids, batch_size):
            if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
                continue
            found = _cosines(infected, current, device, batch)
            if np.isnan(found).any():
                where = manifest.describe(int(batch.ids[int(np.isnan(found).argmax())]))
                raise DivergenceError(
                    f"{where}: a model's logits are not finite, so the image cannot be scored. "
                    "Check the model, or lower the learning rate."
                )
            scores[batch.ids.numpy() - first] = found
            advance(len(batch.ids))
        yield shard, scores


def _cosines(infected: nn.Module, current: nn.Module, device: Device, batch: Batch) -> Scores:
    def work(part: slice) -> Tensor:
        images = device.images(batch.images[part])
        with torch.inference_mode(), device.autocast():
            first, second = infected(images), current(images)
            return agreement(first, second, batch.labels[part].to(device.torch))[0]

    found: Scores = in_parts(len(batch.ids), work).cpu().numpy()
    return found


def select_top(scores: Scores, share: float) -> Ids:
    """The ids of the ``share`` of samples with the highest scores, in file order.

    Equal scores are decided by id, the lower first; NaN is never selected.
    """
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
    count = min(round(share * len(scores)), int((~np.isnan(scores)).sum()))
    return np.sort(order[:count]).astype(np.int64)
