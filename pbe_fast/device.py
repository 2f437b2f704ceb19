"""Where and in which precision the arithmetic runs.

``auto`` takes CUDA where there is one, else the CPU. On both, bfloat16 autocast with
channels_last images is used where a short measured probe says that it is faster; the answer is
written to the run's configuration so that a resumed run does not measure again.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.errors import ConfigError

__all__ = ["Device", "Precision", "choose_device"]

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of the forward and backward passes on it."""

    torch: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which models run; weights and sums stay float32."""
        return torch.autocast(self.torch.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def own_randomness(self) -> AbstractContextManager[object]:
        """A context in which torch's global generators may be seeded; restored after it."""
        devices = [self.torch] if self.torch.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def images(self, images: Tensor) -> Tensor:
        """uint8 ``(N, 3, H, W)`` to float32 in [0, 1], channels_last, on the device."""
        moved = images.to(self.torch, non_blocking=True)
        return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, its convolutions in channels_last."""
        return model.to(self.torch, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's stub lacks this form


def choose_device(
    name: str, precision: Literal["auto"] | Precision, model: nn.Module, image_size: int
) -> Device:
    """Resolve ``auto`` for device and precision.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` measures; anything else is taken as it is.
        model: what will run; probed without changing it.
        image_size: side of the images in pixels.

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
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # same seed, same bytes
        torch.backends.cudnn.benchmark = False
    if precision != "auto":
        return Device(device, precision)
    return min(
        (Device(device, "float32"), Device(device, "bfloat16")),
        key=lambda candidate: _probe(model, candidate, image_size),
    )


def _probe(model: nn.Module, device: Device, image_size: int) -> float:
    """Seconds of the fastest of three adversary passes (forward, gradient of the images)."""
    training = model.training
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
    model.train(training)
    return fastest
