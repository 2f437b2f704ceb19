"""Adversarial fine-tuning (AFT): a few epochs on clean images, the first ones adversarial.

Mu et al., CVPR 2023, section 4.1: the adversarial examples of an infected model share the
features of triggered images, so training them with their correct labels overwrites what the
trigger leads to.
"""

from pbe_fast.adversary import L2, PGD, Linf
from pbe_fast.config import AdversaryConfig, AftConfig
from pbe_fast.data.augment import Augment
from pbe_fast.training import Stage

__all__ = ["aft_stage", "make_pgd"]


def make_pgd(config: AdversaryConfig) -> PGD:
    """The adversary of the configuration, untargeted; lengths from 1/255 to pixel units."""
    eps = config.eps_255 / 255
    step = config.step_255 / 255 if config.step_255 is not None else eps / 5
    norm = Linf(eps) if config.norm == "linf" else L2(eps)
    return PGD(
        norm=norm,
        steps=config.steps,
        step=step,
        random_start=config.random_start,
        mode=config.mode,
        margin=config.margin,
        fold=config.fold,
        compile=config.compile,
    )


def aft_stage(config: AftConfig, augment: Augment, flip: bool) -> Stage:
    """AFT as one stage: every batch of the first epochs is adversarial."""
    return Stage.of(
        config,
        name="aft",
        schedule=config.schedule,
        augment=augment,
        flip=flip,
        adversarial_epochs=config.adversarial_epochs,
    )
