"""Attacks as files: one safetensors file with the trigger's tensors, and its numbers as JSON.

The file is data alone, so it can be passed on: loading it runs no code.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pbe_fast._files import write_bytes
from pbe_fast.errors import TriggerError
from pbe_fast.triggers.badnets import BadNets
from pbe_fast.triggers.base import Attack, Scalar, Trigger
from pbe_fast.triggers.blend import Blend
from pbe_fast.triggers.input_aware import InputAware
from pbe_fast.triggers.sig import SIG
from pbe_fast.triggers.wanet import WaNet

__all__ = ["ATTACKS", "load_attack", "save_attack"]

ATTACKS = ("badnets", "blend", "sig", "wanet", "input_aware")
_KEY = "pbe_fast_attack"

# What reading a file raises that is no attack: not safetensors, or with other parts than ours.
_DAMAGE = (
    SafetensorError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    OverflowError,
)


def save_attack(attack: Attack, path: Path) -> None:
    """Write an attack, whole or not at all; the same attack gives the same bytes."""
    header = {
        "name": attack.trigger.name,
        "mode": attack.mode,
        "target": attack.target,
        "num_classes": attack.num_classes,
        "image_size": attack.image_size,
        "clean_label": attack.clean_label,
        "options": dict(attack.trigger.options()),
    }
    tensors = {name: value.contiguous() for name, value in attack.trigger.tensors().items()}
    metadata = {_KEY: json.dumps(header, sort_keys=True)}
    write_bytes(path, save(tensors, metadata=metadata))


def load_attack(path: Path) -> Attack:
    """Read an attack that :func:`save_attack` wrote.

    Raises:
        TriggerError: the file is missing, damaged, or describes no known attack.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Attack(
            trigger=_build(header["name"], int(header["image_size"]), header["options"], tensors),
            mode=header["mode"],
            target=int(header["target"]),
            num_classes=int(header["num_classes"]),
            image_size=int(header["image_size"]),
            clean_label=bool(header["clean_label"]),
        )
    except TriggerError as error:
        raise TriggerError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise TriggerError(
            f"{path}: there is no such file; 'pbe-fast poison' writes attack.safetensors."
        ) from error
    except _DAMAGE as error:
        raise TriggerError(f"{path}: not an attack written by pbe-fast ({error}).") from error


def _build(
    name: str, size: int, options: Mapping[str, Scalar], tensors: Mapping[str, Tensor]
) -> Trigger:
    """A trigger from its stored parts; every tensor's shape is checked."""
    if name == "badnets":
        return BadNets(size, int(options["patch_size"]))
    if name == "blend":
        _expect(tensors["picture"], (3, size, size), torch.uint8, "picture")
        return Blend(tensors["picture"], float(options["alpha"]))
    if name == "sig":
        return SIG(size, float(options["amplitude_255"]), float(options["frequency"]))
    if name == "wanet":
        return WaNet(tensors["control"], size, float(options["strength"]))
    if name == "input_aware":
        with torch.device("meta"):  # no random weights, which would move the global generator
            trigger = InputAware.build(int(options["width"]))
        wanted = trigger.tensors()
        if tensors.keys() != wanted.keys():
            raise TriggerError("the generators' weights have other names than they should.")
        for key, value in wanted.items():
            _expect(tensors[key], tuple(value.shape), value.dtype, key)
            if not tensors[key].isfinite().all():
                raise TriggerError(f"{key} has weights that are not finite.")
        for part, net in (("pattern", trigger.pattern), ("mask", trigger.mask)):
            weights = {key: tensors[f"{part}.{key}"] for key in net.state_dict()}
            net.load_state_dict(weights, assign=True)
            net.eval().requires_grad_(False)
        return trigger
    raise TriggerError(f"attack {name!r} is unknown; known: {', '.join(ATTACKS)}.")


def _expect(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise TriggerError(
            f"{name} is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}."
        )
