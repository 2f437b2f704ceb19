"""The shares that an attacker wants, from counts that are known."""

import numpy as np
import pytest

from bench.appendix_predictions import to_next, to_target
from pbe_fast.analysis.predictions import Predictions


def _found(labels: list[int], predicted: list[int]) -> Predictions:
    """Three classes; clean images right, one size of perturbations."""
    own = np.array(labels, np.int32)
    columns = np.stack([own, np.array(predicted, np.int32)], 1)
    return Predictions(("a", "b", "c"), (8.0,), own, columns, np.zeros(columns.shape, np.float32))


def test_to_target_counts_images_of_other_labels_alone() -> None:
    found = _found([0, 0, 1, 1, 2, 2], [1, 2, 1, 0, 1, 2])
    (share,) = to_target(found, 1)
    assert share["share"] == 2 / 4  # of 0, 0, 2, 2; the image of label 1 that stays does not count
    assert share["expected"] == pytest.approx((2 / 2 + 1 / 2) / 4)


def test_to_next_goes_round() -> None:
    found = _found([0, 0, 1, 1, 2, 2], [1, 0, 2, 0, 0, 1])
    (share,) = to_next(found)
    assert share["share"] == 3 / 6  # 0 to 1, 1 to 2, and 2 to 0
    assert share["expected"] == pytest.approx(5 / 6 / 2)
