"""Submission: what travels, who is refused, how a log is followed, what the exit status is."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pbe_fast.data import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.errors import ConfigError
from pipelines import _dashboard, _guard, _job, _submit_command, submit
from pipelines._guard import INSECURE, ClusterError
from pipelines.submit import Cluster, LostError, Outcome

ROOT = Path(__file__).parents[2]
NASTY = ["it's", 'a "quote"', "$(touch pwned)", "`id`", "two\nlines", "a;b|c&d", "*", "~", "", "é"]


# --- the command ---------------------------------------------------------------------------------


def _through_a_shell(command: str) -> list[str]:
    """The arguments that a shell makes of the command, as Ray's would."""
    assert command.startswith("python -m pipelines ")
    command = command.replace("python -m pipelines ", "printf '%s\\0' ", 1)
    out = subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout
    return out.decode().split("\0")[:-1]


def test_no_shell_interprets_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["purify", *NASTY, "--out=/runs/it's"]
    assert _through_a_shell(submit.entrypoint(arguments)) == arguments
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_arrives_as_it_was(arguments: list[str]) -> None:
    arguments = ["purify", *[f"x{argument}" for argument in arguments]]
    assert _through_a_shell(submit.entrypoint(arguments)) == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to run"),
        (["submit", "--address", "x"], "cannot be another submission"),
        (["purify", "a\0b"], "it is not text"),
        (["purify", "caf\udce9"], "it is not text"),
        (["purify", "--out", "runs/pure"], "relative to a folder that Ray deletes"),
        (["purify", "--out=runs/pure"], "relative to a folder that Ray deletes"),
    ],
)
def test_commands_that_cannot_be_run_there(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        submit.entrypoint(arguments)


@pytest.mark.parametrize("out", ["/runs/pure", "s3://bucket/pure"])
def test_results_that_stay(out: str) -> None:
    assert submit.entrypoint(["purify", "--out", out]).endswith(out)


def test_names() -> None:
    first, second = submit.job_name(), submit.job_name()
    assert first != second
    assert submit.job_name(first) == first
    for wrong in ("", "../x", "a/b", "a b", "-x", "x" * 101, "a\n"):
        with pytest.raises(ConfigError, match="cannot name a job"):
            submit.job_name(wrong)


# --- the code that travels -----------------------------------------------------------------------


def _packed(target: Path, *files: Path) -> dict[str, bytes]:
    submit.pack(target, files)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_source_of_the_three_packages_travels(tmp_path: Path) -> None:
    found = _packed(tmp_path / "code.zip")
    source = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for package in ("kernels", "pbe_fast", "pipelines")
        for suffix in ("*.py", "*.html", "*.json", "py.typed")
        for path in (ROOT / package).rglob(suffix)
    }
    assert {name: found.get(name) for name in source} == source
    assert {"pipelines/__main__.py", "pbe_fast/report/template.html"} <= set(source)
    others = {name for name in found if name not in source}
    assert all(re.match(r"pipelines/deploy/\w+\.yaml|pbe_fast-.*/METADATA", x) for x in others)
    assert (tmp_path / "code.zip").stat().st_size < 2**20


def test_the_version_travels(tmp_path: Path) -> None:
    (metadata,) = [v for k, v in _packed(tmp_path / "x.zip").items() if k.endswith("/METADATA")]
    assert re.search(rb"^Name: pbe-fast\nVersion: \d", metadata, re.MULTILINE)


def test_hidden_and_compiled_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pbe_fast"
    for name in ("a.py", ".env", ".cache/x", "__pycache__/a.pyc", "b.pyc", "report/t.html"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    assert set(_job._sources(root, "pbe_fast")) == {"pbe_fast/a.py", "pbe_fast/report/t.html"}


def test_the_same_code_makes_the_same_bytes(tmp_path: Path) -> None:
    submit.pack(tmp_path / "a.zip")
    submit.pack(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}  # no clock in them


def test_files_lie_beside_the_code(tmp_path: Path) -> None:
    config = tmp_path / "deep/run.yaml"
    config.parent.mkdir()
    config.write_text("seed: 1")
    assert _packed(tmp_path / "code.zip", config)["run.yaml"] == b"seed: 1"


def test_files_that_cannot_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tmp_path / "run.yaml", tmp_path / "other/run.yaml"
    other.parent.mkdir()
    for path in (run, other, tmp_path / "kernels.py"):
        path.write_text("x")
    target = tmp_path / "code.zip"
    with pytest.raises(ConfigError, match="another file of this name"):
        submit.pack(target, [run, other])
    with pytest.raises(ConfigError, match="another file of this name"):
        submit.pack(target, [tmp_path / "kernels.py"])
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be sent: No such file"):
        submit.pack(target, [tmp_path / "missing.yaml"])
    monkeypatch.setattr(_job, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="Large files belong on storage"):
        submit.pack(target)


def test_dependencies_are_those_without_extras_but_for_s3() -> None:
    wanted = _job.dependencies()
    assert any(requirement.startswith("torch") for requirement in wanted)
    [s3] = [requirement for requirement in wanted if requirement.startswith("s3fs")]
    assert ";" not in s3  # pip would leave out what belongs to an extra
    assert not any("pytest" in requirement for requirement in wanted)


# --- the way to the cluster ----------------------------------------------------------------------


@dataclass
class Dashboard:
    """What a stand-in for a Ray dashboard answers, and what it was asked."""

    token: str | None = None
    nodes: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    version: str = ""
    page: bytes | None = None
    status: int = 200
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Dashboard]:
    """A server on loopback; no token is found in the environment."""
    ray = pytest.importorskip("ray")
    for name in [name for name in os.environ if name.startswith(("RAY_", "PBE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    state = Dashboard(version=ray.__version__)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization")
            state.asked.append((self.path, sent))
            status, body = state.status, state.page
            if state.token is not None and sent != f"Bearer {state.token}":
                status, body = (403 if sent else 401), b"no"
            elif body is None and self.path == "/api/version":
                body = json.dumps({"version": "4", "ray_version": state.version}).encode()
            elif body is None:
                nodes = [{"raylet": {"nodeManagerAddress": ip}} for ip in state.nodes]
                body = json.dumps({"data": {"summary": nodes}}).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "https://login.example.com/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def _beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dashboard, "is_loopback", lambda _: False)


def test_a_cluster_of_this_machine(dashboard: Dashboard) -> None:
    cluster = submit.connect(f"{dashboard.url}/")
    assert (cluster.url, cluster.warnings) == (dashboard.url, ())
    assert cluster.client.get_address() == dashboard.url
    assert not any(sent for _, sent in dashboard.asked)


def test_the_environment_does_not_lead_elsewhere(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert submit.connect(dashboard.url).client.get_address() == dashboard.url
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_requests_have_a_time_limit(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    seen: list[object] = []

    def request(*_: object, timeout: object = None, **__: object) -> None:
        seen.append(timeout)
        raise requests.exceptions.Timeout

    client = submit.connect(dashboard.url).client
    monkeypatch.setattr(requests, "request", request)
    with pytest.raises(requests.exceptions.Timeout):
        client.get_job_info("x")
    assert seen == [_dashboard._TIMEOUT]


def test_an_open_cluster_beyond_is_refused(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    _beyond(monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ours")  # having one does not make the cluster ask for it
    with pytest.raises(ClusterError, match=r"asks for no token: .* or say --insecure"):
        submit.connect(dashboard.url)
    assert submit.connect(dashboard.url, insecure=True).warnings == ()
    monkeypatch.setenv(INSECURE, "1")
    submit.connect(dashboard.url)
    assert not any(sent for _, sent in dashboard.asked)


@pytest.mark.parametrize("nodes", [["127.0.0.1", "10.0.0.5"], []])
def test_a_tunnel_does_not_hide_an_open_cluster(dashboard: Dashboard, nodes: list[str]) -> None:
    dashboard.nodes = nodes
    with pytest.raises(ClusterError, match="asks for no token"):
        submit.connect(dashboard.url)
    submit.connect(dashboard.url, insecure=True)


def test_a_cluster_that_asks_gets_the_token(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.token, dashboard.nodes = "t0ken", ["10.0.0.5"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    assert submit.connect(dashboard.url).warnings == ()
    assert dashboard.asked[0][1] is None  # not before it asks
    assert dashboard.asked[-1][1] == "Bearer t0ken"
    _beyond(monkeypatch)
    (warning,) = submit.connect(dashboard.url).warnings
    assert "in clear" in warning


def test_a_missing_and_a_wrong_token(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.token = "t0ken"
    with pytest.raises(ClusterError, match="there is none here"):
        submit.connect(dashboard.url, insecure=True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wr0ng")
    with pytest.raises(ClusterError, match="does not accept the token") as caught:
        submit.connect(dashboard.url)
    assert "wr0ng" not in str(caught.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="remove RAY_AUTH_MODE=disabled"):
        submit.connect(dashboard.url)


@pytest.mark.parametrize(
    ("page", "status"), [(b"<html>", 200), (b"{}", 200), (b"[1]", 200), (b"", 404), (b"", 500)]
)
def test_not_a_ray_dashboard(dashboard: Dashboard, page: bytes, status: int) -> None:
    dashboard.page, dashboard.status = page, status
    with pytest.raises(ClusterError, match=rf"HTTP {status}\), but not as the dashboard"):
        submit.connect(dashboard.url)


def test_an_address_that_sends_elsewhere(dashboard: Dashboard) -> None:
    dashboard.page, dashboard.status = b"", 302
    with pytest.raises(ClusterError, match=r"sends elsewhere, to https://login\.example\.com/"):
        submit.connect(dashboard.url)


def test_versions(dashboard: Dashboard) -> None:
    dashboard.version = "2.8.1"
    with pytest.raises(ClusterError, match=r"runs Ray 2\.8\.1; 2\.9 or newer"):
        submit.connect(dashboard.url)
    dashboard.version = "2.10.0"
    (warning,) = submit.connect(dashboard.url).warnings
    assert warning.startswith("The cluster runs Ray 2.10.0, this machine ")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8265", "is not the URL of a Ray dashboard"),
        ("ray://127.0.0.1:10001", "is not the URL of a Ray dashboard"),
        ("auto", "is not the URL of a Ray dashboard"),
        ("http://", "names no host"),
        ("http://me:secret@127.0.0.1:8265", "no user name and no password"),
        ("http://127.0.0.1:8265/?x=1", "more than a host, a port and a path"),
        ("http://127.0.0.1:1", "Nothing answers at http://127.0.0.1:1 "),
    ],
)
def test_addresses_that_cannot_be_one(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ClusterError, match=message) as caught:
        submit.connect(address)
    assert "secret" not in str(caught.value)


# --- submission ----------------------------------------------------------------------------------


class Status(Enum):
    """As Ray's."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    def is_terminal(self) -> bool:
        return self is not Status.RUNNING


def _details(status: str, code: int | None = None, message: str | None = None) -> Any:
    return SimpleNamespace(status=Status(status), driver_exit_code=code, message=message)


class Client:
    """A client of Ray's with a script: what each call to it gives, or raises."""

    def __init__(self, logs: list[list[Any]] | None = None, infos: list[Any] | None = None) -> None:
        self.logs, self.infos = logs or [], infos or []
        self.submitted: dict[str, Any] = {}
        self.stopped: list[str] = []
        self.error: Exception | None = None

    def submit_job(self, **given: Any) -> None:
        if self.error is not None:
            raise self.error
        self.submitted = given
        self.packed = zipfile.ZipFile(given["runtime_env"]["working_dir"]).namelist()

    def get_job_info(self, name: str) -> Any:
        info = self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]
        if isinstance(info, Exception):
            raise info
        return info

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for item in self.logs.pop(0) if self.logs else []:
            if isinstance(item, Exception):
                raise item
            yield item


def _cluster(client: Client) -> Cluster:
    return Cluster(client, "http://ray:8265")


def test_what_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INSECURE, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("PBE_DATA", "/private")
    client, config = Client(), tmp_path / "run.yaml"
    config.write_text("seed: 1")
    submit.submit(_cluster(client), ["purify", "it's"], "job-1", files=[config])
    assert client.submitted["entrypoint"] == "python -m pipelines purify 'it'\"'\"'s'"
    assert client.submitted["submission_id"] == "job-1"
    environment = client.submitted["runtime_env"]
    assert set(environment) == {"env_vars", "working_dir"}
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # nothing of ours travels
    assert {"run.yaml", "pipelines/cli.py"} <= set(client.packed)
    assert not Path(client.submitted["runtime_env"]["working_dir"]).exists()
    submit.submit(_cluster(client), ["purify"], "job-2", pip=True, insecure=True)
    environment = client.submitted["runtime_env"]
    assert environment["env_vars"][INSECURE] == "1"  # so that the job is allowed what we were
    assert environment["pip"] == _job.dependencies()


def test_submissions_that_fail() -> None:
    pytest.importorskip("ray")
    client = Client()
    client.error = RuntimeError("Request failed with status code 500: job-1 already exists")
    with pytest.raises(ClusterError, match=r"has a job job-1 already\. Follow it with --attach"):
        submit.submit(_cluster(client), ["purify"], "job-1")
    client.error = ConnectionResetError("reset")
    with pytest.raises(LostError, match="whether the job job-1 runs is not known"):
        submit.submit(_cluster(client), ["purify"], "job-1")
    client.error = RuntimeError("Request failed with status code 500: No available agent.")
    with pytest.raises(ClusterError, match=r"did not take the job: .*No available agent\."):
        submit.submit(_cluster(client), ["purify"], "job-1")
    client.error = RuntimeError("Request failed with status code 502: gateway")
    with pytest.raises(LostError):
        submit.submit(_cluster(client), ["purify"], "job-1")
    client.error = RuntimeError("Request failed with status code 400: bad field")
    with pytest.raises(ClusterError, match=r"refuses: .*bad field"):
        submit.submit(_cluster(client), ["purify"], "job-1")
    client.error = KeyError("a bug")
    with pytest.raises(KeyError):
        submit.submit(_cluster(client), ["purify"], "job-1")


# --- following -----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses take no time, and are listed."""
    pytest.importorskip("ray")
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: 1000.0 + sum(pauses))
    monkeypatch.setattr(submit, "time", clock)  # asyncio keeps the real one
    return pauses


@dataclass
class Followed:
    """What was written and said."""

    log: str = ""
    said: list[str] = field(default_factory=list)
    outcome: Outcome | None = None


def _follow(client: Client, **options: Any) -> Followed:
    seen = Followed()

    def write(text: str) -> None:
        seen.log += text

    try:
        seen.outcome = submit.follow(_cluster(client), "job", write, seen.said.append, **options)
    except ClusterError as error:
        seen.said.append(str(error))
    return seen


@pytest.mark.parametrize(
    ("details", "code"),
    [
        (_details("SUCCEEDED", 0), 0),
        (_details("FAILED", 3, "failed with exit code 3"), 3),
        (_details("FAILED", -9), 137),
        (_details("FAILED"), 1),
        (_details("FAILED", None, "Failed to set up the runtime environment"), 1),
        (_details("STOPPED", -15), 130),
        (_details("STOPPED"), 130),
    ],
)
def test_exit_status(details: Any, code: int, clock: list[float]) -> None:
    seen = _follow(Client([["a\n", "b\n"]], [details]))
    assert seen.log == "a\nb\n"
    assert seen.outcome is not None
    assert (seen.outcome.status, seen.outcome.exit_code) == (details.status.value, code)
    told = code == 1  # else the log says why
    assert bool(seen.outcome.message) == told


def test_the_log_goes_on_after_a_lost_connection(clock: list[float]) -> None:
    lost = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    client = Client(
        [["one\n", "tw", lost], [OSError("no route")], ["one\ntwo\nth", "ree\n"]],
        [_details("SUCCEEDED", 0)],
    )
    seen = _follow(client)
    assert seen.log == "one\ntwo\nthree\n"
    assert len(seen.said) == 2
    assert seen.said[0].startswith("Lost the connection (WebSocket connection closed")
    assert seen.said[1] == "Connected again."
    assert clock == [0.5, 1.0]


def test_pauses_grow_until_patience_ends(clock: list[float]) -> None:
    client = Client([[OSError("no route")] for _ in range(99)], [])
    seen = _follow(client, patience_seconds=60)
    assert seen.outcome is None
    assert "did not come back within 60 s (no route)" in seen.said[-1]
    assert "may still run" in seen.said[-1]
    assert clock == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_patience_begins_anew_after_each_success(clock: list[float]) -> None:
    broken = OSError("no route")
    logs = [["a"] * n + [broken] for n in range(1, 30)]
    seen = _follow(Client([*logs, ["a" * 30]], [_details("SUCCEEDED", 0)]), patience_seconds=5)
    assert seen.log == "a" * 30
    assert set(clock) == {0.5}


def test_a_log_that_ends_before_the_job(clock: list[float]) -> None:
    client = Client(
        [["a"], ["ab"], ["abc"]], [_details("RUNNING"), _details("RUNNING"), _details("FAILED", 2)]
    )
    seen = _follow(client)
    assert (seen.log, seen.said) == ("abc", [])
    assert clock == [1.0, 1.0]


def test_a_silent_log_is_asked_for_again(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    class Silent(Client):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            async for item in super().tail_job_logs(name):
                yield item
                if len(self.logs) == 1:
                    await asyncio.sleep(3600)  # the other end has vanished

    monkeypatch.setattr(submit, "_QUIET_SECONDS", 0.05)
    client = Silent([["a"], ["ab"]], [_details("RUNNING"), _details("SUCCEEDED", 0)])
    seen = _follow(client)
    assert (seen.log, seen.said) == ("ab", [])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Request failed with status code 404: Job x does not exist"), "knows no job"),
        (RuntimeError("Request failed with status code 400: odd"), "refuses: .*odd"),
        (RuntimeError("Request failed with status code 403: no"), "not accept the token any more"),
    ],
)
def test_what_does_not_get_better_ends_at_once(
    error: Exception, message: str, clock: list[float]
) -> None:
    seen = _follow(Client([["a"]], [error]))
    assert re.search(message, seen.said[-1])
    assert clock == []


def test_a_log_that_cannot_be_written_is_no_lost_connection(clock: list[float]) -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError("nobody reads")

    said: list[str] = []
    client = Client([["a"]], [_details("SUCCEEDED", 0)])
    with pytest.raises(BrokenPipeError):
        submit.follow(_cluster(client), "job", broken, said.append, patience_seconds=9)
    assert said == []
    assert clock == []


def test_stopping(clock: list[float]) -> None:
    client = Client(infos=[_details("RUNNING"), _details("RUNNING"), _details("STOPPED")])
    assert submit.stop(_cluster(client), "job").status == "STOPPED"
    assert client.stopped == ["job"]
    with pytest.raises(LostError, match="still runs"):
        submit.stop(_cluster(Client(infos=[_details("RUNNING")])), "job")
    gone = RuntimeError("Request failed with status code 404: x")
    with pytest.raises(ClusterError, match="knows no job"):
        submit.stop(_cluster(Client(infos=[gone])), "job")


# --- the command line ----------------------------------------------------------------------------


@dataclass
class Ended:
    """How the command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """``pbe-fast submit --address http://ray:8265 ARGUMENTS`` with a scripted client."""
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer()
    settings = {"allow_interspersed_args": False}
    app.command(context_settings=settings)(_submit_command.submit_command)

    def run(client: Client, *arguments: str) -> Ended:
        def connect(address: str, *, insecure: bool = False) -> Cluster:
            return Cluster(client, address, ("beware",) if insecure else ())

        monkeypatch.setattr(submit, "connect", connect)
        ended = CliRunner().invoke(app, ["--address", "http://ray:8265", *arguments])
        if isinstance(ended.exception, ConfigError):
            raise ended.exception
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    return run


Command = Callable[..., Ended]


def test_the_command_exits_as_the_job(command: Command, clock: list[float]) -> None:
    client = Client([["hello\n"]], [_details("FAILED", 7)])
    ended = command(client, "--name", "mine", "--insecure", "--", "purify", "--data", "x", "--wait")
    assert client.submitted["entrypoint"] == "python -m pipelines purify --data x --wait"
    assert (ended.code, ended.out) == (7, "hello\n")
    assert ended.err.splitlines() == [
        "warning: beware", "Submitted job mine.", "Job mine: FAILED, exit code 7.",
    ]  # fmt: skip


def test_the_command_without_waiting_prints_the_name(command: Command) -> None:
    ended = command(Client(), "--no-wait", "purify", "--out", "/runs")
    assert ended.code == 0
    assert re.fullmatch(r"pbe-fast-[\w-]+\n", ended.out)


def test_the_command_attaches_and_stops(command: Command, clock: list[float]) -> None:
    client = Client([["again\n"]], [_details("SUCCEEDED", 0)])
    ended = command(client, "--attach", "mine")
    assert (ended.code, ended.out, client.submitted) == (0, "again\n", {})
    client = Client(infos=[_details("STOPPED")])
    ended = command(client, "--stop", "mine")
    assert (ended.code, client.stopped) == (0, ["mine"])
    assert ended.err == "Job mine: STOPPED.\n"


@pytest.mark.parametrize("where", ["submit", "follow"])
def test_an_interrupt_leaves_the_job(
    command: Command, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, where, interrupted)
    ended = command(Client(), "--name", "mine", "--", "purify")
    assert ended.code == 130
    assert "The job mine goes on" in ended.err
    assert "pbe-fast submit --address http://ray:8265 --attach mine" in ended.err
    assert "pbe-fast submit --address http://ray:8265 --stop mine" in ended.err


def test_a_lost_job_can_be_found_again(command: Command, clock: list[float]) -> None:
    client = Client([[OSError("no route")] for _ in range(99)], [])
    ended = command(client, "--attach", "mine")
    assert ended.code == 1
    assert "did not come back" in ended.err
    assert ended.err.endswith("--attach mine\n")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--attach", "a", "--stop", "b"], ["--attach", "a", "--", "purify"]],
)
def test_one_thing_at_a_time(command: Command, arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="Give one of"):
        command(Client(), *arguments)


def test_a_log_cannot_steer_the_terminal(command: Command, clock: list[float]) -> None:
    log = "\x1b[31mred\x1b[0m \x1b]0;title\x07\tx\r50 %\r\nend\x1b[2J\n"
    ended = command(Client([[log]], [_details("SUCCEEDED", 0)]), "--attach", "mine")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ended.out)
    assert ended.out.startswith("red ")
    assert "50 %\nend" in ended.out


# --- a real cluster ------------------------------------------------------------------------------


_HEAD = """
import sys
from pipelines._guard import start_local
with start_local(cpus=1, dashboard_port=int(sys.argv[1])) as cluster:
    print(cluster.dashboard, flush=True)
    sys.stdin.read()
"""


@dataclass
class Real:
    """A running cluster, and the command line to it."""

    url: str
    env: dict[str, str]

    def words(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines", "submit", "--address", self.url, *arguments]

    def run(self, *arguments: str, **env: str) -> Ended:
        done = subprocess.run(
            self.words(*arguments), env=self.env | env, cwd=ROOT,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """A head on loopback with a token; it ends when its standard input does."""
    pytest.importorskip("ray")
    home = tmp_path_factory.mktemp("home")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PBE_"))}
    env |= {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_TOKEN": "right-token",
    }
    for _ in range(120):  # for another cluster of this machine to end
        try:
            _guard._need_free(_guard._AGENT_PORT)
            break
        except ClusterError:
            time.sleep(1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", _HEAD, str(port)], env=env, cwd=home,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as head:  # fmt: skip
        assert head.stdin is not None
        assert head.stdout is not None
        url = head.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        yield Real(url, env)
        head.stdin.close()
        assert head.wait(60) == 0


@pytest.mark.ray
def test_a_real_job_succeeds_and_its_log_arrives(real: Real) -> None:
    ended = real.run("--name", "good", "--", "--version")
    assert ended.code == 0, ended.err
    assert re.search(r"^pbe-fast \d", ended.out, re.MULTILINE)
    assert ended.err == "Submitted job good.\nJob good: SUCCEEDED, exit code 0.\n"
    again = real.run("--name", "good", "--", "--version")
    assert again.code == 2
    assert "has a job good already" in again.err


_PROBE = """
import os, sys
from pathlib import Path
import kernels, pbe_fast, pipelines
def factory(**_):
    here = Path.cwd()
    modules = (kernels, pbe_fast, pipelines)
    print("ours", all(Path(m.__file__).parent == here / m.__name__ for m in modules))
    print("secret", os.environ.get("MY_SECRET"))
    sys.stdout.flush()
    os._exit(41)
"""


@pytest.mark.ray
def test_a_real_job_runs_what_was_sent_and_fails_as_it_fails(real: Real, tmp_path: Path) -> None:
    shards, probe, out = tmp_path / "shards", tmp_path / "probe.py", tmp_path / "it's $(exit 3)"
    write_shards(
        signs(num_classes=2, per_class=4, size=16, seed=0, split="train"),
        shards,
        classes=sign_names(2),
    )
    probe.write_text(_PROBE)
    train = ["train", "--model", "probe.py:factory", "--data", str(shards), "--out", str(out)]
    ended = real.run("--file", str(probe), "--", *train, MY_SECRET="s3cret")
    assert ended.code == 41, ended.out + ended.err
    assert ended.out.splitlines()[-2:] == ["ours True", "secret None"]
    assert shlex.quote(str(out)) in ended.out
    assert out.is_dir()  # under the very name that was given


@pytest.mark.ray
@pytest.mark.slow
def test_a_purification_is_submitted_and_ends_as_one_in_this_process(
    real: Real, world: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = real.run("--", *world.words(out, "--ray", "auto", "--workers", "1"))
    assert ended.code == 0, ended.out + ended.err
    assert "Purified model: " in ended.out
    world.same(out, world.undisturbed())


@pytest.mark.ray
def test_a_real_job_is_left_followed_again_and_stopped(real: Real, tmp_path: Path) -> None:
    # A shell has its background jobs ignore Ctrl+C, and what they start, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first = subprocess.Popen(
        real.words("--name", "long", "--", "demo", "--out", str(tmp_path / "demo")),
        env=real.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with first:
        assert first.stdout is not None
        for line in first.stdout:  # until the job itself speaks
            if line.startswith("draw train signs"):
                break
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
        assert first.returncode == 130
        assert f"--address {real.url} --attach long" in err
    second = subprocess.Popen(
        real.words("--attach", "long"),
        env=real.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with second:
        assert second.stdout is not None
        lines = iter(second.stdout)
        seen = [next(lines) for _ in range(3)]  # from the beginning
        assert any(line.startswith("Running entrypoint for job long") for line in seen)
        stopped = real.run("--stop", "long")
        assert (stopped.code, stopped.err) == (0, "Job long: STOPPED.\n")
        _, err = second.communicate(timeout=60)
        assert second.returncode == 130
        assert err == "Job long: STOPPED, exit code 130.\n"


@pytest.mark.ray
def test_a_real_cluster_wants_its_token(real: Real) -> None:
    wrong = real.run("--attach", "good", RAY_AUTH_TOKEN="wrong-token")
    assert wrong.code == 2
    assert "does not accept the token" in wrong.err
    none = real.run("--attach", "good", RAY_AUTH_TOKEN="")
    assert none.code == 2
    assert "there is none here" in none.err
    unknown = real.run("--attach", "nobody")
    assert unknown.code == 2
    assert "knows no job nobody" in unknown.err
