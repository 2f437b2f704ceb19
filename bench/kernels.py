"""Every kernel against its eager twin, and against the device's measured copy bandwidth.

    python -m bench.kernels                     on a CUDA device

The bytes of an operation are those that its docstring counts: what it must read and write once.
Achieved bandwidth is those bytes by the median time; the limit is a copy of 1 GiB on the same
device, counting bytes read and written. Inputs rotate so that none is in the cache.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import kernels
from bench._setup import facts, write_json
from kernels.agreement import torch_agreement
from kernels.inject import torch_inject
from kernels.pgd_start import torch_pgd_start
from kernels.pgd_step_l2 import torch_pgd_step_l2
from kernels.pgd_step_linf import torch_pgd_step_linf
from kernels.retire import torch_retire
from kernels.warp import torch_warp_normalise

HALF = [0.5, 0.5, 0.5]
SHAPES = {"32": (8192, 3, 32, 32), "224": (256, 3, 224, 224)}
PLACE = "cuda"
SETS = 4  # input sets to rotate among


@dataclass(frozen=True)
class Case:
    """One operation on one shape: the bytes it must move, and calls of kernel and twin."""

    bytes: int
    kernel: Callable[[], object]
    twin: Callable[[], object]


def rotated(make: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    """Another of several input sets at each call."""
    sets = itertools.cycle([make() for _ in range(SETS)])
    return lambda: next(sets)


def cases(shape: tuple[int, ...], layout: torch.memory_format) -> dict[str, Case]:
    """All operations on one shape of batch."""
    count = shape[0]
    elements = count * shape[1] * shape[2] * shape[3]

    def dense(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=layout)

    def pixels() -> Tensor:
        return dense(torch.randint(0, 256, shape, dtype=torch.uint8, device=PLACE))

    def step_input() -> tuple[Tensor, Tensor, Tensor]:
        d = (torch.rand(shape, device=PLACE) - 0.5) * 0.04
        return pixels(), dense(d.half()), dense(torch.randn(shape, device=PLACE).bfloat16())

    def case(
        traffic: float,
        make: Callable[[], tuple[Any, ...]],
        kernel: Callable[..., object],
        twin: Callable[..., object],
        *rest: object,
    ) -> Case:
        inputs = rotated(make)
        return Case(
            round(traffic), lambda: kernel(*inputs(), *rest), lambda: twin(*inputs(), *rest)
        )

    labels = torch.randint(0, 1000, (count,), device=PLACE)
    triggered = torch.rand(count, device=PLACE) < 0.5
    ids = torch.arange(count, device=PLACE)
    picture = torch.rand(shape[1:], device=PLACE)
    share = torch.full((1, *shape[2:]), 0.2, device=PLACE)
    grid = torch.rand(*shape[2:], 2, device=PLACE) * 2 - 1
    rows = max(1024, elements // 2000)

    def logits() -> tuple[Tensor, Tensor, Tensor]:
        one, two = (torch.randn(rows, 1000, device=PLACE).bfloat16() for _ in range(2))
        return one, two, torch.randint(0, 1000, (rows,), device=PLACE)

    def slots() -> tuple[Any, ...]:
        return (
            torch.randn(8192, 1000, device=PLACE).bfloat16(),
            torch.randint(0, 1000, (100_000,), device=PLACE),
            torch.arange(8192, device=PLACE),
            torch.zeros(8192, dtype=torch.int32, device=PLACE),
            torch.arange(8192, 100_000, device=PLACE),
            torch.tensor([0, 91_808], device=PLACE),
        )

    def injected() -> tuple[Any, ...]:
        return pixels(), labels, triggered

    step = (6 / 255, 1.2 / 255, HALF, HALF)
    mixed = (picture, share, 1, 1000, HALF, HALF, torch.bfloat16)
    return {
        "pgd_step_linf": case(
            9 * elements, step_input, kernels.pgd_step_linf, torch_pgd_step_linf, *step
        ),
        "pgd_step_l2": case(
            13 * elements, step_input, kernels.pgd_step_l2, torch_pgd_step_l2, *step
        ),
        "pgd_start": case(
            3 * elements,
            lambda: (pixels(),),
            kernels.pgd_start,
            torch_pgd_start,
            *(ids, 0, 6 / 255, "linf", torch.float16),
        ),
        "inject": case(3 * elements, injected, kernels.inject, torch_inject, *mixed),
        "warp_normalise": case(
            3 * elements,
            lambda: (pixels(),),
            kernels.warp_normalise,
            torch_warp_normalise,
            *(grid, HALF, HALF, torch.bfloat16),
        ),
        "agreement": case(4 * rows * 1000, logits, kernels.agreement, torch_agreement),
        "retire": case(
            2 * 8192 * 1000, slots, kernels.retire, torch_retire, 1, 1 << 30, 1e9, False
        ),
    }


def measured(case: Case) -> dict[str, float]:
    """Medians and quartiles in microseconds, and achieved bandwidth."""
    quantiles = [0.5, 0.25, 0.75]
    kernel = triton.testing.do_bench(case.kernel, quantiles=quantiles)
    twin = triton.testing.do_bench(case.twin, quantiles=quantiles)
    return {
        "bytes": case.bytes,
        "kernel_us": 1000 * kernel[0],
        "kernel_us_quartiles": [1000 * kernel[1], 1000 * kernel[2]],  # type: ignore[dict-item]  # two numbers
        "twin_us": 1000 * twin[0],
        "gb_per_second": case.bytes / kernel[0] / 1e6,
    }


def copy_bandwidth() -> float:
    """Of a large copy, in GB/s."""
    source = torch.empty(2**30, dtype=torch.uint8, device=PLACE).random_()
    target = torch.empty_like(source)
    median = triton.testing.do_bench(lambda: target.copy_(source), quantiles=[0.5])
    return 2 * 2**30 / median / 1e6


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/kernels_cuda.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device.")
    limit = copy_bandwidth()
    results: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            for operation, case in cases(shape, layout).items():
                row = measured(case)
                row["share_of_copy"] = row["gb_per_second"] / limit
                last = layout == torch.channels_last
                title = f"{operation}, {name}, {'channels_last' if last else 'contiguous'}"
                results[title] = row
                print(
                    f"{title:45} {row['kernel_us']:9.1f} us, twin {row['twin_us']:9.1f} us, "
                    f"{row['gb_per_second']:7.0f} GB/s, {100 * row['share_of_copy']:5.1f} %"
                )
    content = {
        **facts("cuda"),
        "copy_gb_per_second": limit,
        "kernels": results,
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()
