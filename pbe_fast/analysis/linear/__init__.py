"""Appendix A, the linear analysis: its claims in numbers, as printed and as corrected."""

from pbe_fast.analysis.linear.ascent import Ascent, Untargeted, ascend, gap, untargeted
from pbe_fast.analysis.linear.claims import FORMS, Claim, verdict
from pbe_fast.analysis.linear.figures import sweep_figure
from pbe_fast.analysis.linear.lemma import lemma_claims
from pbe_fast.analysis.linear.perturbation import Bounds, bounds, perturbation_claims
from pbe_fast.analysis.linear.quantities import Analysis, analyse
from pbe_fast.analysis.linear.setting import Problem, Setting, draw, problem
from pbe_fast.analysis.linear.solution import Solution, solve, split
from pbe_fast.analysis.linear.summary import Summary, as_json, claims_of, examine
from pbe_fast.analysis.linear.sweeps import SWEPT, Point, sweep
from pbe_fast.analysis.linear.witnesses import Witness, refutations, witnesses

__all__ = [
    "FORMS",
    "SWEPT",
    "Analysis",
    "Ascent",
    "Bounds",
    "Claim",
    "Point",
    "Problem",
    "Setting",
    "Solution",
    "Summary",
    "Untargeted",
    "Witness",
    "analyse",
    "as_json",
    "ascend",
    "bounds",
    "claims_of",
    "draw",
    "examine",
    "gap",
    "lemma_claims",
    "perturbation_claims",
    "problem",
    "refutations",
    "solve",
    "split",
    "sweep",
    "sweep_figure",
    "untargeted",
    "verdict",
    "witnesses",
]
