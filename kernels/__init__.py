"""One GPU operation a file; for now each in plain torch, the reference for later kernels."""

from kernels.agreement import agreement
from kernels.inject import add_pattern, mix_pattern
from kernels.pgd_step import pgd_step_l2, pgd_step_linf
from kernels.warp import warp

__all__ = ["add_pattern", "agreement", "mix_pattern", "pgd_step_l2", "pgd_step_linf", "warp"]
