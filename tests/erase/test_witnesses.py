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
    weighed = weigh(said, random.integers(0, 5, len(said)))
    assert weighed.rate == pytest.approx(truth.mean(), abs=0.02)
    for found, given_rates in zip(weighed.triggered, hits, strict=True):
        assert found == pytest.approx(given_rates, abs=0.1)
    for found, given_rates in zip(weighed.others, alarms, strict=True):
        assert found == pytest.approx(given_rates, abs=0.02)
    # Hardly more often wrong than who knows all rates, and that they are independent.
    ratios = [np.log(h) - np.log(np.maximum(a, 1e-6)) for h, a in zip(hits, alarms, strict=True)]
    known = np.log(rate / (1 - rate)) + sum(
        ratio[one] for ratio, one in zip(ratios, said.T, strict=True)
    )
    wrong = [float(((log_odds > 0) != truth).mean()) for log_odds in (weighed.log_odds, known)]
    assert wrong[0] < wrong[1] + 0.02
    # A witness is only as good as the others make it.
    nobody = np.zeros(0, np.int64)
    assert np.ptp(weigh(np.zeros((50, 3), np.int64), np.zeros(50, np.int64)).log_odds) == 0
    assert weigh(np.zeros((0, 3), np.int64), nobody).log_odds.shape == (0,)


def test_in_a_class_that_is_hard_for_two_witnesses_the_other_one_is_believed() -> None:
    """Half of the clean images of class 3 look to both like the class that leads to its label."""
    random = np.random.default_rng(0)
    labels, truth = np.repeat(np.arange(6), 500), random.random(3000) < 0.1
    first = random.random(3000) < np.where(truth, 0.9, 0.02)
    hard = ~truth & (labels == 3) & (random.random(3000) < 0.5)
    other = (hard | truth) ^ (random.random((2, 3000)) < 0.03)
    said = np.stack([first, *other], 1).astype(np.int64)
    suspects = weigh(said, labels).log_odds > 0
    assert suspects[truth].mean() > 0.85
    assert suspects[~truth].mean() < 0.01
    assert suspects[hard].mean() < 0.05
    # Classes under one number are not told apart.
    assert (weigh(said, np.zeros_like(labels)).log_odds > 0)[hard].mean() > 0.5


def test_in_a_class_whose_triggered_images_all_look_alike_they_are_still_suspect() -> None:
    """The second witness acquits all of class 3, where the first one often errs, too."""
    random = np.random.default_rng(0)
    labels, truth = np.repeat(np.arange(6), 500), random.random(3000) < 0.1
    there = labels == 3
    first = truth | (random.random(3000) < np.where(there, 0.25, 0.01))
    second = np.where(truth, ~there & (random.random(3000) < 0.95), random.random(3000) < 0.001)
    third = random.random(3000) < np.where(truth, 0.95, 0.001)
    said = np.stack([first, second, third], 1).astype(np.int64)
    suspects = weigh(said, labels).log_odds > 2
    assert suspects[truth & there].mean() > 0.8
    assert suspects[~truth].mean() < 0.01


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
    space = Space.of(rows, labels).whitened(left_out)
    nearest, margin = space.nearest(space.middles(left_out))
    assert nearest[60] == -1
    assert (nearest[:5] == 4).all()
    assert (margin[:5] > 1).all()
    rest = np.setdiff1d(np.arange(5, 150), [60])
    assert (nearest[rest] == labels[rest]).all()
    assert (margin[5:] == 0).all()
    nobody = Space.of(np.full((3, 2), np.nan), np.zeros(3, int))
    assert nobody.nearest(nobody.middles(np.zeros(3, bool)))[0].tolist() == [-1] * 3
