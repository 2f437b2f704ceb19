"""Mining adversarial examples against a model that is being trained.

The examples are mined against a frozen copy of the model, which is refreshed at every call, so that
the weights are never stale. Images stay uint8; the perturbation is float16 where the model runs in
bfloat16, and float32 otherwise. float16 is off by at most 7.6e-6 at 6/255, 0.2 % of a grey level,
while a bfloat16 pixel near 1 is off by 50 %; a bfloat16 perturbation would be off by eight times as
much.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pbe_fast.adversary._graphs import Graphs
from pbe_fast.adversary.pgd import PGD, Loop, Pool, Slots
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.models.frozen import FrozenCopy

__all__ = ["Miner"]


class Miner:
    """Mines adversarial examples against a model that may be trained between the calls.

    Args:
        pgd: how.
        model: a classifier, or any module from images in [0, 1] to logits; on the device. It is
            neither run nor changed.
        device: gives the precision and the memory format of the model's arithmetic.
        slots: samples a model pass in mode ``retire``; None for all of a call's.
        say: told how the model is run.
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
        self._slots, self._say = slots, say or (lambda _: None)
        self._copy: FrozenCopy | None = None
        self._graphs: Graphs | None = None

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
            RuntimeError: under ``torch.inference_mode``, where there are no gradients.
        """
        place = self.device.torch
        clean = images.detach().to(place, memory_format=self.device.memory_format)
        half = self.device.precision == "bfloat16"
        dtype = torch.float16 if half else torch.float32
        if not self.pgd.random_start:
            perturbation = torch.zeros_like(clean, dtype=dtype)
        elif ids is None:
            raise ValueError("random_start needs the samples' ids, so that it can be repeated")
        else:
            perturbation = self.pgd.norm.start(clean, ids.to(place), seed, dtype)
        pool = Pool(clean, labels.to(place), perturbation)
        if len(clean):
            self._mine(pool)
        pixels = clean.float().mul_(1 / 255) if clean.dtype == torch.uint8 else clean.float()
        return (pixels + pool.perturbation).clamp_(0.0, 1.0)

    def _mine(self, pool: Pool) -> None:
        if self._copy is None:
            size = pool.clean.shape[-2], pool.clean.shape[-1]
            net = self.model.net if isinstance(self.model, Classifier) else self.model
            self._copy = FrozenCopy(net, self.device, size, fold=self.pgd.fold)
            if self.device.torch.type == "cuda" and self.pgd.compile:
                compiled = torch.compile(self._copy.net, dynamic=False)
                self._graphs = Graphs.of(self._loop(compiled), pool, self._count(pool), self._say)
            self._say(
                f"mining in {self.device.precision}, {self.device.layout}, "
                f"{self._copy.folded} of {self._copy.norms} batch norms folded, "
                f"{'eager' if self._graphs is None else 'compiled and captured'}, {self.pgd.mode}"
            )
        self._copy.refresh()
        # An epoch's last batch is smaller; graphs of its own would cost more than they save.
        if self._graphs is not None and self._graphs.fits(pool):
            self._graphs.mine(pool)
        elif self.pgd.mode == "exact":
            self._loop(self._copy.net).all_steps(pool)
        else:
            _retire(self._loop(self._copy.net), pool, self._count(pool))

    def _count(self, pool: Pool) -> int:
        return min(len(pool.labels), self._slots or len(pool.labels))

    def _loop(self, forward: Callable[[Tensor], Tensor]) -> Loop:
        mean, std = [0.0] * 3, [1.0] * 3
        if isinstance(self.model, Classifier):
            # From the spec, as reading the buffers would wait for the device at every call.
            mean, std = list(self.model.spec.mean or mean), list(self.model.spec.std or std)
        return Loop(self.pgd, self.device, forward, mean, std)


def _retire(loop: Loop, pool: Pool, count: int) -> None:
    """Mode ``retire`` with ``count`` slots, in batches that become smaller at the end."""
    queue = torch.cat([rows[loop.probe(pool, rows)] for rows in torch.split(pool.rows, count)])
    if loop.pgd.steps == 1 or not len(queue):
        return
    rows = queue[:count].clone()
    cursor = torch.tensor([len(rows), len(queue)], device=rows.device)
    slots = Slots(rows, torch.ones_like(rows, dtype=torch.int32), loop.first_input(pool, rows))
    while True:
        slots.z, order, active = loop.iterate(pool, slots, queue, cursor)
        left = int(active)
        if not left:
            return
        if left < len(slots.rows):  # only once the queue is empty
            slots = slots.taken(order[:left])
