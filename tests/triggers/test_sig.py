"""The sinusoid."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pbe_fast.errors import TriggerError
from pbe_fast.triggers import SIG

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [8, 32, 33, 224])
@pytest.mark.parametrize(("amplitude", "frequency"), [(20.0, 6.0), (10.0, 1.0)])
def test_is_the_wave_along_the_width(
    changed: Any, width: int, amplitude: float, frequency: float
) -> None:
    grey = torch.full((2, 3, width, width), 0.5)
    out = changed(SIG(width, amplitude, frequency).content(CPU), grey).double().numpy()
    column = np.arange(width)
    wave = amplitude / 255 * np.sin(2 * math.pi * column * frequency / width)
    np.testing.assert_allclose(out - 0.5, np.broadcast_to(wave, out.shape), atol=1e-5)
    assert np.abs(wave).max() > 0.9 * amplitude / 255


def test_is_clamped(changed: Any) -> None:
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    out = changed(SIG(32).content(CPU), images)
    assert float(out[0].max()) > 0.07
    assert float(out[0].min()) == 0
    assert float(out[1].min()) < 0.93
    assert float(out[1].max()) == 1


@pytest.mark.parametrize("amplitude", [0.0, -1.0, 256.0, float("nan"), float("inf")])
def test_an_impossible_amplitude_is_refused(amplitude: float) -> None:
    with pytest.raises(TriggerError, match="sig: amplitude_255"):
        SIG(32, amplitude)


@pytest.mark.parametrize("frequency", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_frequency_is_refused(frequency: float) -> None:
    with pytest.raises(TriggerError, match="sig: frequency"):
        SIG(32, 20, frequency)
