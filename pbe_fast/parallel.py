"""One training step shared by several processes, so that it stays the step of the whole batch.

Each rank takes its part of every global batch, so all ranks make the same number of steps
whatever the shards' sizes. Batch norm takes mean and variance over the global batch, gradients are
sums over it divided by its images. But for rounding, and for layers that draw random numbers
(dropout), the step is the one that a single process would make, whatever the number of ranks.

The gradients travel as one vector in the order of the parameters. Buckets that are sent while the
backward pass still runs would hide that time, but their layout changes after the first step, so
that a stopped run would not end in the same bytes; and the time is small beside the mining, which
costs 15 half passes a step and sends nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pbe_fast.errors import ConfigError

__all__ = ["Share", "share_batch_norm"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """Which of how many ranks this process is; the process group must be there if several."""

    rank: int = 0
    world: int = 1

    def part(self, batch: Ids) -> Ids:
        """This rank's images of a global batch, at least two.

        A batch that is too small to be divided is worked on by every rank whole, which gives the
        same statistics and, divided by the number of images, the same gradients.
        """
        if len(batch) < 2 * self.world:
            return batch
        return np.array_split(batch, self.world)[self.rank]

    def total(
        self, parameters: Iterable[nn.Parameter], loss: Tensor, correct: Tensor, images: int
    ) -> tuple[Tensor, Tensor]:
        """Turn the gradients of sums over this rank's images into those of the global mean.

        Args:
            parameters: with gradients of the summed loss; changed in place.
            loss, correct: sums over this rank's images, scalars.
            images: how many they are.

        Returns:
            the mean loss over all ranks' images, and how many they got right, scalars.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        facts = torch.stack([loss.detach(), correct, torch.full_like(loss, images)]).float()
        flat = torch.cat([*(g.flatten() for g in gradients), facts])
        dist.all_reduce(flat)
        flat[:-2] /= flat[-1]
        start = 0
        for gradient in gradients:
            end = start + gradient.numel()
            gradient.copy_(flat[start:end].view_as(gradient))
            start = end
        return flat[-3], flat[-2]


class _Normalise(torch.autograd.Function):
    """Batch norm with mean and variance over the images of all ranks; torch's kernels do the work.

    Takes ``(N, C, ...)`` in float32, weight and bias ``(C,)`` or None, and eps. Returns the output,
    and mean, variance and number of values by channel, which have no gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = x.new_tensor(x.numel() / x.shape[1])
        # What var_mean gives, 3 to 12 times as fast on a CPU.
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        mine = torch.stack([mean, variance, count.expand_as(mean)])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        # The difference of two large sums would lose what is small, so means are taken first.
        means, variances, counts = torch.stack(everyone, 1).unbind()
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        y = functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        # As if mean and variance were constants, which gives the sums that the rest is made of.
        through, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = torch.stack([for_weight, for_bias])
        dist.all_reduce(sums)
        scale = torch.rsqrt(variance + ctx.eps) / total
        along, level = sums * (scale if weight is None else scale * weight)
        by_statistics = functional.batch_norm(x, mean, variance, along, level, eps=ctx.eps)
        affine = (None, None) if weight is None else (for_weight, for_bias)
        return through.sub_(by_statistics), *affine, None


class _SharedBatchNorm(_BatchNorm):
    """Batch norm over the images of all ranks, on any device."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.track_running_stats = norm.track_running_stats
        for name, value in norm.named_parameters(recurse=False):
            self.register_parameter(name, value)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        # timm's norms apply these two as well, in this order.
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.training = norm.training

    def _check_input_dim(self, input: Tensor) -> None:  # torch's name
        """Any number of dimensions from two on."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """``(N, C, ...)``, same out."""
        if not self.training and self.running_mean is not None:
            return self.act(self.drop(super().forward(input)))  # type: ignore[no-any-return]  # modules are untyped
        y, mean, variance, total = _Normalise.apply(input.float(), self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            self._keep(mean, variance * total / (total - 1))
        return self.act(self.drop(y.to(input.dtype)))  # type: ignore[no-any-return]  # modules are untyped

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)  # type: ignore[union-attr]  # the caller looked
        self.running_var.lerp_(variance, share)  # type: ignore[union-attr]  # the caller looked


def share_batch_norm(model: nn.Module) -> None:
    """Make every batch norm of a model one over all ranks, in place; names of weights stay.

    On CUDA torch's own implementation is taken where it fits.

    Raises:
        ConfigError: a kind of batch norm that is not known here.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        kind = type(module).__name__
        if kind not in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d"):
            raise ConfigError(
                f"{name} of the model is a {kind}, whose statistics cannot be taken over several "
                "workers. Use --workers 1."
            )
        parent, _, last = name.rpartition(".")
        device = next(module.buffers(), torch.empty(0)).device
        shared: nn.Module = _SharedBatchNorm(module)
        if device.type == "cuda" and kind != "BatchNormAct2d":
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]  # torch's stub
        setattr(model.get_submodule(parent), last, shared)
