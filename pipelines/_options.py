"""Options that several commands of the command line share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from pbe_fast.errors import ConfigError
from pbe_fast.purify import Fleet
from pipelines._guard import need_ray

__all__ = [
    "AcceptChanges",
    "Config",
    "CpusPerWorker",
    "Device",
    "GpusPerWorker",
    "ImageSize",
    "Insecure",
    "ModelName",
    "Ray",
    "Seed",
    "Settings",
    "Width",
    "WorkerTimeout",
    "Workers",
    "fleet_of",
]

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML with any of the keys.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One key of the configuration; repeatable."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int | None, typer.Option(help="Of everything that is random.")]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="builtin:preact_resnet18, timm:NAME, torchvision:NAME or FILE.py:factory "
        "(which runs that file).",
    ),
]
ImageSize = Annotated[int | None, typer.Option(help="Side in pixels, such as 32 or 224.")]
Width = Annotated[
    int | None, typer.Option(help="Width of builtin:preact_resnet18; 64 is the usual one.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: HOST:PORT, 'auto' for the one that this machine is part "
        "of, 'local' for one of its own.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes on the cluster.")]
GpusPerWorker = Annotated[
    float | None, typer.Option(min=0, help="May be a fraction. [default: 1 on CUDA]")
]
CpusPerWorker = Annotated[
    int | None, typer.Option(min=1, help="Also its threads. [default: the cluster's CPUs, shared]")
]
WorkerTimeout = Annotated[
    float, typer.Option(min=1, help="Seconds after which a silent worker is given up.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use a cluster that others reach without a token.")
]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on with another configuration or version.")
]


@contextmanager
def fleet_of(
    address: str | None,
    workers: int,
    gpus: float | None,
    cpus: int | None,
    timeout: float,
    insecure: bool,
    device: str,
    say: Callable[[str], None],
) -> Iterator[Fleet | None]:
    """The fleet that the options ask for; None to work in this process.

    ``say`` is told what was chosen and may not be meant.
    """
    if address is None:
        if workers != 1 or gpus is not None or cpus is not None:
            raise ConfigError("--workers and what belongs to it need --ray: give --ray local.")
        yield None
        return
    need_ray()
    from pipelines.fleet import FleetOptions, connected

    if gpus is None:
        cuda = device.startswith("cuda") or torch.cuda.is_available()
        gpus = 1.0 if cuda and device != "cpu" else 0.0
        if device == "auto" and not cuda and address != "local":
            say(
                "This machine has no GPU, so the workers use CPUs. For the cluster's GPUs give "
                "--gpus-per-worker 1."
            )
    fleet = FleetOptions(
        address=None if address == "local" else address,
        workers=workers,
        gpus=gpus,
        cpus=cpus or 0,
        timeout=timeout,
        insecure=insecure,
    )
    with connected(fleet) as found:
        yield found
