"""The linear classifier of appendix A.1: problems (2) and (4), solved to the end.

With w_j the columns of W and t_i = 1 for a triggered example, equation (3) is

    F(W) = -1/n sum_i log softmax(W^T (x_i + t_i P))[y_i] + lam/2 |W|_F^2

(2) minimises F over all of R^(d x K): the *infected* model. (4) minimises it over the W whose
columns lie in S: the *benign* model, since on those F does not see the patch.

Both are solved in coordinates of span(S, P), of which there are m + 1. Nothing is lost: split W
into W1, whose columns lie in the span, and the rest W2. The loss sees W1 alone, and |W|^2 = |W1|^2
+ |W2|^2, so the minimiser has W2 = 0. F is strongly convex with constant lam, so |W - W*| <=
|grad F(W)| / lam for every W; each solution comes with that bound, from the gradient in R^d and
what rounding may hide of it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from pbe_fast.analysis.linear.setting import Array, Problem

__all__ = ["Solution", "gradient", "losses", "objective", "probabilities", "solve", "split"]


@dataclass(frozen=True)
class Solution:
    """A minimiser of F, and how near it is.

    Attributes:
        weights: W, ``(d, K)``.
        objective: F(W).
        gradient_norm: |grad F(W)|, Frobenius, over the W that are allowed, as computed.
        rounding: what float64 can hide of it. Newton's method ends where the computed gradient is
            smaller than that, so it has to be counted.
        distance: at least |W - W*|: the two together over lambda.
    """

    weights: Array
    objective: float
    gradient_norm: float
    rounding: float
    distance: float


def probabilities(logits: Array) -> Array:
    """Softmax over the classes, ``(n, K)`` to ``(n, K)``."""
    found: Array = softmax(logits, axis=1)
    return found


def losses(logits: Array, labels: npt.NDArray[np.int64]) -> Array:
    """The cross-entropy of each example, ``(n,)``."""
    found: Array = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return found


def objective(task: Problem, weights: Array) -> float:
    """F of (3) at ``weights``, ``(d, K)``."""
    data = losses(task.inputs @ weights, task.labels).mean()
    return float(data + task.lam / 2 * np.sum(weights**2))


def gradient(task: Problem, weights: Array) -> Array:
    """The gradient of F at ``weights``, ``(d, K)``: its rows run over R^d, not the coordinates."""
    inputs = task.inputs
    residual = probabilities(inputs @ weights) - task.one_hot
    found: Array = inputs.T @ residual / len(inputs) + task.lam * weights
    return found


def split(task: Problem, weights: Array) -> tuple[Array, Array]:
    """W into its part along S and the rest as a multiple of the patch.

    Returns:
        the projection of W's columns on S, ``(d, K)``; and u, ``(K,)``, so that P u^T is the
        projection of the columns on P. For a minimiser the two add up to W (Lemma 1).
    """
    along = task.basis @ (task.basis.T @ weights)
    u: Array = task.patch @ weights / task.rho**2
    return along, u


def solve(task: Problem, *, benign: bool = False) -> Solution:
    """The infected model, problem (2), or with ``benign`` the benign one, problem (4).

    SciPy's ``trust-exact`` goes near, Newton's method to where rounding ends it.

    Returns:
        W in R^(d x K), and the certificate that the module's docstring explains.
    """
    along = task.basis
    columns = along if benign else np.column_stack([along, task.patch / task.rho])  # (d, q)
    features = task.inputs @ columns  # (n, q)
    reduced = _minimised(features, task.one_hot, task.lam)
    weights = columns @ reduced
    slope = gradient(task, weights)
    if benign:
        slope = along @ (along.T @ slope)  # (4) allows movement within S alone
    norm = float(np.linalg.norm(slope))
    rounding = _rounding(task, weights)
    return Solution(
        weights, objective(task, weights), norm, rounding, (norm + rounding) / task.lam
    )  # fmt: skip


def _rounding(task: Problem, weights: Array) -> float:
    """How far the computed gradient may be from the gradient, to first order in eps.

    A probability is off by a few eps, and by what its logit is: eps times the terms that it sums.
    """
    inputs = task.inputs
    terms = np.linalg.norm(inputs, axis=1) * np.linalg.norm(weights)
    off = (4 + terms) * np.sqrt(task.classes) * np.linalg.norm(inputs, axis=1)  # (n,)
    eps = np.finfo(np.float64).eps
    return float(eps * (off.mean() + 4 * task.lam * np.linalg.norm(weights)))


def _minimised(features: Array, one_hot: Array, lam: float) -> Array:
    """The minimiser of F over ``(q, K)`` for features ``(n, q)``."""
    (n, q), k = features.shape, one_hot.shape[1]
    labels = one_hot.argmax(1)

    def value(flat: Array) -> float:
        data = losses(features @ flat.reshape(q, k), labels).mean()
        return float(data + lam / 2 * (flat @ flat))

    def slope(flat: Array) -> Array:
        residual = probabilities(features @ flat.reshape(q, k)) - one_hot
        found: Array = (features.T @ residual / n).ravel() + lam * flat
        return found

    def curvature(flat: Array) -> Array:
        p = probabilities(features @ flat.reshape(q, k))
        hessian = np.zeros((q, k, q, k))
        for a in range(k):
            weighted = features.T @ (p[:, a, None] * features) / n
            hessian[:, a, :, a] += weighted
            for b in range(a + 1):
                pair = features.T @ ((p[:, a] * p[:, b])[:, None] * features) / n
                hessian[:, a, :, b] -= pair
                if a != b:
                    hessian[:, b, :, a] -= pair
        found: Array = hessian.reshape(q * k, q * k)
        found[np.diag_indices(q * k)] += lam
        return found

    near = minimize(
        value, np.zeros(q * k), jac=slope, hess=curvature, method="trust-exact",
        options={"gtol": 1e-6 * lam, "maxiter": 500},
    ).x  # fmt: skip
    best, norm = near, float(np.linalg.norm(slope(near)))
    while True:
        step = np.linalg.solve(curvature(best), slope(best))
        found = float(np.linalg.norm(slope(best - step)))
        if not found < norm / 2:  # rounding, or not near enough; the certificate says which
            end: Array = best if norm <= found else best - step
            return end.reshape(q, k)
        best, norm = best - step, found
