"""A frozen copy of a classifier for mining: batch norm folded, weights in the mining precision.

In eval mode a batch norm is an affine map of each channel, so one that follows a convolution c is
a part of it:

    bn(c(x)) = (gamma / s) * (W * x + b - mu) + beta,   s = sqrt(var + eps)
             = (gamma / s * W) * x + gamma / s * (b - mu) + beta

Which pairs can be folded is read off the autograd graph of one forward pass: a convolution whose
weight is used once, and whose output feeds one batch norm and nothing else. That holds for any
Python code in ``forward``. The folded copy is then compared with the model; a copy that differs is
given up for an unfolded one.

The copy has weights of its own, which :meth:`FrozenCopy.refresh` writes in place from the
model's. Compiled code and captured CUDA graphs therefore see the new ones. Whoever mines must
refresh after each update of the model: folded weights go stale silently.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbe_fast.device import Device

__all__ = ["FrozenCopy"]

_SAME = 1e-3  # largest difference of float32 logits, relative to the largest logit


@dataclass(frozen=True)
class _Pair:
    """Names of a convolution and of the batch norm that is folded into it."""

    convolution: str
    norm: str


class FrozenCopy:
    """The network of a model in eval mode, without gradients for its weights.

    Args:
        net: the network to copy; takes normalised images ``(N, 3, H, W)``.
        device: gives the precision and the memory format of the copy's weights.
        example: ``(2, 3, H, W)`` float32 input, to find and check the pairs with.
        fold: whether to fold at all.

    Attributes:
        net: the copy; its weights are those of the last :meth:`refresh`.
        folded: how many batch norms were folded.
        norms: how many the model has.
    """

    def __init__(
        self, net: nn.Module, device: Device, example: Tensor, *, fold: bool = True
    ) -> None:
        self.source = net
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.norms = len(norms)
        with _quiet(net):
            pairs = _foldable(net, example) if fold else []
            self.net, self._pairs = _copy(net, pairs), pairs
            self.refresh()
            if pairs and not _same(net, self.net, example):
                self._pairs = []
                self.net = _copy(net, [])
        self.folded = len(self._pairs)
        dtype = torch.bfloat16 if device.precision == "bfloat16" else torch.float32
        self.net = device.place(self.net.to(dtype))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights and statistics, in place."""
        theirs = dict(self.source.state_dict())
        ours = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        for pair in self._pairs:
            weight, bias = _fold(theirs, pair, self.source)
            ours.pop(f"{pair.convolution}.weight").copy_(weight)
            ours.pop(f"{pair.convolution}.bias").copy_(bias)
        names = [name for name in ours if name in theirs]
        if names:
            torch._foreach_copy_([ours[n] for n in names], [theirs[n] for n in names])


def _foldable(net: nn.Module, example: Tensor) -> list[_Pair]:
    """Pairs of plain convolutions and batch norms that nothing else comes between."""
    with torch.enable_grad():
        wanted = [(p, p.requires_grad) for p in net.parameters()]
        for parameter, _ in wanted:
            parameter.requires_grad_(True)
        try:
            root = net(example).grad_fn
        finally:
            for parameter, grad in wanted:
                parameter.requires_grad_(grad)
    uses, consumers = _graph(root)
    owners = {
        id(parameter): name.rpartition(".")[0]
        for name, parameter in net.named_parameters()
        if name.rpartition(".")[2] == "weight"
    }
    modules = dict(net.named_modules())
    pairs = []
    for node, users in consumers.items():
        if "ConvolutionBackward" not in node.name() or len(users) != 1:
            continue
        (norm,) = users
        if "BatchNormBackward" not in norm.name():
            continue
        first, second = _owner(node, owners, uses), _owner(norm, owners, uses)
        if first is None or second is None:
            continue
        if type(modules[first]) is nn.Conv2d and _is_plain(modules[second]):
            pairs.append(_Pair(first, second))
    return pairs


def _graph(root: Any) -> tuple[Counter[Any], dict[Any, list[Any]]]:
    """How often each node is used, and by whom."""
    uses: Counter[Any] = Counter({root: 1})
    consumers: dict[Any, list[Any]] = {}
    todo, seen = [root], {root}
    while todo:
        node = todo.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            uses[following] += 1
            consumers.setdefault(following, []).append(node)
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return uses, consumers


def _owner(node: Any, owners: dict[int, str], uses: Counter[Any]) -> str | None:
    """The module whose weight a node takes as it is, and no other node takes."""
    weight = node.next_functions[1][0]
    variable = getattr(weight, "variable", None)
    return owners.get(id(variable)) if variable is not None and uses[weight] == 1 else None


def _is_plain(module: nn.Module) -> bool:
    """A batch norm that in eval mode is an affine map, perhaps with an activation after it."""
    known = type(module) is nn.BatchNorm2d or _activation(module) is not None
    return known and getattr(module, "running_mean", None) is not None


def _activation(module: nn.Module) -> nn.Module | None:
    """What timm's norm with an activation does after the norm."""
    if type(module).__name__ != "BatchNormAct2d":
        return None
    act, drop = getattr(module, "act", None), getattr(module, "drop", None)
    return act if isinstance(act, nn.Module) and isinstance(drop, nn.Identity) else None


def _copy(net: nn.Module, pairs: list[_Pair]) -> nn.Module:
    copy = deepcopy(net)
    modules = dict(copy.named_modules())
    for pair in pairs:
        convolution, norm = modules[pair.convolution], modules[pair.norm]
        if not isinstance(convolution, nn.Conv2d):
            raise TypeError(f"{pair.convolution} is no convolution")
        if convolution.bias is None:
            convolution.bias = nn.Parameter(
                convolution.weight.new_zeros(convolution.out_channels), requires_grad=False
            )
        parent, _, name = pair.norm.rpartition(".")
        setattr(modules[parent], name, _activation(norm) or nn.Identity())
    return copy.eval().requires_grad_(False)


def _fold(state: dict[str, Tensor], pair: _Pair, source: nn.Module) -> tuple[Tensor, Tensor]:
    """The convolution's weight and bias with its batch norm inside; see the module."""
    norm = source.get_submodule(pair.norm)
    eps: float = norm.eps  # type: ignore[assignment]  # a module's attributes have no types
    mean, variance = state[f"{pair.norm}.running_mean"], state[f"{pair.norm}.running_var"]
    scale = torch.rsqrt(variance + eps) * state[f"{pair.norm}.weight"]
    bias = state.get(f"{pair.convolution}.bias", torch.zeros_like(mean))
    weight = state[f"{pair.convolution}.weight"] * scale.view(-1, 1, 1, 1)
    return weight, (bias - mean) * scale + state[f"{pair.norm}.bias"]


def _same(net: nn.Module, copy: nn.Module, example: Tensor) -> bool:
    with torch.no_grad():
        first, second = net(example), copy(example)
    return bool((first - second).abs().max() <= _SAME * first.abs().max())


@contextmanager
def _quiet(net: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each module's own mode after it."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
