"""How large a worker is if nobody says."""

from typing import Any

import pytest

pytest.importorskip("ray")
import ray

from pipelines import _options, _room, fleet
from pipelines.fleet import FleetOptions


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "cpus"),
    [
        ([(2, 0)], 1, 0.0, 2),
        ([(2, 0)], 2, 0.0, 1),
        ([(2, 0)], 5, 0.0, 1),  # which will wait, and say why
        ([(0, 0)], 1, 0.0, 1),  # a head; nodes come with the work
        ([(8, 0), (4, 0)], 3, 0.0, 4),
        ([(8, 0), (4, 0)], 2, 0.0, 4),
        ([(8, 0), (3, 0)], 2, 0.0, 4),
        ([(128, 8)], 8, 1.0, 16),
        ([(128, 8)], 16, 0.5, 8),
        ([(64, 0), (16, 4), (16, 4)], 8, 1.0, 4),
        ([(64, 0), (16, 1), (16, 1)], 2, 1.0, 16),
        ([(12, 2), (4, 2)], 4, 0.6, 2),
        ([(12, 2), (4, 2)], 2, 2.0, 4),
    ],
)
def test_cpus_of_a_worker(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[int, int]],
    workers: int,
    gpus: float,
    cpus: int,
) -> None:
    found: list[dict[str, Any]] = [
        {"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)} if g else {"CPU": float(c)}}
        for c, g in nodes
    ]
    monkeypatch.setattr(ray, "nodes", lambda: [*found, {"Alive": False, "Resources": {"CPU": 99}}])
    options = FleetOptions(workers=workers, gpus=gpus)
    assert _room.with_cpus(options).cpus == cpus
    assert _room.with_cpus(FleetOptions(cpus=3)).cpus == 3


def test_a_driver_without_a_gpu_says_what_it_takes_for_granted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(fleet, "connected", nullcontext)
    monkeypatch.setattr(_options.torch.cuda, "is_available", lambda: False)
    for address, gpus, device, told in [
        ("auto", None, "auto", True),
        ("10.0.0.5:6379", None, "auto", True),
        ("local", None, "auto", False),
        ("auto", 0.0, "auto", False),
        ("auto", 1.0, "auto", False),
        ("auto", None, "cpu", False),
        ("auto", None, "cuda", False),
    ]:
        said: list[str] = []
        with _options.fleet_of(address, 2, gpus, None, 60.0, False, device, said.append) as found:
            assert isinstance(found, FleetOptions)
        assert bool(said) == told
        assert found.gpus == (gpus or float(device == "cuda"))
