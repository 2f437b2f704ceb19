"""Appendix A, the linear analysis: its claims in numbers, as printed and as corrected."""

from pbe_fast.analysis.claims import FORMS, Claim, verdict
from pbe_fast.analysis.lemma import lemma_claims
from pbe_fast.analysis.linear import Solution, solve, split
from pbe_fast.analysis.perturbation import Bounds, bounds, perturbation_claims
from pbe_fast.analysis.quantities import Analysis, analyse
from pbe_fast.analysis.setting import Problem, Setting, draw, problem

__all__ = [
    "FORMS",
    "Analysis",
    "Bounds",
    "Claim",
    "Problem",
    "Setting",
    "Solution",
    "analyse",
    "bounds",
    "draw",
    "lemma_claims",
    "perturbation_claims",
    "problem",
    "solve",
    "split",
    "verdict",
]
