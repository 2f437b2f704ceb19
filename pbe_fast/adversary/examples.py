"""Adversarial examples as images of 8 bits, to be kept in shards."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pbe_fast.adversary.miner import Miner
from pbe_fast.adversary.norms import Linf, Norm
from pbe_fast.data.converters._common import encode_png
from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.data.shards import Sample
from pbe_fast.memory import in_parts

__all__ = ["round_to_levels", "shard_examples"]


def round_to_levels(examples: Tensor, clean: Tensor, norm: Norm) -> Tensor:
    """Examples in 1/255 of the pixel range, which is what an image file holds.

    A pixel moves by at most half a level, unless eps of L-inf is no whole number of levels: what
    rounding would push out of the ball ends on the last level inside. In L2 the rounded example
    may lie outside by half a level a pixel, and what is spread thinner than that is lost.

    Args:
        examples: ``(N, 3, H, W)`` float32 in [0, 1].
        clean: what they were mined from, ``(N, 3, H, W)`` uint8.

    Returns:
        ``(N, 3, H, W)`` uint8.
    """
    levels = (examples * 255).round_()
    if isinstance(norm, Linf):
        reach = math.floor(norm.eps * 255 + 1e-6)
        middle = clean.to(levels.device, torch.float32)
        levels = levels.clamp(middle - reach, middle + reach)
    return levels.clamp_(0, 255).to(torch.uint8)


def shard_examples(
    miner: Miner,
    data: ImageData,
    shard: int,
    *,
    batch_size: int,
    seed: int,
    advance: Callable[[int], None],
) -> Iterator[Sample]:
    """One adversarial example of every image of a shard that can be decoded.

    They depend on the shard alone, and not on who mines it nor on what else is mined.

    Args:
        seed: of the random starts, where the adversary has them.
        advance: told how many more images are done.

    Yields:
        samples in the order of the shard, with its keys and labels; PNG, ``data.size`` square.

    Raises:
        ShardError: the shard is no longer what the manifest says.
    """
    manifest = data.manifest
    data.require_unchanged(shard)
    first, last = np.searchsorted(manifest.shard_index, [shard, shard + 1])
    # A CUDA graph is recorded for one shape; who met a small batch first would mine otherwise.
    least = batch_size if miner.device.torch.type == "cuda" else 1
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as encoders:
        waiting: Iterator[Sample] = iter(())
        for batch in data.read(np.arange(first, last, dtype=np.int64), batch_size):
            if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
                continue
            pixels = _mined(miner, batch, least, seed).permute(0, 2, 3, 1).cpu().numpy()
            files = encoders.map(encode_png, pixels)  # while the next batch is mined
            yield from waiting
            keys = manifest.keys.take(batch.ids.numpy()).to_pylist()
            waiting = map(Sample, keys, files, ["png"] * len(keys), batch.labels.tolist())
            advance(len(keys))
        yield from waiting


def _mined(miner: Miner, batch: Batch, least: int, seed: int) -> Tensor:
    """A batch's examples, mined with copies of its images beside them if it has less than that."""
    count = max(least, len(batch.ids))
    index = torch.arange(count) % len(batch.ids)
    images, labels, ids = batch.images[index], batch.labels[index], batch.ids[index]
    labels = labels.to(miner.device.torch)

    def work(part: slice) -> Tensor:
        found = miner(images[part], labels[part], ids=ids[part], seed=seed)
        return round_to_levels(found, images[part], miner.pgd.norm)

    return in_parts(count, work)[: len(batch.ids)]
