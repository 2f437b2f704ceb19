"""Random problems of the linear analysis, for hypothesis; each takes milliseconds."""

import numpy as np
from hypothesis import strategies as st

from pbe_fast.analysis.linear import Problem, problem

__all__ = ["made", "problems"]


def made(
    sizes: list[int],
    *,
    triggered: int,
    m: int = 3,
    extra: int = 1,
    spread: float = 0.3,
    patch: float = 1.0,
    lam: float = 0.1,
    target: int = 0,
    seed: int = 0,
) -> Problem:
    """``sizes[k]`` examples of class k; the first ``triggered`` of the target carry the patch."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((m + extra, m + 1)))[0]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.standard_normal((len(sizes), m))[labels]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points = (points + spread * rng.standard_normal(points.shape)) @ axes[:, :m].T
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    first = np.flatnonzero(labels == target)[:triggered]
    return problem(
        points, labels, axes[:, :m], patch * axes[:, m], np.isin(np.arange(len(labels)), first),
        target=target, classes=len(sizes), lam=lam,
    )  # fmt: skip


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Classes of 0 to 8 examples, the target's not empty, any ell from none to all of them."""
    sizes = draw(st.lists(st.integers(0, 8), min_size=2, max_size=5))
    target = draw(st.integers(0, len(sizes) - 1))
    sizes[target] = max(sizes[target], 1)
    sizes[(target + 1) % len(sizes)] = max(sizes[(target + 1) % len(sizes)], 1)
    return made(
        sizes,
        target=target,
        triggered=draw(st.integers(0, sizes[target])),
        m=draw(st.integers(1, 5)),
        extra=draw(st.integers(1, 3)),
        spread=draw(st.sampled_from([0.0, 0.01, 0.3, 3.0])),
        patch=10 ** draw(st.floats(-3, 1.5)),
        lam=10 ** draw(st.floats(-6, 1.5)),
        seed=draw(st.integers(0, 2**31)),
    )
