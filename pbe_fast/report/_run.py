"""What a run directory tells, read and checked for the report."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pbe_fast.errors import RunDirectoryError
from pbe_fast.report.figures import Evaluation, Step

__all__ = ["Accuracies", "History", "Metrics", "Suspect", "Suspects", "read_config_text"]

_CONFIG_CHARACTERS = 200_000


def _known(value: object) -> object:
    """NaN in JSON is Python's way of saying that there is no value."""
    return None if isinstance(value, float) and value != value else value


_Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_MaybeFraction = Annotated[_Fraction | None, BeforeValidator(_known)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_MaybeAmount = Annotated[_Amount | None, BeforeValidator(_known)]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Accuracies(_Record):
    """ACC and ASR of one model, as fractions; None where not measured."""

    acc: _MaybeFraction = None
    asr: _MaybeFraction = None


class SuspectMetrics(_Record):
    """How good the list of suspects is; the last three only where the truth is known."""

    count: _Count | None = None
    poisoned: _Count | None = None
    auroc: _MaybeFraction = None
    precision_at_truth: _MaybeFraction = None


class RoundMetrics(_Record):
    """One round of the progressive loop."""

    round: _Count
    subset: _Count | None = None
    acc: _MaybeFraction = None
    asr: _MaybeFraction = None
    auroc: _MaybeFraction = None


class Metrics(_Record):
    """``metrics.json``: a purification has ``infected`` and ``purified``, a training ``test``."""

    method: str | None = None
    infected: Accuracies | None = None
    purified: Accuracies | None = None
    test: Accuracies | None = None
    suspects: SuspectMetrics | None = None
    rounds: tuple[RoundMetrics, ...] = ()
    seconds: Mapping[str, _MaybeAmount] = Field(default_factory=dict)
    images_per_second: Mapping[str, _MaybeAmount] = Field(default_factory=dict)
    device: str | None = None
    precision: str | None = None
    versions: Mapping[str, str | None] = Field(default_factory=dict)
    seed: int | None = None
    attack: Mapping[str, Any] | None = None
    quarantined: _Count = 0

    @classmethod
    def load(cls, run_dir: Path) -> "Metrics":
        """Read and check ``metrics.json``.

        Raises:
            RunDirectoryError: there is no such folder or file, or it is not what a run writes.
        """
        path = run_dir / "metrics.json"
        if not run_dir.is_dir():
            raise RunDirectoryError(
                f"{run_dir}: there is no such run directory. Give the folder that "
                "'pbe-fast purify' or 'pbe-fast train' wrote to."
            )
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RunDirectoryError(
                f"{path}: there is no such file, so the run has not finished or this is no run "
                "directory. Start the same command on it again to finish the run."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirectoryError(
                f"{path}: cannot be read as JSON ({error}). Start the run again on the same "
                "directory to write it anew, or restore the file."
            ) from None
        if not isinstance(content, dict):
            raise RunDirectoryError(
                f"{path}: holds a {type(content).__name__} where an object with the run's "
                "numbers is expected. Start the run again on the same directory to write it anew."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            what = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()[:5]
            )
            raise RunDirectoryError(
                f"{path}: is not what a run writes: {what}. Correct the file (ACC and ASR are "
                "fractions from 0 to 1) or start the run again on the same directory."
            ) from None


class _StepLine(_Record):
    phase: str = ""
    round: _Count = 0
    epoch: _Count
    batch: _Count
    loss: float
    adversarial: bool = False


class _EvaluationLine(_Record):
    round: _Count = 0
    epoch: _Count
    acc: _MaybeFraction = None
    asr: _MaybeFraction = None


@dataclass(frozen=True)
class History:
    """``metrics.jsonl``: the steps and evaluations of a run, in order.

    Attributes:
        steps, evaluations: as the pictures take them.
        unreadable: lines left out because they were damaged; a torn last line does not count,
            since a run that is stopped leaves one.
    """

    steps: tuple[Step, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    unreadable: int = 0

    @classmethod
    def load(cls, run_dir: Path) -> "History":
        """Read ``metrics.jsonl``; a missing file is an empty history, unknown events are skipped.

        Where a resumed run wrote a step twice, the later line counts.

        Raises:
            RunDirectoryError: the file is there but cannot be opened.
        """
        steps: dict[tuple[str, int, int, int], _StepLine] = {}
        evaluations: dict[tuple[int, int], _EvaluationLine] = {}
        damaged: list[int] = []
        number = -1
        for number, line in enumerate(_lines(run_dir / "metrics.jsonl")):
            try:
                record = json.loads(line)
                event = record.get("event")
                if event == "step" and record.get("loss") is not None:
                    step = _StepLine.model_validate(record)
                    steps[step.phase, step.round, step.epoch, step.batch] = step
                elif event == "evaluation":
                    evaluation = _EvaluationLine.model_validate(record)
                    evaluations[evaluation.round, evaluation.epoch] = evaluation
            except (ValueError, AttributeError, RecursionError):
                damaged.append(number)
        unreadable = len(damaged) - (bool(damaged) and damaged[-1] == number)

        first = min((step.epoch for step in steps.values()), default=0)
        first = min(first, 1)  # epochs may be counted from 0 or from 1
        found = tuple(
            Step(step.round, step.epoch - first, step.batch, step.loss, step.adversarial)
            for step in steps.values()
        )
        shift = _finished_shift(found, first, evaluations)
        return cls(
            found,
            tuple(Evaluation(e.round, e.epoch + shift, e.acc, e.asr) for e in evaluations.values()),
            unreadable,
        )


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.strip())
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: cannot be read ({error.strerror}). Give this user the right to read it, or "
            "move it away to have a report without curves."
        ) from None


def _finished_shift(
    steps: tuple[Step, ...], first: int, evaluations: Mapping[tuple[int, int], _EvaluationLine]
) -> int:
    """What turns the epoch of an evaluation line into the number of finished epochs.

    A line says either which epoch has just ended, counted as the steps' epochs are, or how many
    have ended. The two differ only when counting from 0, and then by the last epoch.
    """
    if not steps:
        return int(any(epoch == 0 for _, epoch in evaluations))
    reached: dict[int, int] = {}
    for step in steps:
        reached[step.round] = max(reached.get(step.round, 0), step.epoch + 1)
    beyond = any(
        epoch - first + 1 > reached.get(number, epoch + 1) for number, epoch in evaluations
    )
    return 0 if beyond else 1 - first


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
    """

    scores: npt.NDArray[np.float64]
    poisoned: npt.NDArray[np.bool_] | None
    worst: tuple[Suspect, ...]

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
            table = pq.read_table(path)
            scores = _column(table, "score", pa.float64()).to_numpy(zero_copy_only=False)
            ranks = _column(table, "rank", pa.int64()).to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(np.isfinite(scores))
            rows = rows[np.argsort(ranks[rows], kind="stable")[:worst]]
            chosen = table.take(pa.array(rows, pa.int64()))
            keys = _column(chosen, "key", pa.string()).to_pylist()
            shards = _column(chosen, "shard", pa.string()).to_pylist()
            labels = _column(chosen, "label", pa.int64()).to_pylist()
            truth = None
            if "poisoned" in table.column_names:
                column = pc.fill_null(_column(table, "poisoned", pa.bool_()), False)
                truth = column.to_numpy(zero_copy_only=False).astype(np.bool_)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
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
        )


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise KeyError(f"column {name!r} is missing")
    column = table.column(name).cast(kind)
    if column.null_count and name in ("rank", "label"):
        raise ValueError(f"column {name!r} has {column.null_count} empty values")
    return column


def read_config_text(run_dir: Path) -> str | None:
    """``config.yaml`` as it stands, cut after 200,000 characters; None if there is none."""
    try:
        text = (run_dir / "config.yaml").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    if len(text) > _CONFIG_CHARACTERS:
        return text[:_CONFIG_CHARACTERS] + "\n[cut here: the rest is in config.yaml]\n"
    return text
