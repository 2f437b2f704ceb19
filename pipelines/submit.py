"""Submission of a command to a running Ray cluster, through Ray Jobs.

What travels is the source of the three packages, as the job's working directory, and the command.
The cluster brings the dependencies, the data and the credentials for it: no environment variable
of this machine is sent.
"""

import asyncio
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines._dashboard import Cluster, connect, last_line
from pipelines._guard import INSECURE, ClusterError, told_so
from pipelines._job import dependencies, entrypoint, job_name, pack

__all__ = [
    "Cluster",
    "LostError",
    "Outcome",
    "connect",
    "entrypoint",
    "follow",
    "job_name",
    "stop",
    "submit",
]

_QUIET_SECONDS = 120.0  # a log that is silent for so long is asked for again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds
_STOP_SECONDS = "60"  # to save the state after SIGTERM; then Ray kills. Its default is 3
_STOPPED = 130  # as a shell tells of a program that Ctrl-C ended


class LostError(ClusterError):
    """The connection to the cluster was lost; the job may go on."""


class _OutputError(Exception):
    """The log cannot be written here."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: SUCCEEDED, FAILED or STOPPED, the exit code, and Ray's word on it."""

    status: str
    exit_code: int
    message: str = ""


def submit(
    cluster: Cluster,
    arguments: Sequence[str],
    name: str,
    *,
    files: Sequence[Path] = (),
    pip: bool = False,
    insecure: bool = False,
) -> None:
    """Start ``pbe-fast ARGUMENTS`` on the cluster as the job ``name``, and come back at once.

    ``files`` lie in the job's working directory; with ``pip`` its nodes install what is missing of
    :func:`dependencies`. :class:`ConfigError` before anything is sent, else :class:`ClusterError`.
    """
    command = entrypoint(arguments)
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS}
    if told_so(insecure):
        variables[INSECURE] = "1"
    environment: dict[str, Any] = {"env_vars": variables}
    if pip:
        environment["pip"] = dependencies()
    with tempfile.TemporaryDirectory(prefix="pbe-fast-") as folder:
        archive = Path(folder) / "code.zip"
        pack(archive, files)
        environment["working_dir"] = str(archive)
        try:
            cluster.client.submit_job(
                entrypoint=command, submission_id=name, runtime_env=environment
            )
        except Exception as error:
            if "already exists" in str(error):
                raise ClusterError(
                    f"The cluster has a job {name} already. Follow it with --attach {name}, or "
                    "choose another --name."
                ) from None
            fatal = _fatal(error, cluster, name)
            if fatal is not None:
                raise fatal from None
            if "status code 500" in str(error):  # Ray's own answer, not that of a proxy
                raise ClusterError(
                    f"The cluster at {cluster.url} did not take the job: {last_line(error)}."
                ) from None
            raise LostError(
                f"The submission was cut short ({last_line(error)}); whether the job {name} runs "
                f"is not known. See with --attach {name}."
            ) from None


def follow(
    cluster: Cluster,
    name: str,
    write: Callable[[str], object],
    say: Callable[[str], object],
    *,
    patience_seconds: float = 300.0,
) -> Outcome:
    """Give the job's log to ``write``, from its beginning, until the job ends.

    A lost connection is tried again, with growing pauses; nothing is written twice. ``say`` hears
    about it. :class:`LostError` if it does not come back, :class:`ClusterError` if the cluster
    does not know the job.
    """
    shown, pause = 0, _FIRST_PAUSE
    lost: float | None = None  # when

    def count(text: str) -> None:
        nonlocal shown, lost, pause
        if lost is not None:
            say("Connected again.")
        shown, lost, pause = shown + len(text), None, _FIRST_PAUSE
        try:
            write(text)
        except OSError as error:  # not to be taken for a lost connection
            raise _OutputError from error

    while True:
        try:
            asyncio.run(_tail(cluster.client, name, shown, count))
            details = cluster.client.get_job_info(name)
        except _OutputError as error:
            raise error.__cause__ or error from None
        except Exception as error:
            fatal = _fatal(error, cluster, name)
            if fatal is not None:
                raise fatal from None
            now = time.monotonic()
            if lost is None:
                lost = now
                say(f"Lost the connection ({last_line(error)}); trying again.")
            if now - lost > patience_seconds:
                raise LostError(
                    f"The connection to {cluster.url} did not come back within "
                    f"{patience_seconds:.0f} s ({last_line(error)}). The job {name} may still run."
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            continue
        lost, pause = None, _FIRST_PAUSE
        if details.status.is_terminal():
            return _outcome(details)
        time.sleep(1.0)  # the log ended before the job did, as while it is being set up


async def _tail(client: Any, name: str, skip: int, count: Callable[[str], None]) -> None:
    """The log after its first ``skip`` characters, until it ends or is silent for long."""
    async with aclosing(client.tail_job_logs(name)) as lines:
        while True:
            try:
                text = await asyncio.wait_for(anext(lines), _QUIET_SECONDS)
            except (StopAsyncIteration, TimeoutError):
                return
            if len(text) > skip:
                count(text[skip:])
            skip = max(0, skip - len(text))


def _outcome(details: Any) -> Outcome:
    status, code = str(details.status.value), details.driver_exit_code
    if status == "SUCCEEDED":
        return Outcome(status, 0)
    if status == "STOPPED":
        return Outcome(status, _STOPPED)
    if code:  # negative: ended by a signal, which shells tell as 128 and its number
        return Outcome(status, code if code > 0 else 128 - code)
    return Outcome(status, 1, str(details.message or "Ray gives no reason."))


def stop(cluster: Cluster, name: str, *, patience_seconds: float = 90.0) -> Outcome:
    """Stop a job and wait until it has ended; how it ended if it had ended before."""
    until = time.monotonic() + patience_seconds
    try:
        cluster.client.stop_job(name)
        while not (details := cluster.client.get_job_info(name)).status.is_terminal():
            if time.monotonic() > until:
                raise LostError(f"The job {name} was told to stop, but still runs.")
            time.sleep(0.5)
    except ClusterError:
        raise
    except Exception as error:
        fatal = _fatal(error, cluster, name)
        raise fatal or LostError(f"Lost the connection ({last_line(error)}).") from None
    return _outcome(details)


def _fatal(error: Exception, cluster: Cluster, name: str) -> Exception | None:
    """What to raise for an error of Ray's client; None if the connection may come back.

    The client raises a bare RuntimeError for any status, so the number is read from its text.
    """
    import aiohttp
    from ray.exceptions import AuthenticationError

    status: int | None = None
    if isinstance(error, AuthenticationError):
        status = 403
    elif isinstance(error, aiohttp.ClientResponseError):
        status = error.status
    elif isinstance(error, RuntimeError):
        match = re.search(r"status code (\d{3})", str(error))
        status = int(match[1]) if match else None
    elif not isinstance(error, OSError | aiohttp.ClientError | json.JSONDecodeError):
        return error  # a bug, which deserves its trace
    if status in (401, 403):
        return ClusterError(f"The cluster at {cluster.url} does not accept the token any more.")
    if status == 404:
        return ClusterError(f"The cluster at {cluster.url} knows no job {name}.")
    if status is not None and 400 <= status < 500:
        return ClusterError(f"The cluster at {cluster.url} refuses: {last_line(error)}.")
    return None
