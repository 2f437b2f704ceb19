"""PGD's loop as CUDA graphs: kernels that are recorded once and replayed by one launch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pbe_fast.adversary.pgd import Loop, Pool, Slots

__all__ = ["Graphs"]

_WARM_UPS = 3  # compiles kernels and lets the libraries allocate what they keep
_SIZES = 4  # batch sizes of mode retire, each half of the one before


@dataclass
class _Retiring:
    """What the graphs of mode ``retire`` share, and one graph for each batch size."""

    probe: Callable[[], None]
    probed: Tensor  # (N,) the samples to probe, -1 for nobody
    hard: Tensor  # (N,) bool, the probe's answer
    queue: Tensor  # (M,)
    cursor: Tensor  # (2,)
    sizes: list[tuple[Callable[[], None], Slots, Tensor, Tensor]]  # replay, slots, order, active


class Graphs:
    """The loop for one shape of batch, recorded, and the tensors that it works on."""

    def __init__(self, loop: Loop, pool: Pool, count: int) -> None:
        self.loop = loop
        self.pool = Pool(pool.clean.clone(), pool.labels.clone(), pool.perturbation.clone())
        self._memory = torch.cuda.graph_pool_handle()
        if loop.pgd.mode == "exact":
            self._exact = self._captured(lambda: loop.all_steps(self.pool))
        else:
            self._retiring = self._record_retiring(count)

    @classmethod
    def of(cls, loop: Loop, pool: Pool, count: int, say: Callable[[str], None]) -> "Graphs | None":
        """Recorded graphs; None, and the reason said, for a model that cannot be recorded."""
        try:
            return cls(loop, pool, count)
        except Exception as error:  # foreign model code under a compiler: anything may be raised
            reason = next(iter(str(error).splitlines()), "")
            say(f"not compiled ({type(error).__name__}: {reason}); mining runs eagerly")
            return None

    def fits(self, pool: Pool) -> bool:
        """Whether a call has the recorded shape."""
        return (
            pool.clean.shape == self.pool.clean.shape and pool.clean.dtype == self.pool.clean.dtype
        )

    def mine(self, pool: Pool) -> None:
        """Replay the loop on a call's samples."""
        self.pool.clean.copy_(pool.clean)
        self.pool.labels.copy_(pool.labels)
        self.pool.perturbation.copy_(pool.perturbation)
        if self.loop.pgd.mode == "exact":
            self._exact()
        else:
            self._retire(self._retiring)
        pool.perturbation.copy_(self.pool.perturbation)

    def _captured(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record ``body``, which runs a few times before; whoever replays puts the input in."""
        current = torch.cuda.current_stream()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stub
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                body()
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            body()
        return graph.replay

    def _record_retiring(self, count: int) -> _Retiring:
        rows = self.pool.rows
        probed, hard = (
            rows[:count].clone(),
            torch.zeros(count, dtype=torch.bool, device=rows.device),
        )

        def probe() -> None:
            hard.copy_(self.loop.probe(self.pool, probed))

        replay = self._captured(probe)
        queue, cursor = rows.clone(), torch.zeros(2, dtype=torch.int64, device=rows.device)
        sizes: list[tuple[Callable[[], None], Slots, Tensor, Tensor]] = []
        while count and len(sizes) < _SIZES:
            first = rows[:count].clone()
            age = torch.ones_like(first, dtype=torch.int32)
            slots = Slots(first, age, self.loop.first_input(self.pool, first))
            order, active = torch.empty_like(first), torch.empty_like(cursor[:1])
            sizes.append(
                (
                    self._captured(self._iteration(slots, queue, cursor, order, active)),
                    slots,
                    order,
                    active,
                )
            )
            count //= 2
        return _Retiring(replay, probed, hard, queue, cursor, sizes)

    def _iteration(
        self, slots: Slots, queue: Tensor, cursor: Tensor, order: Tensor, active: Tensor
    ) -> Callable[[], None]:
        def body() -> None:
            z, found, left = self.loop.iterate(self.pool, slots, queue, cursor)
            slots.z.copy_(z)
            order.copy_(found)
            active.copy_(left)

        return body

    def _retire(self, graphs: _Retiring) -> None:
        count = len(graphs.probed)
        hard = []
        for rows in torch.split(self.pool.rows, count):
            graphs.probed.fill_(-1)
            graphs.probed[: len(rows)] = rows
            graphs.probe()
            hard.append(rows[graphs.hard[: len(rows)]])
        waiting = torch.cat(hard)
        if self.loop.pgd.steps == 1 or not len(waiting):
            return
        graphs.queue[: len(waiting)] = waiting
        size = self._smallest(graphs, len(waiting), 0)
        replay, slots, order, active = graphs.sizes[size]
        filled = min(len(waiting), len(slots.rows))
        slots.rows.fill_(-1)
        slots.rows[:filled] = waiting[:filled]
        slots.age.fill_(1)
        slots.z.copy_(self.loop.first_input(self.pool, slots.rows))
        graphs.cursor.copy_(torch.tensor([filled, len(waiting)]))
        while True:
            replay()
            left = int(active)  # waits for the device; a pass takes much longer than a launch
            if not left:
                return
            smaller = self._smallest(graphs, left, size)
            if smaller > size:
                taken = slots.taken(order[: len(graphs.sizes[smaller][1].rows)])
                size = smaller
                replay, slots, order, active = graphs.sizes[size]
                slots.rows.copy_(taken.rows)
                slots.age.copy_(taken.age)
                slots.z.copy_(taken.z)

    @staticmethod
    def _smallest(graphs: _Retiring, wanted: int, size: int) -> int:
        """The smallest recorded batch that holds ``wanted`` samples, or the present one."""
        fitting = [
            i for i, (_, slots, _, _) in enumerate(graphs.sizes) if len(slots.rows) >= wanted
        ]
        return max([size, *fitting])
