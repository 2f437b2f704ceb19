"""One GPU operation a file: equation, torch twin, Triton kernel, launcher.

Most public names are operations: the kernel on CUDA tensors, the twin elsewhere, and accepted by
``torch.compile`` and CUDA graphs. ``beaten``, ``warp``, ``mix_pattern`` and ``add_pattern`` are
plain torch everywhere.
"""

from kernels.agreement import agreement
from kernels.inject import add_pattern, inject, mix_pattern
from kernels.pgd_start import pgd_start
from kernels.pgd_step_l2 import pgd_step_l2
from kernels.pgd_step_linf import pgd_step_linf
from kernels.retire import beaten, retire
from kernels.warp import warp, warp_normalise

__all__ = [
    "add_pattern",
    "agreement",
    "beaten",
    "inject",
    "mix_pattern",
    "pgd_start",
    "pgd_step_l2",
    "pgd_step_linf",
    "retire",
    "warp",
    "warp_normalise",
]
