"""The choice of device, precision and memory format."""

import pytest
import torch
from torch import nn

from pbe_fast import device as device_module
from pbe_fast.device import Device, choose_device
from pbe_fast.errors import ConfigError


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.mark.parametrize("best", ["bfloat16", "float32"])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_the_fastest_is_taken_and_all_are_told(
    monkeypatch: pytest.MonkeyPatch, best: str, layout: str
) -> None:
    def probe(_model: nn.Module, candidate: Device, _size: int) -> float:
        return 0.5 + (candidate.precision != best) + (candidate.layout != layout)

    monkeypatch.setattr(device_module, "_probe", probe)
    said: list[str] = []
    net = small_net()
    found = choose_device("cpu", "auto", net, 8, say=said.append)
    assert (found.precision, found.layout) == (best, layout)
    assert net[0].weight.is_contiguous(memory_format=found.memory_format)
    assert len(said) == 4
    assert f"probe: {best}, {layout}: 500.0 ms for one adversary pass" in said


def test_what_is_fixed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Device] = []

    def probe(_model: nn.Module, candidate: Device, _size: int) -> float:
        tried.append(candidate)
        return 1.0

    monkeypatch.setattr(device_module, "_probe", probe)
    found = choose_device("cpu", "float32", small_net(), 8, layout="contiguous")
    assert found == Device(torch.device("cpu"), "float32", "contiguous")
    assert not tried
    choose_device("cpu", "float32", small_net(), 8)
    assert {(d.precision, d.layout) for d in tried} == {
        ("float32", "channels_last"),
        ("float32", "contiguous"),
    }


def test_the_probe_leaves_the_model_as_it_was() -> None:
    net = small_net().train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    choose_device("cpu", "auto", net, 8)
    assert [module.training for module in net] == [True, False, True, True]
    assert all(parameter.grad is None for parameter in net.parameters())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_images_become_floats_in_the_memory_format(layout: device_module.MemoryFormat) -> None:
    place = Device(torch.device("cpu"), "float32", layout)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    images = place.images(pixels)
    assert images.is_contiguous(memory_format=place.memory_format)
    torch.testing.assert_close(images, pixels / 255, rtol=0, atol=6e-8)
    assert float(images.max()) == 1.0
    assert torch.equal((images * 255).round(), pixels.float())


@pytest.mark.parametrize("name", ["tpu", "cpu:x", "meta"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu, cuda"):
        choose_device(name, "float32", small_net(), 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        choose_device("cuda", "float32", small_net(), 8)
