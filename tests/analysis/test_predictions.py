"""Counting where adversarial examples go, and reading it back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.analysis.predictions import Predictions, read_predictions, write_predictions
from pbe_fast.erase.split import ClassSplit
from pbe_fast.errors import RunDirectoryError


def _predictions(
    labels: list[int], predicted: list[list[int]], classes: int, eps: tuple[float, ...] = (2.0,)
) -> Predictions:
    shape = (len(labels), 1 + len(eps))
    return Predictions(
        tuple(str(i) for i in range(classes)),
        eps,
        np.array(labels, np.int32),
        np.array(predicted, np.int32).reshape(shape),
        np.arange(len(labels) * shape[1], dtype=np.float32).reshape(shape),
    )


@st.composite
def _any(draw: st.DrawFn) -> Predictions:
    classes = draw(st.integers(2, 6))
    count = draw(st.integers(1, 30))
    sizes = draw(st.integers(1, 3))
    label = st.integers(0, classes - 1)
    labels = draw(st.lists(label, min_size=count, max_size=count))
    row = st.lists(label, min_size=sizes + 1, max_size=sizes + 1)
    predicted = draw(st.lists(row, min_size=count, max_size=count))
    return _predictions(labels, predicted, classes, tuple(2.0 + i for i in range(sizes)))


def test_an_example_by_hand() -> None:
    # Labels 0, 0, 1, 2; their examples are given 1, 1, 1, 1.
    found = _predictions([0, 0, 1, 2], [[0, 1], [0, 1], [1, 1], [0, 1]], 3)
    assert found.counts.tolist() == [[[0, 2, 0], [0, 1, 0], [0, 1, 0]]]
    assert found.accuracy == 0.75
    assert found.success.tolist() == [0.75]
    assert found.share.tolist() == [[0.0, 1.0, 0.0]]
    # Label 0: one example left label 2, half of it is expected here, of two images. Label 1: three
    # left 0 and 2, half of them are expected, of three. Label 2: two left 0, half, of three.
    np.testing.assert_allclose(found.expected, [[0.25, 0.5, 1 / 3]])
    np.testing.assert_allclose(found.mean_margins, [[1, 2], [4, 5], [6, 7]])
    assert found.largest(0, 2) == [1, 0]


@settings(deadline=None, max_examples=60)
@given(_any())
def test_every_example_is_counted_once(found: Predictions) -> None:
    for size, counts in enumerate(found.counts):
        assert counts.sum() == len(found.labels)
        np.testing.assert_array_equal(counts.sum(1), found.images)
        for true, given_label in zip(found.labels, found.predicted[:, 1 + size], strict=True):
            counts[true, given_label] -= 1
        assert not counts.any()


@settings(deadline=None, max_examples=60)
@given(_any())
def test_shares_and_expectations_speak_of_the_same_examples(found: Predictions) -> None:
    others = len(found.labels) - found.images
    for size in range(len(found.eps_255)):
        left = round(float(found.success[size]) * len(found.labels))
        for values in (found.share[size], found.expected[size]):
            known = ~np.isnan(values)
            np.testing.assert_array_equal(known, others > 0)
            assert (values[known] >= 0).all()
            assert (values[known] <= 1 + 1e-12).all()
        # What is given to a label that has no other beside it is none of another label's.
        assert np.nansum(found.share[size] * others) == pytest.approx(left)
        if (others > 0).all():
            assert np.nansum(found.expected[size] * others) == pytest.approx(left)


def test_an_even_spread_is_as_expected() -> None:
    classes = 4
    pairs = [(a, b) for a in range(classes) for b in range(classes) if a != b]
    found = _predictions([a for a, _ in pairs], [[a, b] for a, b in pairs], classes)
    np.testing.assert_allclose(found.share, 1 / (classes - 1))
    np.testing.assert_allclose(found.expected, found.share)


def test_one_label_alone_has_nothing_to_compare() -> None:
    found = _predictions([1, 1], [[1, 0], [1, 0]], 3)
    assert np.isnan(found.share[0, 1])
    assert found.share[0, 0] == 1.0
    assert np.isnan(found.mean_margins[0]).all()
    assert 1 not in found.largest(0, 9)


@settings(deadline=None, max_examples=20)
@given(_any(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(found: Predictions, random: object) -> None:
    order = np.random.default_rng(random.randint(0, 99)).permutation(len(found.labels))  # type: ignore[attr-defined]
    other = Predictions(
        found.classes, found.eps_255, found.labels[order], found.predicted[order],
        found.margins[order],
    )  # fmt: skip
    np.testing.assert_array_equal(other.counts, found.counts)
    np.testing.assert_allclose(other.expected, found.expected)


# on disk


def _strings(values: npt.NDArray[np.int32]) -> pa.Array:
    return pa.array([f"key {i}" for i in range(len(values))], pa.string())


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = _predictions([0, 2], [[0, 1, 2], [2, 2, 1]], 3, (0.5, 8.0))
    path = tmp_path / "predictions.parquet"
    write_predictions(path, found, _strings(found.labels), _strings(found.labels))
    again = read_predictions(path)
    assert (again.classes, again.eps_255) == (found.classes, found.eps_255)
    for name in ("labels", "predicted", "margins"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert pq.read_table(path).column_names == [
        "key", "shard", "label", "predicted", "predicted_eps_0.5", "predicted_eps_8",
        "margin", "margin_eps_0.5", "margin_eps_8",
    ]  # fmt: skip


def test_kinds_of_images_are_read_as_they_were_written(tmp_path: Path) -> None:
    split = (ClassSplit(2, 100, 0.25, 1.5, 6.0),)
    second = np.array([False, True])
    found = replace(_predictions([0, 2], [[0, 1], [2, 2]], 3), second=second, split=split)
    path = tmp_path / "predictions.parquet"
    write_predictions(path, found, _strings(found.labels), _strings(found.labels))
    again = read_predictions(path)
    assert again.split == split
    np.testing.assert_array_equal(again.second, second)
    assert again.without_clusters().second is None
    # Of a class that is not there.
    other = replace(found, split=(ClassSplit(3, 100, 0.25, 1.5, 6.0),))
    write_predictions(path, other, _strings(found.labels), _strings(found.labels))
    with pytest.raises(RunDirectoryError, match="none of the classes"):
        read_predictions(path)


@pytest.mark.parametrize("damage", ["missing", "no parquet", "another table", "a label too large"])
def test_what_is_no_such_table_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "predictions.parquet"
    if damage == "no parquet":
        path.write_bytes(b"nothing")
    elif damage == "another table":
        pq.write_table(pa.table({"label": [1]}), path)
    elif damage == "a label too large":
        found = _predictions([0], [[0, 7]], 3)
        write_predictions(path, found, _strings(found.labels), _strings(found.labels))
    with pytest.raises(RunDirectoryError, match=r"predictions\.parquet: holds no predictions"):
        read_predictions(path)
