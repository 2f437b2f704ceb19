"""Jobs on a Ray cluster of several nodes, started by the command line, and what happens to them.

The nodes are raylets of this machine, on loopback, made by ``ray.cluster_utils.Cluster`` in a
process of its own. A driver is a process, too, that can be killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytest.importorskip("ray")
from pipelines.fleet import FleetOptions, connected

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]

_NODES = """
import sys, json, os
from pathlib import Path
from pipelines._guard import loopback_only, family, _is_loopback_ip, listening

with loopback_only():
    from ray.cluster_utils import Cluster

    def node(cpus):
        return dict(
            num_cpus=cpus, node_ip_address="127.0.0.1", include_dashboard=False,
            dashboard_host="127.0.0.1", temp_dir=sys.argv[1],
        )

    def pid_of(node):
        return node.all_processes["raylet"][0].process.pid

    cluster = Cluster(initialize_head=True, head_node_args=node(0))
    nodes = {}
    for line in sys.stdin:  # one request a line, one answer a line
        word, _, name = line.strip().partition(" ")
        if word == "add":
            nodes[name] = cluster.add_node(**node(1))
        elif word == "kill":  # the node of a process
            raylet = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            [lost] = [n for n, x in nodes.items() if raylet == pid_of(x)]
            cluster.remove_node(nodes.pop(lost), allow_graceful=False)
        elif word == "behead":
            cluster.remove_node(cluster.head_node, allow_graceful=False)
        outside = [x for x in listening(family(os.getpid())) if not _is_loopback_ip(x[0])]
        address = cluster.address if cluster.head_node else None
        print(json.dumps({"address": address, "outside": outside}), flush=True)
    cluster.shutdown()
"""


# A driver that stops itself once, when a phase begins: all that is to be done at that moment can
# then be done in time, however slow the machine is.
_DRIVER = """
import os, signal, sys
from pipelines._console import ConsoleProgress
from pipelines.cli import main

phases, begin = {sys.argv.pop(1)}, ConsoleProgress.phase

def begin_and_stop(self, name, total, done=0):
    begin(self, name, total, done)
    if name in phases:
        phases.remove(name)
        os.kill(os.getpid(), signal.SIGSTOP)

ConsoleProgress.phase = begin_and_stop
main()
"""

WORKERS = "Scorer", "RayTrainWorker", "TrainController", "Mailbox"


class Nodes:
    """A cluster: a head for drivers, and nodes of one CPU."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.env, self.folder = env, folder
        self.log = (folder / "nodes.log").open("w")
        # Ray notes a cluster's address in its default folder, which a fresh machine lacks.
        env = env | {"RAY_TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _NODES, str(folder / "ray")], env=env, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.address = self.ask("address")

    def ask(self, request: str) -> Any:
        """``add NAME``, ``kill NAME`` or ``behead``; the head's address."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                assert answer["outside"] == []
                return answer["address"]
        pytest.fail((self.folder / "nodes.log").read_text()[-2000:])

    def end(self) -> None:
        """All of its processes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.log.close()


class Driver:
    """``pbe-fast`` with some arguments, in a process of its own that stops at a phase, if any."""

    def __init__(self, words: list[str], env: dict[str, str], log: Path, stop_at: str) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, stop_at, *words],
                env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for_stop(self, seconds: float = 120) -> None:
        """Until its phase begins."""
        look = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.process.pid, look) is None:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)
        assert self.process.poll() is None, self.text

    def go_on(self) -> None:
        """After its stop."""
        self.process.send_signal(signal.SIGCONT)

    def end(self, seconds: float = 180) -> int:
        """Its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"still running after {seconds} s:\n{self.text}")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of drivers and nodes: a token that both know."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PBE_"))}
    return kept | {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-the-tests",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "15",  # 60 by default
    }


@pytest.fixture
def start_nodes(env: dict[str, str]) -> Iterator[Callable[[str], Nodes]]:
    """Starts a cluster with nodes of these names, of a letter each."""
    with ExitStack() as stack:

        def start(names: str) -> Nodes:
            # The paths of Ray's sockets would be too long elsewhere.
            folder = stack.enter_context(TemporaryDirectory(prefix="pbe-", dir="/tmp"))
            nodes = Nodes(Path(folder), env)
            stack.callback(nodes.end)
            for name in names:
                nodes.ask(f"add {name}")
            return nodes

        yield start


@pytest.fixture
def run(world: Any, env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Starts the purification of the world on a cluster."""
    drivers: list[Driver] = []

    def start(address: str, *more: str, stop_at: str = "") -> Driver:
        log = tmp_path / f"log-{len(drivers)}"
        fleet = ("--ray", address, "--workers", "2", "--cpus-per-worker", "1")
        drivers.append(Driver(world.words(tmp_path / "run", *fleet, *more), env, log, stop_at))
        return drivers[-1]

    yield start
    for driver in drivers:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.wait()


@pytest.fixture(scope="module")
def expected(world: Any) -> Path:
    """A run of two workers that nothing disturbed."""
    with connected(FleetOptions(workers=2, cpus=1, timeout=60.0)) as fleet:
        return Path(world.undisturbed(fleet))


def test_nodes_and_a_head_are_lost(
    world: Any,
    expected: Path,
    start_nodes: Callable[[str], Nodes],
    run: Callable[..., Driver],
    tmp_path: Path,
) -> None:
    """Another node takes a lost one's place; else there is one clear end, and the same command
    goes on, on another cluster, too."""

    def will(fault: str) -> None:
        (world.root / fault).touch()

    nodes = start_nodes("ab")
    will("train-wait-1")
    first = run(nodes.address, "--worker-timeout", "20")
    nodes.ask(f"kill {world.waiting(first)}")
    assert first.end(60) == 2
    assert "Each of 2 needs 1 CPU; the cluster has free: 1 CPU" in first.text

    nodes.ask("add c")
    second = run(nodes.address, stop_at="score 0")
    second.wait_for_stop()
    will("eval-wait-1")
    second.go_on()
    pid = world.waiting(second)
    will("train-wait-1")  # in round 1
    nodes.ask("add d")
    nodes.ask(f"kill {pid}")
    world.waiting(second)
    assert "another one is started" in second.text
    nodes.ask("behead")
    assert second.end(60) != 0

    nodes = start_nodes("ab")
    will("train-wait-5")
    third = run(nodes.address)
    pid = world.waiting(third)
    nodes.ask("add c")
    nodes.ask(f"kill {pid}")
    assert third.end() == 0, third.text
    assert "going on from the last saved state" in third.text
    world.same(tmp_path / "run", expected)


ENDS = [
    ("infected: ACC, ASR", signal.SIGKILL),
    ("round 0", signal.SIGKILL),
    ("score 0", signal.SIGKILL),
    ("round 1", signal.SIGKILL),
    ("round 1", signal.SIGTERM),
    ("score 1", signal.SIGKILL),
    ("purified: ACC, ASR", signal.SIGKILL),
]
ALONE = 1  # the one with a cluster of its own


def test_a_driver_that_is_ended_again_and_again_leaves_no_process_and_goes_on(
    world: Any,
    expected: Path,
    start_nodes: Callable[[str], Nodes],
    run: Callable[..., Driver],
    tmp_path: Path,
) -> None:
    """On a cluster that stays, and on one that it takes with it."""
    nodes = start_nodes("ab")
    killed: set[tuple[int, str]] = set()
    for index, (phase, number) in enumerate(ENDS):
        address = "local" if index == ALONE else nodes.address
        driver = run(address, "--set", "checkpoint_seconds=3600", stop_at=phase)
        driver.wait_for_stop()
        if index == ALONE:
            killed = world.family(driver.process.pid)
            assert len(killed) > 5
        driver.process.send_signal(number)
        driver.go_on()
        if number == signal.SIGTERM:
            assert driver.end(60) == 1, driver.text
            assert "Stopped." in driver.text
        else:
            assert driver.end(10) == -number
    last = run(nodes.address, "--set", "checkpoint_seconds=3600")
    assert last.end() == 0, last.text
    world.same(tmp_path / "run", expected, losses=False)
    world.wait_for_end_of(world.family(nodes.process.pid), *WORKERS)
    # Ray's agents try for a while to reach the head of a cluster that is gone.
    world.wait_for_end_of(killed, seconds=60.0)
