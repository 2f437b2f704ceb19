"""The registered operations: what torch.compile, autograd's checks and CUDA graphs make of them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels

STATISTICS = (0.48, 0.46, 0.41), (0.23, 0.31, 0.27)
ROWS, FOLLOWING = [4, -1, 0, 2], [4, 1, -1, 3]


def arguments(name: str) -> list[Any]:
    """Small arguments of an operation, on the CPU."""
    random = torch.Generator().manual_seed(0)
    count, classes = 4, 10
    pool = (6, 3, 8, 8)
    x = (torch.rand(pool, generator=random) * 255).to(torch.uint8)
    d = (torch.rand(pool, generator=random) - 0.5).mul(0.04).half()
    g = torch.randn(count, *pool[1:], generator=random).to(torch.bfloat16)
    labels = torch.arange(count)
    flags = labels % 2 == 0
    a = torch.randn(count, classes, generator=random)
    b = torch.randn(count, classes, generator=random)
    age = torch.tensor([0, 2, 1, 4], dtype=torch.int32)
    batch = x[:count].contiguous(memory_format=torch.channels_last)
    grid = torch.rand(8, 8, 2, generator=random) * 2 - 1
    rows, following = torch.tensor(ROWS), torch.tensor(FOLLOWING)
    pattern, mask = g.float().sigmoid(), torch.full((1, 1, 1), 0.5)
    queue, cursor = torch.tensor([5, 1, 3]), torch.tensor([1, 3])
    wanted: dict[str, list[Any]] = {
        "agreement": [a, b, labels],
        "inject": [batch, labels, flags, pattern, mask, -1, 10, *STATISTICS, torch.bfloat16],
        "pgd_start": [batch, labels, 7, 0.03, "linf", torch.float16],
        "pgd_step_l2": [x, d, g, 0.5, 0.1, *STATISTICS, rows, following],
        "pgd_step_linf": [x, d, g, 0.03, 0.01, *STATISTICS, rows, following],
        "retire": [a, labels.repeat(2)[:6], rows, age, queue, cursor, 0, 5, 0.2, False],
        "warp_normalise": [batch, grid, *STATISTICS, torch.bfloat16],
    }
    return wanted[name]


# Some of the names that the package hands on are plain functions of torch operations.
PLAIN = {"add_pattern", "beaten", "mix_pattern", "warp"}
OPERATIONS = sorted(set(kernels.__all__) - PLAIN)


def copies(values: list[Any], device: torch.device | str = "cpu") -> list[Any]:
    """The same arguments, to be changed in place."""
    return [v.to(device, copy=True) if isinstance(v, Tensor) else v for v in values]


def outcome(function: Callable[..., Any], values: list[Any]) -> list[Tensor]:
    """What a call returns, and its arguments after it."""
    out = function(*values)
    returned = list(out) if isinstance(out, tuple) else [out]
    return [t.cpu() for t in returned + [v for v in values if isinstance(v, Tensor)]]


def same(found: list[Tensor], wanted: list[Tensor], atol: float = 0.0) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def part(name: str, kind: str) -> Callable[..., Any]:
    """The twin or the launcher of an operation."""
    function: Callable[..., Any] = getattr(
        import_module(f"kernels.{name.removesuffix('_normalise')}"), f"{kind}_{name}"
    )
    return function


def test_every_operation_is_here() -> None:
    for name in PLAIN:
        assert not hasattr(getattr(kernels, name), "_opoverload")
    for name in OPERATIONS:
        assert arguments(name)


@pytest.mark.parametrize("name", OPERATIONS)
def test_torch_finds_the_registration_in_order(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.pbe, name).default, copies(arguments(name)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_cpu_runs_the_twin(name: str) -> None:
    operation, twin = getattr(kernels, name), part(name, "torch")
    same(outcome(operation, copies(arguments(name))), outcome(twin, copies(arguments(name))))


@pytest.mark.parametrize("name", OPERATIONS)
def test_torch_compile_takes_it_in_one_graph(name: str) -> None:
    operation = getattr(kernels, name)
    compiled = torch.compile(lambda *a: operation(*a), backend="eager", fullgraph=True)
    wanted = outcome(operation, copies(arguments(name)))
    same(outcome(compiled, copies(arguments(name))), wanted)


@pytest.fixture
def cuda() -> torch.device:
    """A GPU, with compiled kernels."""
    import triton

    if triton.knobs.runtime.interpret or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and TRITON_INTERPRET=0")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpu_runs_the_kernel(cuda: torch.device, name: str) -> None:
    wanted = outcome(part(name, "triton"), copies(arguments(name), cuda))
    same(outcome(getattr(kernels, name), copies(arguments(name), cuda)), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_inductor_takes_it_in_one_graph(cuda: torch.device, name: str) -> None:
    operation = getattr(kernels, name)
    compiled = torch.compile(lambda *a: operation(*a), fullgraph=True)
    wanted = outcome(operation, copies(arguments(name), cuda))
    same(outcome(compiled, copies(arguments(name), cuda)), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_cuda_graph_captures_it(cuda: torch.device, name: str) -> None:
    operation = getattr(kernels, name)
    wanted = outcome(operation, copies(arguments(name), cuda))  # compiles it, too
    values = copies(arguments(name), cuda)
    fresh = copies(arguments(name), cuda)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operation(*values)
    for _ in range(2):  # a replay starts from what its tensors hold then
        for value, first in zip(values, fresh, strict=True):
            if isinstance(value, Tensor):
                value.copy_(first)
        graph.replay()
    torch.cuda.synchronize()
    same(outcome(lambda *_: out, values), wanted)
