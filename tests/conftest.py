"""Settings of the whole process, before torch and triton read them."""

import os

# One thread for every test: the tensors are tiny, and threads that wait for a busy core spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

# Triton's interpreter runs the kernels on CPU tensors. With TRITON_INTERPRET=0 and a GPU the
# tests marked gpu run the compiled ones.
os.environ.setdefault("TRITON_INTERPRET", "1")

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pbe_fast.data.storage import close_connections
from tests._command import Ended, Run
from tests._server import Server

torch.set_num_threads(1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves ``tmp_path / "www"``."""
    folder = tmp_path / "www"
    folder.mkdir()
    running = Server(folder)
    yield running
    close_connections()
    running.stop()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``pbe-fast ARGUMENTS`` in this process, in a terminal of so many columns."""
    from pipelines.cli import main  # which most tests do not need

    def start(*arguments: object, columns: int = 80) -> Ended:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["pbe-fast", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return Ended(code, captured.out, captured.err)

    return start
