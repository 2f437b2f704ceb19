"""Activations from all depths of a network."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbe_fast.device import Device
from pbe_fast.erase import Activations
from pbe_fast.errors import ConfigError
from pbe_fast.models import ModelSpec, create_model

CPU = Device(torch.device("cpu"), "float32", "contiguous")


def _images(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_stages_of_a_residual_network() -> None:
    spec = ModelSpec("builtin:preact_resnet18", 3, 32, {"width": 4})
    model = create_model(spec).eval()
    measure = Activations(model, CPU, 32)
    images = _images(5, 32)
    with torch.inference_mode():
        rows = measure(images, torch.zeros(5, dtype=torch.int64))
        stages = {}
        for name, module in model.named_modules():
            if name.endswith(("layer1", "layer2", "layer3")):
                module.register_forward_hook(lambda _, __, out, n=name: stages.update({n: out}))
        model(images)
    assert rows.dtype == torch.float16
    assert rows.shape == (5, *measure.shape)
    assert measure.shape == (4 * (4 + 8 + 16) + 32,)
    first = next(iter(stages.values()))  # (5, 4, 32, 32), by quarters of the image
    quarters = first.reshape(5, 4, 2, 16, 2, 16).mean((3, 5)).flatten(1)
    torch.testing.assert_close(rows[:, :16].float(), quarters, rtol=2e-3, atol=2e-3)


def test_an_image_is_seen_alike_in_any_batch() -> None:
    spec = ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 4})
    measure = Activations(create_model(spec).eval(), CPU, 16)
    images, labels = _images(6, 16), torch.zeros(6, dtype=torch.int64)
    with torch.inference_mode():
        whole, part = measure(images, labels), measure(images[2:4], labels[2:4])
    torch.testing.assert_close(whole[2:4], part, rtol=1e-3, atol=1e-3)


def test_what_is_wide_is_projected_and_distances_stay() -> None:
    spec = ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 64})
    measure = Activations(create_model(spec).eval(), CPU, 16)
    assert measure.shape == (1024,)
    with torch.inference_mode():
        first = measure(_images(3, 16), torch.zeros(3, dtype=torch.int64))
        again = Activations(measure.model, CPU, 16)(_images(3, 16), torch.zeros(3).long())
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()


class _Last(nn.Module):
    """Images with their channels last, as in Swin, and the heads of attention beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 6), nn.Linear(6, 7), nn.Linear(7, 9)
        self.attention = nn.Identity()
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.permute(0, 2, 3, 1))
        self.attention(torch.zeros(4 * len(x), 3, 16, 16))  # of windows
        self.attention(torch.zeros(len(x), 3, 17, 5))
        x = self.second(self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = self.third(self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x.mean((1, 2))[:, :3]


def test_channels_may_come_last_and_heads_of_attention_are_no_images() -> None:
    model = _Last().eval()
    measure = Activations(model, CPU, 16)
    assert measure.points == ["first", "second", "third"]
    assert measure.shape == (4 * (6 + 7) + 9,)
    images = _images(5, 16)
    with torch.inference_mode():
        rows = measure(images, torch.zeros(5, dtype=torch.int64))
        first = model.first(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    quarters = first.reshape(5, 6, 2, 8, 2, 8).mean((3, 5)).flatten(1)
    torch.testing.assert_close(rows[:, :24].float(), quarters, rtol=2e-3, atol=2e-3)


class _Tokens(nn.Module):
    """As transformers have them: ``(N, T, C)`` all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]  # untyped call


def test_networks_that_keep_one_resolution_are_looked_at_after_each_quarter() -> None:
    measure = Activations(_Tokens().eval(), CPU, 16)
    assert len(measure.points) == 4
    assert measure.points[-1] == "blocks.5"
    with torch.inference_mode():
        rows = measure(_images(2, 16), torch.zeros(2, dtype=torch.int64))
    assert np.isfinite(rows.numpy()).all()


def test_a_model_without_anything_to_look_at_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ConfigError, match="no images or tokens"):
        Activations(model, CPU, 4)
