"""Whether named tensors can become the weights of a model, and every reason why not."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_weights", "strange_tensor"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weights(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[str]:
    """All reasons why ``state`` cannot become the weights of a model, one line each.

    Args:
        state: names and tensors of a checkpoint.
        reference: the model's own ``state_dict``; may be on the meta device.

    Returns:
        Differences in names, shapes and kinds of dtype, and values that cannot be weights
        (NaN, infinite, a negative variance); empty if the state fits. An absent
        ``num_batches_tracked`` is no difference.
    """
    lines = _class_count_line(state, reference)
    lines += [
        f"missing: {name} {tuple(value.shape)}"
        for name, value in reference.items()
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    # In the model's order, from the image to the logits; safetensors gives none of its own.
    for name, value in reference.items():
        if name in state:
            lines += _differences(name, state[name], value)
    lines += [
        f"unexpected: {name} {strange_tensor(state[name]) or tuple(state[name].shape)}"
        for name in sorted(state.keys() - reference.keys())
    ]
    return lines


def strange_tensor(value: Tensor) -> str | None:
    """Why a tensor is of no use as a weight, whatever the model."""
    if value.is_nested:
        return "nested"
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    if value.is_quantized:
        return "quantised"
    if value.is_complex():
        return "complex"
    return "empty (meta)" if value.is_meta else None


def _differences(name: str, value: Tensor, reference: Tensor) -> list[str]:
    """What is wrong with one tensor; values are looked at only where the shape is right."""
    strange = strange_tensor(value)
    if strange:
        return [f"{name}: {strange} tensors are refused; save it dense and real"]
    if value.shape != reference.shape:
        return [
            f"{name}: shape {tuple(value.shape)} in the checkpoint, "
            f"{tuple(reference.shape)} in the model"
        ]
    if reference.is_floating_point():
        if value.dtype not in _FLOATS:
            return [f"{name}: {value.dtype} in the checkpoint, {reference.dtype} in the model"]
        # After the conversion, because a float64 can be too large for a float32.
        value = value.to(reference.dtype)
        lines = []
        nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
        if nan or inf:
            lines.append(f"{name}: {nan} NaN and {inf} infinite of {value.numel()} values")
        if name.endswith("running_var") and bool((value < 0).any()):
            lines.append(f"{name}: {int((value < 0).sum())} negative variances")
        return lines
    same = (value.dtype == torch.bool) == (reference.dtype == torch.bool)
    if value.is_floating_point() or not same:
        return [f"{name}: {value.dtype} in the checkpoint, {reference.dtype} in the model"]
    return []


def _class_count_line(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[str]:
    """One line in words if the only wrong shapes are those of the last layer."""
    pairs, layers = set(), set()
    for name, value in reference.items():
        if name not in state or strange_tensor(state[name]):
            continue
        if state[name].shape != value.shape:
            theirs, ours = state[name].shape, value.shape
            if len(theirs) != len(ours) or theirs[1:] != ours[1:]:
                return []
            pairs.add((theirs[0], ours[0]))
            layers.add(name.rpartition(".")[0])
    if len(pairs) != 1 or len(layers) > 2:
        return []
    ((theirs_classes, our_classes),) = pairs
    return [
        f"the checkpoint has {theirs_classes} classes, the data has {our_classes} "
        f"(last layer {', '.join(sorted(layers))})"
    ]
