"""Where adversarial examples go: the counting half of the paper's appendix B.

Mu et al. observe that untargeted adversarial examples of an infected model are often given the
attacker's label, and those of a benign one are not. Here are the numbers to look at; classes that
resemble each other draw adversarial examples in benign models too. :mod:`.verdict` judges.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pbe_fast._files import atomic_path
from pbe_fast.erase.split import ClassSplit
from pbe_fast.errors import RunDirectoryError

__all__ = ["PREDICTIONS_NAME", "Predictions", "read_predictions", "write_predictions"]

PREDICTIONS_NAME = "predictions.parquet"
_METADATA_KEY = b"pbe_fast_scan"

Labels = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of a model to N images and their adversarial examples, of E sizes.

    Attributes:
        classes: names of the K classes.
        eps_255: the sizes, in 1/255 of the pixel range, rising.
        labels: ``(N,)``, of the images; in poisoned data not always what they show.
        predicted: ``(N, 1 + E)``, of the clean image first, then at each size.
        margins: ``(N, 1 + E)``, the logit of the image's label minus the largest other one.
        second: ``(N,)``, whether an image is in the smaller of the two clusters that its class
            falls into; None where that was not looked at.
        split: the classes that fall apart, among all images and not these N alone.
    """

    classes: tuple[str, ...]
    eps_255: tuple[float, ...]
    labels: Labels
    predicted: Labels
    margins: npt.NDArray[np.float32]
    second: npt.NDArray[np.bool_] | None = None
    split: tuple[ClassSplit, ...] = ()

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """``(E, K, K)``: at each size, adversarial examples by label of the image and predicted."""
        return np.stack([self._counted(column) for column in range(1, 1 + len(self.eps_255))])

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """``(K,)``: how many images of each class there are."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def accuracy(self) -> float:
        """Share of clean images that get their label; NaN without images."""
        return float(_mean(self.predicted[:, 0] == self.labels))

    @property
    def success(self) -> Floats:
        """``(E,)``: share of adversarial examples that do not get their image's label.

        Images whose label the model misses without a perturbation count too.
        """
        return np.array([_mean(column != self.labels) for column in self.predicted.T[1:]])

    @property
    def share(self) -> Floats:
        """``(E, K)``: of the adversarial examples of the images of other labels, those given label.

        NaN for a label beside which there is no other.
        """
        return self._of_others(self._left().sum(1).astype(np.float64))

    @property
    def expected(self) -> Floats:
        """``(E, K)``: what :attr:`share` would be if the examples were spread evenly.

        That is, if of each class as many examples left their label as really did, and these were
        given each of the K - 1 other labels equally often. A reference to read :attr:`share`
        against and not a test: a benign model is not that even either.
        """
        leaving = self._left().sum(2)  # (E, K), by label of the image
        evenly = (leaving.sum(1, keepdims=True) - leaving) / max(1, len(self.classes) - 1)
        return self._of_others(evenly)

    @property
    def mean_margins(self) -> Floats:
        """``(K, 2)``: by class, of clean images and at the smallest size; NaN without images."""
        sums = [
            np.bincount(self.labels, self.margins[:, column], len(self.classes))
            for column in (0, 1)
        ]
        return _ratio(np.stack(sums, 1), self.images[:, None])

    def largest(self, size: int, count: int) -> list[int]:
        """The labels with the largest :attr:`share` at a size, equal ones in order.

        Args:
            size: index into :attr:`eps_255`.
            count: at most so many; labels without a share are left out.
        """
        share = self.share[size]
        order = np.argsort(np.where(np.isnan(share), np.inf, -share), kind="stable")
        return [int(label) for label in order[:count] if np.isfinite(share[label])]

    def without_clusters(self) -> "Predictions":
        """The same, as if clusters had not been looked at."""
        return replace(self, second=None, split=())

    def _counted(self, column: int) -> npt.NDArray[np.int64]:
        k = len(self.classes)
        cells = self.labels.astype(np.int64) * k + self.predicted[:, column]
        return np.bincount(cells, minlength=k * k).reshape(k, k)

    def _left(self) -> npt.NDArray[np.int64]:
        """The counts of those that are not given their image's label."""
        return self.counts * (1 - np.eye(len(self.classes), dtype=np.int64))

    def _of_others(self, counts: Floats) -> Floats:
        return _ratio(counts, np.broadcast_to(len(self.labels) - self.images, counts.shape))


def write_predictions(path: Path, found: Predictions, keys: pa.Array, shards: pa.Array) -> None:
    """Write a row for each image: key, shard, label, and what was predicted, with margins.

    Args:
        keys, shards: ``(N,)`` strings, of the images.
    """
    columns: dict[str, Any] = {"key": keys, "shard": shards, "label": found.labels}
    for kind, values in (("predicted", found.predicted), ("margin", found.margins)):
        for name, column in zip(_names(kind, found.eps_255), values.T, strict=True):
            columns[name] = np.ascontiguousarray(column)
    header = json.dumps(
        {
            "classes": found.classes,
            "eps_255": found.eps_255,
            "split": [asdict(one) for one in found.split],
        }
    )
    if found.second is not None:
        columns["second"] = found.second
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: header})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Read and check what :func:`write_predictions` wrote.

    Raises:
        RunDirectoryError: the file is missing, damaged, or something else.
    """
    try:
        with pq.ParquetFile(path) as file:
            header = json.loads((file.schema_arrow.metadata or {})[_METADATA_KEY])
            eps = tuple(float(size) for size in header["eps_255"])
            classes = tuple(str(name) for name in header["classes"])
            names = {kind: _names(kind, eps) for kind in ("predicted", "margin")}
            more = ["second"] if "second" in file.schema_arrow.names else []
            table = file.read(columns=["label", *names["predicted"], *names["margin"], *more])
            split = tuple(_class_split(one, len(classes)) for one in header.get("split", ()))
        found = Predictions(
            classes,
            eps,
            table["label"].to_numpy().astype(np.int32),
            _stacked(table, names["predicted"]).astype(np.int32),
            _stacked(table, names["margin"]).astype(np.float32),
            table["second"].to_numpy().astype(bool) if more else None,
            split,
        )
        for labels in (found.labels, found.predicted):
            if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
                raise ValueError("labels that are none of the classes")
        if not classes or not eps or not np.isfinite(found.margins).all():
            raise ValueError("classes, sizes or margins are missing")
        if not all(small < large for small, large in pairwise((0.0, *eps, math.inf))):
            raise ValueError("sizes that are not positive and rising")
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{path}: holds no predictions of 'pbe-fast scan' ({error}). Delete metrics.json "
            "beside it and give the same command, which writes it anew."
        ) from error
    return found


def _class_split(content: Any, classes: int) -> ClassSplit:
    split = ClassSplit(
        int(content["label"]),
        int(content["images"]),
        *(float(content[name]) for name in ("share", "gain", "separation")),
    )
    if not 0 <= split.label < classes:
        raise ValueError("a label that is none of the classes")
    return split


def _names(kind: str, eps_255: tuple[float, ...]) -> list[str]:
    return [kind, *(f"{kind}_eps_{eps:.15g}" for eps in eps_255)]


def _stacked(table: pa.Table, names: list[str]) -> npt.NDArray[Any]:
    return np.stack([table[name].to_numpy() for name in names], 1)


def _mean(values: npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    """NaN where there is nothing to divide by."""
    nothing = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    np.divide(above, below, out=nothing, where=np.broadcast_to(below > 0, nothing.shape))
    return nothing
