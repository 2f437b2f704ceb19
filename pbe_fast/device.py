"""Where, in which precision and in which memory format the arithmetic runs.

``auto`` takes CUDA where there is one, else the CPU. bfloat16 and channels_last images are used
where a short measured probe says that they are faster. The probe's times go to the run's log, and
its choice to the run's configuration, so that a resumed run does not measure again.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.errors import ConfigError
from pbe_fast.memory import keep_freed_memory

__all__ = ["Device", "MemoryFormat", "Precision", "choose_device"]

Precision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["contiguous", "channels_last"]

_FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
_Format: TypeAlias = torch.memory_format


@dataclass(frozen=True)
class Device:
    """A torch device, and how the forward and backward passes run on it."""

    torch: torch.device
    precision: Precision
    layout: MemoryFormat = "channels_last"

    @property
    def memory_format(self) -> _Format:
        """Of image batches and convolution weights."""
        return _FORMATS[self.layout]

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which models run; weights and sums stay float32."""
        return torch.autocast(self.torch.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def own_randomness(self) -> AbstractContextManager[object]:
        """A context in which torch's global generators may be seeded; restored after it."""
        devices = [self.torch] if self.torch.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def images(self, images: Tensor) -> Tensor:
        """uint8 ``(N, 3, H, W)`` to float32 in [0, 1], in the memory format, on the device."""
        moved = images.to(self.torch, non_blocking=True)
        return moved.to(torch.float32, memory_format=self.memory_format).mul_(1 / 255)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, its convolutions in the memory format."""
        return model.to(self.torch, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]  # torch's stub lacks this form


def choose_device(
    name: str,
    precision: Literal["auto"] | Precision,
    model: nn.Module,
    image_size: int,
    *,
    layout: Literal["auto"] | MemoryFormat = "auto",
    say: Callable[[str], None] | None = None,
) -> Device:
    """Resolve ``auto`` for device, precision and memory format.

    On a CPU the process keeps freed memory from here on (:func:`keep_freed_memory`).

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision, layout: ``auto`` measures; anything else is taken as it is.
        model: what will run; its weights end in the chosen place and memory format.
        image_size: side of the images in pixels.
        say: told of every measurement.

    Raises:
        ConfigError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees no CUDA device. Use cpu.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels are launched on the current one
        torch.backends.cudnn.deterministic = True  # same seed, same bytes
        torch.backends.cudnn.benchmark = False
    precisions: list[Precision] = ["bfloat16", "float32"] if precision == "auto" else [precision]
    layouts: list[MemoryFormat] = ["channels_last", "contiguous"] if layout == "auto" else [layout]
    candidates = [Device(device, p, m) for p in precisions for m in layouts]
    if len(candidates) == 1:
        candidates[0].place(model)
        return candidates[0]
    seconds = {}
    for candidate in candidates:
        seconds[candidate] = _probe(model, candidate, image_size)
        if say is not None:
            say(
                f"probe: {candidate.precision}, {candidate.layout}: "
                f"{1000 * seconds[candidate]:.1f} ms for one adversary pass"
            )
    best = min(seconds, key=lambda candidate: seconds[candidate])
    best.place(model)
    return best


def _probe(model: nn.Module, device: Device, image_size: int) -> float:
    """Seconds of the fastest of three adversary passes (forward, gradient of the images)."""
    modes = [(module, module.training) for module in model.modules()]
    model = device.place(model).eval()
    batch = 64 if image_size <= 64 else 8
    images = device.images(torch.full((batch, 3, image_size, image_size), 127, dtype=torch.uint8))
    labels = torch.zeros(batch, dtype=torch.int64, device=device.torch)
    fastest = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        adversarial = images.clone().requires_grad_()
        with device.autocast():
            logits = model(adversarial)
        loss = functional.cross_entropy(logits.float(), labels)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        float(gradient.sum())  # waits for the device
        fastest = min(fastest, time.perf_counter() - started)
    for module, mode in modes:
        module.training = mode
    return fastest
