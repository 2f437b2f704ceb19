"""Erasing a backdoor: adversarial fine-tuning, identification, and the progressive loop."""

from pbe_fast.erase.activations import Activations
from pbe_fast.erase.finetune import aft_stage, make_pgd
from pbe_fast.erase.identify import Agreement, Measure, Outcome, score_shards, select_top
from pbe_fast.erase.progressive import (
    Place,
    Round,
    Selection,
    Worker,
    first_subset,
    pbe_rounds,
    run_rounds,
)
from pbe_fast.erase.score_files import ScoreFiles
from pbe_fast.erase.sieve import Sieve
from pbe_fast.erase.split import Split, split_classes

__all__ = [
    "Activations",
    "Agreement",
    "Measure",
    "Outcome",
    "Place",
    "Round",
    "ScoreFiles",
    "Selection",
    "Sieve",
    "Split",
    "Worker",
    "aft_stage",
    "first_subset",
    "make_pgd",
    "pbe_rounds",
    "run_rounds",
    "score_shards",
    "select_top",
    "split_classes",
]
