"""What people see: bars on a terminal, few and whole lines in a log."""

import io
import math
import re

import pytest
from rich.console import Console
from rich.table import Table

from pbe_fast.progress import Clock, Progress, Silent
from pipelines import _console
from pipelines._console import ConsoleProgress, percent, printable, progress_bars, result_table


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(_console, "time", fake)
    return fake


def _console_of(*, terminal: bool, width: int = 60) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width), text


def _work(progress: Progress) -> None:
    """What a job with a curve in between does."""
    progress.phase("train", 300)
    for epoch in range(3):
        progress.advance(100)
        progress.phase("curve", 20)
        progress.advance(20)
        progress.phase("train", 300, 100 * (epoch + 1))
    progress.say("done [bold]with[/bold] it")


# without a terminal


def test_a_log_gets_a_line_at_the_start_of_each_phase(clock: FakeClock) -> None:
    console, text = _console_of(terminal=False)
    with progress_bars(console) as progress:
        _work(progress)
    assert text.getvalue().splitlines() == ["train: 300 images", "done [bold]with[/bold] it"]


def test_a_resumed_phase_says_how_much_is_done_already(clock: FakeClock) -> None:
    console, text = _console_of(terminal=False)
    with progress_bars(console) as progress:
        progress.phase("train", 12_000, 4_000)
    assert text.getvalue() == "train: 12,000 images, 4,000 done already\n"


def test_a_log_gets_a_line_now_and_then(clock: FakeClock) -> None:
    console, text = _console_of(terminal=False)
    with progress_bars(console) as progress:
        progress.phase("train", 10_000, 2_000)
        for _ in range(61):
            clock.now += 1
            progress.advance(50)
    # 50 images a second are done here; the 2,000 of before tell nothing of the speed.
    assert text.getvalue().splitlines()[1:] == [
        "train: 3,550 of 10,000 images, 50 images/s, 0:02:09 left"
    ]


def test_short_phases_in_between_do_not_silence_the_log(clock: FakeClock) -> None:
    console, text = _console_of(terminal=False)
    with progress_bars(console) as progress:
        for epoch in range(20):
            progress.phase("train", 2_000, epoch * 100)
            for _ in range(10):
                clock.now += 1
                progress.advance(10)
            progress.phase("curve", 5)
            clock.now += 1
            progress.advance(5)
    lines = text.getvalue().splitlines()
    assert len(lines) == 1 + 7  # 220 seconds
    assert all(re.fullmatch(r"train: [\d,]+ of 2,000 images, 10 images/s, .* left", line)
               for line in lines[1:])  # fmt: skip


def test_lines_are_not_broken(clock: FakeClock) -> None:
    console, text = _console_of(terminal=False, width=40)
    with progress_bars(console) as progress:
        progress.say("/a/very/long/path" * 10 + " is finished already.")
    assert text.getvalue().count("\n") == 1


def test_time_that_stands_still_is_no_error(clock: FakeClock) -> None:
    console, text = _console_of(terminal=False)
    progress = ConsoleProgress(console, None)
    progress.phase("train", 100)
    progress.spoken -= 100
    progress.advance(0)
    progress.spoken -= 100
    progress.advance(200)  # more than there are
    assert text.getvalue().count("left") == 2


# on a terminal


def test_a_terminal_gets_bars() -> None:
    console, text = _console_of(terminal=True, width=100)
    with progress_bars(console) as progress:
        _work(progress)
        assert progress.bars is not None
        (task,) = progress.bars.tasks  # the curve's bar is taken away
        assert (task.description, task.completed, task.total) == ("train", 300, 300)
    assert "300/300" in text.getvalue()
    assert "done [bold]with[/bold] it" in text.getvalue()


def test_each_phase_keeps_its_bar() -> None:
    console, _ = _console_of(terminal=True)
    with progress_bars(console) as progress:
        progress.phase("round 0", 10)
        progress.advance(10)
        progress.phase("curve", 3)
        progress.phase("curve", 3)
        progress.phase("round 1", 20, 5)
        progress.advance(1)
        assert progress.bars is not None
        assert [(t.description, t.completed, t.total) for t in progress.bars.tasks] == [
            ("round 0", 10, 10),
            ("round 1", 6, 20),
        ]


def test_bars_go_when_the_work_fails() -> None:
    console, _ = _console_of(terminal=True)
    seen: list[ConsoleProgress] = []

    def work() -> None:
        with progress_bars(console) as progress:
            seen.append(progress)
            progress.advance(1)  # of no phase

    with pytest.raises(KeyError):
        work()
    assert seen[0].bars is not None
    assert not seen[0].bars.live.is_started


# tables and text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100.00 %"), (0.98765, "98.77 %"), (0, "0.00 %"), (None, "–"), ("x", "–"),
     (math.nan, "–")],
)  # fmt: skip
def test_percent(value: object, text: str) -> None:
    assert percent(value) == text


def _cells(table: Table) -> list[list[str]]:
    console, text = _console_of(terminal=False, width=120)
    console.print(table)
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in text.getvalue().splitlines()
        if "│" in line or "┃" in line
    ]


def test_results_stand_side_by_side_and_unknown_ones_are_dashes() -> None:
    table = result_table(
        "PBE",
        {"infected": {"acc": 0.97, "asr": 1.0}, "purified [x]": {"acc": 0.961, "auroc": 0.9312}},
    )
    assert _cells(table) == [
        ["model", "ACC", "ASR", "suspects AUROC"],
        ["infected", "97.00 %", "100.00 %", "–"],
        ["purified [x]", "96.10 %", "–", "0.931"],
    ]


def test_names_cannot_steer_the_terminal(clock: FakeClock) -> None:
    assert printable("a\x1b[2Jb\x07\nc é 中") == "a\\x1b[2Jb\\x07\nc é 中"
    console, text = _console_of(terminal=False)
    ConsoleProgress(console, None).say("bad\x1b[2J")
    console.print(result_table("t", {"\x1b]0;x": {}}))
    assert "\x1b" not in text.getvalue()


# pbe_fast.progress


def test_the_console_is_a_progress() -> None:
    def takes(progress: Progress) -> None:
        _work(progress)

    takes(Silent())
    takes(ConsoleProgress(_console_of(terminal=False)[0], None))


def test_a_clock_goes_on_from_what_was_kept() -> None:
    clock = Clock({"train": 2.0}, {"train": 100})
    clock.add("train", 2.0, 300)
    clock.add("score", 0.0, 5)
    assert clock.seconds == {"train": 4.0, "score": 0.0}
    assert clock.rates() == {"train": 100.0}
    with clock.time("score", 7):
        pass
    assert clock.images["score"] == 12
    assert clock.seconds["score"] > 0
    with pytest.raises(KeyError), clock.time("failed", 1):
        raise KeyError
    assert "failed" not in clock.seconds
    assert Clock().seconds == {}  # the defaults are not shared
