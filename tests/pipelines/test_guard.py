"""Who can reach a cluster: what counts as this machine, what is refused, what listens where."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import _guard
from pipelines._guard import (
    INSECURE,
    ClusterError,
    find_token,
    guard_address,
    host_of,
    is_loopback,
    listening,
)

ROOT = Path(__file__).parents[2]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t0ken"}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that stand for addresses; every other name is unknown."""
    known: dict[str, list[str]] = {}

    def lookup(host: str, *_: object, **__: object) -> list[Any]:
        if host not in known:
            raise socket.gaierror(f"{host} is not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "127.1", "::1", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "0", "::", "10.0.0.5", "192.0.2.1", "128.0.0.1", "::ffff:10.0.0.5", "fe80::1"],
)
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_names_are_looked_up(names: dict[str, list[str]]) -> None:
    names |= {
        "localhost": ["127.0.0.1", "::1"],
        "both": ["127.0.0.1", "10.0.0.5"],
        "localhost.example.com": ["192.0.2.7"],
        "scoped": ["fe80::1%eth0"],
    }
    assert is_loopback("localhost")
    for host in ("both", "localhost.example.com", "scoped", "127.0.0.1.unknown", "unknown"):
        assert not is_loopback(host), host


def test_a_host_that_cannot_be_a_name() -> None:
    assert not is_loopback("x" * 300)
    assert not is_loopback("a..b")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://127.0.0.1:8265", "127.0.0.1"),
        ("https://Ray.example.com/path", "ray.example.com"),
        ("ray://head:10001", "head"),
        ("10.0.0.5:6379", "10.0.0.5"),
        ("localhost", "localhost"),
        ("[::1]:6379", "::1"),
        ("http://127.0.0.1@evil.example.com:8265", "evil.example.com"),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize("address", ["", "http://", ":6379", "http://[::1"])
def test_no_host(address: str) -> None:
    with pytest.raises(ClusterError, match="names no host"):
        host_of(address)


def test_where_the_token_is_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    env = {"HOME": str(home)}
    assert find_token(env) is None
    (home / ".ray/auth_token").write_text(" from-home\n")
    assert find_token(env) == "from-home"
    env["RAY_AUTH_TOKEN_PATH"] = str(file)
    assert find_token(env) == "from-file"
    env["RAY_AUTH_TOKEN"] = "from-env"
    assert find_token(env) == "from-env"
    env["RAY_AUTH_MODE"] = "disabled"
    assert find_token(env) is None


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH names .*missing"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "missing")})
    with pytest.raises(ClusterError, match="cannot be read"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path)})


@pytest.mark.parametrize("token", ["two\nlines", "two words", "schlüssel", "a\x00b"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ClusterError, match="not one line") as caught:
        find_token({"RAY_AUTH_TOKEN": token})
    assert token not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://[::1]:10001"])
def test_loopback_needs_no_token(address: str) -> None:
    guard_address(address, environ={})


@pytest.mark.parametrize(
    "env", [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "t"}, {"RAY_AUTH_MODE": "disabled"}]
)
def test_beyond_loopback_needs_a_token_that_is_sent(env: dict[str, str], tmp_path: Path) -> None:
    env = env | {"HOME": str(tmp_path)}
    with pytest.raises(ClusterError, match="no token protects it"):
        guard_address("10.0.0.5:6379", environ=env)
    guard_address("10.0.0.5:6379", environ=env, insecure=True)
    guard_address("10.0.0.5:6379", environ=env | {INSECURE: "1"})
    with pytest.raises(ClusterError):
        guard_address("10.0.0.5:6379", environ=env | {INSECURE: "0"})


def test_a_token_opens_what_is_beyond() -> None:
    guard_address("10.0.0.5:6379", environ=TOKEN)


def test_a_cluster_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guard, "find_spec", lambda _: None)
    with pytest.raises(ClusterError, match=r"pip install 'ray\[default\]'"):
        _guard.need_ray()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_listening_sockets_are_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ("127.0.0.1", port) in listening({os.getpid()})
        assert ("127.0.0.1", port) in listening(_guard.family(os.getppid()))
        assert _guard._reached_from_outside("127.0.0.1") == []
    assert ("127.0.0.1", port) not in listening({os.getpid()})


@pytest.mark.skipif(sys.byteorder != "little", reason="addresses are in the machine's order")
@pytest.mark.parametrize(
    ("text", "ip"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("0" * 24 + "01000000", "::1"),
        ("0000000000000000FFFF00000100007F", "::ffff:7f00:1"),
        ("0" * 32, "::"),
    ],
)
def test_addresses_of_proc(text: str, ip: str) -> None:
    assert _guard._ip(text) == ip
    assert _guard._is_loopback_ip(ip) == (ip not in ("0.0.0.0", "::"))


def test_an_open_cluster_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INSECURE, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match=r"0\.0\.0\.0:6379\) and asks for no token"):
        _guard._refuse_if_open(["0.0.0.0:6379"], False)
    _guard._refuse_if_open([], False)
    _guard._refuse_if_open(["0.0.0.0:6379"], True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    _guard._refuse_if_open(["0.0.0.0:6379"], False)


def test_the_port_that_jobs_need() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"holds port {port}"):
            _guard._need_free(port)
    _guard._need_free(port)


_LOCAL = """
import json, os, sys
if sys.argv[1] == "loaded":
    import ray
from pipelines import _guard
before = dict(os.environ)
with _guard.start_local(cpus=1) as cluster:
    import ray
    @ray.remote
    def mode():
        return os.environ.get("RAY_AUTH_MODE")
    found = {
        "outside": _guard._reached_from_outside("127.0.0.1"),
        "sockets": len(_guard.listening(_guard.family(os.getpid()))),
        "nodes": [node["NodeManagerAddress"] for node in ray.nodes()],
        "mode": ray.get(mode.remote()),
        "address": cluster.address, "dashboard": cluster.dashboard,
        "folder": str(cluster.folder), "private": oct(cluster.folder.stat().st_mode),
    }
found["left"] = sorted(set(os.environ) - set(before))
print(json.dumps(found))
"""


@pytest.mark.ray
@pytest.mark.parametrize("how", ["fresh", "loaded"])
def test_a_local_cluster_listens_on_loopback_alone(how: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "192.0.2.1:6379"}
    ended = subprocess.run(
        [sys.executable, "-c", _LOCAL, how],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    found = json.loads(ended.stdout)
    assert found["outside"] == []
    assert found["sockets"] >= 5  # so there was something to look at
    assert found["nodes"] == ["127.0.0.1"]
    assert found["mode"] == "token"
    assert found["address"].startswith("127.0.0.1:")
    assert found["dashboard"] is None
    assert found["private"] == "0o40700"
    assert not Path(found["folder"]).exists()
    assert not (tmp_path / ".ray").exists()  # no token was left in the home
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in found["left"]


# --- where a cluster is --------------------------------------------------------------------------


def test_a_loopback_address_stands_for_what_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 plays the machine's own address."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    for host, expected in (("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")):
        with socket.create_server((host, 0)) as cluster:
            port = cluster.getsockname()[1]
            assert _guard.found_at(f"127.0.0.1:{port}") == f"{expected}:{port}"
    assert _guard.found_at("10.0.0.5:6379") == "10.0.0.5:6379"


def test_auto_is_looked_up_before_anything_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from ray._private import services

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert _guard.found_at("auto") == "10.0.0.5:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    with pytest.raises(ClusterError, match="--ray local"):
        _guard.found_at("auto")
