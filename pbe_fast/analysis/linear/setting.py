"""The setting of appendix A.1: unit vectors of a subspace, a patch orthogonal to it.

x_i in S, |x_i| = 1, labels y_i in 0 .. K-1, S of m dimensions in R^d, P orthogonal to S. Of the
class ``target`` (l in the appendix) as many examples as the appendix's curly l counts are
triggered: the training set has x_i + P in their place.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pbe_fast.errors import ConfigError
from pbe_fast.randomness import numpy_generator

__all__ = ["LARGEST", "Array", "Problem", "Setting", "draw", "problem", "without_trigger"]

Array = npt.NDArray[np.float64]

_SAME = 1e-9  # lengths and angles of what is given
LARGEST = 3_000  # unknowns; the Hessian has their square, 72 MB


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is drawn by :func:`draw`; the symbols are the appendix's.

    Attributes:
        classes: K.
        dimension: d.
        subspace: m, less than d.
        examples: n, in classes that differ by one example at most.
        triggered: how many examples of class 0, the target, carry the patch.
        lam: lambda of (3).
        patch: |P|.
        spread: how far examples are from the direction of their class; 0: all the same.
        seed: of everything that is drawn.
    """

    classes: int = 4
    dimension: int = 64
    subspace: int = 16
    examples: int = 200
    triggered: int = 10
    lam: float = 0.1
    patch: float = 1.0
    spread: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One training set with some triggered examples; made by :func:`problem`.

    Attributes:
        points: the examples without the patch, ``(n, d)``, of length 1.
        labels: ``(n,)`` int64 in 0 .. K-1.
        basis: an orthonormal basis of S, ``(d, m)``.
        patch: P, ``(d,)``.
        triggered: which examples carry the patch, ``(n,)`` bool.
        target: l, the class of the triggered examples.
        classes: K.
        lam: lambda.
    """

    points: Array
    labels: npt.NDArray[np.int64]
    basis: Array
    patch: Array
    triggered: npt.NDArray[np.bool_]
    target: int
    classes: int
    lam: float

    @property
    def rho(self) -> float:
        """|P|."""
        return float(np.linalg.norm(self.patch))

    @property
    def inputs(self) -> Array:
        """What is trained on, ``(n, d)``."""
        return self.points + self.triggered[:, None] * self.patch

    @property
    def one_hot(self) -> Array:
        """The labels as ``(n, K)``."""
        return np.eye(self.classes)[self.labels]


def problem(
    points: Array,
    labels: npt.NDArray[np.int64],
    basis: Array,
    patch: Array,
    triggered: npt.NDArray[np.bool_],
    *,
    target: int,
    classes: int,
    lam: float,
) -> Problem:
    """A training set as A.1 wants it; arguments as in :class:`Problem`.

    Raises:
        ConfigError: the premises of A.1 do not hold, or there is nothing to learn.
    """
    lengths = np.linalg.norm(points, axis=1)
    outside = points - points @ basis @ basis.T
    wrong = (
        (classes < 2, f"{classes} classes: there have to be at least 2."),
        (not 0 <= target < classes, f"target {target}: give one of 0 to {classes - 1}."),
        (not (np.isfinite(lam) and lam > 0), f"lambda {lam:g}: it has to be positive."),
        (
            bool(np.any((labels < 0) | (labels >= classes))),
            f"Labels have to be 0 to {classes - 1}.",
        ),
        (bool(np.all(labels == target)), "All examples are of the target class; add others."),
        (bool(np.any(np.abs(lengths - 1) > _SAME)), "Every example has to be of length 1."),
        (bool(np.any(np.abs(outside) > _SAME)), "Every example has to lie in the subspace."),
        (not (np.isfinite(patch).all() and np.any(patch != 0)), "The patch has to have a length."),
        (
            bool(np.any(np.abs(basis.T @ patch) > _SAME * np.linalg.norm(patch))),
            "The patch has to be orthogonal to the subspace.",
        ),
        (
            bool(np.any(triggered & (labels != target))),
            "Only examples of the target class can be triggered.",
        ),
        (
            (basis.shape[1] + 1) * classes > LARGEST,
            f"({basis.shape[1]} + 1) x {classes} unknowns are more than {LARGEST:,}: take fewer "
            "classes or a smaller subspace.",
        ),
    )
    for is_wrong, text in wrong:
        if is_wrong:
            raise ConfigError(text)
    return Problem(
        points=points, labels=labels, basis=basis, patch=patch, triggered=triggered,
        target=target, classes=classes, lam=lam,
    )  # fmt: skip


def draw(setting: Setting) -> Problem:
    """A training set of a setting: class 0 is the target, and its first examples are triggered.

    The directions of the classes are Gaussian in S, an example is its class's direction plus
    ``spread`` times another, divided by its length. The same seed gives the same examples for every
    lambda, |P| and count of triggered ones.

    Raises:
        ConfigError: the numbers do not fit each other.
    """
    s = setting
    if s.classes < 2:
        raise ConfigError(f"{s.classes} classes: there have to be at least 2.")
    if not 1 <= s.subspace < s.dimension:
        raise ConfigError(
            f"The subspace has {s.subspace} dimensions of {s.dimension}: it needs at least 1, and "
            "one has to be left for the patch."
        )
    if s.examples < s.classes:
        raise ConfigError(f"{s.examples} examples: {s.classes} classes need {s.classes} at least.")
    of_target = -(-s.examples // s.classes)
    if not 0 <= s.triggered <= of_target:
        raise ConfigError(
            f"{s.triggered} triggered examples: the target class has {of_target}, so give 0 to "
            f"{of_target}, or more --examples."
        )
    if not (np.isfinite(s.patch) and s.patch > 0):
        raise ConfigError(f"|P| is {s.patch:g}: it has to be positive.")
    if not (np.isfinite(s.spread) and s.spread >= 0):
        raise ConfigError(f"The spread is {s.spread:g}: it has to be 0 or more.")
    rng = numpy_generator(s.seed, "linear")
    axes = np.linalg.qr(rng.standard_normal((s.dimension, s.subspace + 1)))[0]  # (d, m + 1)
    basis, normal = axes[:, :-1], axes[:, -1]
    centres = _unit(rng.standard_normal((s.classes, s.subspace)))
    labels = np.arange(s.examples) % s.classes
    around = rng.standard_normal((s.examples, s.subspace)) / np.sqrt(s.subspace)
    points = _unit(_unit(centres[labels] + s.spread * around) @ basis.T)
    triggered = (labels == 0) & (np.arange(s.examples) < s.triggered * s.classes)
    return problem(
        points, labels, basis, s.patch * normal, triggered,
        target=0, classes=s.classes, lam=s.lam,
    )  # fmt: skip


def _unit(rows: Array) -> Array:
    scaled: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def without_trigger(task: Problem) -> Problem:
    """The same training set before anybody put the patch into it."""
    return replace(task, triggered=np.zeros_like(task.triggered))
