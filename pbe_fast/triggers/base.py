"""What a backdoor attack is here: a trigger, and the labels that it leads to.

A trigger says what it plants as data, a pattern or a grid; how that changes images is written in
``kernels`` alone, so that a poisoned data set and the test of a model plant the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels import inject, warp_normalise
from pbe_fast.errors import TriggerError

__all__ = [
    "Attack",
    "Content",
    "Grid",
    "Pattern",
    "Scalar",
    "Trigger",
    "plant",
    "planted_input",
]

Scalar = int | float | str | bool

_MAX_SIZE = 4096  # pixels; the largest image_size of a configuration


@dataclass(frozen=True, eq=False)
class Pattern:
    """A pattern that is mixed into images, or added to them.

    Attributes:
        pattern: ``(3, H, W)`` for all images or ``(N, 3, H, W)`` for one each, float32; in [0, 1]
            with a mask, signed without.
        mask: share of the pattern in [0, 1], float32, ``(1, H, W)``, ``(N, 1, H, W)`` or
            ``(1, 1, 1)``; None adds the pattern and clamps to [0, 1].
    """

    pattern: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Grid:
    """Where images are sampled.

    Attributes:
        grid: ``(H, W, 2)`` for all images or ``(N, H, W, 2)`` for one each, float32; the x and y
            to read for each pixel, -1 and 1 being the centres of the outermost ones.
    """

    grid: Tensor


# A function draws the patterns for images, ``(N, 3, H, W)`` float32 in [0, 1].
Content: TypeAlias = Pattern | Grid | Callable[[Tensor], Pattern]


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

    def content(self, device: torch.device) -> Content:
        """What is planted, on a device; the trigger itself stays where it is."""

    def noise(self, ids: npt.NDArray[np.int64], seed: int) -> Content | None:
        """What makes noise of these samples, on the CPU; None leaves them as they are.

        A pure function of (ids, seed).
        """

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


def planted_input(content: Content, images: Tensor) -> Tensor:
    """Plant into images and bring them to [0, 1], in one operation on their device.

    Args:
        content: on the images' device.
        images: uint8 ``(N, 3, H, W)``.

    Returns:
        ``(N, 3, H, W)`` float32 in the memory format of ``images``: what a model is given when
        the planted images were stored in uint8, rounded to nearest, and read again.
    """
    plain = (0.0,) * 3, (1.0,) * 3  # models normalise on their own
    with torch.no_grad():
        if isinstance(content, Grid):
            return warp_normalise(images, content.grid, *plain, torch.float32)
        if not isinstance(content, Pattern):
            content = content(images.float() / 255)
        everyone = torch.ones(len(images), dtype=torch.bool, device=images.device)
        labels = everyone.long()  # the attacker's are Attack.labels, whatever is planted
        planted, _ = inject(
            images, labels, everyone, content.pattern, content.mask, 0, 1, *plain, torch.float32
        )
        return planted


def plant(content: Content, images: Tensor) -> Tensor:
    """Plant into uint8 images ``(N, 3, H, W)``, rounded to the nearest pixel value."""
    return (planted_input(content, images) * 255).round().to(torch.uint8)
