"""What a backdoor attack is here: a trigger, and the labels that it leads to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.errors import TriggerError

__all__ = ["Attack", "Scalar", "Trigger", "plant"]

Scalar = int | float | str | bool

_MAX_SIZE = 4096  # pixels; the largest image_size of a configuration


class Trigger(Protocol):
    """Changes images so that an infected model gives the attacker's label.

    A trigger is built for one image size. ``noise_ratio`` says how many *noise* samples the
    attack adds for each poisoned one: images changed in a way that is close to the trigger but
    is not it, and that keep their own label, so that only the exact trigger opens the
    backdoor (WaNet's noise mode, Input-aware's cross-trigger mode).
    """

    @property
    def name(self) -> str:
        """The attack's name, such as ``badnets``."""

    @property
    def noise_ratio(self) -> float:
        """Noise samples for each poisoned sample; 0 where the attack has none."""

    def __call__(self, images: Tensor) -> Tensor:
        """Plant the trigger: ``(N, 3, H, W)`` float in [0, 1], same shape out."""

    def noise(self, images: Tensor, ids: npt.NDArray[np.int64], seed: int) -> Tensor:
        """The attack's noise samples; a pure function of (images, ids, seed)."""

    def options(self) -> Mapping[str, Scalar]:
        """Plain parameters, to be written beside the tensors."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors the trigger consists of (a picture, a warp grid, a generator's weights)."""


@dataclass(frozen=True)
class Attack:
    """A trigger with its labels.

    Attributes:
        trigger: how images are changed.
        mode: ``all_to_one``: every class to ``target``; ``all_to_all``: y to (y + 1) mod K.
        target: the target label of all-to-one; ignored for all-to-all.
        num_classes: K.
        image_size: side in pixels of the images the trigger was built for.
        clean_label: poison only images of the target class and keep their labels (SIG).

    Raises:
        TriggerError: at construction, the values contradict each other.
    """

    trigger: Trigger
    mode: Literal["all_to_one", "all_to_all"]
    target: int
    num_classes: int
    image_size: int
    clean_label: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("all_to_one", "all_to_all"):
            raise TriggerError(f"attack mode {self.mode!r}; known: all_to_one, all_to_all.")
        if not 1 <= self.image_size <= _MAX_SIZE:
            raise TriggerError(f"image_size {self.image_size} is not in 1 to {_MAX_SIZE} pixels.")
        if not 0 <= self.target < self.num_classes:
            raise TriggerError(
                f"target {self.target} is not a label from 0 to {self.num_classes - 1}."
            )
        if self.clean_label and self.mode != "all_to_one":
            raise TriggerError(
                "clean_label poisons the target class alone, so it needs all_to_one."
            )

    def labels(self, labels: Tensor) -> Tensor:
        """The attacker's label for each true label, ``(N,)`` int64."""
        if self.mode == "all_to_one":
            return torch.full_like(labels, self.target)
        return (labels + 1) % self.num_classes


def plant(trigger: Trigger, images: Tensor) -> Tensor:
    """Plant a trigger into uint8 images ``(N, 3, H, W)``, rounded to the nearest pixel value."""
    with torch.no_grad():
        return to_pixels(trigger(images.float() / 255))


def to_pixels(images: Tensor) -> Tensor:
    """Float images in [0, 1] to uint8, rounded to nearest."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
