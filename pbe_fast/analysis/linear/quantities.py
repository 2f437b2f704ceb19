"""What the claims of appendix A are about, computed from the two models.

Beside the appendix's own symbols three are needed for the corrected claims (docs/theory.md):

    g     = 1/n sum over triggered i of (e_l - p(x_i; benign)), in R^K: -P g^T is the gradient of F
            at the benign model, all of what the patch adds to it
    kappa = ell |P|^2 / (2 n lam): how much the loss on triggered examples can bend along P
    eta   = sqrt(kappa / (1 + kappa)): the share of |g| / lam by which |u| can stay behind
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pbe_fast.analysis.linear.setting import Array, Problem
from pbe_fast.analysis.linear.solution import Solution, probabilities, solve, split

__all__ = ["Analysis", "analyse", "columns_apart", "precision"]

_PRECISION = 1e-6  # of the solver, beside the weights


@dataclass(frozen=True)
class Analysis:
    """A problem, its benign and its infected model, and the size of the perturbation.

    Attributes:
        delta: the radius of (8).
    """

    task: Problem
    benign: Solution
    infected: Solution
    delta: float

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.task.labels)

    @property
    def ell(self) -> int:
        """Triggered examples."""
        return int(self.task.triggered.sum())

    @property
    def error(self) -> float:
        """How far W, the benign W and u may be from the minimisers."""
        away = self.benign.distance + self.infected.distance
        return away * (1 + 1 / self.task.rho)

    @property
    def value_error(self) -> float:
        """How far F at the two models may be from its minima: F is flat there."""
        return self.task.lam * (self.benign.distance**2 + self.infected.distance**2)

    @cached_property
    def parallel(self) -> Array:
        """The infected W's projection on S, ``(d, K)``."""
        return split(self.task, self.infected.weights)[0]

    @cached_property
    def u(self) -> Array:
        """Of Lemma 1, ``(K,)``: it has an entry a class."""
        return split(self.task, self.infected.weights)[1]

    @property
    def u_target(self) -> float:
        """u_l."""
        return float(self.u[self.task.target])

    @cached_property
    def benign_probabilities(self) -> Array:
        """Of the benign model on all examples, ``(n, K)``."""
        return probabilities(self.task.points @ self.benign.weights)

    @cached_property
    def tau(self) -> float:
        """The benign model's smallest margin; not positive if it gets an example wrong."""
        task = self.task
        logits = task.points @ self.benign.weights
        rows = np.arange(self.n)
        own = logits[rows, task.labels].copy()
        logits[rows, task.labels] = -np.inf
        return float((own - logits.max(1)).min())

    @cached_property
    def g(self) -> float:
        """|g|."""
        task = self.task
        residual = np.eye(task.classes)[task.target] - self.benign_probabilities
        return float(np.linalg.norm(residual[task.triggered].sum(0)) / self.n)

    @property
    def kappa(self) -> float:
        """See the module."""
        return self.ell * self.task.rho**2 / (2 * self.n * self.task.lam)

    @property
    def eta(self) -> float:
        """See the module."""
        return float(np.sqrt(self.kappa / (1 + self.kappa)))

    @property
    def reached(self) -> float:
        """1 - eta, also where kappa is large."""
        return 1 / ((1 + self.kappa) * (1 + self.eta))

    @cached_property
    def least(self) -> float:
        """The corrected lower bound on u_l, and on alpha: the better of two.

        One is |g| (1 - eta) / (sqrt2 lam). The other is the t at which

            t = 1 / (n lam) sum over triggered i of o_i / (e^s + o_i),
            s = sqrt2 min(drift, sqrt2 kappa t) + 2 |P|^2 t,   o_i = (1 - p_l) / p_l, benign,

        whose right side falls as t grows, and is at most u_l at t = u_l.
        """
        task = self.task
        p = self.benign_probabilities[task.triggered, task.target]
        odds = (1 - p) / p
        low, high = 0.0, self.ell / (self.n * task.lam)
        for _ in range(100 if self.ell else 0):
            t = (low + high) / 2
            s = np.sqrt(2) * min(self.drift, np.sqrt(2) * self.kappa * t) + 2 * task.rho**2 * t
            with np.errstate(under="ignore"):
                kept = odds * np.exp(-s)
                grows = float((kept / (1 + kept)).sum()) / (self.n * task.lam) >= t
            low, high = (t, high) if grows else (low, t)
        return max(low, self.least_by_eta)

    @property
    def least_by_eta(self) -> float:
        """|g| (1 - eta) / (sqrt2 lam), which needs |g| alone."""
        return self.g * self.reached / (float(np.sqrt(2)) * self.task.lam)

    @property
    def drift(self) -> float:
        """The corrected bound of Lemma 1 on |W_par - W_benign|."""
        return min(self.task.rho / 2, self.kappa) * self.g / self.task.lam

    @property
    def spread(self) -> float:
        """The corrected bound on lam |w_l - w_j| of the benign model: K / (e^tau + K - 1)."""
        k = self.task.classes
        return float(k / (np.exp(min(self.tau, 700.0)) + k - 1))

    @cached_property
    def benign_v(self) -> float:
        """|v| of (14) with the benign model's columns."""
        weights = self.benign.weights
        found = weights[:, self.task.target] - weights[:, self.others].mean(1)
        return float(np.linalg.norm(found))

    @property
    def others(self) -> Array:
        """The classes of the examples that (9) is about, one entry an example."""
        found: Array = self.task.labels[self.task.labels != self.task.target]
        return found

    @cached_property
    def alpha(self) -> float:
        """(14)."""
        return self.u_target - float(self.u[self.others].mean())

    @cached_property
    def v(self) -> Array:
        """(14), ``(d,)``."""
        found: Array = self.parallel[:, self.task.target] - self.parallel[:, self.others].mean(1)
        return found

    @property
    def share(self) -> float:
        """|r_perp| / |r| of the linear objective (12): equation (15) over delta."""
        along = self.alpha * self.task.rho
        length = float(np.hypot(along, np.linalg.norm(self.v)))
        return along / length if length else 0.0

    @property
    def direction(self) -> Array:
        """The r of (12) over delta, ``(d,)``: parallel to alpha P + v."""
        found: Array = self.alpha * self.task.patch + self.v
        length = np.linalg.norm(found)
        return found / length if length else found


def analyse(task: Problem, delta: float) -> Analysis:
    """Solve both problems."""
    return Analysis(task, solve(task, benign=True), solve(task), delta)


def precision(weights: Array) -> float:
    """How near to a minimiser of about these weights a solution must be.

    Whatever it says of itself: by the solver's own certificate no claim about the form of the
    minimisers could fail.
    """
    return _PRECISION * (1 + float(np.linalg.norm(weights)))


def columns_apart(weights: Array) -> Array:
    """|w_a - w_b| of every two columns of ``(d, K)``, ``(K, K)``."""
    found: Array = np.linalg.norm(weights[:, :, None] - weights[:, None, :], axis=0)
    return found
