"""What the operations share: pixel scale, memory layout, registration."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "BLOCK",
    "PIXEL",
    "WARPS",
    "channels_last",
    "floor_to",
    "in_layout",
    "normalised",
    "operation",
    "reciprocals",
    "unit",
]

# uint8 becomes float by one multiplication, in kernels and twins alike, so that both agree to the
# bit; 255 * PIXEL rounds to exactly 1. A kernel sees no global but a constexpr.
PIXEL = 1 / 255
pixel = tl.constexpr(PIXEL)

# 1.5 * 2^23: adding it to a float32 below 2^22 and taking it away again rounds to nearest even.
_round = tl.constexpr(12582912.0)

# Elements a program and warps a program: 16 elements a thread, so that even uint8 loads are 16
# bytes wide. Both 3*32*32 and 3*224*224 are multiples of 1024: no lane is idle.
BLOCK = 1024
WARPS = 1 if torch.version.hip else 2  # of 64 threads, or of 32

Function = TypeVar("Function", bound=Callable[..., Any])


def unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; float ones in float32."""
    return images.float() * PIXEL if images.dtype == torch.uint8 else images.float()


def floor_to(value: float, dtype: torch.dtype) -> float:
    """The largest number of a 16-bit type that is not above a positive ``value``."""
    if dtype not in (torch.float16, torch.bfloat16):
        return value
    rounded = torch.tensor(value, dtype=dtype)
    if float(rounded) > value:
        rounded = (rounded.view(torch.int16) - 1).view(dtype)
    return float(rounded)


def reciprocals(values: Sequence[float]) -> list[float]:
    """1 / value in float32, as the twins compute it."""
    return [float(x) for x in 1 / torch.tensor(values, dtype=torch.float32)]


def normalised(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(images - mean) / std`` in the memory format of ``like`` and in its dtype, or another."""
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    scale = 1 / torch.tensor(std, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    return torch.empty_like(like, dtype=dtype).copy_((images - shift) * scale)


def channels_last(images: Tensor) -> bool:
    """Whether a dense ``(N, 3, H, W)`` tensor has its channels innermost."""
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def in_layout(tensor: Tensor, last: bool) -> Tensor:
    """The tensor itself if it lies densely in the wanted layout, else a copy that does."""
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def operation(
    name: str,
    twin: Function,
    launcher: Callable[..., Any],
    fake: Callable[..., Any],
    mutates: Sequence[str] = (),
) -> Function:
    """Register an operation: the kernel on CUDA, the torch twin elsewhere.

    ``torch.compile`` sees one opaque operation whose shapes ``fake`` tells, and CUDA graphs
    capture it, because no launcher waits for the device.
    """
    op = torch.library.custom_op(f"pbe::{name}", twin, mutates_args=tuple(mutates))
    op.register_kernel("cuda")(launcher)
    op.register_fake(fake)

    @wraps(twin)
    def call(*args: Any, **kwargs: Any) -> Any:
        first = next(iter((*args, *kwargs.values())))
        if first.device.type == "cpu" and not torch.compiler.is_compiling():
            # As torch would dispatch it, without importing its compiler, which takes seconds and
            # 100 MB the first time that any registered operation runs.
            with torch.no_grad():
                return twin(*args, **kwargs)
        return op(*args, **kwargs)

    return call  # type: ignore[return-value]  # it has the twin's signature


@triton.jit
def channel_of(element, HW: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The channel of an element's place in storage, counted within its sample."""
    channel = element // HW
    if CHANNELS_LAST:
        channel = element % 3
    return channel


@triton.jit
def of_channel(channel, first, second, third):
    """One of three numbers for each element; loading them from memory would be a gather."""
    return tl.where(channel == 0, first, tl.where(channel == 1, second, third))


@triton.jit
def load_unit(pointer, mask):
    """Pixels as float32 in [0, 1]."""
    values = tl.load(pointer, mask=mask, other=0).to(tl.float32)
    if pointer.dtype.element_ty == tl.uint8:
        values = values * pixel
    return values


@triton.jit
def nearest(values):
    """Rounded to whole numbers, as ``torch.round`` does."""
    return (values + _round) - _round


@triton.jit
def store_normalised(pointer, x, channel, mean0, mean1, mean2, scale0, scale1, scale2, mask):
    """As :func:`normalised`, from the reciprocals of the standard deviations."""
    z = x - of_channel(channel, mean0, mean1, mean2)
    z = z * of_channel(channel, scale0, scale1, scale2)
    tl.store(pointer, z.to(pointer.dtype.element_ty), mask=mask)
