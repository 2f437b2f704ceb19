"""Memory: work in parts where a batch does not fit, and freed memory that stays at hand."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["in_parts", "keep_freed_memory"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**30  # bytes; above what a single tensor of a batch takes


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


def keep_freed_memory() -> None:
    """Let this process keep memory that tensors on the CPU have freed, for the next ones.

    glibc gives a large block back to the system at once and asks for the next one anew, so every
    step pays for its page faults again: a fifth of the time of mining and training small models
    on one thread, and more on several, which wait for each other in the kernel. The process does
    not need more memory at its peak than before; it does not give it back after it, either.
    Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
