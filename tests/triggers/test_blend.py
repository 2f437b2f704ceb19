"""The blended picture."""

from typing import Any

import pytest
import torch

from pbe_fast.errors import TriggerError
from pbe_fast.triggers import Blend


def test_is_the_formula(changed: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8, generator=rng)
    images = torch.rand(4, 3, 7, 5, generator=rng)
    for alpha in (0.1, 0.2, 1.0):
        out = changed(Blend(picture, alpha).content(torch.device("cpu")), images)
        wanted = (1 - alpha) * images.double() + alpha * picture.double() / 255
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-7)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_share_is_refused(alpha: float) -> None:
    with pytest.raises(TriggerError, match=r"blend: alpha .* is not in \(0, 1\]"):
        Blend(torch.zeros(3, 4, 4, dtype=torch.uint8), alpha)


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
    ],
)
def test_what_is_no_picture_is_refused(picture: torch.Tensor) -> None:
    with pytest.raises(TriggerError, match="blend: the picture is"):
        Blend(picture)
