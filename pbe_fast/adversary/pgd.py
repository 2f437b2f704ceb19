"""Projected gradient descent on the cross-entropy (Madry et al., ICLR 2018): one loop.

This is the adversary of adversarial fine-tuning (DESIGN section 2, AFT): untargeted, L-inf,
7 steps, eps 6/255, step eps/5, no random start, against the current model in eval mode.

A :class:`Miner` runs it against a frozen copy of the model, which is refreshed at every call, so
that it never mines against stale weights. Images stay uint8; the perturbation is float16 where
the model runs in bfloat16, and float32 otherwise. float16 is off by at most 6e-6 at 6/255, 0.15 %
of a grey level, while a bfloat16 pixel near 1 is off by 50 %; bfloat16 would lose ten times more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import beaten, retire
from pbe_fast.adversary._graphs import captured
from pbe_fast.adversary.norms import Norm
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.models.frozen import FrozenCopy

__all__ = ["PGD", "Miner"]

_SIZES = 4  # batch sizes that are captured for mode retire, each half of the one before


@dataclass(frozen=True, kw_only=True)
class PGD:
    """How adversarial examples are mined.

    Attributes:
        norm: the ball that perturbations stay in.
        steps: gradient steps, at least 1.
        step: length of a step, in the norm's unit.
        random_start: begin at a random point of the ball instead of the clean image.
        targeted: descend towards the given labels instead of climbing away from them.
        mode: ``exact`` makes all steps for all samples. ``retire`` makes no further step for a
            sample that the model gets wrong by ``margin`` (targeted: right), and gives its place
            in the batch to another one. Before its steps a sample is probed at the end of one
            step of length eps, where most are done already; the others take the exact path, so
            whatever the exact mode gets wrong is wrong here too, but for rounding.
        margin: of logits.
        fold: fold batch norms into convolutions in the frozen copy.
        compile: on CUDA, compile the copy and capture the loop in a CUDA graph.
    """

    norm: Norm
    steps: int
    step: float
    random_start: bool = False
    targeted: bool = False
    mode: Literal["exact", "retire"] = "exact"
    margin: float = 0.0
    fold: bool = True
    compile: bool = True


class Miner:
    """Mines adversarial examples against a model that may be trained between the calls.

    Args:
        pgd: how.
        model: a classifier, or any module from images in [0, 1] to logits; on the device. It is
            neither changed nor asked for gradients.
        device: gives the precision and the memory format of the model's arithmetic.
        slots: samples a model pass in mode ``retire``; None for all of a call's.
        say: told which shape of the model runs.
    """

    def __init__(
        self,
        pgd: PGD,
        model: nn.Module,
        device: Device,
        *,
        slots: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.pgd, self.model, self.device = pgd, model, device
        self._slots, self._say = slots, say
        self._copy: FrozenCopy | None = None
        if isinstance(model, Classifier):
            self._net: nn.Module = model.net
            self._mean, self._std = model.mean.flatten().tolist(), model.std.flatten().tolist()
        else:
            self._net, self._mean, self._std = model, [0.0] * 3, [1.0] * 3

    def __call__(
        self, images: Tensor, labels: Tensor, *, ids: Tensor | None = None, seed: int = 0
    ) -> Tensor:
        """Mine one adversarial example for each image.

        Args:
            images: clean images, ``(N, 3, H, W)``, uint8, or float in [0, 1].
            labels: the true labels (untargeted) or the wanted ones (targeted), ``(N,)`` int64.
            ids, seed: of what the random start is a function; needed with ``random_start``.

        Returns:
            the adversarial examples, ``(N, 3, H, W)`` float32 on the device, in [0, 1] and in the
            ball around ``images``.

        Raises:
            ValueError: ``random_start`` without ``ids``.
        """
        place = self.device.torch
        clean = images.detach().to(place, memory_format=self.device.memory_format)
        labels = labels.to(place)
        half = self.device.precision == "bfloat16"
        dtype = torch.float16 if half else torch.float32
        if not self.pgd.random_start:
            perturbation = torch.zeros_like(clean, dtype=dtype)
        elif ids is None:
            raise ValueError("random_start needs the samples' ids, so that it can be repeated")
        else:
            perturbation = self.pgd.norm.start(clean, ids.to(place), seed, dtype)
        if len(clean):
            self._refreshed(clean)
            if self.pgd.mode == "exact":
                self._exact(clean, labels, perturbation)
            else:
                self._retire(clean, labels, perturbation)
        pixels = clean.float().mul_(1 / 255) if clean.dtype == torch.uint8 else clean.float()
        return (pixels + perturbation).clamp_(0.0, 1.0)

    def _refreshed(self, clean: Tensor) -> None:
        """The frozen copy with the model's weights of now; made at the first call."""
        if self._copy is not None:
            self._copy.refresh()
            return
        # Some noise, as images of one colour would hide a difference between model and copy.
        example = torch.linspace(-1, 1, clean[:1].numel() * 2, device=clean.device).sin()
        example = example.view(2, *clean.shape[1:])
        self._copy = FrozenCopy(self._net, self.device, example, fold=self.pgd.fold)
        self._forward: Callable[[Tensor], Tensor] = self._copy.net
        self._captures = self.device.torch.type == "cuda" and self.pgd.compile
        if self._captures:
            self._forward = torch.compile(self._copy.net, dynamic=False)
        self._graphs: dict[tuple[object, ...], _ExactGraph | _RetireGraph] = {}
        if self._say is not None:
            self._say(
                f"mining in {self.device.precision}, {self.device.layout}, "
                f"{self._copy.folded} of {self._copy.norms} batch norms folded, "
                f"{'compiled and captured' if self._captures else 'eager'}, {self.pgd.mode}"
            )

    def _exact(self, clean: Tensor, labels: Tensor, perturbation: Tensor) -> None:
        if not self._captures:
            self.all_steps(clean, labels, perturbation)
            return
        key = (clean.shape, clean.dtype)
        graph = self._graphs.get(key)
        if not isinstance(graph, _ExactGraph):
            graph = self._graphs[key] = _ExactGraph(self, clean, labels, perturbation)
        graph.run(clean, labels, perturbation)

    def _retire(self, clean: Tensor, labels: Tensor, perturbation: Tensor) -> None:
        slots = min(len(clean), self._slots or len(clean))
        pool = _Pool(clean, labels, perturbation)
        queue = torch.cat([self._first(pool, rows) for rows in torch.split(pool.rows, slots)])
        if self.pgd.steps == 1 or not len(queue):
            return
        slots = min(slots, len(queue))
        if not self._captures:
            self._until_empty(pool, queue, slots)
            return
        key = (clean.shape, clean.dtype, slots)
        graph = self._graphs.get(key)
        if not isinstance(graph, _RetireGraph):
            graph = self._graphs[key] = _RetireGraph(self, pool, slots)
        graph.run(pool, queue)

    def _first(self, pool: "_Pool", rows: Tensor) -> Tensor:
        """Probe some samples; those that are not done after it, with their first step made.

        The probe's pass has no backward half, and its gradient is that of the first step.
        """
        labels, start = pool.labels[rows], pool.perturbation[rows]
        z = self.first_input(pool.clean, pool.perturbation, rows)
        logits, gradient = self._pass(z, labels)
        wrong = beaten(logits, labels, self.pgd.margin, self.pgd.targeted)
        probed = torch.where(wrong, -1, rows)
        z = self._step(
            pool.clean, pool.perturbation, gradient, probed, rows, length=self.pgd.norm.eps
        )
        with torch.no_grad(), self.device.autocast():
            logits = self._forward(z)
        hard = ~(wrong | beaten(logits, labels, self.pgd.margin, self.pgd.targeted))
        pool.perturbation[rows] = torch.where(
            hard.view(-1, 1, 1, 1), start, pool.perturbation[rows]
        )
        self._step(pool.clean, pool.perturbation, gradient, torch.where(hard, rows, -1), rows)
        return rows[hard]

    def all_steps(self, clean: Tensor, labels: Tensor, perturbation: Tensor) -> None:
        """All steps for all samples, changing ``perturbation`` in place."""
        z = self.first_input(clean, perturbation, None)
        for _ in range(self.pgd.steps):
            _, gradient = self._pass(z, labels)
            z = self._step(clean, perturbation, gradient)

    def first_input(self, clean: Tensor, perturbation: Tensor, rows: Tensor | None) -> Tensor:
        """What the model sees of the samples ``rows`` (None: all) before any step."""
        dtype = torch.bfloat16 if self.device.precision == "bfloat16" else torch.float32
        nothing = torch.zeros_like(clean if rows is None else clean[: len(rows)], dtype=dtype)
        nobody = None if rows is None else torch.full_like(rows, -1)
        norm = self.pgd.norm
        return norm.step(clean, perturbation, nothing, 0.0, self._mean, self._std, nobody, rows)

    def iterate(self, pool: "_Pool", slots: "_Slots") -> tuple[Tensor, Tensor, Tensor]:
        """One model pass of mode ``retire``: the next inputs, the slots' order, how many work."""
        logits, gradient = self._pass(slots.z, pool.labels[slots.rows.clamp_min(0)])
        stepping, order, active = retire(
            logits,
            pool.labels,
            slots.rows,
            slots.age,
            slots.queue,
            slots.cursor,
            1,
            self.pgd.steps,
            self.pgd.margin,
            self.pgd.targeted,
        )
        z = self._step(pool.clean, pool.perturbation, gradient, stepping, slots.rows)
        return z, order, active

    def filled(self, pool: "_Pool", queue: Tensor, count: int) -> "_Slots":
        """The first ``count`` samples of the queue in slots, after their first step."""
        rows = queue[:count].clone()
        return _Slots(
            rows,
            torch.ones_like(rows, dtype=torch.int32),
            queue,
            torch.tensor([count, len(queue)], device=rows.device),
            self.first_input(pool.clean, pool.perturbation, rows),
        )

    def _until_empty(self, pool: "_Pool", queue: Tensor, count: int) -> None:
        slots = self.filled(pool, queue, count)
        while True:
            slots.z, order, active = self.iterate(pool, slots)
            left = int(active)
            if not left:
                return
            if left < len(slots.rows):  # only once the queue is empty
                slots = slots.taken(order[:left])

    def _pass(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the gradient of the loss by z."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            with self.device.autocast():
                logits = self._forward(z)
            # A sum, so that one sample's gradient does not shrink with the batch.
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, z)
        return logits.detach(), gradient

    def _step(
        self,
        clean: Tensor,
        perturbation: Tensor,
        gradient: Tensor,
        rows: Tensor | None = None,
        following: Tensor | None = None,
        length: float | None = None,
    ) -> Tensor:
        step = self.pgd.step if length is None else length
        step = -step if self.pgd.targeted else step
        return self.pgd.norm.step(
            clean, perturbation, gradient, step, self._mean, self._std, rows, following
        )


@dataclass
class _Pool:
    """The samples of one call: images, labels and perturbations."""

    clean: Tensor
    labels: Tensor
    perturbation: Tensor

    @property
    def rows(self) -> Tensor:
        """All samples."""
        return torch.arange(len(self.labels), device=self.labels.device)


@dataclass
class _Slots:
    """The samples that a model pass works on, their ages and inputs, and those that wait."""

    rows: Tensor
    age: Tensor
    queue: Tensor
    cursor: Tensor
    z: Tensor

    def taken(self, chosen: Tensor) -> "_Slots":
        """Some of the slots."""
        rows, age, z = self.rows[chosen], self.age[chosen], self.z[chosen]
        return _Slots(rows, age, self.queue, self.cursor, z)


class _ExactGraph:
    """All steps for one shape of batch as a CUDA graph, and the tensors that it works on."""

    def __init__(self, miner: Miner, clean: Tensor, labels: Tensor, perturbation: Tensor) -> None:
        self.tensors = [clean.clone(), labels.clone(), perturbation.clone()]
        self.replay = captured(lambda: miner.all_steps(*self.tensors))

    def run(self, clean: Tensor, labels: Tensor, perturbation: Tensor) -> None:
        for mine, theirs in zip(self.tensors, (clean, labels, perturbation), strict=True):
            mine.copy_(theirs)
        self.replay()
        perturbation.copy_(self.tensors[2])


class _RetireGraph:
    """Model passes of several batch sizes, each half of the one before, as CUDA graphs."""

    def __init__(self, miner: Miner, pool: _Pool, count: int) -> None:
        self.miner = miner
        self.pool = _Pool(pool.clean.clone(), pool.labels.clone(), pool.perturbation.clone())
        self.sizes: list[_Slots] = []
        self.replays: list[Callable[[], tuple[Tensor, Tensor]]] = []
        whole = miner.filled(self.pool, self.pool.rows, count)
        while count and len(self.sizes) < _SIZES:
            slots = whole.taken(torch.arange(count, device=whole.rows.device))
            self.sizes.append(slots)
            self.replays.append(self._capture(slots))
            count //= 2

    def _capture(self, slots: _Slots) -> Callable[[], tuple[Tensor, Tensor]]:
        results: list[Tensor] = []

        def body() -> None:
            z, order, active = self.miner.iterate(self.pool, slots)
            slots.z.copy_(z)
            results[:] = [order, active]

        replay = captured(body)

        def run() -> tuple[Tensor, Tensor]:
            replay()
            return results[0], results[1]

        return run

    def run(self, pool: _Pool, queue: Tensor) -> None:
        for name in ("clean", "labels", "perturbation"):
            getattr(self.pool, name).copy_(getattr(pool, name))
        size = 0
        first = self.miner.filled(self.pool, queue, len(self.sizes[0].rows))
        self.sizes[0].queue[: len(queue)] = queue  # all sizes share the queue and its cursor
        self.sizes[0].cursor.copy_(first.cursor)
        self._put(self.sizes[0], first)
        while True:
            order, active = self.replays[size]()
            left = int(active)  # waits for the device; a pass takes much longer than a launch
            if not left:
                break
            while size + 1 < len(self.sizes) and left <= len(self.sizes[size + 1].rows):
                order = order[: len(self.sizes[size + 1].rows)]
                self._put(self.sizes[size + 1], self.sizes[size].taken(order))
                size, order = size + 1, torch.arange(len(order), device=order.device)
        pool.perturbation.copy_(self.pool.perturbation)

    @staticmethod
    def _put(mine: _Slots, theirs: _Slots) -> None:
        mine.rows.copy_(theirs.rows)
        mine.age.copy_(theirs.age)
        mine.z.copy_(theirs.z)
