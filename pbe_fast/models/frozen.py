"""A frozen copy of a network for mining: batch norm folded, weights in the mining precision.

In eval mode a batch norm is an affine map of each channel, so one that follows a convolution c is
a part of it:

    bn(c(x)) = (gamma / s) * (W * x + b - mu) + beta,   s = sqrt(var + eps)
             = (gamma / s * W) * x + gamma / s * (b - mu) + beta

Which pairs can be folded is read off the autograd graph of one forward pass: a convolution whose
weight is used once, and whose output feeds one batch norm and nothing else. That holds for any
Python code in ``forward``. A folded network is then compared with the network itself, in float64 so
that the answer depends on the architecture alone; one that differs is given up for an unfolded
copy.

The copy has weights of its own, which :meth:`FrozenCopy.refresh` writes in place from the
network's. Compiled code and captured CUDA graphs therefore see the new ones. Whoever mines must
refresh after each update of the model: folded weights go stale silently.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbe_fast.device import Device

__all__ = ["FrozenCopy"]

_SAME = 1e-6  # largest difference of float64 logits, relative to the largest logit
# What autocast would cast at every call; everything else keeps float32.
_CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class _Pair:
    """Names of a convolution and of the batch norm that is folded into it."""

    convolution: str
    norm: str


class FrozenCopy:
    """A network in eval mode, without gradients for its weights; to be run under autocast.

    Args:
        net: the network to copy; takes normalised images ``(N, 3, H, W)``. It is never run.
        device: gives the precision and the memory format of the copy's weights.
        image_size: height and width in pixels, to find the pairs with.
        fold: whether to fold at all.

    Attributes:
        net: the copy; its weights are those of the last :meth:`refresh`.
        folded: how many batch norms were folded.
        norms: how many the network has.
    """

    def __init__(
        self, net: nn.Module, device: Device, image_size: tuple[int, int], *, fold: bool = True
    ) -> None:
        self.source = net
        self.norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
        self._pairs = _foldable(net, image_size) if fold and self.norms else []
        self.folded = len(self._pairs)
        copy = _without_norms(_copied(net), self._pairs)
        if device.precision == "bfloat16":
            for module in copy.modules():
                if isinstance(module, _CAST):
                    module.to(torch.bfloat16)
        self.net = device.place(copy).requires_grad_(False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the network's present weights and statistics, in place."""
        self.net.train()  # some networks drop what they cached of the old weights only here
        self.net.eval()
        theirs, ours = _tensors(self.source), _tensors(self.net)
        for pair in self._pairs:
            weight, bias = _fold(theirs, pair, self.source)
            ours.pop(f"{pair.convolution}.weight").copy_(weight)
            ours.pop(f"{pair.convolution}.bias").copy_(bias)
        if ours:
            torch._foreach_copy_(list(ours.values()), [theirs[name] for name in ours])


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by name, whether they are saved in checkpoints or not."""
    return {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }


def _copied(net: nn.Module) -> nn.Module:
    """A copy in eval mode; the network's own state is left as it is."""
    for module in net.modules():
        for name, value in vars(module).items():
            # What a forward hook computed, as torch's older weight norm does: it comes anew at
            # the next call, and a copy of it would have to carry a graph along.
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    copy = deepcopy(net)
    for parameter in copy.parameters():
        parameter.grad = None
    return copy.train().eval()


def _foldable(net: nn.Module, image_size: tuple[int, int]) -> list[_Pair]:
    """The pairs of a network, or none where a folded network is not the same."""
    twin = _copied(net).to("cpu", torch.float64)
    rng = torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, *image_size, generator=rng, dtype=torch.float64)
    try:
        with torch.enable_grad():
            wanted = twin.requires_grad_(True)(example)
        pairs = _pairs(twin, wanted.grad_fn)
        if not pairs:
            return []
        folded = _without_norms(_copied(net).to("cpu", torch.float64), pairs)
        ours, theirs = _tensors(folded), _tensors(twin)
        with torch.no_grad():
            for pair in pairs:
                weight, bias = _fold(theirs, pair, twin)
                ours[f"{pair.convolution}.weight"].copy_(weight)
                ours[f"{pair.convolution}.bias"].copy_(bias)
            found = folded(example)
    except Exception:  # a network that cannot run in float64 is mined without folding
        return []
    apart = (found - wanted.detach()).abs().max()
    return pairs if bool(apart <= _SAME * wanted.detach().abs().max()) else []


def _pairs(net: nn.Module, root: Any) -> list[_Pair]:
    """Plain convolutions and batch norms between which nothing else comes."""
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
    todo, seen = [root] if root is not None else [], {root}
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


def _without_norms(net: nn.Module, pairs: list[_Pair]) -> nn.Module:
    """The network itself, its norms of the pairs taken out and their convolutions with a bias."""
    modules = dict(net.named_modules())
    for pair in pairs:
        convolution, norm = modules[pair.convolution], modules[pair.norm]
        if isinstance(convolution, nn.Conv2d) and convolution.bias is None:
            zeros = convolution.weight.detach().new_zeros(convolution.out_channels)
            convolution.bias = nn.Parameter(zeros, requires_grad=False)
        parent, _, name = pair.norm.rpartition(".")
        setattr(modules[parent], name, _activation(norm) or nn.Identity())
    return net.eval().requires_grad_(False)


def _fold(tensors: dict[str, Tensor], pair: _Pair, source: nn.Module) -> tuple[Tensor, Tensor]:
    """The convolution's weight and bias with its batch norm inside; see the module."""
    norm = source.get_submodule(pair.norm)
    eps: float = norm.eps  # type: ignore[assignment]  # a module's attributes have no types
    mean, variance = tensors[f"{pair.norm}.running_mean"], tensors[f"{pair.norm}.running_var"]
    scale = torch.rsqrt(variance + eps) * tensors[f"{pair.norm}.weight"]
    bias = tensors.get(f"{pair.convolution}.bias", torch.zeros_like(mean))
    weight = tensors[f"{pair.convolution}.weight"] * scale.view(-1, 1, 1, 1)
    return weight, (bias - mean) * scale + tensors[f"{pair.norm}.bias"]
