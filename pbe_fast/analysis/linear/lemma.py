"""Lemma 1 of appendix A.1, and the inequalities of its proof, (5) to (7), as numbers.

The corrected forms are proved in docs/theory.md under the same names.
"""

import numpy as np

from pbe_fast.analysis.linear.claims import Claim, Form, claim
from pbe_fast.analysis.linear.quantities import Analysis, precision
from pbe_fast.analysis.linear.solution import gradient, losses, objective, probabilities

__all__ = ["lemma_claims"]


def lemma_claims(a: Analysis) -> list[Claim]:
    """The structure of the infected model, Lemma 1's two bounds, and (5) to (7)."""
    return [*_structure(a), *_bounds(a), *_values(a), *_distances(a)]


def _structure(a: Analysis) -> list[Claim]:
    task, u, error = a.task, a.u, a.error
    rest = a.infected.weights - a.parallel - np.outer(task.patch, u)
    # The solver works in span(S, P); the certificate, taken in R^d, is what proves the form.
    away = float(np.linalg.norm(rest)) + a.infected.distance
    small = precision(a.infected.weights)
    others = np.delete(u, task.target)
    missed = 1 - probabilities(task.inputs @ a.infected.weights)[:, task.target]
    footprint = float(missed[task.triggered].sum()) / (a.n * task.lam)
    return [
        claim("rank one", "printed", "|W_perp - P u^T| = 0", away, "<=", 0.0, error=small),
        claim("signs", "printed", "u_l >= 0", a.u_target, ">=", 0.0, error=error),
        claim("signs, j != l", "printed", "max u_j <= 0", others.max(), "<=", 0.0, error=error),
        claim("sum of u", "corrected", "|sum u_j| = 0", abs(u.sum()), "<=", 0.0, error=error),
        claim("u_l itself", "corrected", "|u_l - sum over T (1 - p_l) / (n lam)| = 0",
              abs(a.u_target - footprint), "<=", 0.0, error=small / task.rho),
    ]  # fmt: skip


def _bounds(a: Analysis) -> list[Claim]:
    task, lam, rho, error = a.task, a.task.lam, a.task.rho, a.error
    moved = float(np.linalg.norm(a.parallel - a.benign.weights))
    upper, lower = "Lemma 1, |W_par - W~|", "Lemma 1, u_l"
    found = []
    for form, ell in _counts(a):
        bound = ell * rho**2 / (np.sqrt(2) * lam)
        count = "ell" if form == "printed" else "ell/n"
        found += [
            claim(upper, form, f"<= {count} |P|^2 / (sqrt2 lam)", moved, "<=", bound, error=error),
            claim(lower, form, f">= (sqrt2 - 1) {count} |P|^2 / (sqrt2 lam)", a.u_target, ">=",
                  (np.sqrt(2) - 1) * bound, error=error),
        ]  # fmt: skip
    most = a.g / lam * np.sqrt(1 - 1 / task.classes)
    return [
        *found,
        claim(upper, "corrected", "<= min(|P|/2, kappa) |g| / lam", moved, "<=", a.drift,
              error=error),
        claim(lower, "corrected", ">= |g| (1 - eta) / (sqrt2 lam)", a.u_target, ">=",
              a.least_by_eta, error=error),
        claim("u_l, sharper", "corrected", ">= t of docs/theory.md", a.u_target, ">=", a.least,
              error=error),
        claim("u_l, above", "corrected", "<= |g| sqrt(1 - 1/K) / lam", a.u_target, "<=", most,
              error=error),
    ]  # fmt: skip


def _values(a: Analysis) -> list[Claim]:
    """(5), (6), (7), and the value at W_1, which (5) is read off."""
    task, lam, rho = a.task, a.task.lam, a.task.rho
    benign = a.benign.objective
    fallen = benign - a.infected.objective
    size = float(np.linalg.norm(a.infected.weights) + np.linalg.norm(a.benign.weights))
    error = a.value_error + a.error * rho**2 * a.g / lam  # the latter of |g|^2
    found = []
    for form, ell in _counts(a):
        drop = (ell * rho**2) ** 2 / (2 * lam)
        count = "ell" if form == "printed" else "(ell/n)"
        at_one = objective(task, _one(a, ell * rho**2 / lam))
        found += [
            claim("value at W_1", form, f"|F(W_1) - F(W~) + {count}^2 |P|^4 / (2 lam)| = 0",
                  abs(at_one - benign + drop), "<=", 0.0, error=error),
            claim("(5)", form, f"F(W~) - F(W*) >= {count}^2 |P|^4 / (2 lam)", fallen, ">=", drop,
                  error=error),
        ]  # fmt: skip
    lost = (a.ell * rho / a.n) ** 2 / (2 * lam)
    at_one = objective(task, _one(a, a.ell / (a.n * lam)))
    gain = (rho * a.g) ** 2 / (2 * lam)
    trained = losses(task.inputs @ a.infected.weights, task.labels)
    without = losses(task.inputs @ a.parallel, task.labels)
    least = float((trained - without)[task.triggered].min(initial=0.0))
    reach = (a.u_target + np.abs(np.delete(a.u, task.target)).max()) * rho**2
    return [
        *found,
        claim("value at W_1", "corrected", "F(W_1) >= F(W~) - (ell/n)^2 |P|^2 / (2 lam)", at_one,
              ">=", benign - lost, error=error),
        claim("(5)", "corrected", "F(W~) - F(W*) >= |P|^2 |g|^2 / (2 lam (1 + kappa))", fallen,
              ">=", gain / (1 + a.kappa), error=error),
        claim("(6)", "printed", "min over T of the change >= -(u_l + u') |P|^2", least, ">=",
              -reach, error=a.error * (1 + size)),
        *(
            claim("(7)", form, f"F(W~) - F(W*) <= {'ell' if form == 'printed' else '(ell/n)'}^2 "
                  "|P|^4 / lam", fallen, "<=", (ell * rho**2) ** 2 / lam, error=error)
            for form, ell in _counts(a)
        ),
        claim("(7)", "corrected", "F(W~) - F(W*) <= |P|^2 |g|^2 / (2 lam)", fallen, "<=", gain,
              error=error),
    ]  # fmt: skip


def _distances(a: Analysis) -> list[Claim]:
    """How far W_1 is from the infected model, and what strong convexity gives."""
    task, lam, rho = a.task, a.task.lam, a.task.rho
    found = []
    forms: list[tuple[Form, float, float]] = [
        (form, ell * rho**2 / lam, (ell * rho**2) ** 2 / (2 * lam)) for form, ell in _counts(a)
    ]
    forms.append(("corrected", a.ell / (a.n * lam), 1.5 * (a.ell * rho / a.n) ** 2 / lam))
    texts = {
        "printed": ("ell^2 |P|^4 / (2 lam)", "ell^2 |P|^4 / (2 lam^2)"),
        "with 1/n": ("(ell/n)^2 |P|^4 / (2 lam)", "(ell/n)^2 |P|^4 / (2 lam^2)"),
        "corrected": ("3 (ell/n)^2 |P|^2 / (2 lam)", "3 (ell/n)^2 |P|^2 / lam^2"),
    }
    for form, gamma, most in forms:
        one = _one(a, gamma)
        excess = objective(task, one) - a.infected.objective
        square = float(np.sum((one - a.infected.weights) ** 2))
        factor = 2 if form == "corrected" else 1  # F(W) - F(W*) >= lam/2 |W - W*|^2
        error = a.error * (1 + float(np.sqrt(square)))
        steep = float(np.linalg.norm(gradient(task, one))) * a.benign.distance + a.value_error
        value, distance = texts[form]
        found += [
            claim("F(W_1) - F(W*)", form, f"<= {value}", excess, "<=", most, error=steep),
            claim("|W_1 - W*|^2", form, f"<= {distance}", square, "<=", factor * most / lam,
                  error=error),
            claim("strong convexity", form,
                  f"|W_1 - W*|^2 <= {'2 ' if factor == 2 else ''}(F(W_1) - F(W*)) / lam", square,
                  "<=", factor * excess / lam, error=error + 1e-13 / lam),
        ]  # fmt: skip
    away = float(np.linalg.norm(a.infected.weights - a.benign.weights))
    return [
        *found,
        claim("|W* - W~|", "corrected", "<= |P| |g| / lam", away, "<=", rho * a.g / lam,
              error=a.error),
    ]  # fmt: skip


def _counts(a: Analysis) -> tuple[tuple[Form, float], ...]:
    """What stands for ell in the two forms that are not corrected."""
    return ("printed", float(a.ell)), ("with 1/n", a.ell / a.n)


def _one(a: Analysis, gamma: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """W_1 = W~ + gamma P e_l^T, ``(d, K)``."""
    target = np.eye(a.task.classes)[a.task.target]
    found = a.benign.weights + gamma * np.outer(a.task.patch, target)
    return np.asarray(found, dtype=np.float64)
