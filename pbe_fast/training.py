"""The one loop that changes weights: stochastic gradient descent, some batches adversarial.

Training an infected or benign model, adversarial fine-tuning and the rounds of PBE differ only
in their :class:`Stage`.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.sgd import sgd

from pbe_fast.adversary import PGD, Miner
from pbe_fast.config import SgdConfig
from pbe_fast.data.augment import Augment, View
from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.data.mined import Mined
from pbe_fast.data.order import batches, epoch_order
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError, DivergenceError
from pbe_fast.memory import in_parts
from pbe_fast.parallel import Share
from pbe_fast.progress import Clock, Progress, StoppedError

__all__ = ["Position", "Stage", "Step", "cosine", "fit", "not_finite"]

Ids = npt.NDArray[np.int64]

_LEAST_BATCH = 8  # a last batch of less than an eighth is passed over
_START = 2**32  # stands for the batch in the seed of an epoch's random starts; no batch has it


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How long and how to train on one set of images.

    Attributes:
        name: for the progress bar and the metrics.
        round: the round of PBE; part of what the order and the augmentation depend on.
        schedule: ``constant`` or ``cosine`` (to zero over the stage).
        adversarial_epochs: in so many first epochs every batch is adversarial.
        adversarial_batches: so many first batches of the first epoch are adversarial.
    """

    name: str
    round: int = 0
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Literal["constant", "cosine"] = "constant"
    augment: Augment = "none"
    flip: bool = False
    adversarial_epochs: int = 0
    adversarial_batches: int = 0

    @classmethod
    def of(cls, config: SgdConfig, **more: Any) -> "Stage":
        """A stage with the numbers of a configuration; ``more`` are the other attributes."""
        return cls(
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            **more,
        )

    def is_adversarial(self, epoch: int, batch: int) -> bool:
        """Whether a batch is replaced by its adversarial examples."""
        return epoch < self.adversarial_epochs or (epoch == 0 and batch < self.adversarial_batches)

    def lr_at(self, done: float) -> float:
        """The learning rate when the share ``done`` in [0, 1] of the stage is done."""
        if self.schedule == "constant":
            return self.lr
        return cosine(self.lr, done)


def cosine(lr: float, done: float) -> float:
    """The learning rate when the share ``done`` in [0, 1] is done; it falls to zero."""
    return lr * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Position:
    """How far a stage has come: the next batch to do, and the optimiser's memory."""

    epoch: int = 0
    batch: int = 0
    momentum: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What is known after a batch; tensors stay on the device until someone looks."""

    epoch: int
    batch: int
    adversarial: bool
    loss: Tensor
    correct: Tensor  # number of images that the model in train mode got right
    images: int
    seconds: float


def fit(
    model: nn.Module,
    data: ImageData,
    ids: Ids,
    stage: Stage,
    device: Device,
    *,
    labels: Ids | None = None,
    pgd: PGD | None,
    mined: Mined | None = None,
    seed: int,
    start: Position | None = None,
    progress: Progress,
    clock: Clock,
    on_step: Callable[[Step], None],
    on_epoch: Callable[[int], None],
    checkpoint: Callable[[Position], None],
    checkpoint_seconds: float,
    say: Callable[[str], None] | None = None,
    share: Share | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Train ``model`` in place, from ``start`` to the end of the stage.

    Every batch is a function of (ids, stage, seed, epoch, batch), so that a stopped stage that
    is started again from a checkpoint ends in the same bytes.

    Args:
        model: on the device; left in eval mode.
        data, ids: the images to train on, rising.
        labels: of these images; None takes those of the manifest.
        pgd: the adversary; this or ``mined`` is needed where the stage has adversarial batches.
        mined: examples of ``data``, taken in adversarial batches instead of mining.
        checkpoint: called between batches when ``checkpoint_seconds`` have passed.
        say: told how adversarial examples are mined.
        on_epoch: called after each epoch with the number of epochs done; may evaluate.
        share: which of several ranks this is; they make each step together, with a model that
            :func:`pbe_fast.parallel.share_batch_norm` was applied to.
        stop: asked after each step; if it says so, a checkpoint is made and the work ends.

    Raises:
        StoppedError: ``stop`` said so.
        ValueError: the stage has adversarial batches, and nothing to make them with.
        ConfigError: there are fewer than two images.
        DivergenceError: a weight is no finite number any more.
    """
    start, share = start or Position(), share or Share()
    if len(ids) < 2:
        raise ConfigError(
            f"{stage.name}: {len(ids)} images to train on, and batch norm needs two. Give more "
            "images, or raise data.clean_fraction, pbe.initial_fraction or "
            "sieve.initial_fraction."
        )
    per_epoch = -(-len(ids) // stage.batch_size)
    optimizer = _Sgd(model, stage, start.momentum)
    miner = None if pgd is None else Miner(pgd, model, device, say=say)
    saved = time.monotonic()

    def keep(epoch: int, batch: int) -> None:
        nonlocal saved
        stopping = stop is not None and stop()
        if stopping or time.monotonic() - saved >= checkpoint_seconds:
            checkpoint(Position(epoch, batch, dict(optimizer.momentum)))
            saved = time.monotonic()
        if stopping:
            raise StoppedError

    progress.phase(
        stage.name,
        stage.epochs * len(ids),
        start.epoch * len(ids) + start.batch * stage.batch_size,
    )
    with device.own_randomness():
        for epoch in range(start.epoch, stage.epochs):
            stream = ("round", stage.round, "epoch", epoch)
            order = epoch_order(ids, data.manifest.shard_index, seed, *stream)
            first = start.batch if epoch == start.epoch else 0
            view = View(data.size, stage.augment, stage.flip, seed, stream)
            model.train()
            began = time.perf_counter()
            cut = batches(order, stage.batch_size)[first:]
            parts = [share.part(part) for part in cut]
            ready = 0  # batches that are mined already, which are the first ones of an epoch
            if mined is not None:
                ready = sum(stage.is_adversarial(epoch, first + i) for i in range(len(parts)))
            read = data.read_batches(parts[ready:], view)
            if mined is not None and ready:
                read = chain(mined.read_batches(parts[:ready]), read)
            for index, (whole, batch) in enumerate(zip(cut, read, strict=True), start=first):
                images_seen = len(batch.ids) if share.world == 1 else len(whole)
                # Batch norm cannot learn from one image, and badly from a few: the last batch of 8
                # led a ResNet-18 astray, whose last maps have one pixel.
                least = stage.batch_size // _LEAST_BATCH if index else 0
                if images_seen < max(2, least):
                    progress.advance(images_seen)
                    continue
                targets = batch.labels
                if labels is not None:
                    targets = torch.from_numpy(labels[np.searchsorted(ids, batch.ids.numpy())])
                targets = targets.to(device.torch)
                # Dropout draws from torch's own generator, which a new start would not have kept.
                torch.manual_seed(_batch_seed(seed, stage.round, epoch, index) + share.rank)
                adversarial = stage.is_adversarial(epoch, index)
                if adversarial and mined is None:
                    if miner is None:
                        raise ValueError(
                            f"stage {stage.name} has adversarial batches but no adversary"
                        )
                    # The random start depends on the sample, the epoch and the round.
                    attack_seed = _batch_seed(seed, stage.round, epoch, _START)
                    images = _mined(miner, batch, targets, attack_seed)
                else:
                    images = device.images(batch.images)
                with device.autocast():
                    logits = model(images)
                model.zero_grad(set_to_none=True)
                loss, correct = _backward(model, logits, targets, share)
                optimizer.step(stage.lr_at((epoch + index / per_epoch) / stage.epochs))
                ended = time.perf_counter()
                kind = "finetune_adversarial" if adversarial else "finetune"
                clock.add(kind, ended - began, images_seen)
                step = (epoch, index, adversarial, loss, correct, images_seen, ended - began)
                on_step(Step(*step))
                progress.advance(images_seen)
                began = time.perf_counter()
                if index + 1 < per_epoch:
                    keep(epoch, index + 1)
            model.eval()
            _require_finite(model, stage, epoch)
            on_epoch(epoch + 1)
            if epoch + 1 < stage.epochs:
                keep(epoch + 1, 0)
    model.eval()


def _mined(miner: Miner, batch: Batch, labels: Tensor, seed: int) -> Tensor:
    def work(part: slice) -> Tensor:
        return miner(batch.images[part], labels[part], ids=batch.ids[part], seed=seed)

    return in_parts(len(labels), work)


def _backward(
    model: nn.Module, logits: Tensor, labels: Tensor, share: Share
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss over the whole batch; that loss, and how many are right."""
    correct = (logits.detach().argmax(1) == labels).sum()
    if share.world == 1:
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        return loss.detach(), correct
    loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
    return share.total(model.parameters(), loss, correct, len(labels))


def _require_finite(model: nn.Module, stage: Stage, epoch: int) -> None:
    name = not_finite(model)
    if name is not None:
        raise DivergenceError(
            f"{stage.name}: training diverged in epoch {epoch + 1} ({name} is not finite). "
            f"Lower the learning rate, which is {stage.lr:g} (aft.lr, pbe.lr, sieve.lr, "
            "sieve.initial_lr or lr), and begin again in a new folder."
        )


def not_finite(model: nn.Module) -> str | None:
    """The name of a weight or buffer that is no finite number any more; None if all are."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def _batch_seed(seed: int, round_index: int, epoch: int, batch: int) -> int:
    words = np.random.SeedSequence([seed, round_index, epoch, batch]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


class _Sgd:
    """``torch.optim.SGD``, through the function that does its work.

    The class would import all of torch's compiler: seconds, and 100 MB, of every worker.
    """

    def __init__(self, model: nn.Module, stage: Stage, momentum: Mapping[str, Tensor]) -> None:
        self.model, self.stage = model, stage
        self.momentum = {
            name: momentum[name].to(parameter)
            for name, parameter in model.named_parameters()
            if name in momentum
        }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Change the weights by their gradients."""
        moved = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        buffers = [self.momentum.get(name) for name in moved]
        sgd(
            list(moved.values()),
            [p.grad for p in moved.values() if p.grad is not None],
            buffers,
            weight_decay=self.stage.weight_decay,
            momentum=self.stage.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        pairs = zip(moved, buffers, strict=True)
        self.momentum |= {name: buffer for name, buffer in pairs if buffer is not None}
