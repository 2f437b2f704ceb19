"""Reading ``metrics.jsonl``: what is forgiven, and how epochs are counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from pbe_fast.report import write_report
from pbe_fast.report._history import History


def step(epoch: int, batch: int = 0, loss: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"event": "step", "round": 0, "epoch": epoch, "batch": batch, "loss": loss} | more


def load_history(run: Path, *lines: dict[str, Any] | str) -> History:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (run / "metrics.jsonl").write_text(text)
    return History.load(run)


def test_history_skips_what_it_does_not_know(tmp_path: Path) -> None:
    assert History.load(tmp_path) == History()
    history = load_history(
        tmp_path, {"event": "start"}, step(0), {"event": "step", "loss": None}, "", step(0, 10)
    )
    assert [s.batch for s in history.steps] == [0, 10]
    assert history.unreadable == 0


def test_history_forgives_a_torn_last_line_and_counts_others(tmp_path: Path) -> None:
    assert load_history(tmp_path, step(0), '{"event": "st').unreadable == 0
    history = load_history(tmp_path, step(0), '{"event": "st', "[]", step(0, 10), '{"ev')
    assert history.unreadable == 2
    assert len(history.steps) == 2
    (tmp_path / "metrics.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert "2 damaged lines of metrics.jsonl left out." in page


def test_history_keeps_the_later_of_two_lines_for_one_step(tmp_path: Path) -> None:
    history = load_history(tmp_path, step(0, 5, 3.0), step(0, 5, 1.0))
    assert [s.loss for s in history.steps] == [1.0]


@pytest.mark.parametrize(
    ("steps", "evaluations", "finished"),
    [
        ([0, 1, 2], [0, 1, 2], [1, 2, 3]),  # both count the running epoch from 0
        ([0, 1, 2], [1, 2, 3], [1, 2, 3]),  # evaluations count finished epochs
        ([0, 1, 2], [0, 3], [0, 3]),  # the same, with one before the first epoch
        ([1, 2, 3], [1, 2, 3], [1, 2, 3]),  # both count from 1
        ([], [0, 1], [1, 2]),
        ([], [1, 2], [1, 2]),
    ],
)
def test_history_finds_how_epochs_are_counted(
    tmp_path: Path, steps: list[int], evaluations: list[int], finished: list[int]
) -> None:
    history = load_history(
        tmp_path,
        *(step(epoch) for epoch in steps),
        *({"event": "evaluation", "epoch": epoch, "acc": 0.5} for epoch in evaluations),
    )
    assert [e.epoch for e in history.evaluations] == finished
    assert [s.epoch for s in history.steps] == list(range(len(steps)))
