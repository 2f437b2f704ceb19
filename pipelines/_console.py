"""What a person sees while a job runs: bars on a terminal, lines in a log."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

__all__ = ["ConsoleProgress", "percent", "printable", "progress_bars", "result_table", "say"]

_PASSING = "curve"  # a phase that comes and goes inside others; its bar is not kept
_LINE_SECONDS = 30.0


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="progress.data.speed")


class ConsoleProgress:
    """Bars where there is a terminal; else a line at each phase's start and now and then."""

    def __init__(self, console: Console, bars: Progress | None) -> None:
        self.console, self.bars = console, bars
        self.tasks: dict[str, TaskID] = {}
        self.words = ""  # beside the phase
        self.name, self.total, self.done = "", 0, 0
        self.first = 0  # what was done when the phase began here, which tells nothing of speed
        self.began = self.spoken = time.monotonic()

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        if self.bars is not None:
            passing = self.tasks.pop(_PASSING, None)
            if passing is not None:
                self.bars.remove_task(passing)
            if name in self.tasks:
                self.bars.update(self.tasks[name], total=total, completed=done)
            else:
                self.tasks[name] = self.bars.add_task(name, total=total, completed=done, words="")
        elif name not in (self.name, _PASSING) and name not in self.tasks:
            self.tasks[name] = TaskID(len(self.tasks))
            self._line(f"{name}: {total:,} images" + (f", {done:,} done already" if done else ""))
        if name != self.name:
            self.began, self.first, self.words = time.monotonic(), done, ""
        self.name, self.total, self.done = name, total, done

    def advance(self, images: int) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        self.done += images
        if self.bars is not None:
            self.bars.advance(self.tasks[self.name], images)
        elif self.name != _PASSING and time.monotonic() - self.spoken > _LINE_SECONDS:
            rate = (self.done - self.first) / max(1e-9, time.monotonic() - self.began)
            left = timedelta(seconds=math.ceil(max(0, self.total - self.done) / max(rate, 1e-9)))
            self._line(
                f"{self.name}: {self.done:,} of {self.total:,} images, {rate:,.0f} images/s, "
                f"{left} left{self.words and ', ' + self.words}"
            )

    def say(self, text: str) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        self._line(text)

    def detail(self, text: str) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        self.words = text
        if self.bars is not None and self.name in self.tasks:
            self.bars.update(self.tasks[self.name], words=printable(text))

    def _line(self, text: str) -> None:
        self.spoken = time.monotonic()
        say(self.console, text)


@contextmanager
def progress_bars(console: Console) -> Iterator[ConsoleProgress]:
    """A progress that lives as long as the block."""
    if not console.is_terminal:
        yield ConsoleProgress(console, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        yield ConsoleProgress(console, bars)


def percent(value: object) -> str:
    """A fraction for people; a dash where it is unknown."""
    if isinstance(value, float | int) and math.isfinite(value):
        return f"{100 * value:.2f} %"
    return "–"


def printable(text: str) -> str:
    """Without the control codes that a file name or a label could smuggle into a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(console: Console, text: str) -> None:
    """A line of text, which may hold anything; the terminal wraps it."""
    console.print(Text(printable(text)), soft_wrap=True)


def result_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Infected and purified models side by side: ACC, ASR, the suspects' AUROC."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in ("ACC", "ASR", "suspects AUROC"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        area = row.get("auroc")
        table.add_row(
            Text(printable(name)),
            percent(row.get("acc")),
            percent(row.get("asr")),
            f"{area:.3f}" if isinstance(area, float) else "–",
        )
    return table
