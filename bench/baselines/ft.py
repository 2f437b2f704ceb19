"""FT: plain fine-tuning on the clean images, the baseline of every paper of this kind.

A learning rate of 0.01, momentum 0.9 and weight decay 5e-4 are what comparisons use (BackdoorBench,
Wu et al., NeurIPS 2022, for 50 to 100 epochs). Ours: the 20 epochs and batches of 128 that AFT has,
and a cosine to zero.
"""

from bench.baselines._common import Ids, finetune
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.models import Classifier
from pbe_fast.progress import Progress
from pbe_fast.training import Stage

__all__ = ["STAGE", "fine_tuning"]

STAGE = Stage(
    name="fine-tuning",
    epochs=20,
    batch_size=128,
    lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
)


def fine_tuning(
    model: Classifier,
    clean: ImageData,
    ids: Ids,
    device: Device,
    seed: int,
    progress: Progress,
    stage: Stage = STAGE,
) -> None:
    """Fine-tune; see :class:`bench.baselines._common.Erase` for the arguments."""
    finetune(model, clean, ids, device, seed, progress, stage)
