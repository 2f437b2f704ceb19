"""The frozen copy: folding finds what it may fold and nothing else, and follows updates."""

import warnings

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pbe_fast.device import Device, Precision
from pbe_fast.models.frozen import FrozenCopy
from pbe_fast.models.preact_resnet import PreActResNet18

CPU = Device(torch.device("cpu"), "float32", "contiguous")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(net: nn.Module) -> nn.Module:
    """Statistics and scales that are not those of a new net, so that folding has work to do."""
    rng = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=rng) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=rng) + 0.5)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(module.num_features, generator=rng) + 0.5)
                    module.bias.copy_(torch.randn(module.num_features, generator=rng) * 0.2)
    return net.eval()


def assert_same(net: nn.Module, copy: FrozenCopy, example: Tensor) -> None:
    with torch.no_grad():
        wanted, found = net(example), copy.net(example)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("make", "folded", "norms"),
    [
        (lambda: PreActResNet18(5, width=8), 8, 17),  # the others come before their convolution
        (lambda: torchvision.models.resnet18(num_classes=5), 20, 20),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 34, 34),
        (lambda: timm.create_model("efficientnet_b0", num_classes=5), 49, 49),
        (lambda: timm.create_model("resnet10t", num_classes=5), 14, 14),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5), 0, 0),
    ],
)
def test_real_networks(make: object, folded: int, norms: int) -> None:
    torch.manual_seed(0)
    net = lively(make())  # type: ignore[operator]  # a table of functions
    copy = FrozenCopy(net, CPU, (32, 32))
    assert (copy.folded, copy.norms) == (folded, norms)
    assert_same(net, copy, noise(4, 3, 32, 32, seed=1))


class TwoUses(nn.Module):
    """A convolution whose output goes on past its norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.bn(y) + y).mean((2, 3))


class SharedConv(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x))).mean((2, 3))


class SharedNorm(nn.Module):
    """One norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn(self.one(x)) * self.bn(self.two(x))).mean((2, 3))


class Doubled(nn.Conv2d):
    """A convolution with a ``forward`` of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "folded"),
    [
        (TwoUses, 0),
        (SharedConv, 0),
        (SharedNorm, 0),
        (lambda: chain(Doubled(3, 4, 3), nn.BatchNorm2d(4)), 0),
        (lambda: chain(weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), 0),
        (lambda: chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), 0),
        (lambda: chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 0),
        (lambda: chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 0),
        (lambda: chain(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)), 1),
        (lambda: chain(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), 1),
        (lambda: chain(nn.Conv2d(3, 4, 3, dilation=2, stride=2), nn.BatchNorm2d(4)), 1),
    ],
)
def test_what_may_be_folded(make: object, folded: int) -> None:
    torch.manual_seed(0)
    net = lively(make())  # type: ignore[operator]  # a table of functions
    copy = FrozenCopy(net, CPU, (16, 16))
    assert copy.folded == folded
    assert_same(net, copy, noise(4, 3, 16, 16, seed=1))


def small() -> nn.Module:
    torch.manual_seed(1)
    return lively(torchvision.models.resnet18(num_classes=5))


def train_a_step(net: nn.Module) -> None:
    """Weights, norm scales and running statistics all move."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(net(noise(8, 3, 32, 32, seed=5)), torch.arange(8) % 5)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
    optimizer.step()
    net.eval()


def test_a_refreshed_copy_follows_updates_and_a_stale_one_does_not() -> None:
    net, example = small(), noise(4, 3, 32, 32, seed=2)
    copy = FrozenCopy(net, CPU, (32, 32))
    storage = [p.data_ptr() for p in copy.net.parameters()]
    for _ in range(2):
        train_a_step(net)
        with pytest.raises(AssertionError):
            assert_same(net, copy, example)
        copy.refresh()
        assert_same(net, copy, example)
    # In place, so that compiled code and captured graphs see the new weights.
    assert [p.data_ptr() for p in copy.net.parameters()] == storage


def test_the_model_is_left_as_it_was() -> None:
    net = small().train()
    next(net.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wanted = [p.requires_grad for p in net.parameters()]
    copy = FrozenCopy(net, CPU, (32, 32))
    copy.refresh()
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert all(p.grad is None for p in net.parameters())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any(module.training for module in copy.net.modules())
    assert not any(p.requires_grad for p in copy.net.parameters())


def test_precision_and_memory_format_are_the_devices() -> None:
    half = Device(torch.device("cpu"), "bfloat16", "channels_last")
    net, example = small(), noise(4, 3, 32, 32, seed=2)
    copy = FrozenCopy(net, half, (32, 32))
    weight = copy.net.get_parameter("layer1.0.conv1.weight")
    assert weight.dtype == copy.net.get_parameter("fc.weight").dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), half.autocast():
        wanted, found = net(example), copy.net(example.bfloat16()).float()
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_no_folding_when_not_wanted() -> None:
    net = small()
    copy = FrozenCopy(net, CPU, (32, 32), fold=False)
    assert copy.folded == 0
    assert_same(net, copy, noise(4, 3, 32, 32, seed=2))


class Hidden(nn.Module):
    """Uses its convolution once more where autograd does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y).mean((2, 3)) + y.detach().mean((2, 3))


def test_a_copy_that_differs_is_given_up() -> None:
    torch.manual_seed(0)
    net = lively(Hidden())
    copy = FrozenCopy(net, CPU, (16, 16))
    assert copy.folded == 0
    assert_same(net, copy, noise(4, 3, 16, 16, seed=1))


class Cached(nn.Module):
    """Keeps what it computed of its weights until it is trained again, as timm's levit does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "Cached":
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.training:
            self.kept = self.weight * 2
        return x.mean((2, 3)) @ self.kept.t()


def test_what_a_network_caches_is_not_stale_and_does_not_hinder_the_copy() -> None:
    torch.manual_seed(0)
    net, example = Cached().eval(), noise(2, 3, 8, 8)
    net(example)  # what it keeps now carries a graph
    copy = FrozenCopy(net, CPU, (8, 8))
    assert_same(net, copy, example)
    with torch.no_grad():
        net.weight.mul_(3)
    net.train().eval()
    copy.refresh()
    assert_same(net, copy, example)


def test_old_weight_norm_is_copied_and_followed() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        convolution = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))  # type: ignore[no-untyped-call]  # old
    net = lively(chain(convolution, nn.BatchNorm2d(4)))
    net(noise(2, 3, 8, 8)).sum().backward()
    copy = FrozenCopy(net, CPU, (8, 8))
    train = torch.optim.SGD(net.parameters(), lr=1.0)
    train.step()
    copy.refresh()
    assert_same(net, copy, noise(4, 3, 8, 8, seed=1))


class Counts(nn.Module):
    """Has a buffer that is not saved and that changes in training; mixes in float32 outright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("seen", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).mean((2, 3)).float()) * self.seen


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unsaved_buffers_are_followed_and_float32_inside_works(precision: Precision) -> None:
    torch.manual_seed(0)
    net, example = Counts().eval(), noise(2, 3, 8, 8)
    place = Device(torch.device("cpu"), precision, "contiguous")
    copy = FrozenCopy(net, place, (8, 8))
    net.seen.add_(2)
    copy.refresh()
    with torch.no_grad(), place.autocast():
        wanted, found = net(example), copy.net(example)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)


def test_a_network_of_buffers_alone() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.register_buffer("nothing", torch.zeros(1))
    assert FrozenCopy(net, CPU, (8, 8)).folded == 0
    fixed = chain(nn.BatchNorm2d(3, affine=False)).eval()
    assert FrozenCopy(fixed, CPU, (8, 8)).folded == 0
