"""A run directory goes on with its own run, refuses any other, and is whole at every moment."""

import json
import math
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from pbe_fast import run_directory
from pbe_fast.config import PurifyConfig, TrainConfig, load_config
from pbe_fast.errors import RunDirectoryError
from pbe_fast.run_directory import RunDirectory, versions


def _config(*changes: str) -> PurifyConfig:
    return load_config(PurifyConfig, None, ["data.train=shards", "seed=1", *changes])


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that was begun."""
    opened = RunDirectory.open(tmp_path / "run", _config())
    opened.write_config(_config("device=cpu", "precision=bfloat16"))
    return opened


def _again(run: RunDirectory, *changes: str) -> RunDirectory:
    return RunDirectory.open(run.path, _config(*changes))


# opening


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "a" / "b", _config())
    assert run.path.is_dir()
    assert list(run.path.iterdir()) == []
    assert run.read_config() is None
    assert run.finished() is None
    assert run.load_state() is None
    (tmp_path / "empty").mkdir()
    assert RunDirectory.open(tmp_path / "empty", _config()).read_config() is None


def test_the_same_configuration_goes_on(run: RunDirectory) -> None:
    again = _again(run)
    config = again.read_config()
    assert config is not None
    assert (config["device"], config["precision"]) == ("cpu", "bfloat16")


def test_auto_agrees_with_what_it_became_and_nothing_else_does(run: RunDirectory) -> None:
    _again(run, "device=auto", "precision=auto")
    _again(run, "device=cpu", "precision=bfloat16")
    with pytest.raises(RunDirectoryError, match="device was 'cpu', now 'cuda'"):
        _again(run, "device=cuda")
    with pytest.raises(RunDirectoryError, match="precision was 'bfloat16', now 'float32'"):
        _again(run, "precision=float32")


def test_another_configuration_is_refused_with_the_keys_that_differ(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        _again(run, "seed=2", "pbe.lr=0.5", "pbe.keep=[0.1]", "model.options.width=4")
    message = str(caught.value)
    for line in (
        str(run.path),
        "seed was 1, now 2",
        "pbe.lr was 0.01, now 0.5",
        "pbe.keep was [0.2, 0.5, 0.7], now [0.1]",
        "model.options.width was None, now 4",
        "another --out",
    ):
        assert line in message
    assert "momentum" not in message
    assert message.endswith("Give the same command to go on with it, or choose another --out.")


def test_changes_can_be_accepted_where_the_job_has_that_option(run: RunDirectory) -> None:
    changed = _config("seed=2")
    with pytest.raises(RunDirectoryError, match="or give --accept-changes"):
        RunDirectory.open(run.path, changed, accept_changes=False)
    assert RunDirectory.open(run.path, changed, accept_changes=True).changes == [
        "seed was 1, now 2"
    ]


def test_a_run_of_another_kind_is_refused(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="epochs was None, now 15"):
        RunDirectory.open(run.path, TrainConfig())


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(RunDirectoryError, match=r"photo\.jpg.*another --out"):
        RunDirectory.open(tmp_path, _config())
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_run_that_failed_before_it_began_can_be_begun_again(tmp_path: Path) -> None:
    # As after a mistyped checkpoint: there is a log, but no configuration yet.
    (tmp_path / "log.txt").write_text("the run stopped")
    (tmp_path / ".config.yaml.partial").write_text("dev")
    RunDirectory.open(tmp_path, _config())


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        with pytest.raises(RunDirectoryError, match="another --out") as caught:
            RunDirectory.open(path, _config())
        assert str(path) in str(caught.value)
    assert file.read_text() == "x"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n", "\x00", "!!python/name:os.mkdir"])
def test_a_damaged_configuration_is_refused(run: RunDirectory, text: str) -> None:
    run.config_path.write_text(text)
    with pytest.raises(RunDirectoryError, match=r"config\.yaml"):
        _again(run)


# metrics.json


def test_a_finished_run_has_its_metrics_and_no_state(run: RunDirectory) -> None:
    run.save_state({}, {})
    told = run.finish({"purified": {"acc": 0.5}, "labels": (1, 2), "loss": math.nan})
    assert not run.state_path.exists()
    assert told == {"purified": {"acc": 0.5}, "labels": [1, 2], "loss": None}
    assert _again(run).finished() == told


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_metrics_are_refused(run: RunDirectory, content: bytes) -> None:
    run.metrics_path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"metrics\.json: is damaged") as caught:
        run.finished()
    assert "Delete it" in str(caught.value)


def test_what_is_no_number_is_null(run: RunDirectory) -> None:
    run.finish({"a": {"b": [math.nan, 1.5, (math.inf, -math.inf)]}, "c": "nan"})
    run.event({"loss": math.nan})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    metrics = json.loads(run.metrics_path.read_text(), parse_constant=refuse)
    assert metrics == {"a": {"b": [None, 1.5, [None, None]]}, "c": "nan"}
    assert json.loads(run.events_path.read_text(), parse_constant=refuse) == {"loss": None}


# the state


def test_the_state_survives(run: RunDirectory) -> None:
    tensors = {
        "model.w": torch.randn(3, 4),
        "model.half": torch.randn(5).bfloat16(),
        "model.channels_last": torch.randn(2, 3, 4, 4).contiguous(
            memory_format=torch.channels_last
        ),
        "model.count": torch.tensor(7),
        "momentum.w": torch.randn(3, 4, requires_grad=True).t(),
        "subset": torch.tensor([5, 2, 2**40]),
        "nothing": torch.empty(0),
    }
    header = {"epoch": 3, "part": "score", "rounds": [{"acc": 0.1}], "infected": None}
    run.event({"n": 0})
    run.save_state(tensors, header)
    loaded = _again(run).load_state()
    assert loaded is not None
    again, found = loaded
    assert found == {**header, "events": 1}
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


def test_the_state_is_safetensors_and_no_pickle(run: RunDirectory) -> None:
    run.save_state({"a": torch.ones(2)}, {})
    content = run.state_path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["a"]["shape"] == [2]


def _headless(header: str | None) -> bytes:
    metadata = {} if header is None else {run_directory._STATE_KEY: header}
    return save({"a": torch.ones(2)}, metadata=metadata)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        b"PK\x03\x04" + bytes(100),
        _headless(None),
        _headless("no json"),
        _headless("[1]"),
        _headless("{}"),
        _headless('{"events": null}'),
        _headless('{"events": 3}')[:-1],
    ],
)
def test_a_damaged_state_is_refused_and_the_events_are_kept(
    run: RunDirectory, content: bytes
) -> None:
    run.event({"n": 0})
    run.state_path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"state\.safetensors.*damaged") as caught:
        run.load_state()
    assert "Delete it" in str(caught.value)
    assert run.events_path.read_text() == '{"n": 0}\n'


# metrics.jsonl


def _events(run: RunDirectory) -> list[int]:
    return [json.loads(line)["n"] for line in run.events_path.read_text().splitlines()]


def test_events_after_the_state_are_forgotten(run: RunDirectory) -> None:
    for n in range(3):
        run.event({"n": n})
    run.save_state({}, {})
    run.event({"n": 3})
    with run.events_path.open("a") as file:
        file.write('{"n": 4, "to')  # torn
    again = _again(run)
    again.load_state()
    assert _events(again) == [0, 1, 2]
    again.event({"n": 30})
    again.save_state({}, {})
    again.event({"n": 31})
    last = _again(run)
    last.load_state()
    assert _events(last) == [0, 1, 2, 30]


def test_without_a_state_the_events_begin_anew(run: RunDirectory) -> None:
    run.event({"n": 0})
    again = _again(run)
    assert again.load_state() is None
    assert _events(again) == []
    again.event({"n": 1})
    assert _events(again) == [1]


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.sampled_from(["event", "save", "stop", "power cut"]), max_size=20))
def test_any_stop_leaves_the_events_before_the_last_state(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("run") / "run"
    run = RunDirectory.open(path, _config())
    run.write_config(_config())
    expected: list[int] = []
    saved: list[int] = []
    flushed = 0
    for n, step in enumerate(steps):
        if step == "event":
            run.event({"n": n})
            expected.append(n)
        elif step == "save":
            run.save_state({}, {})
            saved = list(expected)
            flushed = run.events_path.stat().st_size if run.events_path.exists() else 0
        else:
            if step == "power cut" and run.events_path.exists():
                # Lines that were written after the state was may be lost or torn.
                size = run.events_path.stat().st_size
                os.truncate(run.events_path, max(flushed, size - 5))
            run = RunDirectory.open(path, _config())
            run.load_state()
            expected = list(saved)
            if run.events_path.exists():
                assert _events(run) == expected
    assert run.events == len(expected)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files need /proc")
def test_the_events_are_on_the_disk_before_the_state_that_counts_them(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.event({"n": 0})
    flushed: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    run.save_state({}, {})
    assert flushed == ["metrics.jsonl", ".state.safetensors.partial"]


# writing whole or not at all


@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
@pytest.mark.parametrize("name", ["state", "config", "metrics", "events"])
def test_a_failure_while_writing_leaves_the_old_file(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    run.event({"n": 0})
    run.event({"n": 1})
    run.save_state({"a": torch.zeros(3)}, {"epoch": 1})
    run.metrics_path.write_text("{}")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    run.events = 1

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if place == "write":

        def half(path: Path, content: bytes) -> int:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "fsync" if place == "fsync" else "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        {
            "state": lambda: run.save_state({"a": torch.ones(9)}, {"epoch": 2}),
            "config": lambda: run.write_config(_config("seed=9")),
            "metrics": lambda: run.finish({"a": 1}),
            "events": lambda: run._cut_events(1),
        }[name]()
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_failure_while_finishing_leaves_the_state(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_state({"a": torch.zeros(3)}, {"epoch": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        run.finish({"a": 1})
    assert run.finished() is None
    assert run.load_state() is not None


# versions


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert set(found) == {"python", "torch", "torchvision", "timm", "numpy", "pbe-fast"}


def test_a_checkout_that_is_not_installed_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(run_directory, "version", missing)
    assert versions()["pbe-fast"] == "unknown"


def test_tied_weights_are_kept(run: RunDirectory) -> None:
    """Two names for one tensor, as in a network that shares a layer."""
    shared = torch.arange(4.0)
    run.save_state({"model.a": shared, "model.b": shared, "model.c": shared[1:3]}, {})
    state = run.load_state()
    assert state is not None
    assert state[0]["model.b"].tolist() == [0, 1, 2, 3]
    assert state[0]["model.c"].tolist() == [1, 2]


# every write and rename of the state


class Killed(BaseException):
    """As by SIGKILL: nothing after it happens in the run."""


def _turns(monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    """Kill at the ``left[0]``-th system call that changes a file, before it happens."""

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*args: object, **more: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            if left[0] < 0 and name == "unlink":
                return None  # the process is dead; what cleans up does not run
            return real(*args, **more)

        monkeypatch.setattr(module, name, call)

    counted(os, "replace")
    counted(os, "fsync")
    counted(Path, "write_bytes")
    counted(Path, "unlink")


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_kill_at_any_write_or_rename_leaves_a_state_that_can_be_gone_on_from(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    for epoch in (1, 2):
        run.save_state({"a": torch.full((3,), epoch)}, {"epoch": epoch})
    with monkeypatch.context() as patch:
        left = [turn]
        _turns(patch, left)
        try:
            run.save_state({"a": torch.full((3,), 3)}, {"epoch": 3})
            killed = False
        except Killed:
            killed = True
    assert killed == (turn <= 5), left
    state = _again(run).load_state()
    assert state is not None
    tensors, header = state
    assert header["epoch"] in ((2, 3) if killed else (3,))
    assert tensors["a"].tolist() == [header["epoch"]] * 3


def test_a_lock_is_held_by_one_process_and_ends_with_it(run: RunDirectory) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from pbe_fast.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(RunDirectoryError, match=rf"process {other.pid} on .* since 20"),
            run.locked(),
        ):
            pass
    finally:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()
    with run.locked():
        assert f"process {os.getpid()}" in (run.path / ".lock").read_text()
    assert (run.path / ".lock").read_text() == ""
