"""Whether the workers find room on the cluster."""

from collections.abc import Mapping
from dataclasses import replace

import ray

from pipelines._fleet_options import FleetError, FleetOptions

__all__ = ["has_room", "listed", "not_started", "with_cpus"]


def with_cpus(options: FleetOptions) -> FleetOptions:
    """The CPUs of a worker, if they were not said: the most with which all workers find room."""
    if options.cpus:
        return options
    nodes = _nodes(options)
    most = max((cpus for cpus, _ in nodes), default=1)
    sizes = (replace(options, cpus=cpus) for cpus in range(most, 1, -1))
    return next((size for size in sizes if _fits(size, nodes)), replace(options, cpus=1))


def has_room(options: FleetOptions) -> bool:
    """Whether the cluster could hold all workers, if nobody else used it."""
    return _fits(options, _nodes(options))


def _fits(options: FleetOptions, nodes: list[tuple[int, int]]) -> bool:
    def workers(cpus: int, gpus: int) -> int:
        by_cpus = cpus // options.cpus
        if not options.gpus:
            return by_cpus
        # Ray gives a fraction from one GPU, never from two.
        each = gpus * int(1 / options.gpus) if options.gpus < 1 else int(gpus // options.gpus)
        return min(by_cpus, each)

    return sum(workers(*node) for node in nodes) >= options.workers


def _nodes(options: FleetOptions) -> list[tuple[int, int]]:
    """CPUs and GPUs of the nodes that a worker could be on."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's stub
    found = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]
    return [node for node in found if node[1] >= options.gpus]


def not_started(options: FleetOptions) -> FleetError:
    """The error of workers for which the cluster has no room."""
    free = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray's stub
    return FleetError(
        f"the workers could not be started within {options.timeout:.0f} s. Each of "
        f"{options.workers} needs {listed(options.resources)}; the cluster has free: "
        f"{listed(free)}. Ask for less with --cpus-per-worker, --gpus-per-worker or --workers, or "
        "add machines; the same command goes on."
    )


def listed(resources: Mapping[str, float]) -> str:
    """For people: ``4 CPU, 1 GPU``."""
    shown = {name: value for name, value in resources.items() if name in ("CPU", "GPU")}
    return ", ".join(f"{value:g} {name}" for name, value in shown.items()) or "nothing"
