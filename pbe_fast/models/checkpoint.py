"""Weights in and out: safetensors first, torch pickles only through the restricted loader.

A checkpoint is somebody else's file, and here even suspected of being hostile. So nothing in
it is run: a ``.pt`` goes through ``torch.load(weights_only=True)`` and never otherwise, a
header cannot name a Python file, and every name, shape, dtype and value is compared with the
model before a weight is taken over.

A file written here is plain safetensors with the names of the inner network, so timm and
torchvision load it as their own. Its header has two entries more: ``pbe_fast``, the model's
spec as JSON, and ``pbe_fast_sha256``, a digest over everything else in the file.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pbe_fast._files import write_bytes
from pbe_fast.errors import CheckpointError, ModelError
from pbe_fast.models._reading import DIGEST_KEY, digest, read_checkpoint, split_safetensors
from pbe_fast.models._weights import check_weights
from pbe_fast.models.classifier import Classifier, ModelSpec
from pbe_fast.models.registry import build_net, create_model, runs_user_code

__all__ = ["check_weights", "load_model", "model_of", "read_state", "save_model"]

_SPEC_KEY = "pbe_fast"
_PREFIXES = ("module.", "_orig_mod.", "net.")
_MAX_LINES = 20
_MAX_HEADER_IMAGE_SIZE = 1024  # the trial run of a header's model takes memory in its square
_MAX_HEADER_OPTION = 8192  # no honest width, depth or size in a header is larger


def save_model(model: Classifier, path: Path, *, extra: Mapping[str, str] | None = None) -> None:
    """Write a model as safetensors, whole or not at all; the same model gives the same bytes.

    ``torchvision`` and ``timm`` load the result as their own:
    ``net.load_state_dict(safetensors.torch.load_file(path))``.

    Args:
        model: its inner network's ``state_dict`` is written, on whatever device it is.
        path: ends in ``.safetensors``.
        extra: more entries for the header, text to text.

    Raises:
        CheckpointError: the path has another suffix, an entry of ``extra`` is taken or is not
            text, or the network keeps something in its state that is not a tensor.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: give a path that ends in .safetensors.")
    metadata = {"format": "pt", _SPEC_KEY: model.spec.to_json()}
    for key, value in (extra or {}).items():
        if key in (*metadata, DIGEST_KEY) or not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(f"{path}: the header entry {key!r} is taken or is not text.")
        metadata[key] = value
    tensors = {}
    for name, value in model.net.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is {type(value).__name__}, not a tensor.")
        # A clone, because safetensors refuses tensors that share memory (tied weights).
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    # The library orders the tensors but not the metadata, so the header is written again.
    header, data = split_safetensors(safetensors.torch.save(tensors))
    header["__metadata__"] = metadata
    metadata[DIGEST_KEY] = digest(header, data)
    header = {**header, "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_bytes(path, b"".join([len(text).to_bytes(8, "little"), text, data]))


def load_model(path: Path, spec: ModelSpec | None = None) -> Classifier:
    """Build a model and give it the weights of a file.

    Accepts safetensors and ``.pt .pth .tar .bin``; a plain state dict or one under
    ``state_dict``, ``model_state_dict``, ``model`` or ``net``; names with the prefixes that
    DataParallel (``module.``), torch.compile (``_orig_mod.``) and :class:`Classifier`
    (``net.``) put before them. Half precision becomes float32. The global random state is left
    as it was.

    Args:
        path: the file.
        spec: how to build the model. None takes the spec from the header of a file written by
            :func:`save_model`; such a spec is not trusted and cannot name a ``file.py``. Where
            mean or std is None, the header's is taken if it is of the same model name.

    Returns:
        The classifier on the CPU, in eval mode.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or does not fit the model; up
            to 20 differences are listed.
        ModelError: the spec that the caller gave cannot be built.
    """
    path = Path(path)
    state, metadata = read_checkpoint(path)
    if spec is not None:
        return model_of(path, state, _with_normalisation(spec, metadata))
    try:
        return model_of(path, state, _header_spec(path, metadata))
    except ModelError as error:
        raise CheckpointError(f"{path}: the header's model cannot be built: {error}") from error


def model_of(path: Path, state: Mapping[str, Tensor], spec: ModelSpec) -> Classifier:
    """A model with weights that were read from ``path``; as :func:`load_model` otherwise.

    Raises:
        CheckpointError: the weights do not fit the model.
        ModelError: the spec cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        # Shapes first, without memory: a hostile header must not make us allocate.
        skeleton = _skeleton(spec)
        if skeleton is not None:
            _refuse_differences(path, state, skeleton)
        model = create_model(spec)
    reference = model.net.state_dict()
    if skeleton is None:
        _refuse_differences(path, state, reference)
    state = _aligned(state, reference)
    model.net.load_state_dict({name: state.get(name, value) for name, value in reference.items()})
    return model.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, unwrapped but not renamed.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or holds no tensors.
    """
    return read_checkpoint(Path(path))[0]


def _with_normalisation(spec: ModelSpec, metadata: Mapping[str, str]) -> ModelSpec:
    """Fill in mean and std from the header: weights make sense with their own only."""
    try:
        written = ModelSpec.from_json(metadata[_SPEC_KEY])
    except (KeyError, ModelError):
        return spec
    if written.name != spec.name:
        return spec
    return replace(spec, mean=spec.mean or written.mean, std=spec.std or written.std)


class _NoDraws(TorchFunctionMode):
    """Leaves out drawing weights: without values, for some it would import all of torch's compiler,
    which takes seconds and 100 MB."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if args and getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
            return args[0]
        return func(*args, **(kwargs or {}))


def _skeleton(spec: ModelSpec) -> dict[str, Tensor] | None:
    """Names and shapes of a model's weights on the meta device; None if it cannot be had."""
    if runs_user_code(spec):
        return None  # a user's factory may well compute with its weights
    try:
        with _NoDraws(), torch.device("meta"):
            return dict(build_net(spec)[0].state_dict())
    except ModelError as error:
        # torchvision's RegNets read numbers back from tensors; nothing in their options is large.
        if isinstance(error.__cause__, NotImplementedError):
            return None
        raise


def _refuse_differences(
    path: Path, state: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> None:
    lines = check_weights(_aligned(state, reference), reference)
    if not lines:
        return
    shown = lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        shown[-1] = f"and {len(lines) - _MAX_LINES + 1} more"
    raise CheckpointError(
        f"{path}: does not fit the model:\n  "
        + "\n  ".join(shown)
        + "\nGive the model name, options and number of classes that the checkpoint was made "
        "with, or another checkpoint."
    )


def _aligned(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes of wrappers, as long as no name is the model's own."""
    result = dict(state)
    while result and not result.keys() & reference.keys():
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in result)), None)
        if prefix is None:
            break
        result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result


def _header_spec(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    if _SPEC_KEY not in metadata:
        raise CheckpointError(
            f"{path}: does not say which model it belongs to. Give the model's name, options "
            "and number of classes."
        )
    try:
        spec = ModelSpec.from_json(metadata[_SPEC_KEY])
    except ModelError as error:
        raise CheckpointError(f"{path}: damaged header: {error}") from error
    if runs_user_code(spec):
        raise CheckpointError(
            f"{path}: its header asks to run the Python file of {spec.name!r}, which is refused. "
            "If you trust that file, give the model's name yourself."
        )
    numbers = [v for v in spec.options.values() if isinstance(v, int | float)]
    if spec.image_size > _MAX_HEADER_IMAGE_SIZE or any(
        abs(v) > _MAX_HEADER_OPTION for v in numbers
    ):
        raise CheckpointError(
            f"{path}: its header asks for image size {spec.image_size} and options "
            f"{dict(spec.options)}, which is out of bounds. Give the model's spec yourself."
        )
    return spec
