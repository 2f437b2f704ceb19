"""From a decoded image of any size to a square one, with or without augmentation.

- ``none``: up to 64 pixels the image is resized to the square; above, its shorter side is
  resized to size / 0.875 and the centre is cut out (the usual ImageNet evaluation). An image
  that has the size already is taken as it is.
- ``crop_rotate`` (the paper's, for 32x32): as ``none``, then a random crop after padding by an
  eighth of the side (4 at 32) with black, and a rotation by up to 10 degrees.
- ``resized_crop`` (for 224x224): a random area of 25 to 100 % with aspect 3/4 to 4/3, resized.

What is cut out begins and ends at whole pixels; resizing is bilinear with antialiasing.

With ``flip``, half of the images are mirrored as well; traffic signs and digits must not be.

Random draws are functions of (seed, stream, sample id), so the batch's layout, the workers and
a resumed run do not change them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pbe_fast.randomness import uniform

__all__ = ["Augment", "View", "crop_rotate"]

Augment = Literal["none", "crop_rotate", "resized_crop"]
Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

SMALL = 64  # pixels; up to here an image is taken whole
_EVAL_RATIO = 0.875
_ROTATION_DEGREES = 10.0


@dataclass(frozen=True)
class View:
    """How images are brought to one size.

    Attributes:
        size: side in pixels.
        augment: see the module.
        flip: mirror half of the images, with either augmentation.
        seed, stream: of what the random draws are a function.
    """

    size: int
    augment: Augment = "none"
    flip: bool = False
    seed: int = 0
    stream: tuple[int | str, ...] = ()

    def image(self, pixels: Pixels, sample_id: int) -> Pixels:
        """One image ``(H, W, 3)`` to ``(size, size, 3)``; for ``crop_rotate`` the first half.

        An image that needs nothing is handed back itself. It must be writable, for torch's sake.
        """
        height, width = pixels.shape[:2]
        if self.augment == "resized_crop":
            draws = uniform(np.array([sample_id]), 5, self.seed, "crop", *self.stream)[0]
            box = _random_box(height, width, draws)
            out = _resize(pixels, self.size, box)
            return out[:, ::-1] if self.flip and draws[4] < 0.5 else out
        if height == width == self.size:
            return pixels
        if self.size <= SMALL:
            return _resize(pixels, self.size, (0, 0, width, height))
        short = min(height, width) * _EVAL_RATIO
        left, top = (width - short) / 2, (height - short) / 2
        return _resize(pixels, self.size, (left, top, left + short, top + short))

    def batch(self, images: Tensor, ids: npt.NDArray[np.int64]) -> Tensor:
        """What is done to a whole batch ``(N, 3, size, size)`` uint8: crop and rotation."""
        if self.augment != "crop_rotate":
            return images
        draws = uniform(ids, 4, self.seed, "augment", *self.stream)
        if self.flip:
            mirrored = torch.from_numpy(draws[:, 3] < 0.5)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        return crop_rotate(images, torch.from_numpy(draws[:, :3]))


def crop_rotate(images: Tensor, draws: Tensor) -> Tensor:
    """Random crop and rotation in one bilinear resampling.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        draws: ``(N, 3)`` in [0, 1): shift in x, shift in y, angle.

    Returns:
        uint8 ``(N, 3, H, W)``; what comes from outside the image is black.
    """
    if not len(images):
        return images
    height, width = images.shape[-2:]
    pad = torch.tensor([width // 8, height // 8])
    # Whole pixels, as a crop of a padded image would shift.
    shift = torch.floor(draws[:, :2] * (2 * pad + 1)) - pad  # (N, 2)
    angle = (2 * draws[:, 2] - 1) * math.radians(_ROTATION_DEGREES)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = cos
    theta[:, 0, 1] = -sin * height / width
    theta[:, 1, 0] = sin * width / height
    theta[:, 1, 1] = cos
    theta[:, :, 2] = 2 * shift / torch.tensor([width, height])
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    turned = functional.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return turned.round_().clamp_(0, 255).to(torch.uint8)


def _random_box(height: int, width: int, draws: npt.NDArray[np.float64]) -> Box:
    """A random area and aspect inside the image (Szegedy et al., 2015), cut to fit."""
    area = height * width * (0.25 + 0.75 * draws[0])
    aspect = math.exp((2 * draws[1] - 1) * math.log(4 / 3))
    box_width = min(width, math.sqrt(area * aspect))
    box_height = min(height, math.sqrt(area / aspect))
    left, top = draws[2] * (width - box_width), draws[3] * (height - box_height)
    return left, top, left + box_width, top + box_height


def _resize(pixels: Pixels, size: int, box: Box) -> Pixels:
    """The box, at the nearest whole pixels, to a square.

    With torch, which takes a quarter of PIL's time. It differs from PIL by rounding, and at the
    edge of the box, where PIL looks at what is outside.
    """
    height, width = pixels.shape[:2]
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    # The batch's dimension comes first, so that torch sees channels_last, its fast way.
    image = torch.from_numpy(pixels).unsqueeze(0)[:, top:bottom, left:right].permute(0, 3, 1, 2)
    resized = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
