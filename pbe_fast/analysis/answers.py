"""What a model answers to adversarial examples: the measuring half of the paper's appendix B.

Each image is perturbed so that the model does not give it its own label any more (untargeted PGD,
L-inf, as in adversarial fine-tuning, without a random start), at several sizes of the perturbation.
:mod:`.predictions` counts where they went.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.adversary import Miner
from pbe_fast.config import AdversaryConfig, ProbeConfig
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.erase.finetune import make_pgd
from pbe_fast.errors import DivergenceError
from pbe_fast.memory import in_parts
from pbe_fast.models import Classifier
from pbe_fast.randomness import permutation

__all__ = ["Answers", "Attacked", "answer_shards", "chosen"]

Ids = npt.NDArray[np.int64]
Answers = npt.NDArray[np.float32]


def chosen(labels: npt.NDArray[np.integer], per_class: int | None, seed: int) -> Ids:
    """Which images are looked at: so many random ones of each class, a function of its arguments.

    Args:
        labels: ``(N,)``, of all images.
        per_class: a class that has no more is taken whole; None takes all.

    Returns:
        ids, rising, int64.
    """
    if per_class is None:
        return np.arange(len(labels), dtype=np.int64)
    order = np.argsort(labels, kind="stable").astype(np.int64)
    values, starts = np.unique(labels[order], return_index=True)
    parts = [
        ids[permutation(len(ids), seed, "scan", int(label))[:per_class]]
        for label, ids in zip(values, np.split(order, starts[1:]), strict=True)
    ]
    return np.sort(np.concatenate(parts))


class Attacked:
    """A model under attack.

    Args:
        probe: the perturbations.
        model: on the device; put into eval mode.
    """

    def __init__(self, probe: ProbeConfig, model: Classifier, device: Device) -> None:
        self.model, self.device = model.eval(), device
        self.miners = [
            # Not compiled: that would be done anew for each size.
            Miner(
                make_pgd(AdversaryConfig(eps_255=eps, steps=probe.steps, compile=False)),
                model,
                device,
            )
            for eps in probe.eps_255
        ]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The model's answers to images as they are and to their adversarial examples.

        Args:
            images: ``(n, 3, H, W)`` uint8.
            labels: ``(n,)`` int64, of the images.

        Returns:
            ``(n, 1 + sizes, 2)`` float32: the predicted label, which float32 holds exactly, and the
            margin, the logit of the image's label minus the largest other one. First of the clean
            image, then at each size.
        """
        own = labels.to(self.device.torch)
        found = [self._answer(self.device.images(images), own)]
        found += [self._answer(miner(images, own), own) for miner in self.miners]
        return torch.stack(found, 1)

    def _answer(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            with self.device.autocast():
                logits = self.model(images)
            logits = logits.float()  # (n, K)
            label_logit = logits.gather(1, labels[:, None])[:, 0]
            others = logits.scatter(1, labels[:, None], -torch.inf)
            return torch.stack([logits.argmax(1).float(), label_logit - others.amax(1)], 1)


def answer_shards(
    attacked: Attacked,
    ids: Ids,
    data: ImageData,
    shards: Sequence[int],
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Answers]]:
    """The answers to some images, shard by shard, without augmentation.

    No batch crosses the end of a shard, so that the answers do not depend on who asks nor on what
    else is asked.

    Args:
        ids: the images that are looked at, rising.
        shards: indices into ``data.manifest.shards``.
        advance: told how many more images are done.

    Yields:
        a shard and ``(samples, 1 + sizes, 2)``, see :class:`Attacked`; NaN for images that are not
        looked at or undecodable.

    Raises:
        DivergenceError: the model's logits are not finite.
        ShardError: a shard is no longer what the manifest says.
    """
    manifest = data.manifest
    bounds = np.searchsorted(manifest.shard_index, np.arange(len(manifest.shards) + 1))
    for shard in shards:
        data.require_unchanged(shard)
        first, last = bounds[shard], bounds[shard + 1]
        answers = np.full((last - first, 1 + len(attacked.miners), 2), np.nan, np.float32)
        wanted = ids[np.searchsorted(ids, first) : np.searchsorted(ids, last)]
        for batch in data.read(wanted, batch_size):
            if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
                continue

            def work(
                part: slice, images: Tensor = batch.images, own: Tensor = batch.labels
            ) -> Tensor:
                return attacked(images[part], own[part])

            found = in_parts(len(batch.ids), work).cpu().numpy()
            wrong = ~np.isfinite(found).all((1, 2))
            if wrong.any():
                where = manifest.describe(int(batch.ids[int(wrong.argmax())]))
                raise DivergenceError(
                    f"{where}: the model's logits are not finite, so it cannot be scanned. Check "
                    "its weights, and --set precision=float32."
                )
            answers[batch.ids.numpy() - first] = found
            advance(len(batch.ids))
        yield shard, answers
