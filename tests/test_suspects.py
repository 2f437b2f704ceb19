"""The list of suspects: what its scores say, counted."""

import numpy as np
import pytest

from pbe_fast.suspects import judged_metrics

SCORES = np.array([-1, -0.5, -0.4999, -0.25, -0.2499, 0, np.nan], np.float32)


def test_images_are_counted_by_the_cuts_and_unreadable_ones_not_at_all() -> None:
    assert judged_metrics(SCORES, None) == {"suspect": 2, "undecided": 2}
    truth = np.array([True, False, True, False, False, True, True])
    assert judged_metrics(SCORES, truth) == {
        "suspect": 2, "undecided": 2, "precision": 0.5, "recall": pytest.approx(1 / 3)
    }  # fmt: skip


@pytest.mark.parametrize(("scores", "missing"), [(SCORES, "recall"), (SCORES[4:], "precision")])
def test_shares_of_nothing_are_left_out(scores: np.ndarray, missing: str) -> None:
    truth = np.zeros(len(scores), bool)
    truth[-2] = missing == "precision"
    facts = judged_metrics(scores, truth)
    assert missing not in facts
    assert {"precision", "recall"} - facts.keys() == {missing}
