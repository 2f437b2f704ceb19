"""Which sample comes when: pure functions of (ids, seed, epoch).

Shards are shuffled, then gathered into blocks of at least ``block`` samples, and samples are
shuffled inside a block. Reads inside a block touch few shards, which is what a disk or an
object store wants; a data set that fits one block (most do) is shuffled completely.
"""

import numpy as np
import numpy.typing as npt

from pbe_fast.randomness import numpy_generator

__all__ = ["batches", "epoch_order"]

Ids = npt.NDArray[np.int64]

BLOCK = 131_072


def epoch_order(
    ids: Ids, shard_index: npt.NDArray[np.int32], seed: int, *stream: int | str, block: int = BLOCK
) -> Ids:
    """The order of one epoch.

    Args:
        ids: the samples to read, in any order, each once.
        shard_index: ``(N,)``, the shard of every sample of the data set.
        seed, stream: what the order is a function of, such as ``("round", 1, "epoch", 3)``.
        block: samples that are shuffled together, at least.

    Returns:
        the same ids, each exactly once.
    """
    ids = np.sort(ids)
    generator = numpy_generator(seed, "order", *stream)
    shards, starts = np.unique(shard_index[ids], return_index=True)
    groups = np.split(ids, starts[1:])  # one per shard, because ids are sorted by shard
    order: list[Ids] = []
    pending: list[Ids] = []
    for position in generator.permutation(len(shards)):
        pending.append(groups[position])
        if sum(map(len, pending)) >= block:
            order.append(generator.permutation(np.concatenate(pending)))
            pending = []
    if pending:
        order.append(generator.permutation(np.concatenate(pending)))
    return np.concatenate(order) if order else ids


def batches(order: Ids, batch_size: int) -> list[Ids]:
    """Cut an order into batches; the last may be smaller."""
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
