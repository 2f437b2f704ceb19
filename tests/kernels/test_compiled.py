"""The machine code of every kernel: wide memory accesses, and no registers kept in memory.

Compiled here for GPUs that are not here. A thread owns 16 neighbouring elements of a sample, so
images, perturbations, gradients, patterns and logits are to be read and written 16 bytes at once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Report = dict[str, Any]

TARGETS = ["sm_80", "sm_90", "gfx942"]

# For each call and kernel: how many wide loads and stores at least, and how many narrow accesses
# at most. rows, following, ids and labels are int64: one load of 8 bytes each for a program.
STEP = {"load 16": 5, "store 16": 4}  # x 1, d 2, g 2; d 2, z 2
INDEXED_STEP = {"load 16": 8, "store 16": 4}  # and x 1, d 2 of the sample that follows
ROWS = {"load 8": 3}  # rows twice, following
SUMS = {"load 4": 4}  # four sums, a block each a lane
WIDE: dict[tuple[str, str], dict[str, int]] = {
    ("pgd_step_linf", "_pgd_step_linf_kernel"): STEP,
    ("pgd_step_linf indexed", "_pgd_step_linf_kernel"): INDEXED_STEP,
    ("pgd_step_l2", "_sums_kernel"): {"load 16": 4},  # d 2, g 2
    ("pgd_step_l2", "_pgd_step_l2_kernel"): STEP,
    ("pgd_step_l2 indexed", "_sums_kernel"): {"load 16": 4},
    ("pgd_step_l2 indexed", "_pgd_step_l2_kernel"): INDEXED_STEP,
    ("pgd_start linf", "_pgd_start_kernel"): {"load 16": 1, "store 16": 2},  # x; d
    ("pgd_start l2", "_pgd_start_kernel"): {"load 16": 1, "store 16": 2},
    ("inject mix", "_inject_kernel"): {"load 16": 5, "store 16": 2},  # x 1, p 2, m 2; z
    ("inject add", "_inject_kernel"): {"load 16": 3, "store 16": 2},
    ("inject float32", "_inject_kernel"): {"load 16": 9, "store 16": 4},  # x 1, p 4, m 4; z
    ("warp", "_warp_kernel"): {"load 16": 8, "store 16": 2},  # the grid's x and y; z
    ("warp shared", "_warp_kernel"): {"store 16": 2},
    ("agreement", "_agreement_kernel"): {"load 16": 2},
    ("retire", "_judge_kernel"): {"load 16": 2},
    ("retire", "_assign_kernel"): {},
}
INJECT = {"load 1": 1, "load 8": 1, "store 8": 1}  # triggered, label; label
NARROW: dict[tuple[str, str], dict[str, int]] = {
    ("pgd_step_linf", "_pgd_step_linf_kernel"): {},
    ("pgd_step_linf indexed", "_pgd_step_linf_kernel"): ROWS,
    ("pgd_step_l2", "_sums_kernel"): {"store 4": 4},
    ("pgd_step_l2", "_pgd_step_l2_kernel"): SUMS,
    ("pgd_step_l2 indexed", "_sums_kernel"): {"load 8": 1, "store 4": 4},
    ("pgd_step_l2 indexed", "_pgd_step_l2_kernel"): {**ROWS, **SUMS},
    ("pgd_start linf", "_pgd_start_kernel"): {"load 8": 1},
    # CUDA's cosine has a table for arguments beyond 10^5; ours are below 2 pi and never reach it.
    ("pgd_start l2", "_pgd_start_kernel"): {"load 8": 1, "load 4": 64},
    ("inject mix", "_inject_kernel"): INJECT,
    ("inject add", "_inject_kernel"): INJECT,
    ("inject float32", "_inject_kernel"): INJECT,
    # Four neighbours of each of 16 elements lie anywhere in the image.
    ("warp", "_warp_kernel"): {"load 1": 64},
    # In channels_last three elements share an entry of the grid, so 16 are no whole number.
    ("warp shared", "_warp_kernel"): {"load 1": 64, "load 4": 32},
    ("agreement", "_agreement_kernel"): {"load 8": 1, "store 4": 3},  # label; cosine, margins
    ("retire", "_judge_kernel"): {"load 8": 2, "store 4": 1},  # row, its label; beaten
    # One program for all slots: int64 and int32 entries a few times, and places that depend on
    # other slots. Its size is that of the batch, not of the images.
    ("retire", "_assign_kernel"): {"load 8": 99, "load 4": 99, "store 8": 99, "store 4": 99},
}


@pytest.fixture(scope="session")
def reports() -> list[Report]:
    """Of every kernel on every target; Triton's cache makes a second run quick."""
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Report] = json.loads(done.stdout)
    return found


def complaints(report: Report, call: str) -> list[str]:
    """What is wrong with one kernel's memory accesses."""
    place = call, report["kernel"]
    accesses: dict[str, int] = report["accesses"]
    few = [
        f"{accesses.get(kind, 0)} instead of {count} of {kind}"
        for kind, count in WIDE[place].items()
        if accesses.get(kind, 0) < count
    ]
    narrow = {kind: n for kind, n in accesses.items() if not kind.endswith(" 16")}
    many = [
        f"{count} of {kind}, {NARROW[place].get(kind, 0)} are known"
        for kind, count in narrow.items()
        if count > NARROW[place].get(kind, 0)
    ]
    spilled = [f"{report['spilled']} bytes or registers spilled"] if report["spilled"] else []
    return few + many + spilled


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("call", "kernel"), WIDE)
def test_memory_is_used_in_words_of_16_bytes(
    reports: list[Report], call: str, kernel: str, target: str
) -> None:
    wanted = {"call": call, "kernel": kernel, "target": target}
    (report,) = (r for r in reports if wanted.items() <= r.items())
    assert not complaints(report, call), report["accesses"]


@pytest.mark.parametrize("target", TARGETS)
def test_scalar_registers_spill_in_no_kernel_but_warp(reports: list[Report], target: str) -> None:
    # Warp has a condition for each of 64 reads; 16 * 4 lane masks are more than there are
    # registers for on AMD, and some wait in lanes of vector registers.
    spilling = {r["kernel"] for r in reports if r["target"] == target and r.get("scalars")}
    assert spilling <= {"_warp_kernel"}


def test_every_kernel_is_compiled_for_every_target(reports: list[Report]) -> None:
    done = {(r["call"], r["kernel"], r["target"]) for r in reports if r["call"] != "misaligned"}
    assert done == {(*place, target) for place in WIDE for target in TARGETS}
    package = Path(__file__).parents[2] / "kernels"
    sources = [p.read_text(encoding="utf-8") for p in package.glob("*.py")]
    launched = {kernel for _, kernel in WIDE}
    assert all(f"def {kernel}(" in "".join(sources) for kernel in launched)
    assert sum(s.count("_kernel[") for s in sources) == len(launched)


@pytest.mark.parametrize("target", TARGETS)
def test_a_misaligned_image_is_noticed(reports: list[Report], target: str) -> None:
    # 3 * 33 * 33 elements: the samples begin at any byte.
    (report,) = (r for r in reports if r["call"] == "misaligned" and r["target"] == target)
    assert any("load 16" in c for c in complaints(report, "pgd_step_linf"))
    assert any("store 2" in c for c in complaints(report, "pgd_step_linf"))
