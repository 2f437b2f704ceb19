"""The way to a running Ray cluster: its dashboard, which takes jobs.

Everything that can be wrong with an address, a token or a version is found here, before anything
is sent.
"""

import functools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipelines._guard import ClusterError, find_token, host_of, is_loopback, need_ray, told_so

__all__ = ["Cluster", "connect", "last_line"]

OLDEST_RAY = (2, 9)  # the first that tells a job's exit code

_TIMEOUT = (5.0, 60.0)  # seconds to connect, and between bytes


@dataclass(frozen=True)
class Cluster:
    """A cluster that takes jobs: Ray's client, its URL, what the user should know about it."""

    client: Any
    url: str
    warnings: tuple[str, ...] = ()


def connect(address: str, *, insecure: bool = False) -> Cluster:
    """The cluster whose dashboard has this URL, such as ``http://127.0.0.1:8265``.

    Refused without ``insecure``: a cluster that asks for no token and that other machines reach,
    because the URL or one of the cluster's nodes is beyond loopback. The token goes only to a
    cluster that asks for one. :class:`ClusterError` says what is wrong and what to do.
    """
    need_ray()
    url = _checked_url(address)
    local = is_loopback(host_of(url))
    answer = _ask(url, "/api/version")
    asks = answer.status_code in (401, 403)
    token = None
    if asks:
        token = find_token()
        if token is None:
            raise ClusterError(
                f"The cluster at {url} asks for a token, and there is none here. Set "
                "RAY_AUTH_TOKEN_PATH=FILE, or RAY_AUTH_TOKEN, to the cluster's token"
                + _if_disabled()
            )
        answer = _ask(url, "/api/version", token)
        if answer.status_code in (401, 403):
            raise ClusterError(
                f"The cluster at {url} does not accept the token. Is it this cluster's? It was "
                "taken from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, "
                "whichever came first."
            )
    version = _ray_version(url, answer)
    if not asks and not told_so(insecure):
        _refuse_if_open(url, local)
    warnings = _version_warnings(url, version)
    if asks and not local and url.startswith("http://"):
        warnings.append(
            f"The token goes to {url} in clear, where it can be read on the way. Prefer https, or "
            "a tunnel to a port of this machine."
        )
    return Cluster(_client(url, token), url, tuple(warnings))


def _if_disabled() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ", and remove RAY_AUTH_MODE=disabled."
    return "."


def _checked_url(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise ClusterError(
            f"--address {address!r} is not the URL of a Ray dashboard, which looks like "
            "http://127.0.0.1:8265. (Ports 6379 and 10001 are not the dashboard's.)"
        )
    if parts.username or parts.password:
        raise ClusterError("--address must hold no user name and no password; they are not used.")
    host_of(address)
    if parts.query or parts.fragment:
        raise ClusterError(f"--address {address!r} has more than a host, a port and a path.")
    return address.rstrip("/")


def _ask(url: str, path: str, token: str | None = None) -> Any:
    """GET; a lost or impossible connection is a :class:`ClusterError`."""
    import requests

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return requests.get(url + path, headers=headers, timeout=_TIMEOUT, allow_redirects=False)
    except requests.exceptions.SSLError as error:
        raise ClusterError(
            f"No trusted connection to {url}: {last_line(error)}. A private certificate "
            "authority is given with REQUESTS_CA_BUNDLE=FILE and SSL_CERT_FILE=FILE."
        ) from None
    except requests.exceptions.RequestException as error:
        raise ClusterError(
            f"Nothing answers at {url} ({type(error).__name__}). Is the cluster up, is this its "
            "dashboard's port, and if it is reached through a tunnel, does the tunnel run?"
        ) from None


def _ray_version(url: str, answer: Any) -> str:
    if answer.is_redirect:
        raise ClusterError(
            f"{url} sends elsewhere, to {answer.headers.get('location')}. Give the address of the "
            "dashboard itself."
        )
    try:
        version = answer.json()["ray_version"] if answer.ok else None
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, str):
        raise ClusterError(
            f"{url} answers (HTTP {answer.status_code}), but not as the dashboard of a Ray cluster."
        )
    return version


def _version_warnings(url: str, version: str) -> list[str]:
    import ray

    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_RAY:
        raise ClusterError(
            f"The cluster at {url} runs Ray {version}; {'.'.join(map(str, OLDEST_RAY))} or newer "
            "is needed."
        )
    if version == ray.__version__:
        return []
    return [f"The cluster runs Ray {version}, this machine {ray.__version__}."]


def _refuse_if_open(url: str, local: bool) -> None:
    """A cluster that asks for no token: fine if nobody else reaches it."""
    nodes = _node_addresses(url) if local else []
    outside = [ip for ip in nodes if not is_loopback(ip)]
    if nodes and not outside:
        return
    listens = f" listens on {', '.join(outside)} and" if outside else ""
    raise ClusterError(
        f"The Ray cluster at {url}{listens} asks for no token: whoever reaches it can run code on "
        "it and take what the job may read. Start it with RAY_AUTH_MODE=token, or say --insecure."
    )


def _node_addresses(url: str) -> list[str]:
    """Where the nodes that are alive listen; none if the cluster does not tell."""
    answer = _ask(url, "/nodes?view=summary")
    try:
        nodes = [node["raylet"] for node in answer.json()["data"]["summary"]]
        return [str(node["nodeManagerAddress"]) for node in nodes if node.get("state") != "DEAD"]
    except (ValueError, KeyError, TypeError):
        return []


def _client(url: str, token: str | None) -> Any:
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray takes them before the argument
        client: Any = JobSubmissionClient(url, headers=headers)
    if client.get_address() != url:
        raise ClusterError(f"Ray would submit to {client.get_address()} instead of {url}.")
    # Ray asks without a time limit, and a machine that vanished never answers.
    client._do_request = functools.partial(client._do_request, timeout=_TIMEOUT)
    return client


@contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def last_line(error: Exception) -> str:
    """The end of a message, where a trace from the other side says what happened."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip().rstrip(".")[:300] if lines else type(error).__name__
