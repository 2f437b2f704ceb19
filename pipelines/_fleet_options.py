"""How large a fleet is, and how long it waits."""

from dataclasses import dataclass

from pbe_fast.errors import PbeError

__all__ = ["FleetError", "FleetOptions", "WorkersLostError"]


class FleetError(PbeError):
    """The fleet cannot do the work: too few resources, or workers that fail again and again."""


class WorkersLostError(Exception):
    """Workers died or hung; the work can be tried again."""


@dataclass(frozen=True)
class FleetOptions:
    """The fleet.

    Attributes:
        address: of a running Ray cluster; None starts one on this machine, and ends it.
        workers: processes that score, and ranks that fine-tune; part of what fine-tuning's
            rounding depends on.
        gpus: a worker, may be a fraction; 0 runs on CPUs.
        cpus: a worker; also its number of threads, on which rounding depends. 0: as many as the
            cluster has when the job starts.
        timeout: seconds without a sign of life after which a worker is given up.
        retries: how often a unit of work may fail by lost workers before the run does.
        insecure: allow a cluster that others can reach without a token.
    """

    address: str | None = None
    workers: int = 1
    gpus: float = 0.0
    cpus: int = 0
    timeout: float = 600.0
    retries: int = 3
    insecure: bool = False

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray counts them."""
        return {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})
