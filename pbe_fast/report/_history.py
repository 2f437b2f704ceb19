"""``metrics.jsonl`` of a run, read and checked for the report."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pbe_fast.errors import RunDirectoryError
from pbe_fast.report._run import Count, MaybeFraction, Record
from pbe_fast.report.figures import Evaluation, Step

__all__ = ["History"]


class _StepLine(Record):
    phase: str = ""
    round: Count = 0
    epoch: Count
    batch: Count
    loss: float
    adversarial: bool = False


class _EvaluationLine(Record):
    round: Count = 0
    epoch: Count
    acc: MaybeFraction = None
    asr: MaybeFraction = None


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
