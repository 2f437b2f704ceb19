"""``suspects.parquet`` of a run, read and checked for the report."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pbe_fast.errors import RunDirectoryError
from pbe_fast.suspects import CLASSES_KEY

__all__ = ["Suspect", "Suspects"]


@dataclass(frozen=True)
class Suspect:
    """One row of the list of suspects; ``poisoned`` is None where the truth is not known."""

    rank: int
    key: str
    shard: str
    label: int
    score: float
    poisoned: bool | None


@dataclass(frozen=True, eq=False)
class Suspects:
    """``suspects.parquet``: all scores, and the most suspicious rows.

    Attributes:
        scores: ``(N,)`` float64 cosines; NaN for quarantined images.
        poisoned: ``(N,)`` bool, or None where the truth is not known.
        worst: the rows of the lowest ranks, in order of rank, without quarantined ones.
        classes: names, by label; none where the run did not keep them.
    """

    scores: npt.NDArray[np.float64]
    poisoned: npt.NDArray[np.bool_] | None
    worst: tuple[Suspect, ...]
    classes: tuple[str, ...] = ()

    @classmethod
    def load(cls, run_dir: Path, *, worst: int) -> "Suspects | None":
        """Read ``suspects.parquet``; None if the run wrote none.

        Raises:
            RunDirectoryError: the file is damaged or lacks a column.
        """
        path = run_dir / "suspects.parquet"
        if not path.exists():
            return None
        try:
            with pq.ParquetFile(path) as file:
                table = file.read(columns=["score", "rank", "poisoned"])
                scores = _column(table, "score", pa.float64()).to_numpy(zero_copy_only=False)
                classes = _classes(file.schema_arrow)
                ranks = _column(table, "rank", pa.int64()).to_numpy(zero_copy_only=False)
                rows = np.flatnonzero(np.isfinite(scores))
                rows = rows[np.argsort(ranks[rows], kind="stable")[:worst]]
                chosen = _rows(file, rows, ["key", "shard", "label"])
            keys = _column(chosen, "key", pa.string()).to_pylist()
            shards = _column(chosen, "shard", pa.string()).to_pylist()
            labels = _column(chosen, "label", pa.int64()).to_pylist()
            truth = None
            if "poisoned" in table.column_names:
                column = pc.fill_null(_column(table, "poisoned", pa.bool_()), False)
                truth = column.to_numpy(zero_copy_only=False).astype(np.bool_)
        except (OSError, KeyError, ValueError, RecursionError, pa.ArrowException) as error:
            raise RunDirectoryError(
                f"{path}: is not a list of suspects ({error}). Start the run again on the same "
                "directory to write it anew, or move the file away to have a report without it."
            ) from None
        return cls(
            scores,
            truth,
            tuple(
                Suspect(
                    rank=int(ranks[row]),
                    key=str(key),
                    shard=str(shard),
                    label=int(label),
                    score=float(scores[row]),
                    poisoned=None if truth is None else bool(truth[row]),
                )
                for row, key, shard, label in zip(rows, keys, shards, labels, strict=True)
            ),
            classes,
        )


def _rows(file: pq.ParquetFile, rows: npt.NDArray[np.int64], columns: list[str]) -> pa.Table:
    """Some rows, in the order given; only the row groups that they are in are read."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    of_row = np.searchsorted(starts, rows, side="right") - 1
    groups = {g: file.read_row_group(g, columns=columns) for g in np.unique(of_row).tolist()}
    found = [
        groups[group].slice(row - starts[group], 1)
        for row, group in zip(rows.tolist(), of_row.tolist(), strict=True)
    ]
    return pa.concat_tables(found or [file.schema_arrow.empty_table()])


def _classes(schema: pa.Schema) -> tuple[str, ...]:
    header = json.loads((schema.metadata or {}).get(CLASSES_KEY, "{}"))
    names = header.get("classes", []) if isinstance(header, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its classes are no list of texts")
    return tuple(names)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise KeyError(f"column {name!r} is missing")
    column = table.column(name).cast(kind)
    if column.null_count and name in ("rank", "label"):
        raise ValueError(f"column {name!r} has {column.null_count} empty values")
    return column
