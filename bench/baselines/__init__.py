"""Backdoor defences to compare with, written from their papers.

All of them get what AFT gets: the infected model and a few clean images with their labels. Each is
a file with its published numbers, its source, and what was changed for small sets; none of them
chooses anything by test images or by the trigger. :func:`bench.baselines.run.erase` runs one as a
job.
"""

from bench.baselines._common import Erase
from bench.baselines.anp import neuron_pruning
from bench.baselines.fp import fine_pruning
from bench.baselines.ft import fine_tuning
from bench.baselines.ft_sam import sharpness_aware_tuning
from bench.baselines.ibau import implicit_unlearning
from bench.baselines.nad import attention_distillation
from bench.baselines.sau import shared_unlearning

__all__ = ["BASELINES"]

BASELINES: dict[str, Erase] = {
    "ft": fine_tuning,
    "fp": fine_pruning,
    "nad": attention_distillation,
    "anp": neuron_pruning,
    "ibau": implicit_unlearning,
    "sau": shared_unlearning,
    "ft_sam": sharpness_aware_tuning,
}
