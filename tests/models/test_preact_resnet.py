"""PreActResNet-18: shapes, sizes, the order of norm and convolution, and how it trains."""

import ctypes.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pbe_fast.errors import ModelError
from pbe_fast.models import PreActResNet18
from pbe_fast.models.preact_resnet import PreActBlock


def seeded(width: int = 4, num_classes: int = 5) -> PreActResNet18:
    torch.manual_seed(0)
    return PreActResNet18(num_classes, width)


def test_number_of_weights_is_that_of_the_paper_architecture() -> None:
    with torch.device("meta"):
        net = PreActResNet18(10)
    # Stem and 16 block convolutions, 3 shortcuts, 17 norms, linear: counted by hand.
    w = 64
    stem = 3 * w * 9
    stage1 = 4 * w * w * 9
    later = sum(9 * (c * c // 2 + 3 * c * c) + c * c // 2 for c in (2 * w, 4 * w, 8 * w))
    norms = 2 * (4 * w + sum(c // 2 + 3 * c for c in (2 * w, 4 * w, 8 * w)) + 8 * w)
    linear = 8 * w * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == stem + stage1 + later + norms + linear
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 20


def test_block_normalises_before_it_convolves() -> None:
    torch.manual_seed(0)
    block = PreActBlock(3, 3, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 3, 8, 8)
    # With its last convolution at zero the block is the identity: nothing follows the sum.
    assert torch.equal(block(x), x)


def test_shortcut_takes_the_activated_input() -> None:
    torch.manual_seed(0)
    block = PreActBlock(3, 6, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 3, 8, 8)
    assert block.shortcut is not None
    assert torch.equal(block(x), block.shortcut(torch.relu(block.bn1(x))[:, :, ::2, ::2]))
    assert block(x).shape == (2, 6, 4, 4)


@pytest.mark.parametrize(("size", "width"), [(32, 4), (8, 1), (33, 3), (64, 2)])
def test_shapes(size: int, width: int) -> None:
    net = seeded(width).eval()
    x = torch.randn(2, 3, size, size)
    features = net.features(x)
    assert features.shape == (2, 8 * width)
    assert bool((features >= 0).all())
    assert torch.equal(net.linear(features), net(x))
    assert net(x).shape == (2, 5)


def test_stem_keeps_the_resolution_and_stages_halve_it() -> None:
    net = seeded().eval()
    x = net.conv1(torch.randn(1, 3, 32, 32))
    sizes = [x.shape[-1]]
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 32, 16, 8, 4]


def test_channels_last_gives_the_same_logits() -> None:
    net = seeded().eval()
    x = torch.randn(4, 3, 32, 32)
    expected = net(x)
    last = torch.channels_last
    actual = net.to(memory_format=last)(x.to(memory_format=last))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_autocast_stays_close_and_trains() -> None:
    net = seeded(8)
    x = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.bfloat16
    # 18 layers of 8-bit mantissas: errors of a few parts in 2**8 of the logits' scale.
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max() + 0.02
    logits.float().square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_gradient_with_respect_to_the_image_matches_finite_differences() -> None:
    net = seeded(1).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: net(z).sum(), (x,), eps=1e-7, atol=1e-5)


def test_convolutions_start_with_the_fan_out_variance() -> None:
    torch.manual_seed(0)
    net = PreActResNet18(10, 16)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            ratio = float(module.weight.detach().var()) * fan_out / 2
            assert 0.9 < ratio < 1.1, name


@pytest.mark.parametrize("width", [0, -1, 5000, 1.5, True, "16"])
def test_absurd_width_is_refused(width: object) -> None:
    with pytest.raises(ModelError, match="width"):
        PreActResNet18(10, width)  # type: ignore[arg-type]  # the wrong type is the test


def test_the_final_norm_can_be_left_out() -> None:
    torch.manual_seed(0)
    with_norm = PreActResNet18(5, width=4).eval()
    torch.manual_seed(0)
    without = PreActResNet18(5, width=4, final_norm=False).eval()
    theirs, ours = with_norm.state_dict(), without.state_dict()
    assert [name for name in theirs if not name.startswith("bn.")] == list(ours)
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    images = torch.rand(2, 3, 8, 8)
    stages = (without.conv1, without.layer1, without.layer2, without.layer3, without.layer4)
    x = images
    for stage in stages:
        x = stage(x)
    torch.testing.assert_close(without.features(images), x.mean((2, 3)))
    assert (without.features(images) < 0).any()  # there is no ReLU either


@pytest.mark.parametrize("final_norm", [0, 1, None, "no"])
def test_a_final_norm_that_is_neither_is_refused(final_norm: object) -> None:
    with pytest.raises(ModelError, match="final_norm"):
        PreActResNet18(5, final_norm=final_norm)  # type: ignore[arg-type]


_TRAIN = """
import torch
from pbe_fast.models.preact_resnet import PreActResNet18
torch.set_num_threads(1)
for size in (16, 32):
    net = PreActResNet18(10, 4).to(memory_format=torch.channels_last)
    images = torch.rand(64, 3, size, size).to(memory_format=torch.channels_last)
    for _ in range(3):
        net(images).logsumexp(1).sum().backward()
"""


def test_training_a_narrow_network_keeps_to_its_memory() -> None:
    # A 1x1 convolution of stride 2 on four channels did not; see PreActBlock.
    checker = ctypes.util.find_library("c_malloc_debug")
    if checker is None:
        pytest.skip("the C library has no libc_malloc_debug, which checks the heap")
    checked = {**os.environ, "LD_PRELOAD": checker, "MALLOC_CHECK_": "3"}
    run = subprocess.run(
        [sys.executable, "-c", _TRAIN], env=checked, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
