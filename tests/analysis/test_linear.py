"""The setting of A.1, and the solver of problems (2) and (4) against others and closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import minimize

from pbe_fast.analysis.linear import Problem, Setting, draw, problem, solve, split
from pbe_fast.analysis.linear.quantities import Array
from pbe_fast.analysis.linear.setting import without_trigger
from pbe_fast.analysis.linear.solution import gradient, objective
from pbe_fast.analysis.linear.witnesses import antipodes
from pbe_fast.errors import ConfigError
from tests.analysis._problems import made, problems


def loss_by_hand(task: Problem, weights: Array) -> float:
    """(3), example by example."""
    total = 0.0
    for x, y, t in zip(task.points, task.labels, task.triggered, strict=True):
        seen = x + task.patch if t else x
        scores = [float(column @ seen) for column in weights.T]
        top = max(scores)
        total += top + np.log(sum(np.exp(s - top) for s in scores)) - scores[y]
    return float(total / len(task.labels) + task.lam / 2 * float((weights**2).sum()))


def another_solver(task: Problem) -> Array:
    """Problem (2) over all of R^(d x K), from a random start: torch's F, SciPy's L-BFGS."""
    x, y = torch.from_numpy(task.inputs), torch.from_numpy(task.labels)

    def value(flat: Array) -> tuple[float, Array]:
        weights = torch.tensor(flat.reshape(x.shape[1], task.classes), requires_grad=True)
        loss = torch.nn.functional.cross_entropy(x @ weights, y)
        loss = loss + task.lam / 2 * (weights**2).sum()
        (slope,) = torch.autograd.grad(loss, weights)
        return float(loss.detach()), slope.numpy().ravel()

    start = np.random.default_rng(0).standard_normal(x.shape[1] * task.classes)
    options = {"ftol": 0.0, "gtol": 1e-11, "maxiter": 5000}
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options).x
    weights: Array = found.reshape(x.shape[1], task.classes)
    return weights


# the setting


@settings(max_examples=30, deadline=None)
@given(task=problems())
def test_a_problem_is_what_a1_says(task: Problem) -> None:
    assert np.allclose(np.linalg.norm(task.points, axis=1), 1)
    assert np.allclose(task.points @ task.patch, 0, atol=1e-9 * task.rho)
    assert np.allclose(task.basis @ (task.basis.T @ task.points.T), task.points.T)
    assert np.allclose(task.inputs[~task.triggered], task.points[~task.triggered])
    assert np.allclose(task.inputs[task.triggered] - task.points[task.triggered], task.patch)


def test_a_drawn_setting_has_the_numbers_that_were_asked_for() -> None:
    task = draw(Setting(classes=3, dimension=9, subspace=4, examples=20, triggered=7, patch=2.5))
    assert task.points.shape == (20, 9)
    assert np.linalg.matrix_rank(task.points) == 4
    assert task.triggered.sum() == 7
    assert set(task.labels[task.triggered]) == {0}
    assert task.rho == pytest.approx(2.5)
    assert sorted(np.bincount(task.labels)) == [6, 7, 7]


def test_a_seed_gives_the_same_examples_whatever_is_varied() -> None:
    first, second = (draw(Setting(triggered=t, patch=p)) for t, p in ((1, 1.0), (20, 3.0)))
    assert np.array_equal(first.points, second.points)
    assert not np.array_equal(first.points, draw(Setting(seed=1)).points)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": 1}, "at least 2"),
        ({"subspace": 64}, "one has to be left for the patch"),
        ({"subspace": 0}, "at least 1"),
        ({"examples": 3}, "need 4 at least"),
        ({"triggered": 51}, "0 to 50"),
        ({"triggered": -1}, "0 to 50"),
        ({"patch": 0.0}, "positive"),
        ({"patch": float("nan")}, "positive"),
        ({"spread": -1.0}, "0 or more"),
        ({"lam": 0.0}, "lambda 0"),
        ({"lam": float("nan")}, "lambda nan"),
        ({"classes": 100, "dimension": 100, "subspace": 50, "triggered": 1}, "fewer classes"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw(Setting(**changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": np.array([[2.0, 0, 0], [0, 1, 0]])}, "length 1"),
        ({"points": np.array([[1.0, 0, 0], [0, 0, 1]])}, "in the subspace"),
        ({"patch": np.array([1.0, 0, 1])}, "orthogonal"),
        ({"patch": np.zeros(3)}, "a length"),
        ({"triggered": np.array([True, True])}, "target class can be"),
        ({"labels": np.array([0, 0])}, "add others"),
        ({"labels": np.array([0, 2])}, "0 to 1"),
        ({"target": 2}, "target 2"),
        ({"classes": 1}, "at least 2"),
    ],
)
def test_a_problem_that_breaks_a1_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "points": np.eye(3)[:2], "labels": np.array([0, 1]), "basis": np.eye(3)[:, :2],
        "patch": np.array([0.0, 0, 1]), "triggered": np.array([True, False]),
        "target": 0, "classes": 2, "lam": 1.0,
    }  # fmt: skip
    problem(**given)
    with pytest.raises(ConfigError, match=words):
        problem(**(given | change))


# the solver


@settings(max_examples=30, deadline=None)
@given(task=problems())
def test_the_objective_is_equation_3(task: Problem) -> None:
    weights = np.random.default_rng(0).standard_normal((len(task.patch), task.classes))
    assert objective(task, weights) == pytest.approx(loss_by_hand(task, weights), rel=1e-12)
    direction = np.random.default_rng(1).standard_normal(weights.shape)
    step = 1e-6
    difference = loss_by_hand(task, weights + step * direction) - loss_by_hand(
        task, weights - step * direction
    )
    slope = float((gradient(task, weights) * direction).sum())
    assert slope == pytest.approx(difference / (2 * step), rel=1e-4, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(task=problems())
def test_solutions_are_solved_to_the_end(task: Problem) -> None:
    for benign in (False, True):
        found = solve(task, benign=benign)
        assert found.gradient_norm < 1e-12 * max(1.0, task.rho)
        assert found.distance == (found.gradient_norm + found.rounding) / task.lam
        assert found.rounding < 1e-9 * max(1.0, task.rho)


def exact_gradient(task: Problem, weights: Array) -> float:
    """|grad F| in 80 bits."""
    x, w = task.inputs.astype(np.longdouble), weights.astype(np.longdouble)
    z = x @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    found = x.T @ (p - task.one_hot) / len(x) + np.longdouble(task.lam) * w
    return float(np.sqrt((found**2).sum()))


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="needs a float of 80 bits")
@settings(max_examples=60, deadline=None)
@given(task=problems())
def test_the_certificate_counts_what_rounding_hides(task: Problem) -> None:
    """The computed gradient may be 1e-20 where the true one is 1e-17, which over lambda shows."""
    found = solve(task)
    exact = exact_gradient(task, found.weights)
    assert exact <= found.gradient_norm + found.rounding
    assert found.rounding < 1e5 * 1e-16 * max(1.0, task.rho**2) * max(1.0, task.lam)


@pytest.mark.parametrize(
    ("lam", "patch", "spread"), [(1.0, 1.0, 0.3), (0.01, 3.0, 1.0), (0.003, 0.2, 0.1)]
)
def test_another_solver_comes_to_the_same_model(lam: float, patch: float, spread: float) -> None:
    task = made([5, 3, 9, 4], triggered=3, extra=4, lam=lam, patch=patch, spread=spread)
    found, other = solve(task), another_solver(task)
    away = float(np.linalg.norm(found.weights - other))
    theirs = float(np.linalg.norm(gradient(task, other)))
    assert away <= found.distance + theirs / lam + 1e-12  # what the certificate promises
    assert away < 1e-6
    assert found.objective <= objective(task, other) + 1e-12


@settings(max_examples=40, deadline=None)
@given(task=problems())
def test_the_certificate_covers_a_model_that_is_not_there_yet(task: Problem) -> None:
    """|W - W*| <= |grad F(W)| / lambda, for W anywhere; the solver's claim rests on it."""
    best = solve(task)
    away = np.random.default_rng(2).standard_normal(best.weights.shape)
    other = best.weights + away
    promised = float(np.linalg.norm(gradient(task, other))) / task.lam
    assert np.linalg.norm(away) <= promised * (1 + 1e-9) + best.distance


def test_the_benign_model_is_the_one_that_is_trained_without_a_trigger() -> None:
    task = made([6, 4, 5], triggered=4, extra=3)
    clean = without_trigger(task)
    assert np.allclose(solve(task, benign=True).weights, solve(clean).weights, atol=1e-12)
    assert np.allclose(split(clean, solve(clean).weights)[1], 0, atol=1e-12)


@pytest.mark.parametrize(("classes", "lam"), [(2, 1.0), (3, 0.01), (6, 1e-4)])
def test_orthogonal_classes_have_a_margin_in_closed_form(classes: int, lam: float) -> None:
    """x_i = e_(y_i): by symmetry lam * gap = 1 / (e^gap + K - 1)."""
    count = 4
    basis = np.eye(classes + 1)
    labels = np.repeat(np.arange(classes), count)
    task = problem(
        basis[labels], labels, basis[:, :classes], basis[classes], np.zeros(len(labels), bool),
        target=0, classes=classes, lam=lam,
    )  # fmt: skip
    weights = solve(task).weights
    gap = float(weights[0, 0] - weights[0, 1])
    assert lam * gap == pytest.approx(1 / (np.exp(gap) + classes - 1), rel=1e-10)
    assert np.allclose(weights[:classes] + gap / classes, gap * np.eye(classes), atol=1e-10)


@pytest.mark.parametrize("lam", [10.0, 0.3, 1e-5])
def test_antipodes_can_be_solved_with_a_pencil(lam: float) -> None:
    """All of the target's examples triggered: W = [[a, -a], [b, -b]] with two scalar equations."""
    patch = 2.0
    task = antipodes(8, triggered=4, patch=patch, lam=lam)
    (a, minus_a), (b, minus_b) = solve(task).weights
    assert (minus_a, minus_b) == (pytest.approx(-a), pytest.approx(-b))

    def missed(gap: float) -> float:
        return float(1 / (1 + np.exp(gap)))

    assert lam * b == pytest.approx(patch / 2 * missed(2 * a + 2 * patch * b), rel=1e-9)
    assert lam * a == pytest.approx((missed(2 * a + 2 * patch * b) + missed(2 * a)) / 2, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(task=problems())
def test_the_split_adds_up_and_its_parts_are_apart(task: Problem) -> None:
    weights = solve(task).weights
    parallel, u = split(task, weights)
    assert u.shape == (task.classes,)
    scale = max(1.0, float(np.abs(weights).max()))
    assert np.allclose(parallel + np.outer(task.patch, u), weights, atol=1e-12 * scale)
    assert np.allclose(task.patch @ parallel, 0, atol=1e-10 * scale * task.rho)
