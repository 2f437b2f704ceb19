"""Settings in which claims of appendix A fail as printed; each is a few lines, not a search.

That of :func:`antipodes` can be followed with a pencil: two classes at x and -x.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pbe_fast.analysis.linear.claims import Claim
from pbe_fast.analysis.linear.lemma import lemma_claims
from pbe_fast.analysis.linear.perturbation import perturbation_claims
from pbe_fast.analysis.linear.quantities import analyse
from pbe_fast.analysis.linear.setting import Problem, Setting, draw, problem

__all__ = ["Witness", "antipodes", "close_classes", "close_pair", "refutations", "witnesses"]


@dataclass(frozen=True)
class Witness:
    """A setting, and the radius of the perturbation.

    Attributes:
        name: in a few words.
    """

    name: str
    task: Problem
    delta: float


def antipodes(examples: int, *, triggered: int, patch: float, lam: float) -> Problem:
    """K = 2 and m = 1: half of the examples at x, of the target class, half at -x."""
    signs = np.where(np.arange(examples) % 2 == 0, 1.0, -1.0)
    points = np.column_stack([signs, np.zeros(examples)])  # (n, 2)
    labels = (signs < 0).astype(np.int64)
    chosen = (labels == 0) & (np.arange(examples) < 2 * triggered)
    return problem(
        points, labels, np.eye(2)[:, :1], np.array([0.0, patch]), chosen,
        target=0, classes=2, lam=lam,
    )  # fmt: skip


def close_pair(angle: float, *, patch: float, lam: float) -> Problem:
    """K = 2, n = 2, m = 2: one example a class, ``2 angle`` apart; the first one is triggered."""
    points = np.zeros((2, 3))
    points[:, 0], points[:, 1] = np.cos(angle), np.array([1, -1]) * np.sin(angle)
    return problem(
        points, np.arange(2), np.eye(3)[:, :2], np.array([0, 0, patch]), np.array([True, False]),
        target=0, classes=2, lam=lam,
    )  # fmt: skip


def close_classes(angle: float, *, examples: int, patch: float, lam: float) -> Problem:
    """K = 4: one example at e_3 (the target, triggered), one at -e_3, two large classes near e_1.

    The large ones are ``2 angle`` apart, so their columns differ a lot though their margin is
    small; the target's column is short, and near to all others.
    """
    c, s = np.cos(angle), np.sin(angle)
    points = np.array(
        [[0, 0, 1, 0], [0, 0, -1, 0], *[[c, s, 0, 0]] * examples, *[[c, -s, 0, 0]] * examples]
    )
    labels = np.array([0, 1, *[2] * examples, *[3] * examples])
    return problem(
        points, labels, np.eye(4)[:, :3], np.array([0, 0, 0, patch]), labels == 0,
        target=0, classes=4, lam=lam,
    )  # fmt: skip


def witnesses() -> tuple[Witness, ...]:
    """What docs/theory.md has, in its order."""
    return (
        Witness("drawn: as by default", draw(Setting()), 0.05),
        Witness("drawn: lambda 0.001", draw(Setting(lam=1e-3)), 0.05),
        Witness("drawn: |P| 0.001, lambda 1", draw(Setting(patch=1e-3, lam=1.0)), 0.05),
        Witness(
            "antipodes: n 400, ell 1, |P| 0.5, lambda 1",
            antipodes(400, triggered=1, patch=0.5, lam=1.0), 0.05,
        ),
        Witness(
            "antipodes: n 400, ell 1, |P| 1, lambda 0.01",
            antipodes(400, triggered=1, patch=1.0, lam=0.01), 0.05,
        ),
        Witness(
            "antipodes: n 2, ell 1, |P| 0.001, lambda 1",
            antipodes(2, triggered=1, patch=1e-3, lam=1.0), 0.05,
        ),
        Witness(
            "close pair: angle 0.001, |P| 0.001, lambda 1e-6",
            close_pair(1e-3, patch=1e-3, lam=1e-6), 1e-4,
        ),
        Witness(
            "close classes: angle 0.05, 2 x 50 examples, |P| 0.001, lambda 0.001",
            close_classes(0.05, examples=50, patch=1e-3, lam=1e-3), 0.13,
        ),
    )  # fmt: skip


def refutations() -> Iterator[tuple[Witness, Claim]]:
    """The first witness against each claim and form that has one."""
    seen = set()
    for witness in witnesses():
        a = analyse(witness.task, witness.delta)
        for found in [*lemma_claims(a), *perturbation_claims(a)]:
            if found.refuted and (found.name, found.form) not in seen:
                seen.add((found.name, found.form))
                yield witness, found
