"""Who can reach a Ray cluster: what is refused, and a local cluster that only this machine reaches.

Whoever reaches a port of a Ray cluster can run code on it, unless it asks for a token. So a
cluster beyond loopback needs token authentication, and a cluster that is started here listens on
loopback alone.
"""

import ipaddress
import logging
import os
import secrets
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pbe_fast.errors import PbeError

__all__ = [
    "INSECURE",
    "ClusterError",
    "LocalCluster",
    "family",
    "find_token",
    "found_at",
    "guard_address",
    "host_of",
    "is_loopback",
    "listening",
    "loopback_only",
    "need_ray",
    "start_local",
    "told_so",
]

INSECURE = "PBE_RAY_INSECURE"
"""Set to 1, this environment variable says what ``--insecure`` says. A submitted job inherits it,
so that what was allowed at submission is allowed to the job."""

_AGENT_PORT = 52365  # of the agent that starts jobs; ray.init has no argument for it
_NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class ClusterError(PbeError):
    """A Ray cluster is out of reach, open to others, or refuses the job."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster of this process: the address for ``ray.init``, the dashboard, Ray's own files."""

    address: str
    dashboard: str | None
    folder: Path


def need_ray() -> None:
    """:class:`ClusterError` where Ray is not installed; nothing is imported."""
    if find_spec("ray") is None:
        raise ClusterError("This needs Ray, which is not installed: pip install 'ray[default]'.")


def host_of(address: str) -> str:
    """The host in ``http://host:8265``, ``ray://host:10001``, ``host:6379`` or ``[::1]:6379``.

    :class:`ClusterError` where there is none.
    """
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname
    except ValueError:
        host = None
    if not host:
        raise ClusterError(f"{address!r} names no host. An address looks like 10.0.0.5:6379.")
    return host


def is_loopback(host: str) -> bool:
    """Whether packets to the host stay on this machine.

    A name counts only if every address that it stands for does; a name that cannot be looked up
    does not, nor does 0.0.0.0, which means all interfaces.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback_ip(str(entry[4][0])) for entry in found)


def _is_loopback_ip(text: str) -> bool:
    ip = ipaddress.ip_address(text.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def find_token(environ: Mapping[str, str] | None = None) -> str | None:
    """The cluster's token, from where Ray looks for it; None if there is none.

    In this order: ``RAY_AUTH_TOKEN``, the file named by ``RAY_AUTH_TOKEN_PATH``,
    ``~/.ray/auth_token``. With ``RAY_AUTH_MODE=disabled`` there is none. :class:`ClusterError` for
    a named file that cannot be read, and for a token that cannot be sent in an HTTP header.
    """
    env = os.environ if environ is None else environ
    if env.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    token, source = env.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        named = env.get("RAY_AUTH_TOKEN_PATH")
        path = Path(named) if named else Path(env.get("HOME") or Path.home()) / ".ray/auth_token"
        source = str(path)
        try:
            token = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if named:
                raise ClusterError(
                    f"RAY_AUTH_TOKEN_PATH names {path}, which is not there."
                ) from None
        except (OSError, UnicodeError) as error:
            raise ClusterError(f"The token in {path} cannot be read: {error}.") from None
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ClusterError(f"The token in {source} is not one line of printable ASCII.")
    return token or None


def told_so(insecure: bool, environ: Mapping[str, str] | None = None) -> bool:
    """Whether an open cluster was allowed, by argument or by environment."""
    env = os.environ if environ is None else environ
    return insecure or env.get(INSECURE) == "1"


def guard_address(
    address: str, *, insecure: bool = False, environ: Mapping[str, str] | None = None
) -> None:
    """Refuse to be the driver on a cluster beyond loopback without a token.

    For an address as ``ray.init`` takes it. There Ray sends a token only with
    ``RAY_AUTH_MODE=token``, so both are needed. :class:`ClusterError` says what to do.
    """
    env = os.environ if environ is None else environ
    host = host_of(address)
    if is_loopback(host) or told_so(insecure, env):
        return
    if env.get("RAY_AUTH_MODE", "").lower() == "token" and find_token(env):
        return
    raise ClusterError(
        f"The Ray cluster at {address} is beyond this machine, and no token protects it: whoever "
        "reaches it can run code on it. Start it with token authentication and give the token "
        "here (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE), or say --insecure."
    )


def found_at(address: str) -> str:
    """Where a running cluster is reached: HOST:PORT.

    ``auto`` stands for the one that this machine is part of. A loopback address is replaced by the
    machine's own, if the cluster listens there: that one others may reach, too.

    Raises:
        ClusterError: there is none.
    """
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment

        try:
            address = str(get_ray_address_from_environment("auto", None))
        except ConnectionError:
            raise ClusterError(
                "No Ray cluster runs on this machine. Give its address (--ray HOST:PORT), or "
                "--ray local to start one for this job."
            ) from None
    if "://" in address or not is_loopback(host_of(address)):
        return address
    import ray

    own, port = str(ray.util.get_node_ip_address()), urlsplit(f"//{address}").port  # type: ignore[no-untyped-call]  # Ray's stub
    try:
        socket.create_connection((own, port or 6379), timeout=2).close()
    except OSError:
        return address
    return f"{own}:{port}"


@contextmanager
def start_local(
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    object_store_bytes: int | None = None,
    dashboard_port: int | None = None,
    worker_output: bool = False,
    insecure: bool = False,
) -> Iterator[LocalCluster]:
    """A Ray cluster of this machine that listens on loopback alone, as long as the block lasts.

    Without ``dashboard_port`` there is no dashboard, and so no job can be submitted. No usage is
    reported. Token authentication is on, against other users of the machine, with a token of its
    own that stays in the environment of this process, unless the environment has one or says
    ``RAY_AUTH_MODE=disabled``. Ray's files lie in a new folder under the temporary one, which is
    kept if the block fails. :class:`ClusterError` if Ray is missing, already in use in this
    process, or, without a token, listens beyond loopback after all.

    Ray 2.60 replaces the node address 127.0.0.1 by the machine's own and then listens on all
    interfaces. It keeps to loopback where clusters are switched off, as they are on a Mac.
    """
    need_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not find_token() and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # so that Ray writes none to the home
    with loopback_only():
        import ray

        if ray.is_initialized():
            raise ClusterError("Ray is already in use in this process.")
        if dashboard_port is not None:
            _need_free(_AGENT_PORT)
        folder = Path(tempfile.mkdtemp(prefix="pbe-", dir=_short_folder()))
        try:
            context = ray.init(
                address="local",  # never the cluster that RAY_ADDRESS names
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=object_store_bytes,
                include_dashboard=dashboard_port is not None,
                dashboard_host="127.0.0.1",
                dashboard_port=dashboard_port,
                log_to_driver=worker_output,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / "ray"),  # which Ray opens to everyone, but not what is above
            )
            address = str(ray.get_runtime_context().gcs_address)
            _refuse_if_open(_reached_from_outside(host_of(address)), insecure)
            url = context.dashboard_url
            yield LocalCluster(address, f"http://{url}" if url else None, folder)
        finally:
            ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _need_free(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        raise ClusterError(
            f"Another Ray cluster of this machine holds port {port}, through which jobs are "
            "started. Wait until it ends, or do without a dashboard."
        ) from None


def _short_folder() -> str:
    """Ray's Unix sockets lie 80 characters deeper, and a path of theirs ends at 107."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 24 else "/tmp"


@contextmanager
def loopback_only() -> Iterator[None]:
    """Ray as on a Mac, without clusters of several machines, for this process and its children.

    Without it Ray takes 127.0.0.1 for the machine's own address, also where it connects.
    """
    before = os.environ.get(_NO_CLUSTER)
    os.environ[_NO_CLUSTER] = "0"
    from ray._private import ray_constants

    # Ray reads the variable when it is loaded, which may have been before.
    clusters = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        os.environ.pop(_NO_CLUSTER, None)
        if before is not None:
            os.environ[_NO_CLUSTER] = before


def _refuse_if_open(reached: list[str], insecure: bool) -> None:
    token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if reached and not token and not told_so(insecure):
        raise ClusterError(
            f"Ray listens beyond this machine ({', '.join(reached)}) and asks for no token. "
            "Remove RAY_AUTH_MODE=disabled from the environment, or say --insecure."
        )


def _reached_from_outside(node: str) -> list[str]:
    """The addresses beyond loopback on which this process or its children listen."""
    if not sys.platform.startswith("linux"):
        return [] if is_loopback(node) else [node]
    found = listening(family(os.getpid()))
    return sorted(f"{ip}:{port}" for ip, port in found if not _is_loopback_ip(ip))


def family(root: int) -> set[int]:
    """A process and all that descend from it."""
    parent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of a process stands in brackets and may hold any character.
            parent[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended
            continue
    found = {root}
    while more := {pid for pid, above in parent.items() if above in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses and ports where processes take TCP connections; Linux only.

    Sockets of other users are not seen.
    """
    inodes = set()
    for pid in pids:
        with suppress(OSError):  # the process has ended
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):  # the file was closed meanwhile
                    inodes.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for name in ("tcp", "tcp6"):
        path = Path("/proc/net") / name
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # listens
                address, _, port = fields[1].partition(":")
                found.add((_ip(address), int(port, 16)))
    return found


def _ip(text: str) -> str:
    """An address of ``/proc/net/tcp``: 32-bit words in the machine's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)))
