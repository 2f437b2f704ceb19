"""The random start: Philox's words, the twin's distribution, the kernel against the twin."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pgd_start
from kernels._philox import philox
from kernels.pgd_start import torch_pgd_start, triton_pgd_start

Start = Callable[..., Tensor]

SHAPES = [(2, 3, 1, 1), (3, 3, 7, 5), (2, 3, 33, 33), (0, 3, 4, 4), (1, 3, 40, 40)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SEED = 2**62 + 123_456_789  # needs both words of the key
EPS = 6 / 255


def slack(dtype: torch.dtype) -> float:
    """What one rounding to a dtype changes, relative to the number."""
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps


def images(shape: tuple[int, ...], *, last: bool = False, dtype: Any = torch.float32) -> Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    x[x < 0.1] = 0.0
    x[x > 0.9] = 1.0
    x = (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def grey(shape: tuple[int, ...]) -> Tensor:
    """Images that clamp nothing."""
    return torch.full(shape, 0.5)


def ids(count: int) -> Tensor:
    """Sample ids, some beyond 32 bits."""
    return torch.arange(count) * (2**33 + 5) + 7


# Counter, key and words from the authors' known-answer vectors (Random123, kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_is_that_of_its_authors(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, int]
) -> None:
    def signed(low: int, high: int) -> int:
        value = (high << 32) | low
        return value - 2**64 if value >= 2**63 else value

    sample, element = torch.tensor([signed(counter[1], counter[2])]), torch.tensor([counter[0]])
    first, second = philox(signed(*key), sample, element, counter[3])
    assert (int(first), int(second)) == words


@triton.jit
def _words_kernel(first_ptr, second_ptr, seed, sample, BLOCK: tl.constexpr):
    number = tl.arange(0, BLOCK)
    low = number * 0 + (sample & 0xFFFFFFFF).to(tl.int32)
    high = number * 0 + (sample >> 32).to(tl.int32)
    first, second, _, _ = tl.philox(seed, number, low, high, number * 0 + 2)
    tl.store(first_ptr + number, first.to(tl.int64))
    tl.store(second_ptr + number, second.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 1, SEED, 2**63 - 1])
def test_philox_is_that_of_triton(device: torch.device, seed: int) -> None:
    sample = 2**40 + 12_345
    out = torch.empty(2, 64, dtype=torch.int64, device=device)
    _words_kernel[(1,)](out[0], out[1], seed, sample, BLOCK=64)
    wanted = philox(seed, torch.tensor(sample), torch.arange(64), 2)
    assert torch.equal(out.cpu(), torch.stack(wanted))


def formula(clean: Tensor, samples: Tensor, seed: int, eps: float, norm: str) -> Any:
    """d in float64, of the words of :func:`philox`."""
    shape, dimension = clean.shape, clean[0].numel()
    x = clean.double().numpy() / (255 if clean.dtype == torch.uint8 else 1)

    def words(purpose: int) -> tuple[Any, Any]:
        pair = philox(seed, samples[:, None], torch.arange(dimension)[None], purpose)
        first, second = (np.floor(w.double().numpy() / 256) / 2**24 for w in pair)
        return first, second

    if norm == "linf":
        d = eps * (2 * words(0)[0] - 1)
    else:
        u, v = words(1)
        n = np.sqrt(-2 * np.log(u + 2.0**-25)) * np.cos(2 * math.pi * v)
        share = (words(2)[0][:, :1] + 2.0**-25) ** (1 / dimension)
        d = eps * share * n / np.sqrt((n**2).sum(1, keepdims=True))
    return np.clip(x + d.reshape(shape), 0, 1) - x


def check_formula(start: Start, shapes: list[Any] = SHAPES) -> None:
    """All that a start must be; raises AssertionError where it is not."""
    settings = itertools.product([s for s in shapes if s[0]], ["linf", "l2"], FLOATS)
    for turn, (shape, norm, dtype) in enumerate(settings):
        clean = images(shape, dtype=(torch.uint8, torch.float32)[turn % 2], last=turn % 3 == 0)
        eps = EPS if norm == "linf" else 0.5
        d = start(clean, ids(len(clean)), SEED, eps, norm, dtype)
        assert d.dtype == dtype
        assert d.shape == clean.shape
        assert d.stride() == clean.stride()
        kind = slack(dtype)
        # The radius is rounded inwards to 16 bits, and d to its dtype.
        np.testing.assert_allclose(
            d.double().numpy(),
            formula(clean, ids(len(clean)), SEED, eps, norm),
            rtol=2 * kind,
            atol=5e-7 + (kind and 6e-8) + kind * eps,
        )
        sizes = d.double().abs().flatten(1).amax(1)
        if norm == "l2":
            sizes = d.double().flatten(1).norm(dim=1)
        # In float32 there is no room for the rounding of x + d - x.
        room = 0.0 if kind else 6e-8 * (1 if norm == "linf" else d[0].numel() ** 0.5)
        assert float(sizes.max()) <= eps + room
        unit = clean.double() / (255 if clean.dtype == torch.uint8 else 1)
        beyond = 1.2e-7 + kind * eps
        assert float((unit + d.double()).min()) >= -beyond
        assert float((unit + d.double()).max()) <= 1 + beyond


def check_kernel(start: Start, shapes: list[Any], device: torch.device) -> None:
    """The kernel does as the twin does; raises AssertionError where it does not."""
    settings = itertools.product(shapes, ["linf", "l2"], FLOATS, [False, True])
    for turn, (shape, norm, dtype, last) in enumerate(settings):
        if (FLOATS.index(dtype) + last + (norm == "l2")) % 2:
            continue  # every pair of them is enough, as the interpreter is slow
        clean = images(shape, dtype=(torch.uint8, torch.float32)[turn // 2 % 2], last=last)
        eps = EPS if norm == "linf" else 0.5
        rest = SEED, eps, norm, dtype
        d = start(clean.to(device), ids(len(clean)).to(device), *rest).cpu()
        wanted = torch_pgd_start(clean, ids(len(clean)), *rest)
        assert d.stride() == wanted.stride()
        # L-inf: every operation is the same. Only the interpreter's way to bfloat16 cuts where
        # torch rounds. L2: logarithms, cosines and the sum differ by units in the last place.
        cuts = dtype == torch.bfloat16 and device.type == "cpu"
        kind = slack(dtype) if cuts or norm == "l2" else 0.0
        torch.testing.assert_close(d, wanted, rtol=kind, atol=0 if norm == "linf" else 5e-7)


def test_the_twin_is_the_formula() -> None:
    check_formula(torch_pgd_start)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_twin(device: torch.device, shape: Any) -> None:
    check_kernel(triton_pgd_start, [shape], device)


def test_many_tiny_images(device: torch.device) -> None:
    clean, samples = images((40, 3, 2, 2)), torch.arange(40)
    for norm in ("linf", "l2"):
        d = triton_pgd_start(clean.to(device), samples.to(device), 3, EPS, norm, torch.float32)
        wanted = torch_pgd_start(clean, samples, 3, EPS, norm, torch.float32)
        torch.testing.assert_close(d.cpu(), wanted, rtol=0, atol=0 if norm == "linf" else 5e-7)


def test_tensors_that_do_not_lie_densely(device: torch.device) -> None:
    clean = images((3, 3, 14, 10), dtype=torch.uint8).to(device)[:, :, ::2, ::2]
    samples = ids(6).to(device)[::2]
    d = triton_pgd_start(clean, samples, SEED, EPS, "linf", torch.float16)
    wanted = torch_pgd_start(clean.cpu(), samples.cpu(), SEED, EPS, "linf", torch.float16)
    torch.testing.assert_close(d.cpu(), wanted, rtol=0, atol=0, check_stride=False)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("_philox.philox", "c3 = torch.full_like(c0, purpose)", "c3 = torch.zeros_like(c0)"),
        ("pgd_start.torch_pgd_start", "floor_to(eps, dtype)", "eps * 1.01"),
        ("pgd_start.torch_pgd_start", "(2 * _uniform(word) - 1)", "_uniform(word)"),
        ("pgd_start.torch_pgd_start", "torch.sqrt(-2", "torch.square(-2"),
        ("pgd_start.torch_pgd_start", "torch.cos", "torch.sin"),
        ("pgd_start.torch_pgd_start", "/ max(1, dimension)", "/ 2"),
        ("pgd_start.torch_pgd_start", "* share / length", "/ length"),
        ("pgd_start.torch_pgd_start", ".clamp(0.0, 1.0) - x", " - x"),
        ("pgd_start._uniform", "word >> 8", "word >> 9"),
    ],
)
def test_a_broken_twin_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("pgd_start", place, old, new)
    with pytest.raises(AssertionError):
        check_formula(broken.torch_pgd_start, [(3, 3, 7, 5)])


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("pgd_start._word", "word >> 8", "word >> 9"),
        ("pgd_start._logical", "if CHANNELS_LAST", "if False"),
        ("pgd_start._logical", "* HW + element // 3", "* HW + element"),
        ("pgd_start._normal", "tl.cos", "tl.sin"),
        ("pgd_start._normal", "number * 0 + purpose", "number * 0"),
        ("pgd_start._pgd_start_kernel", "(sample >> 32)", "(sample >> 31)"),
        ("pgd_start._pgd_start_kernel", "tl.load(ids_ptr + tl.program_id(0))", "tl.load(ids_ptr)"),
        ("pgd_start._pgd_start_kernel", "n * n, 0.0", "n * n, n * n"),
        ("pgd_start._pgd_start_kernel", "/ elements)", "/ BLOCK)"),
        ("pgd_start._pgd_start_kernel", "(2 * _word(word) - 1)", "_word(word)"),
        ("pgd_start._pgd_start_kernel", "tl.maximum(x + d, 0.0)", "(x + d)"),
        ("pgd_start._pgd_start_kernel", "clean_ptr + here", "clean_ptr"),
        ("pgd_start._pgd_start_kernel", "element < elements", "element < elements - 1"),
        ("pgd_start.triton_pgd_start", "inner_radius(eps, dtype)", "eps"),
        ("pgd_start.triton_pgd_start", "floor_to(eps, dtype)", "eps"),
    ],
)
def test_a_broken_kernel_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("pgd_start", place, old, new)
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_pgd_start, [(3, 3, 7, 5)], torch.device("cpu"))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_starts_alike_in_every_batch(norm: str) -> None:
    clean, samples = images((6, 3, 7, 5)), ids(6)
    whole = pgd_start(clean, samples, SEED, EPS, norm, torch.float16)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    assert torch.equal(
        pgd_start(clean[order], samples[order], SEED, EPS, norm, torch.float16), whole[order]
    )
    single = pgd_start(clean[3:4], samples[3:4], SEED, EPS, norm, torch.float16)
    assert torch.equal(single, whole[3:4])
    last = clean.contiguous(memory_format=torch.channels_last)
    assert torch.equal(pgd_start(last, samples, SEED, EPS, norm, torch.float16), whole)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_seeds_and_ids_start_differently(norm: str) -> None:
    clean = grey((6, 3, 4, 4))
    # Bits of the low and of the high word count.
    samples = torch.tensor([0, 1, 2**31, 2**32, 2**33, 2**40])
    starts = [
        pgd_start(clean, samples, seed, EPS, norm, torch.float32).flatten(1)
        for seed in (0, 1, 2**31, 2**32, SEED)
    ]
    every = torch.cat(starts)
    distance = (every[:, None] - every[None]).abs().amax(2) + torch.eye(len(every))
    assert float(distance.min()) > 0.1 * EPS / (1 if norm == "linf" else 7)


def test_linf_is_uniform_in_the_cube() -> None:
    # Fixed seeds: the bounds are four standard deviations or more, and the outcome never changes.
    d = pgd_start(grey((40, 3, 16, 16)), torch.arange(40), 5, EPS, "linf", torch.float32) / EPS
    flat = d.double().flatten()
    number = len(flat)
    assert abs(float(flat.mean())) < 4 / math.sqrt(3 * number)
    assert abs(float(flat.square().mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / number)
    counts = torch.histc(flat.float(), 20, -1, 1) / number
    assert float((counts - 0.05).abs().max()) < 4 * math.sqrt(0.05 / number)
    rows = d.double().flatten(1)
    assert float((rows @ rows.T / rows.shape[1]).fill_diagonal_(0).abs().max()) < 5 / 3 / 27
    assert float((rows[:, 1:] * rows[:, :-1]).mean().abs()) < 4 / 3 / math.sqrt(number)


def test_l2_is_uniform_in_the_ball() -> None:
    # The share of the volume inside a sample's radius, |d / eps|^D, is uniform.
    count, eps = 4000, 0.4
    d = pgd_start(grey((count, 3, 1, 1)), torch.arange(count), 5, eps, "l2", torch.float32) / eps
    rows = d.double().flatten(1)
    inside = rows.norm(dim=1) ** 3
    assert float(inside.max()) <= 1.000_001
    quantiles = inside.sort().values - (torch.arange(count) + 0.5) / count
    assert float(quantiles.abs().max()) < 2 / math.sqrt(count)  # Kolmogorov, p < 0.001
    directions = rows / rows.norm(dim=1, keepdim=True)
    # Every direction alike: no mean, and a third of the length along each axis.
    assert float(directions.mean(0).abs().max()) < 4 / math.sqrt(3 * count)
    moments = directions.T @ directions / count
    assert float((moments - torch.eye(3) / 3).abs().max()) < 4 * math.sqrt(4 / 45 / count)
    # In many dimensions nearly all the volume is at the surface.
    d = pgd_start(grey((20, 3, 16, 16)), torch.arange(20), 5, eps, "l2", torch.float32) / eps
    inside = d.double().flatten(1).norm(dim=1) ** (3 * 16 * 16)
    assert 0.2 < float(inside.mean()) < 0.8
    assert float(inside.max()) > 0.7
    assert float(inside.min()) < 0.3


def test_no_images_and_no_pixels() -> None:
    for shape in [(0, 3, 4, 4), (2, 3, 0, 4)]:
        for norm in ("linf", "l2"):
            out = pgd_start(grey(shape), torch.arange(shape[0]), 1, EPS, norm, torch.float16)
            assert out.shape == shape
