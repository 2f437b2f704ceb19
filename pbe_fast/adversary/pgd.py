"""Projected gradient descent on the cross-entropy (Madry et al., ICLR 2018): one loop.

This is the adversary of adversarial fine-tuning (DESIGN section 2, AFT): untargeted, L-inf,
7 steps, eps 6/255, step eps/5, no random start, against the current model in eval mode.

:class:`pbe_fast.adversary.Miner` runs it on a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kernels import beaten, retire
from pbe_fast.adversary.norms import Norm
from pbe_fast.device import Device

__all__ = ["PGD", "Loop", "Pool", "Slots"]


@dataclass(frozen=True, kw_only=True)
class PGD:
    """How adversarial examples are mined.

    Attributes:
        norm: the ball that perturbations stay in.
        steps: gradient steps.
        step: length of a step, in the norm's unit.
        random_start: begin at a random point of the ball instead of the clean image.
        targeted: descend towards the given labels instead of climbing away from them.
        mode: ``exact`` makes all steps for all samples. ``retire`` makes no further step for a
            sample that the model gets wrong by ``margin`` (targeted: right), and gives its place
            in the batch to another one. Before its steps a sample is probed at the end of one
            step of length eps, where most are done already; the others take the exact path, so
            whatever the exact mode gets wrong is wrong here too, but for rounding.
        margin: of logits; covers what bfloat16 takes for a success and float32 does not.
        fold: fold batch norms into convolutions in the frozen copy.
        compile: on CUDA, compile the copy and capture the loop in CUDA graphs.
    """

    norm: Norm
    steps: int
    step: float
    random_start: bool = False
    targeted: bool = False
    mode: Literal["exact", "retire"] = "exact"
    margin: float = 0.5
    fold: bool = True
    compile: bool = True


@dataclass
class Pool:
    """The samples of one call: images, labels and perturbations."""

    clean: Tensor
    labels: Tensor
    perturbation: Tensor

    @property
    def rows(self) -> Tensor:
        """All samples."""
        return torch.arange(len(self.labels), device=self.labels.device)


@dataclass
class Slots:
    """The samples that a model pass works on, the steps they have made, and their inputs."""

    rows: Tensor
    age: Tensor
    z: Tensor

    def taken(self, chosen: Tensor) -> "Slots":
        """Some of the slots."""
        return Slots(self.rows[chosen], self.age[chosen], self.z[chosen])


@dataclass(frozen=True)
class Loop:
    """The arithmetic of PGD on one network, without a decision that needs the host.

    Attributes:
        forward: normalised images to logits.
        mean, std: the normalisation, a number a channel.
    """

    pgd: PGD
    device: Device
    forward: Callable[[Tensor], Tensor]
    mean: list[float]
    std: list[float]

    def all_steps(self, pool: Pool) -> None:
        """All steps for all samples."""
        z = self.first_input(pool, None)
        for _ in range(self.pgd.steps):
            _, gradient = self._pass(z, pool.labels)
            z = self._step(pool, gradient)

    def first_input(self, pool: Pool, rows: Tensor | None) -> Tensor:
        """What the model sees of the samples ``rows`` (None: all) before any step."""
        dtype = torch.bfloat16 if self.device.precision == "bfloat16" else torch.float32
        count = len(pool.labels) if rows is None else len(rows)
        nothing = torch.zeros(
            (count, *pool.clean.shape[1:]), dtype=dtype, device=pool.clean.device
        ).contiguous(memory_format=self.device.memory_format)
        nobody = None if rows is None else torch.full_like(rows, -1)
        return self._step(pool, nothing, nobody, rows, length=0.0)

    def probe(self, pool: Pool, rows: Tensor) -> Tensor:
        """Try some samples (-1: nobody) at the end of one step of length eps.

        The pass that looks there has no backward half, and finds most samples done.

        Returns:
            which are not done, ``(N,)`` bool; those have made their first step.
        """
        labels = pool.labels[rows.clamp_min(0)]
        logits, gradient = self._pass(self.first_input(pool, rows), labels)
        done = (rows < 0) | beaten(logits, labels, self.pgd.margin, self.pgd.targeted)
        tried = Pool(pool.clean, pool.labels, pool.perturbation.clone())
        probed = torch.where(done, -1, rows)
        z = self._step(tried, gradient, probed, rows, length=self.pgd.norm.eps)
        with torch.no_grad(), self.device.autocast():
            logits = self.forward(z)
        hard = ~(done | beaten(logits, labels, self.pgd.margin, self.pgd.targeted))
        # Place 0 is for nobody, so that no index depends on how many there are.
        found = torch.zeros(len(pool.labels) + 1, dtype=torch.bool, device=rows.device)
        found = found.scatter(0, rows + 1, ~(done | hard))[1:].view(-1, 1, 1, 1)
        pool.perturbation.copy_(torch.where(found, tried.perturbation, pool.perturbation))
        # The hard ones go on from where they started; this is the gradient of their first step.
        self._step(pool, gradient, torch.where(hard, rows, -1), rows)
        return hard

    def iterate(
        self, pool: Pool, slots: Slots, queue: Tensor, cursor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One model pass of mode ``retire``: the next inputs, the slots' order, how many work."""
        logits, gradient = self._pass(slots.z, pool.labels[slots.rows.clamp_min(0)])
        stepping, order, active = retire(
            logits,
            pool.labels,
            slots.rows,
            slots.age,
            queue,
            cursor,
            1,
            self.pgd.steps,
            self.pgd.margin,
            self.pgd.targeted,
        )
        return self._step(pool, gradient, stepping, slots.rows), order, active

    def _pass(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the gradient of the loss by z."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            with self.device.autocast():
                logits = self.forward(z)
            # A sum, so that one sample's gradient does not shrink with the batch.
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, z)
        return logits.detach(), gradient

    def _step(
        self,
        pool: Pool,
        gradient: Tensor,
        rows: Tensor | None = None,
        following: Tensor | None = None,
        length: float | None = None,
    ) -> Tensor:
        step = self.pgd.step if length is None else length
        return self.pgd.norm.step(
            pool.clean,
            pool.perturbation,
            gradient.contiguous(memory_format=self.device.memory_format),
            -step if self.pgd.targeted else step,
            self.mean,
            self.std,
            rows,
            following,
        )
