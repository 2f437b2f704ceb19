"""Compile every kernel without a GPU and print, as JSON, how its machine code uses memory.

A program of its own, started by ``test_compiled``: it needs Triton's compiler, where the other
tests need its interpreter. Each launcher is called on CPU tensors with its kernels replaced by
recorders, so that what is compiled is what the launcher would start, alignments included.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
STATISTICS = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
TYPES = {
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # of SASS, in bytes
HIP_SIZES = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def calls() -> Iterator[tuple[str, str, str, tuple[Any, ...]]]:
    """Name, operation, layout and arguments of every call to compile.

    They cover each layout and each branch of a kernel once, not every pair of them.
    """
    count, size = 2, 32
    full, shape = (count, 3, size, size), (3, size, size)
    ids, flags = zeros(count), zeros(count, dtype=torch.bool)
    bf16, fp16 = torch.bfloat16, torch.float16
    batch = zeros(*full, dtype=torch.uint8), zeros(*full, dtype=fp16), zeros(*full, dtype=bf16)
    for norm in ("linf", "l2"):
        step = f"pgd_step_{norm}"
        yield step, step, "nchw", (*batch, 0.1, 0.02, *STATISTICS)
        yield f"{step} indexed", step, "last", (*batch, 0.1, 0.02, *STATISTICS, ids, ids + 1)
    odd = [zeros(2, 3, 33, 33, dtype=t.dtype) for t in batch]
    yield "misaligned", "pgd_step_linf", "nchw", (*odd, 0.1, 0.02, *STATISTICS)
    yield "pgd_start linf", "pgd_start", "last", (batch[0], ids, 5, 0.1, "linf", fp16)
    yield "pgd_start l2", "pgd_start", "nchw", (batch[0], ids, 5, 0.5, "l2", fp16)
    more = 0, 10, *STATISTICS, bf16
    yield "inject mix", "inject", "nchw", (batch[0], ids, flags, batch[2], batch[2], *more)
    pattern = zeros(*shape, dtype=bf16)
    yield "inject add", "inject", "last", (batch[0], ids, flags, pattern, None, *more)
    own, share = zeros(*full, dtype=torch.float32), zeros(count, 1, size, size, dtype=torch.float32)
    plain = 0, 10, *STATISTICS, torch.float32
    yield "inject float32", "inject", "last", (batch[0], ids, flags, own, share, *plain)
    grid = zeros(count, size, size, 2, dtype=torch.float32)
    yield "warp", "warp_normalise", "nchw", (batch[0], grid, *STATISTICS, bf16)
    yield "warp shared", "warp_normalise", "last", (batch[0], grid[0], *STATISTICS, bf16)
    logits = zeros(8, 1000, dtype=bf16)
    yield "agreement", "agreement", "nchw", (logits, logits, zeros(8))
    state = zeros(8), zeros(8, dtype=torch.int32), zeros(9), zeros(2)
    yield "retire", "retire", "nchw", (logits, zeros(9), *state, 0, 7, 0.3, False)


def launches(operation: str, layout: str, arguments: tuple[Any, ...], warps: int) -> list[Launch]:
    """The kernels a launcher starts, with what it starts them."""
    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: object) -> Any:
            return lambda *args, **kwargs: found.append((self.kernel, args, kwargs))

    if layout == "last":
        arguments = tuple(
            a.contiguous(memory_format=torch.channels_last)
            if isinstance(a, Tensor) and a.ndim == 4
            else a
            for a in arguments
        )
    module = importlib.import_module(f"kernels.{operation.removesuffix('_normalise')}")
    step = importlib.import_module("kernels._step")
    kernels = {k: v for k, v in vars(module).items() if re.fullmatch(r"_\w+_kernel", k)}
    recorders = {name: Recorder(kernel) for name, kernel in kernels.items()}
    old = [(m, "WARPS", m.WARPS) for m in (module, step) if hasattr(m, "WARPS")]
    try:
        vars(module).update(recorders)
        for owner, name, _ in old:
            setattr(owner, name, warps)
        getattr(module, f"triton_{operation}")(*arguments)
    finally:
        vars(module).update(kernels)
        for owner, name, value in old:
            setattr(owner, name, value)
    return found


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """One kernel, specialised as Triton does it: multiples of 16 are known, and ones constant."""
    kernel, args, kwargs = launch
    values = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    options = {name: values.pop(name) for name in list(values) if name not in kernel.arg_names}
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if type(value) is int and value == 1:
            constants[name] = value
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            pointer = isinstance(value, Tensor)
            signature[name] = TYPES[value.dtype] if pointer else "i32"
            if (value.data_ptr() if pointer else value) % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options)


def cuda_report(kernel: Any) -> dict[str, Any]:
    """Of the machine code: global accesses by their size, and words kept in local memory."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        sass = subprocess.run(
            [str(path), "-sass", "-res-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    accesses: Counter[str] = Counter()
    for kind, modifiers in re.findall(r"\b(LD|ST|LDG|STG|ATOM|ATOMG|RED)(\.\S*)", sass):
        size = next((SIZES[m] for m in modifiers.split(".") if m in SIZES), 4)
        name = {"LDG": "load", "STG": "store"}.get(kind, kind)
        accesses[f"{name} {size}"] += 1
    local = [int(n) for n in re.findall(r"\b(?:STACK|LOCAL):(\d+)", sass)]
    if len(local) != 2:
        raise ValueError(f"no resource usage in {sass[:2000]}")
    return {"accesses": accesses, "spilled": sum(local) + len(re.findall(r"\b(?:LDL|STL)\b", sass))}


def hip_report(kernel: Any) -> dict[str, Any]:
    """As :func:`cuda_report`; scalar loads, which every lane shares, are not counted."""
    assembly = kernel.asm["amdgcn"]
    accesses: Counter[str] = Counter()
    found = re.findall(r"^\s+(?:global|buffer|flat)_(load|store)_(\w+)", assembly, re.MULTILINE)
    for kind, suffix in found:
        bare = re.sub(r"^[us](?=byte|short)|_d16\w*$", "", suffix)
        accesses[f"{kind} {HIP_SIZES[bare]}"] += 1
    fields = {
        name: int(number)
        for name, number in re.findall(r"^\s*\.(\w+):\s*(\d+)\s*$", assembly, re.MULTILINE)
    }
    # Scalar registers spill into lanes of vector registers, which is no memory traffic.
    spilled = fields["vgpr_spill_count"] + fields["private_segment_fixed_size"]
    return {"accesses": accesses, "spilled": spilled, "scalars": fields["sgpr_spill_count"]}


def main() -> None:
    """Everything, for every target."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    reports = []
    for name, operation, layout, arguments in calls():
        for architecture, target in TARGETS.items():
            hip = target.backend == "hip"
            for launch in launches(operation, layout, arguments, warps=1 if hip else 2):
                kernel = compiled(launch, target)
                report = hip_report(kernel) if hip else cuda_report(kernel)
                report |= {"call": name, "kernel": launch[0].__name__, "target": architecture}
                reports.append(report)
    json.dump(reports, sys.stdout)


if __name__ == "__main__":
    main()
