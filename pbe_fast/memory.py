"""When the device has not enough memory for a batch, what can be done in parts is done in parts."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["in_parts"]


def in_parts(count: int, work: Callable[[slice], Tensor]) -> Tensor:
    """Work on ``count`` samples at once, or on halves where memory does not suffice, and so on.

    Only for work that treats samples one by one: scoring, measuring and mining, not a training
    step, whose batch norm needs the whole batch. How samples are cut depends on ``count`` and on
    which parts failed, on nothing random.

    Args:
        work: takes the samples of a slice; its results are joined along the first dimension.

    Raises:
        torch.OutOfMemoryError: memory does not suffice for a single sample.
    """
    waiting, done = [slice(0, count)], []
    while waiting:
        part = waiting.pop()
        size = part.stop - part.start
        try:
            done.append(work(part))
            continue
        except torch.OutOfMemoryError:
            if size < 2:
                raise
        # Outside of the handler, whose traceback would keep the tensors that did not fit.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = part.start + size // 2
        waiting += [slice(middle, part.stop), slice(part.start, middle)]
    return done[0] if len(done) == 1 else torch.cat(done)
