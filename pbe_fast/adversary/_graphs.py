"""CUDA graphs: a sequence of kernels that is recorded once and replayed by one launch."""

from collections.abc import Callable

import torch

__all__ = ["captured"]

_WARM_UPS = 3  # compiles kernels and lets the libraries allocate what they keep


def captured(body: Callable[[], None]) -> Callable[[], None]:
    """Record ``body`` and return its replay.

    ``body`` must work on the same tensors at every call. It runs a few times before it is
    recorded, so whoever replays it puts its input into the tensors first.
    """
    current = torch.cuda.current_stream()
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stub
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UPS):
            body()
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay
