"""The patch: where it lies and what it shows."""

import pytest
import torch

from pbe_fast.errors import TriggerError
from pbe_fast.triggers import BadNets, plant


def changed(size: int, patch_size: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The patch of a grey image and the box (top, bottom, left, right) that changed."""
    image = torch.full((1, 3, size, size), 64, dtype=torch.uint8)
    out = plant(BadNets(size, patch_size).content(torch.device("cpu")), image)
    where = (out != image).any(1)[0].nonzero()
    (top, left), (bottom, right) = where.amin(0).tolist(), where.amax(0).tolist()
    box = torch.tensor([top, bottom, left, right])
    return out[0, :, top : bottom + 1, left : right + 1], box


@pytest.mark.parametrize(
    ("size", "side", "square"),
    [(8, 1, 1), (32, 3, 1), (33, 3, 1), (64, 6, 2), (224, 21, 7)],
)
def test_place_and_pattern(size: int, side: int, square: int) -> None:
    patch, box = changed(size)
    last = size - 1 - square
    assert box.tolist() == [last - side + 1, last, last - side + 1, last]
    assert patch.shape == (3, side, side)
    for i in range(side):
        for j in range(side):
            white = (i // square + j // square) % 2 == 0
            assert patch[:, i, j].tolist() == [255 * white] * 3


def test_patch_size_of_ones_own() -> None:
    patch, box = changed(32, 5)
    assert box.tolist() == [26, 30, 26, 30]
    assert patch[0].flatten().tolist() == [255 * (1 - k % 2) for k in range(25)]


def test_a_patch_as_large_as_the_image_fills_it() -> None:
    patch, _ = changed(6, 6)
    assert patch.shape == (3, 6, 6)


@pytest.mark.parametrize(("size", "patch_size"), [(32, 33), (32, -1), (0, 0)])
def test_a_patch_that_does_not_fit_is_refused(size: int, patch_size: int) -> None:
    with pytest.raises(TriggerError, match=r"badnets: patch_size .* does not fit"):
        BadNets(size, patch_size)
