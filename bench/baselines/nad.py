"""NAD, neural attention distillation: a fine-tuned teacher shows the student where to look.

Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma, "Neural Attention Distillation: Erasing Backdoor
Triggers from Deep Neural Networks", ICLR 2021 (arXiv 2101.05930), section 3. The attention of a
stage is the sum of ``|F|^p`` over its channels (the paper's A^2_sum, p = 2); the student, which is
the infected model, learns the labels and the teacher's attention:

    CE(student) + sum over stages of beta |A(student) / |A(student)| - A(teacher) / |A(teacher)||^2

The paper's: p = 2, 10 epochs for the teacher and 10 for the student, batches of 64, SGD with
momentum 0.9 and weight decay 1e-4, a learning rate of 0.1 that is divided by ten after every two
epochs, and Cutout (DeVries and Taylor, arXiv 1708.04552) beside crops: a square of 9 of 32 pixels.
The authors' code has Nesterov's momentum. The paper fits beta to each attack; ours is 500, 1000 and
1000 for the last three stages, with the mean over positions in the place of the square's sum, as
BackdoorBench (Wu et al., NeurIPS 2022) has it, and so is the learning rate that goes with it, 0.01:
with the paper's 0.1 a narrow network's ACC fell to 12 %. A stage is found by its resolution, as
that differs from one stage to the next.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bench.baselines._common import Ids, logits_of, minibatches, reproducible
from bench.baselines._layers import blank, outputs, stages
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress
from pbe_fast.randomness import torch_generator

__all__ = ["DEFAULTS", "Distillation", "attention", "attention_distillation", "cut_out"]


@dataclass(frozen=True)
class Distillation:
    """Its numbers.

    Attributes:
        epochs: of the teacher, and as many of the student.
        decay_epochs: after each so many the learning rate is divided by ten.
        betas: weights of the stages, the last of them for the network's last stage.
        cutout: side of the square, as a share of the image's.
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.01
    decay_epochs: int = 2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    cutout: float = 9 / 32


DEFAULTS = Distillation()


def attention_distillation(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    settings: Distillation = DEFAULTS,
) -> None:
    """Fine-tune a teacher, then distil; see :class:`bench.baselines._common.Erase`.

    Raises:
        ConfigError: the network has fewer than two stages with maps of features.
    """
    names = stages(model, blank(clean, device))[-len(settings.betas) :]
    work = partial(_train, clean=clean, ids=ids, device=device, seed=seed, progress=progress)
    with reproducible(device, seed):
        teacher = deepcopy(model)
        work(teacher, None, names=names, settings=settings)
        teacher.requires_grad_(False)
        work(model, teacher, names=names, settings=settings)


def _train(
    model: Classifier,
    teacher: Classifier | None,
    *,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    names: list[str],
    settings: Distillation,
) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    betas = settings.betas[-len(names) :]
    epochs, size = settings.epochs, settings.batch_size
    phase = "teacher" if teacher is None else "distillation"
    generator = torch_generator(seed, phase, "cutout")
    model.train()
    for batch in minibatches(
        clean, ids, device, seed, progress, phase=phase, epochs=epochs, batch_size=size
    ):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * 0.1 ** (batch.epoch // settings.decay_epochs)
        images = cut_out(batch.images, settings.cutout, generator)
        with outputs(model, names) as seen:
            loss = functional.cross_entropy(logits_of(model, images, device), batch.labels)
        if teacher is not None:
            with torch.no_grad(), outputs(teacher, names) as wanted:
                logits_of(teacher, images, device)
            for name, beta in zip(names, betas, strict=True):
                apart = attention(seen[name]) - attention(wanted[name])
                loss = loss + beta * apart.square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
    model.eval()


def cut_out(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images ``(N, 3, H, W)`` with a square of zeros in each, its middle anywhere in the image.

    Args:
        share: side of the square, as a share of the image's; parts beyond the edge are lost.
    """
    count, _, height, width = images.shape
    side = round(share * height)
    corner = [
        (torch.rand(count, generator=generator) * size).long() - side // 2
        for size in (height, width)
    ]
    inside = [
        (torch.arange(size) >= at[:, None]) & (torch.arange(size) < at[:, None] + side)
        for size, at in zip((height, width), corner, strict=True)
    ]
    cut = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(cut.to(images.device), 0.0)


def attention(features: Tensor, power: int = 2) -> Tensor:
    """Where a stage looks: ``(N, C, H, W)`` to ``(N, H * W)``, each row of length one (eq. 1)."""
    summed = features.float().abs().pow(power).sum(1).flatten(1)
    return functional.normalize(summed, dim=1)
