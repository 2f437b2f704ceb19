"""The perturbation of (8): the project's adversary against the closed form."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.analysis.linear import Setting, analyse, ascend, claims_of, draw, gap, untargeted
from pbe_fast.analysis.linear.quantities import Analysis
from tests.analysis._problems import made


def gap_by_hand(a: Analysis, r: np.ndarray) -> float:  # type: ignore[type-arg]
    """(9) with k = l, example by example."""
    total, count = 0.0, 0
    for x, y in zip(a.task.points, a.task.labels, strict=True):
        if y != a.task.target:
            f = (x + r) @ a.infected.weights
            total += min(f[a.task.target] - f[j] for j in range(len(f)) if j != a.task.target)
            count += 1
    return total / count


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    patch=st.floats(0.3, 3),
    triggered=st.integers(1, 5),
    delta=st.sampled_from([1e-4, 0.01, 0.1]),
)
def test_the_ascent_finds_the_closed_form(
    seed: int, patch: float, triggered: int, delta: float
) -> None:
    task = made([5, 6, 4], triggered=triggered, m=6, extra=3, patch=patch, seed=seed)
    a = analyse(task, delta)
    found = ascend(a)
    (claim,) = [c for c in claims_of(a, found.along) if c.name == "(15)"]
    assert found.outside < 0.49  # no pixel was clamped
    length = float(np.linalg.norm(found.r))
    assert length <= delta * (1 + 1e-6)
    if claim.premises:  # (12): linear in the whole ball
        assert length == pytest.approx(delta, rel=1e-5)
        assert found.r / delta == pytest.approx(a.direction, abs=2e-5)
        assert not claim.refuted
    assert found.gain == pytest.approx(
        gap_by_hand(a, found.r) - gap_by_hand(a, np.zeros_like(found.r)), abs=1e-12
    )


def test_the_ascent_climbs_and_nothing_random_is_higher() -> None:
    """Also where (12) does not hold: (9) is concave."""
    a = analyse(draw(Setting(lam=1e-3, spread=1.0, examples=40)), 0.8)
    assert [c for c in claims_of(a) if c.name == "(12)" and c.left >= 0] == []
    found = ascend(a)
    start = gap(a.task, a.infected.weights, np.zeros(64))
    assert found.gain > 0
    rng = np.random.default_rng(0)
    for _ in range(200):
        r = found.r + rng.normal(scale=0.1, size=64)
        r *= a.delta / np.linalg.norm(r)
        assert gap(a.task, a.infected.weights, r) - start <= found.gain * (1 + 1e-3)


def test_15_is_only_claimed_where_12_holds() -> None:
    a = analyse(draw(Setting(lam=1e-3, spread=1.0, examples=40)), 0.8)
    (claim,) = [c for c in claims_of(a, 0.0) if c.name == "(15)"]
    assert (claim.premises, claim.holds, claim.refuted) == (False, False, False)


def test_a_wrong_length_along_the_trigger_would_be_noticed() -> None:
    a = analyse(draw(Setting()), 0.05)
    right = ascend(a).along
    for measured, refuted in ((right, False), (1.001 * right, True)):
        (claim,) = [c for c in claims_of(a, measured) if c.name == "(15)"]
        assert (claim.premises, claim.refuted) == (True, refuted)


def test_two_classes_have_the_same_example_targeted_or_not() -> None:
    """K = 2: away from the label is towards the other class, for each example."""
    a = analyse(made([5, 8], triggered=3, m=4), 0.1)
    found = untargeted(a.task, a.infected.weights, 0.1)
    assert found.share == pytest.approx(a.share, abs=1e-5)
    assert found.to_target == found.fooled


def test_a_benign_model_leads_nobody_along_the_trigger() -> None:
    a = analyse(draw(Setting()), 0.05)
    assert untargeted(a.task, a.benign.weights, 0.5).share < 1e-5
    assert untargeted(a.task, a.infected.weights, 0.5).share > 0.05


def test_a_small_radius_is_not_lost_in_single_precision() -> None:
    """Where no decision is near, the direction is that of the gradient, whatever the radius."""
    a = analyse(draw(Setting()), 0.05)
    shares = [
        [untargeted(a.task, model.weights, delta).share for delta in (1e-3, 1e-5, 1e-7)]
        for model in (a.infected, a.benign)
    ]
    assert shares[0] == pytest.approx([shares[0][0]] * 3, rel=1e-2)
    assert shares[0][0] > 0.05
    assert max(shares[1]) < 1e-5


def test_untargeted_examples_fool_the_more_the_larger_they_are() -> None:
    a = analyse(draw(Setting(examples=40)), 0.05)
    rates = [untargeted(a.task, a.infected.weights, delta).fooled for delta in (1e-3, 0.5, 1.0)]
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert rates[-1] > 0.5


def test_the_radius_alone_changes_the_length_and_not_the_direction() -> None:
    a = analyse(draw(Setting()), 0.05)
    small, large = ascend(replace(a, delta=1e-5)), ascend(a)
    assert small.r / 1e-5 == pytest.approx(large.r / 0.05, abs=1e-4)
