"""Appendix A.2 as numbers: the premises (10) and (11), (12) to (18), and Theorem 1.

The corrected forms are proved in docs/theory.md under the same names. The perturbation of (15) is
measured by :mod:`pbe_fast.analysis.linear.ascent`, if it was.
"""

from dataclasses import dataclass

import numpy as np

from pbe_fast.analysis.linear.claims import Claim, Form, claim
from pbe_fast.analysis.linear.quantities import Analysis, columns_apart, precision
from pbe_fast.analysis.linear.setting import Array

__all__ = ["Bounds", "bounds", "perturbation_claims"]


@dataclass(frozen=True)
class Bounds:
    """What the forms say of the share |r_perp| / |r|, and whether they say it of this setting.

    Attributes:
        printed, with_n, corrected: Theorem 1; the last from the benign model.
        in_tau: corrected, with (18)'s bound in place of the benign model's columns.
        explicit: corrected, from K, n, ell, |P|, lambda and tau alone.
        printed_premises, with_n_premises, corrected_premises: whether (10) and (11) hold.
    """

    printed: float
    with_n: float
    corrected: float
    in_tau: float
    explicit: float
    printed_premises: bool
    with_n_premises: bool
    corrected_premises: bool


def perturbation_claims(a: Analysis, measured: float | None = None) -> list[Claim]:
    """Premises, (12), (15) to (18) and Theorem 1.

    Args:
        measured: |r_perp| of the maximiser of (9), found by an ascent.
    """
    premises = _premises(a)
    both = _both(premises)
    found = [*premises, *_margins(a, premises, both), *_first_order(a), *_theorem(a, both)]
    if measured is not None:
        within = _kept(a)[0] >= 0  # (12) is what makes (15) the maximiser
        expected = a.share * a.delta
        found.append(
            claim("(15)", "printed", "| |r_perp| - the ascent's | = 0", abs(measured - expected),
                  "<=", 0.0, error=2e-6 * a.delta, premises=within)
        )  # fmt: skip
    return found


def bounds(a: Analysis) -> Bounds:
    """The right sides of Theorem 1 and whether they apply."""
    k, n, ell, rho, lam = a.task.classes, a.n, a.ell, a.task.rho, a.task.lam
    both = _both(_premises(a))

    def printed(count: float) -> float:
        s, c = count * rho**2, np.sqrt(2) - 1
        return float(c * s / np.hypot(c * s, s + 2 * k / (np.exp(min(a.tau, 700.0)) + k)))

    # No margin of the benign model exceeds |w_l - w_j|, so triggered examples are missed this much:
    missed = (k - 1) / (np.exp(min(a.spread / lam, 700.0)) + k - 1)
    g = ell / n * missed * np.sqrt(k / (k - 1))
    known = a.spread / lam
    return Bounds(
        printed(ell), printed(ell / n),
        _share(a, a.least, a.benign_v), _share(a, a.least_by_eta, known),
        _share(a, g * a.reached / (np.sqrt(2) * lam), known),
        both["printed"], both["with 1/n"], both["corrected"],
    )  # fmt: skip


def _share(a: Analysis, least: float, benign_v: float) -> float:
    """The corrected theorem, for alpha >= ``least`` and a benign |v| <= ``benign_v``."""
    rho, root = a.task.rho, float(np.sqrt(2))
    drift = min(a.drift, least * root * min(a.kappa, rho * float(np.sqrt(a.eta / a.reached))))
    along = least * rho
    return float(along / np.hypot(along, benign_v + root * drift)) if along else 0.0


def _counts(a: Analysis) -> tuple[tuple[Form, float], ...]:
    return ("printed", float(a.ell)), ("with 1/n", a.ell / a.n)


def _other_columns(a: Analysis, weights: Array, with_target: bool) -> Array:
    """|w_y - w_j| over classes y of examples of (9) and j != y; entries that do not count are -inf.

    Args:
        with_target: let j be l, too.

    Returns:
        ``(K, K)``, y along the rows.
    """
    apart = columns_apart(weights)
    present = np.isin(np.arange(a.task.classes), a.others)
    apart[~present] = -np.inf
    np.fill_diagonal(apart, -np.inf)
    if not with_target:
        apart[:, a.task.target] = -np.inf
    return apart


def _premises(a: Analysis) -> list[Claim]:
    task, lam, rho, error = a.task, a.task.lam, a.task.rho, a.error
    benign = columns_apart(a.benign.weights)
    nearest = np.delete(benign[task.target], task.target).min()
    found = []
    for form, ell in _counts(a):
        moved = ell * rho**2 / (np.sqrt(2) * lam)
        count = "ell" if form == "printed" else "ell/n"
        found += [
            claim("(10)", form, f"tau >= sqrt2 {count} |P|^2 / lam", a.tau, ">=", 2 * moved,
                  error=error, is_premise=True),
            claim("(11)", form, "delta <= tau/2 / (min |w~_l - w~_j| + ...)", a.delta, "<=",
                  _over(a.tau / 2, nearest + moved), error=error, is_premise=True),
        ]  # fmt: skip
    furthest = max(0.0, float(_other_columns(a, a.benign.weights, False).max()))
    reach = furthest + np.sqrt(2) * rho * a.g / lam
    return [
        *found,
        claim("(10)", "corrected", "tau >= 2 sqrt2 min(|P|/2, kappa) |g| / lam", a.tau, ">=",
              2 * np.sqrt(2) * a.drift, error=error, is_premise=True),
        claim("(11)", "corrected", "delta <= tau/2 / (max |w~_y - w~_j| + sqrt2 |P| |g| / lam)",
              a.delta, "<=", _over(a.tau / 2, reach), error=error, is_premise=True),
    ]  # fmt: skip


def _over(above: float, below: float) -> float:
    """A quotient that JSON can hold: nothing is below where no columns differ."""
    return above / max(below, 1e-300)


def _both(premises: list[Claim]) -> dict[Form, bool]:
    """Whether (10) and (11) hold, for each form; without the premises' tolerance."""
    found: dict[Form, bool] = {}
    for item in premises:
        found[item.form] = found.get(item.form, True) and item.slack >= 0
    return found


def _kept(a: Analysis) -> tuple[float, float]:
    """The worst of (12) over all |r| <= delta, and the smallest margin of W* without r.

    Returns:
        min of <w_y - w_j, x_i> - delta |w_y - w_j| over i with y = y_i != l, and j not y, not l; it
        is 0 where there is no such j (K = 2). And min of <w_y - w_j, x_i> over all j != y.
    """
    task = a.task
    rows = np.flatnonzero(task.labels != task.target)
    own = task.labels[rows]
    logits = task.points[rows] @ a.infected.weights
    margins = logits[np.arange(len(rows)), own][:, None] - logits  # (rows, K)
    margins[np.arange(len(rows)), own] = np.inf
    apart = columns_apart(a.infected.weights)[own]
    left = np.delete(margins - a.delta * apart, task.target, axis=1)
    worst = float(left.min())
    return worst if np.isfinite(worst) else 0.0, float(margins.min())


def _margins(a: Analysis, premises: list[Claim], both: dict[Form, bool]) -> list[Claim]:
    """From the premises to (12)."""
    task, lam, rho, error = a.task, a.task.lam, a.task.rho, a.error
    worst, margin = _kept(a)
    difference = a.parallel - a.benign.weights
    moved = float(np.linalg.norm(difference))
    pairwise = float(columns_apart(difference).max())
    longest = {
        with_target: max(
            0.0,
            np.max(
                _other_columns(a, a.infected.weights, with_target)
                - np.where(
                    np.isfinite(apart := _other_columns(a, a.benign.weights, with_target)),
                    apart, 0.0,
                )
            ),
        )
        for with_target in (True, False)
    }  # fmt: skip
    tens = {item.form: item.slack >= 0 for item in premises if item.name == "(10)"}
    k = task.classes
    room = 2 * (k - 1) / (np.exp(min(a.tau, 700.0)) + k - 1)
    found = [
        claim("room for (10)", "corrected", "lam tau <= 2 (K-1) / (e^tau + K - 1)", lam * a.tau,
              "<=", room, error=error * (1 + lam)),
        claim("two columns", "printed", "max |D_y - D_j| <= |D|, D = W_par - W~", pairwise, "<=",
              moved, error=error),
        claim("two columns", "corrected", "max |D_y - D_j| <= sqrt2 |D|", pairwise, "<=",
              np.sqrt(2) * moved, error=error),
    ]  # fmt: skip
    for form, ell in _counts(a):
        extra = ell * rho**2 / (np.sqrt(2) * lam)
        count = "ell" if form == "printed" else "ell/n"
        found.append(
            claim("|w_y - w_j|", form, f"<= |w~_y - w~_j| + {count} |P|^2 / (sqrt2 lam), j != y",
                  longest[True], "<=", extra, error=error)
        )  # fmt: skip
    found.append(
        claim("|w_y - w_j|", "corrected", "<= |w~_y - w~_j| + sqrt2 |P| |g| / lam, j != y, l",
              longest[False], "<=", np.sqrt(2) * rho * a.g / lam, error=error)
    )  # fmt: skip
    for form in both:
        found += [
            claim("margins of W*", form, "(10) gives min margin >= tau / 2", margin, ">=",
                  a.tau / 2, error=error, premises=tens[form] and a.tau > 0),
            claim("(12)", form, "min of margin - delta |w_y - w_j| >= 0, j != y, l", worst, ">=",
                  0.0, error=error, premises=both[form] and a.tau > 0),
        ]  # fmt: skip
    return found


def _first_order(a: Analysis) -> list[Claim]:
    """(16), (17), the probabilities and (18)."""
    task, lam, rho, k, error = a.task, a.task.lam, a.task.rho, a.task.classes, a.error
    benign = a.benign.weights
    p = a.benign_probabilities
    one_hot = task.one_hot
    own = one_hot.astype(bool)
    # (17) as printed multiplies only its second term by x_i; read with x_i behind both.
    mean = task.points.T @ (one_hot - p) / (a.n * lam)
    apart = float(np.linalg.norm(benign - a.n * mean, axis=0).max())
    near = float(np.linalg.norm(benign - mean, axis=0).max())
    odds = np.exp(min(a.tau, 700.0))
    long = float(np.linalg.norm(benign, axis=0).max())
    between = float(columns_apart(benign)[task.target].max())
    parallel = float(columns_apart(a.parallel)[task.target].max())
    known = a.tau > 0
    found = []
    for form, ell in _counts(a):
        count = "ell" if form == "printed" else "ell/n"
        found += [
            claim("(16)", form, f"alpha >= (sqrt2 - 1) {count} |P|^2 / (sqrt2 lam)", a.alpha, ">=",
                  (np.sqrt(2) - 1) * ell * rho**2 / (np.sqrt(2) * lam), error=error),
        ]  # fmt: skip
    slack = error * (1 + lam) * 2  # probabilities move by half of what logits do
    return [
        *found,
        claim("(16)", "corrected", "alpha >= t, the lower bound on u_l", a.alpha, ">=", a.least,
              error=error),
        claim("(17)", "printed", "max |w~_j - (17)| = 0", apart, "<=", 0.0, error=error),
        claim("(17)", "corrected", "max |w~_j - (17) / n| = 0", near, "<=", 0.0,
              error=precision(benign)),
        claim("1 - p(y_i)", "printed", "<= K / (e^tau + K)", (1 - p[own]).max(), "<=",
              k / (odds + k), error=slack, premises=known),
        claim("1 - p(y_i)", "corrected", "<= (K-1) / (e^tau + K - 1)", (1 - p[own]).max(), "<=",
              (k - 1) / (odds + k - 1), error=slack),
        claim("p(j), j != y_i", "printed", "<= 1 / (e^tau + K)", p[~own].max(), "<=",
              1 / (odds + k), error=slack, premises=known),
        claim("p(j), j != y_i", "corrected", "<= 1 / (e^tau + 1)", p[~own].max(), "<=",
              1 / (odds + 1), error=slack),
        claim("|w~_j|", "printed", "<= K / (lam (e^tau + K))", long, "<=", k / (lam * (odds + k)),
              error=error, premises=known),
        claim("|w~_j|", "corrected", "<= (K-1) / (lam (e^tau + K - 1))", long, "<=",
              (k - 1) / (lam * (odds + k - 1)), error=error / lam),
        claim("|w~_l - w~_j|", "printed", "<= K / (lam (e^tau + K))", between, "<=",
              k / (lam * (odds + k)), error=error, premises=known),
        claim("|w~_l - w~_j|", "corrected", "<= K / (lam (e^tau + K - 1))", between, "<=",
              a.spread / lam, error=error / lam, premises=known),
        *(
            claim("(18)", form,
                  f"<= ({'ell' if form == 'printed' else 'ell/n'} |P|^2 / sqrt2 + "
                  "K / (e^tau + K)) / lam", parallel, "<=",
                  (ell * rho**2 / np.sqrt(2) + k / (odds + k)) / lam, error=error, premises=known)
            for form, ell in _counts(a)
        ),
        claim("(18)", "corrected",
              "<= (K / (e^tau + K - 1) + sqrt2 min(|P|/2, kappa) |g|) / lam", parallel, "<=",
              a.spread / lam + np.sqrt(2) * a.drift, error=error / lam, premises=known),
    ]  # fmt: skip


def _theorem(a: Analysis, both: dict[Form, bool]) -> list[Claim]:
    right = bounds(a)
    sides: tuple[tuple[Form, float], ...] = (
        ("printed", right.printed), ("with 1/n", right.with_n), ("corrected", right.corrected),
    )  # fmt: skip
    ratio = float(np.hypot(a.alpha * a.task.rho, np.linalg.norm(a.v)))
    error = a.error * (1 + a.task.rho) / ratio if ratio else 0.0
    return [
        *(
            claim("Theorem 1", form, "|r_perp| / |r| >= the bound", a.share, ">=", bound,
                  error=error, premises=both[form] and a.tau > 0)
            for form, bound in sides
        ),
        *(
            claim(f"Theorem 1, {name}", "corrected", statement, a.share, ">=", bound, error=error,
                  premises=both["corrected"] and a.tau > 0)
            for name, statement, bound in (
                ("in tau", "the same, with (18)", right.in_tau),
                ("explicit", "the same, from K, n, ell, |P|, lam and tau", right.explicit),
            )
        ),
    ]  # fmt: skip
