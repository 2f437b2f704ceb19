"""Erasing a backdoor: adversarial fine-tuning, identification, and the progressive loop."""

from pbe_fast.erase.finetune import aft_stage, make_pgd
from pbe_fast.erase.identify import score_shards, select_top
from pbe_fast.erase.progressive import (
    Place,
    Round,
    Worker,
    first_subset,
    pbe_rounds,
    run_rounds,
)
from pbe_fast.erase.score_files import ScoreFiles

__all__ = [
    "Place",
    "Round",
    "ScoreFiles",
    "Worker",
    "aft_stage",
    "first_subset",
    "make_pgd",
    "pbe_rounds",
    "run_rounds",
    "score_shards",
    "select_top",
]
