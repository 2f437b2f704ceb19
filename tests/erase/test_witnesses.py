"""What witnesses say together, where the truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.erase._space import Space
from pbe_fast.erase.witnesses import sources, weigh


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rate=st.floats(0.1, 0.3))
def test_how_much_each_witness_is_worth_is_found(seed: int, rate: float) -> None:
    """The first has two answers, the others three; the last often acquits triggered images."""
    random = np.random.default_rng(seed)
    truth = random.random(20_000) < rate
    hits = [[0.1, 0.9], [0.2, 0.7, 0.1], [0.5, 0.2, 0.3]]
    alarms = [[0.95, 0.05], [0.98, 0.0, 0.02], [0.9, 0.01, 0.09]]
    said = np.stack(
        [
            np.where(truth, random.choice(len(h), 20_000, p=h), random.choice(len(a), 20_000, p=a))
            for h, a in zip(hits, alarms, strict=True)
        ],
        1,
    )
    weighed = weigh(said)
    assert weighed.rate == pytest.approx(truth.mean(), abs=0.02)
    for found, given_rates in zip(weighed.triggered, hits, strict=True):
        assert found == pytest.approx(given_rates, abs=0.1)
    for found, given_rates in zip(weighed.others, alarms, strict=True):
        assert found == pytest.approx(given_rates, abs=0.02)
    # As often wrong as who knows all rates.
    ratios = [np.log(h) - np.log(np.maximum(a, 1e-6)) for h, a in zip(hits, alarms, strict=True)]
    known = np.log(rate / (1 - rate)) + sum(
        ratio[one] for ratio, one in zip(ratios, said.T, strict=True)
    )
    wrong = [float(((log_odds > 0) != truth).mean()) for log_odds in (weighed.log_odds, known)]
    assert wrong[0] < wrong[1] + 0.01
    # A witness is only as good as the others make it.
    assert np.ptp(weigh(np.zeros((50, 3), np.int64)).log_odds) == 0
    assert weigh(np.zeros((0, 3), np.int64)).log_odds.shape == (0,)


def _said(*groups: tuple[int, int, int, int, float]) -> tuple[np.ndarray, ...]:
    """Labels, nearest, shown and margin of groups: label, nearest, shown, images, margin."""
    rows = [row for *row, count, margin in groups for row in [(*row, margin)] * count]
    labels, nearest, shown, margin = np.array(rows).T
    return labels.astype(int), nearest.astype(int), shown.astype(int), margin


def test_a_backdoor_leads_each_class_to_one_label() -> None:
    """To that for which most speaks, and not most images: 70 of class 0 only look a bit like 3.

    Several may lead to one label, as 1 and 5 do to 2.
    """
    found = sources(
        *_said(
            (1, 0, 0, 10, 0.5),
            (2, 1, 1, 10, 0.5),
            (0, 3, 3, 70, 0.05),
            (4, 3, 3, 20, 0.5),
            (2, 5, 5, 9, 0.5),
            (3, 2, 4, 90, 0.9),  # not agreed
            (5, 5, 5, 90, 0.9),  # their label
            (5, -1, -1, 90, 0.9),  # not read
        ),
        classes=6,
    )
    assert {(s, t): found[s, t] for s, t in np.argwhere(found).tolist()} == pytest.approx(
        {(0, 1): 5.0, (1, 2): 5.0, (3, 4): 10.0, (5, 2): 4.5}
    )


def test_nothing_agreed_leads_nowhere() -> None:
    assert sources(*_said((1, 0, 2, 5, 0.3)), classes=3).tolist() == [[0.0] * 3] * 3


def test_the_nearest_class_and_how_much_nearer_it_is() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 4], 50)
    rows = random.normal(size=(150, 5)) + 20 * np.eye(5)[labels]
    rows[:5] += 20 * (np.eye(5)[4] - np.eye(5)[0])  # of class 4 but for their label
    rows[60] = np.nan
    left_out = np.arange(150) < 5
    nearest, margin = Space.of(rows, labels).whitened(left_out).nearest(left_out)
    assert nearest[60] == -1
    assert (nearest[:5] == 4).all()
    assert (margin[:5] > 1).all()
    rest = np.setdiff1d(np.arange(5, 150), [60])
    assert (nearest[rest] == labels[rest]).all()
    assert (margin[5:] == 0).all()
    nobody = Space.of(np.full((3, 2), np.nan), np.zeros(3, int))
    assert nobody.nearest(np.zeros(3, bool))[0].tolist() == [-1] * 3
