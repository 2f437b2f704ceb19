"""The one kind of model that the rest of the library sees: pixels in [0, 1] to logits.

Normalisation (mean, std) is a part of the classifier and never of the data. An adversary's
eps then means the same number of grey levels for every model, and two models can be compared
on the same pixels.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from pbe_fast.errors import ModelError

__all__ = ["Classifier", "ModelSpec", "Scalar"]

Scalar = int | float | str | bool
Triple = tuple[float, float, float]

_MAX_CLASSES = 1_000_000
_MAX_IMAGE_SIZE = 4096
_MAX_PIXEL = 1000  # of a mean or std; beyond it the logits overflow
_MIN_STD = 1e-6


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a model again, without its weights.

    Attributes:
        name: ``builtin:preact_resnet18``, ``timm:NAME``, ``torchvision:NAME`` or
            ``PATH/file.py:factory``.
        num_classes: number of logits, K, at least 2.
        image_size: height and width of the images, in pixels.
        options: keyword arguments of the model, such as ``{"width": 16}``; plain scalars.
        mean, std: per-channel normalisation of RGB in [0, 1]; None takes the model's own.

    Raises:
        ModelError: a value has the wrong type or is out of range.
    """

    name: str
    num_classes: int
    image_size: int = 32
    options: Mapping[str, Scalar] = field(default_factory=dict)
    mean: Triple | None = None
    std: Triple | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ModelError(f"model name {self.name!r}: give text such as 'timm:resnet18'.")
        _check_integer("num_classes", self.num_classes, 2, _MAX_CLASSES)
        _check_integer("image_size", self.image_size, 1, _MAX_IMAGE_SIZE)
        object.__setattr__(self, "options", _checked_options(self.options))
        object.__setattr__(self, "mean", _checked_triple("mean", self.mean))
        object.__setattr__(self, "std", _checked_triple("std", self.std))
        if self.std is not None and min(self.std) < _MIN_STD:
            raise ModelError(f"std is {self.std}: each number must be at least {_MIN_STD}.")

    def to_json(self) -> str:
        """One line of JSON with sorted keys; the same spec gives the same text."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """The inverse of :meth:`to_json`; nothing in the text is trusted.

        Raises:
            ModelError: the text is not JSON, or not a spec.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the model description is not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise ModelError("the model description is not a JSON object.")
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ModelError(f"the model description has unknown keys: {unknown[:5]}.")
        missing = sorted({"name", "num_classes"} - set(values))
        if missing:
            raise ModelError(f"the model description lacks {missing}.")
        return cls(**values)


class Classifier(nn.Module):
    """A network with its normalisation: images in [0, 1] to logits.

    Args:
        net: maps normalised images (N, 3, H, W) to logits (N, K).
        spec: how ``net`` was made; its mean and std must be filled in.

    Attributes:
        net: the inner network; its names are the names in checkpoints.
        spec: the resolved spec.
        mean, std: buffers (1, 3, 1, 1), not part of ``state_dict``.

    Raises:
        ModelError: on a batch of two zero images the network fails, returns something other
            than one tensor, or has the wrong number of classes. The trial runs in eval mode
            and leaves the random state, the batch-norm statistics and the modes as they were.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise ModelError(f"{spec.name}: returned {type(net).__name__}, not a torch module.")
        if spec.mean is None or spec.std is None:
            raise ModelError(f"{spec.name}: mean and std are not known; give both in the spec.")
        self.net = net
        self.spec = spec
        parameter = next(net.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        mean = torch.tensor(spec.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        std = torch.tensor(spec.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._try_out()

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (N, 3, H, W), float in [0, 1], or uint8, which is divided by 255.

        Returns:
            (N, K) logits.
        """
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        logits = self.net((images - self.mean) / self.std)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"{self.spec.name}: the model returned {type(logits).__name__}, not one tensor "
                "of logits. Wrap it in a file.py:factory that returns the logits alone, or "
                "switch off its auxiliary outputs."
            )
        return logits

    def _try_out(self) -> None:
        size, classes = self.spec.image_size, self.spec.num_classes
        images = torch.zeros(2, 3, size, size, device=self.mean.device)
        modes = [(module, module.training) for module in self.modules()]
        devices = [self.mean.device] if self.mean.device.type == "cuda" else []
        self.eval()
        try:
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                logits = self(images)
        except (ModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any failure of foreign code is the model's, not ours
            raise ModelError(
                f"{self.spec.name}: cannot take {size}x{size} images "
                f"({type(error).__name__}: {_first_line(error)}). Set image_size to what the "
                "model was made for; many timm models also take the option img_size."
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        if tuple(logits.shape) != (2, classes) or not logits.is_floating_point():
            raise ModelError(
                f"{self.spec.name}: for 2 images and {classes} classes the logits must be "
                f"floats of shape (2, {classes}); the model returned {logits.dtype} of shape "
                f"{tuple(logits.shape)}. Make its last layer give {classes} classes."
            )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:300]


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ModelError(f"{name} is {value!r}: give an integer from {low} to {high}.")


def _checked_options(options: Any) -> dict[str, Scalar]:
    if not isinstance(options, Mapping):
        raise ModelError(f"options is {type(options).__name__}: give a mapping of names to values.")
    for key, value in options.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ModelError(f"option name {key!r}: give a plain name such as 'width'.")
        plain = type(value) in (int, float, str, bool)
        if not plain or (isinstance(value, float) and not math.isfinite(value)):
            raise ModelError(
                f"option {key} is {value!r:.80}: give a finite number, a text or true/false."
            )
    return {key: options[key] for key in sorted(options)}


def _checked_triple(name: str, values: Any) -> Triple | None:
    if values is None:
        return None
    right = isinstance(values, list | tuple) and len(values) == 3
    # Compared before anything is converted: a huge integer is no float at all.
    if not right or not all(
        type(v) in (int, float) and -_MAX_PIXEL <= v <= _MAX_PIXEL for v in values
    ):
        raise ModelError(
            f"{name} is {values!r:.80}: give three numbers of at most {_MAX_PIXEL}, one a channel."
        )
    return (float(values[0]), float(values[1]), float(values[2]))
