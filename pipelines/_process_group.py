"""The ranks' process group, whose store listens at the node's address alone.

``TorchConfig`` by itself lets torch open the store on all interfaces, where whoever reaches it can
change what the ranks tell each other, and where a cluster that keeps to loopback would not any
more. Here rank 0 opens the port itself, which also leaves nobody the time to take it.
"""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig

__all__ = ["NodeTorchConfig"]

_listener: list[socket.socket] = []  # of rank 0, between the two steps


def listen() -> tuple[str, int]:
    """On rank 0: open a port at the node's address."""
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's stub
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    _listener[:] = [socket.create_server((address, 0), family=family)]
    return address, int(_listener[0].getsockname()[1])


def join(rank: int, world: int, address: str, port: int, config: TorchConfig) -> None:
    """On every rank: become part of the group."""
    from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]  # torch's stub

    if ip_address(address).is_loopback:  # by themselves they would listen on another interface
        for library in ("GLOO", "NCCL"):
            name = "lo" if sys.platform == "linux" else "lo0"
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", name)
    timeout = timedelta(seconds=config.timeout_s)
    store = TCPStore(
        address,
        port,
        world,
        is_master=rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=_listener.pop().detach() if rank == 0 else None,
    )
    init_process_group(config.backend, store=store, rank=rank, world_size=world, timeout=timeout)


def leave() -> None:
    """On every rank, at the end."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


class _NodeBackend(Backend):
    share_cuda_visible_devices = True  # as ranks of a machine talk to each other directly

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """See :class:`ray.train.backend.Backend`."""
        assert isinstance(backend_config, TorchConfig)
        address, port = worker_group.execute_single(0, listen)
        world = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank, join, rank, world, address, port, backend_config
            )
            for rank in range(world)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """See :class:`ray.train.backend.Backend`."""
        with suppress(GetTimeoutError):  # of a rank that hangs, and is ended after this
            ray.get(worker_group.execute_async(leave), timeout=10)


@dataclass
class NodeTorchConfig(TorchConfig):
    """A ``TorchConfig`` with ``backend`` and ``timeout_s``; ``init_method`` is not used."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See :class:`ray.train.backend.BackendConfig`."""
        return _NodeBackend
