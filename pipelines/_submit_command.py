"""``pbe-fast submit``: parses and prints; the work is in :mod:`pipelines.submit`."""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pbe_fast.errors import ConfigError
from pipelines import submit as jobs
from pipelines._console import printable, say

__all__ = ["submit_command"]

_INTERRUPTED = 130


def submit_command(
    address: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="The cluster's dashboard, such as http://127.0.0.1:8265.",
        ),
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND ...", help="What follows pbe-fast on the cluster."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="ID", help="Name of the new job; else made up.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stream the log until the job ends.")
    ] = True,
    attach: Annotated[
        str | None, typer.Option(metavar="ID", help="Follow a job that was submitted before.")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="Stop a job.")] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Send a file along, such as a configuration; the job finds it by its bare name. "
            "Repeatable.",
        ),
    ] = None,
    pip: Annotated[
        bool, typer.Option("--pip", help="Let the nodes install what is missing there.")
    ] = False,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Take a cluster that others reach and that has no token."),
    ] = False,
) -> None:
    """Run a command on a Ray cluster, follow its log, and exit as it exits.

    The code travels along; paths in the command are the cluster's. Ctrl-C
    leaves the job running. Exit codes: the job's own; 130 if it was stopped
    or left; 1 if it failed without one or the connection is lost; 2 if it
    was not submitted.

    \b
    Examples:
      pbe-fast submit --address http://127.0.0.1:8265 -- purify \\
        /data/model.safetensors --data /data/train --out /data/runs/pure \\
        --ray auto --workers 8 --gpus-per-worker 1
      pbe-fast submit --address http://127.0.0.1:8265 --attach ID
    """
    if sum((bool(command), attach is not None, stop is not None)) != 1:
        raise ConfigError("Give one of: -- COMMAND, --attach ID, --stop ID.")
    console = Console(stderr=True)
    job = jobs.job_name(attach or stop or name)
    here = f"pbe-fast submit --address {shlex.quote(address)}"
    to_attach, to_stop = f"{here} --attach {job}", f"{here} --stop {job}"
    if command:
        jobs.entrypoint(command)  # mistakes first, before the network
    try:
        cluster = jobs.connect(address, insecure=insecure)
        for warning in cluster.warnings:
            say(console, f"warning: {warning}")
        if stop is not None:
            outcome = jobs.stop(cluster, job)
            say(console, f"Job {job}: {outcome.status}.")
            return
        if command:
            jobs.submit(cluster, command, job, files=files or (), pip=pip, insecure=insecure)
            say(console, f"Submitted job {job}.")
        if not wait:
            typer.echo(job)
            return
        outcome = jobs.follow(cluster, job, _write, lambda text: say(console, text))
    except KeyboardInterrupt:
        say(console, "")
        say(console, f"Left. The job {job} goes on, if it was submitted.")
        say(console, f"Follow it: {to_attach}")
        say(console, f"Stop it:   {to_stop}")
        raise typer.Exit(_INTERRUPTED) from None
    except jobs.LostError as error:
        say(console, f"error: {error}")
        say(console, f"Follow it: {to_attach}")
        raise typer.Exit(1) from None
    if outcome.message:
        say(console, outcome.message)
    say(console, f"Job {job}: {outcome.status}, exit code {outcome.exit_code}.")
    raise typer.Exit(outcome.exit_code)


def _write(text: str) -> None:
    """A piece of the log, without colours and without codes that steer a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n").replace("\r", "\n")
    sys.stdout.write(printable(plain.expandtabs()))
    sys.stdout.flush()
