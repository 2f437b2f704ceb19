"""Randomness as a pure function of (seed, stream, sample), never of the clock or a process.

Two kinds are needed. Orders (which sample comes when) are permutations drawn from a seeded
generator. Per-sample draws (crop, rotation, warp noise) are counter-based: each number is a
hash of (seed, stream, sample id, column), so they do not depend on batch size, on the number
of workers, or on where a stopped run starts again.
"""

from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["numpy_generator", "permutation", "torch_generator", "uniform"]

Stream = tuple[int | str, ...]

_GOLDEN = 0x9E3779B97F4A7C15  # increment of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
_MASK = 0xFFFFFFFFFFFFFFFF


def _words(stream: Stream) -> list[int]:
    return [crc32(part.encode()) if isinstance(part, str) else int(part) for part in stream]


def numpy_generator(seed: int, *stream: int | str) -> np.random.Generator:
    """A NumPy generator that depends on ``(seed, *stream)`` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *_words(stream)])))


def torch_generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU torch generator that depends on ``(seed, *stream)`` alone."""
    state = np.random.SeedSequence([seed, *_words(stream)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def permutation(count: int, seed: int, *stream: int | str) -> npt.NDArray[np.int64]:
    """A permutation of ``range(count)`` that depends on ``(count, seed, *stream)`` alone."""
    return numpy_generator(seed, *stream).permutation(count).astype(np.int64, copy=False)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64: a bijection of 64-bit words that scatters its input."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(
    ids: npt.NDArray[np.int64], columns: int, seed: int, *stream: int | str
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for each sample id, as a pure function of its arguments.

    Args:
        ids: sample ids, ``(N,)``.
        columns: how many numbers each sample gets.
        seed: the run's seed.
        stream: what the numbers are for, such as ``("augment", epoch)``.

    Returns:
        ``(N, columns)`` float64; row i depends on ``ids[i]`` and not on its neighbours.
    """
    key = 0
    for word in [seed, *_words(stream)]:
        key = int(_mix(np.array([(key + word * _GOLDEN + _GOLDEN) & _MASK], np.uint64))[0])
    per_sample = _mix(ids.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))  # (N,)
    steps = (np.arange(1, columns + 1, dtype=np.uint64)) * np.uint64(_GOLDEN)
    bits = _mix(per_sample[:, None] + steps[None, :])  # (N, columns)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
