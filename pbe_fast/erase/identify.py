"""Which training images are clean: those on which purification changed little.

Mu et al., CVPR 2023, section 4.2: the infected and the current model agree on clean images and
disagree on poisoned ones, so images are ranked by the cosine of the two models' logits.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kernels import agreement
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.errors import DivergenceError
from pbe_fast.progress import Progress

__all__ = ["score", "select_top"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def score(
    infected: nn.Module,
    current: nn.Module,
    data: ImageData,
    device: Device,
    *,
    batch_size: int,
    phase: str,
    progress: Progress,
) -> Scores:
    """The agreement of two models on every image, without augmentation.

    Raises:
        DivergenceError: a model's logits are not finite.

    Returns:
        ``(len(data.manifest),)`` float32 in [-1, 1], high for clean; NaN where an image is
        undecodable.
    """
    scores = np.full(len(data.manifest), np.nan, np.float32)
    progress.phase(phase, len(scores))
    infected.eval()
    current.eval()
    with torch.inference_mode():
        for batch in data.read(data.ids, batch_size):
            if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
                continue
            images = device.images(batch.images)
            with device.autocast():
                first, second = infected(images), current(images)
            cosine, _, _ = agreement(first, second, batch.labels.to(device.torch))
            found = cosine.cpu().numpy()
            if np.isnan(found).any():
                where = data.manifest.describe(int(batch.ids[int(np.isnan(found).argmax())]))
                raise DivergenceError(
                    f"{where}: a model's logits are not finite, so the image cannot be scored. "
                    "Check the model, or lower the learning rate."
                )
            scores[batch.ids.numpy()] = found
            progress.advance(len(batch.ids))
    return scores


def select_top(scores: Scores, share: float) -> Ids:
    """The ids of the ``share`` of samples with the highest scores, in file order.

    Equal scores are decided by id, the lower first; NaN is never selected.
    """
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
    count = min(round(share * len(scores)), int((~np.isnan(scores)).sum()))
    return np.sort(order[:count]).astype(np.int64)
