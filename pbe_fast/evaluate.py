"""ACC, ASR, and how well the suspects are found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.device import Device
from pbe_fast.errors import TriggerError
from pbe_fast.memory import in_parts
from pbe_fast.progress import Progress, Silent
from pbe_fast.triggers.base import Attack, planted_input

__all__ = ["Accuracy", "Counts", "auroc", "count", "evaluate", "precision_at"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """Results on a test set, as fractions.

    Attributes:
        acc: share of clean test images that the model labels correctly.
        asr: share of triggered test images that get the attacker's label, over images whose
            true label is not already that label; None where there is no attack or no such image.
        images: how many test images were counted.
    """

    acc: float
    asr: float | None
    images: int

    def as_dict(self) -> dict[str, float]:
        """For ``metrics.json``; without ``asr`` where it is unknown."""
        return {"acc": self.acc} | ({} if self.asr is None else {"asr": self.asr})


@dataclass(frozen=True)
class Counts:
    """What a part of a test set adds to ACC and ASR.

    Attributes:
        images: clean images that the model saw.
        correct: of them labelled rightly.
        exposed: triggered images whose true label is not the attacker's.
        hit: of them labelled as the attacker wants.
    """

    images: int = 0
    correct: int = 0
    exposed: int = 0
    hit: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.images + other.images,
            self.correct + other.correct,
            self.exposed + other.exposed,
            self.hit + other.hit,
        )

    def accuracy(self) -> Accuracy:
        """As fractions."""
        asr = self.hit / self.exposed if self.exposed else None
        return Accuracy(self.correct / max(1, self.images), asr, self.images)


def evaluate(
    model: nn.Module,
    data: ImageData,
    device: Device,
    *,
    attack: Attack | None = None,
    ids: Ids | None = None,
    batch_size: int = 512,
    phase: str = "evaluate",
    progress: Progress | None = None,
) -> Accuracy:
    """Measure ACC and, with an attack, ASR.

    Args:
        model: takes images in [0, 1]; used in eval mode, and every module's mode restored.
        data: clean test images with true labels.
        attack: its trigger is planted into the test images.
        ids: only these samples.

    Raises:
        TriggerError: the trigger was made for another image size or number of classes.
    """
    chosen = data.ids if ids is None else ids
    progress = progress or Silent()
    progress.phase(phase, len(chosen))
    return count(
        model, data, device, chosen, attack=attack, batch_size=batch_size, advance=progress.advance
    ).accuracy()


def count(
    model: nn.Module,
    data: ImageData,
    device: Device,
    ids: Ids,
    *,
    attack: Attack | None,
    batch_size: int,
    advance: Callable[[int], None],
) -> Counts:
    """The counts of :func:`evaluate` on some samples; those of parts add up to those of a whole.

    Args:
        advance: told how many more images are done.

    Raises:
        TriggerError: as :func:`evaluate`.
    """
    if attack is not None and attack.image_size != data.size:
        raise TriggerError(
            f"the attack was made for images of {attack.image_size} pixels, but the data is read "
            f"at {data.size}. Set data.image_size={attack.image_size}."
        )
    if attack is not None and attack.num_classes != data.manifest.num_classes:
        raise TriggerError(
            f"the attack was made for {attack.num_classes} classes, but {data.manifest.root} has "
            f"{data.manifest.num_classes}."
        )
    content = None if attack is None else attack.trigger.content(device.torch)
    correct = hit = exposed = torch.zeros((), dtype=torch.int64, device=device.torch)
    seen = 0
    with _eval_mode(model), torch.inference_mode():
        for batch in data.read(ids, batch_size):
            if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
                continue
            labels = batch.labels.to(device.torch)

            def predicted(part: slice, batch: Batch = batch) -> Tensor:
                images = batch.images[part].to(device.torch, non_blocking=True)
                with device.autocast():
                    clean: Tensor = model(device.images(images)).argmax(1)
                if content is None:
                    return clean[:, None]
                triggered = planted_input(content, images)
                triggered = triggered.contiguous(memory_format=device.memory_format)
                with device.autocast():
                    return torch.stack([clean, model(triggered).argmax(1)], 1)

            found = in_parts(len(labels), predicted)
            correct = correct + (found[:, 0] == labels).sum()
            if attack is not None:
                wanted = attack.labels(labels)
                counts = wanted != labels
                hit = hit + ((found[:, 1] == wanted) & counts).sum()
                exposed = exposed + counts.sum()
            seen += len(labels)
            advance(len(labels))
    return Counts(seen, int(correct), int(exposed), int(hit))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each module's own mode after it."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def auroc(scores: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the chance that a positive scores *lower* than a negative.

    Suspects are the images with low scores. Ties count half. NaN scores are left out.

    Returns:
        a number in [0, 1], or None where there are no positives or no negatives.
    """
    known = ~np.isnan(scores)
    scores, positive = scores[known], positive[known]
    low, high = np.sort(scores[~positive]), scores[positive]
    if not len(low) or not len(high):
        return None
    above = len(low) - np.searchsorted(low, high, side="right")
    ties = np.searchsorted(low, high, side="right") - np.searchsorted(low, high, side="left")
    return float((above + 0.5 * ties).mean() / len(low))


def precision_at(scores: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> float | None:
    """Share of true positives among the P lowest scores, P being their true number.

    NaN scores are left out, of P too. Equal scores are decided by position, the first first.

    Returns:
        a number in [0, 1], or None where there are no positives.
    """
    known = ~np.isnan(scores)
    scores, positive = scores[known], positive[known]
    count = int(positive.sum())
    if not count:
        return None
    lowest = np.argsort(scores, kind="stable")[:count]
    return float(positive[lowest].mean())
