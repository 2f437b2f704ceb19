"""The suspects table: every training image, the most suspicious first.

The names of the classes are JSON in the schema's metadata, as they are in a manifest.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pbe_fast._files import atomic_path
from pbe_fast.data.manifest import Manifest
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.ranking import SUSPECT, UNDECIDED
from pbe_fast.evaluate import auroc, precision_at

__all__ = [
    "CLASSES_KEY",
    "SUSPECTS_NAME",
    "judged_metrics",
    "suspect_metrics",
    "suspicion_order",
    "write_suspects",
]

SUSPECTS_NAME = "suspects.parquet"
CLASSES_KEY = b"pbe_fast"
_ROW_GROUP = 100_000  # rows; what is in memory at a time, here and where some are read

Truth = npt.NDArray[np.bool_]


def write_suspects(path: Path, manifest: Manifest, scores: Scores, truth: Truth | None) -> None:
    """All training images, the most suspicious first."""
    order = suspicion_order(scores)
    header = {CLASSES_KEY: json.dumps({"classes": list(manifest.classes)})}
    names = pa.array([shard.name for shard in manifest.shards], pa.string())

    def rows(start: int) -> pa.Table:
        ids = order[start : start + _ROW_GROUP]
        columns: dict[str, Any] = {
            "key": manifest.keys.take(pa.array(ids)),
            "shard": names.take(pa.array(manifest.shard_index[ids])),
            "label": manifest.labels[ids],
            "score": scores[ids],
            "rank": np.arange(start, start + len(ids), dtype=np.int64),
        }
        if truth is not None:
            columns["poisoned"] = truth[ids]
        return pa.table(columns).replace_schema_metadata(header)

    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, rows(len(order)).schema, compression="zstd") as file,
    ):
        for start in range(0, len(order), _ROW_GROUP):
            file.write_table(rows(start))


def suspicion_order(scores: Scores) -> npt.NDArray[np.int64]:
    """The ids of all images, the most suspicious first.

    An undecodable image has no score (NaN); it goes last, and stands in quarantine.jsonl.
    """
    return np.argsort(np.where(np.isnan(scores), np.inf, scores), kind="stable")


def suspect_metrics(scores: Scores, truth: Truth | None) -> dict[str, float | int]:
    facts: dict[str, float | int] = {"count": len(scores)}
    if truth is not None:
        area, precision = auroc(scores, truth), precision_at(scores, truth)
        facts["poisoned"] = int(truth.sum())
        facts |= {} if area is None else {"auroc": area}
        facts |= {} if precision is None else {"precision_at_truth": precision}
    return facts


def judged_metrics(scores: Scores, truth: Truth | None) -> dict[str, float | int]:
    """How many images Sieve's scores call suspect or leave undecided, and how right that is.

    Images that could not be decoded, with a score of NaN, are not counted.
    """
    suspects = scores <= SUSPECT
    undecided = (scores <= UNDECIDED) & ~suspects
    facts: dict[str, float | int] = {
        "suspect": int(suspects.sum()), "undecided": int(undecided.sum())
    }  # fmt: skip
    if truth is not None:
        poisoned = truth & ~np.isnan(scores)
        right = (suspects & poisoned).sum()
        facts |= {"precision": float(right / suspects.sum())} if suspects.any() else {}
        facts |= {"recall": float(right / poisoned.sum())} if poisoned.any() else {}
    return facts
