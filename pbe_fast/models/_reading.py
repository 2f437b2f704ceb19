"""Bytes of a checkpoint to named tensors; the only place where they are interpreted."""

import hashlib
import json
import re
import reprlib
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pbe_fast.errors import CheckpointError
from pbe_fast.models._weights import strange_tensor

__all__ = [
    "DIGEST_KEY",
    "digest",
    "named_tensors",
    "plain_dict",
    "read_checkpoint",
    "read_restricted",
    "shown",
    "split_safetensors",
]

DIGEST_KEY = "pbe_fast_sha256"
_TORCH_SUFFIXES = (".pt", ".pth", ".tar", ".bin")
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")
_MAX_LINES = 20


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries; the only place where bytes of a checkpoint are interpreted."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder. Give the checkpoint file in it.")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path), {}
    raise CheckpointError(
        f"{path}: unknown kind {path.suffix!r}. Give .safetensors or {' '.join(_TORCH_SUFFIXES)}."
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = path.read_bytes()
        state = safetensors.torch.load(content)
        header, data = split_safetensors(content)
        metadata = header.get("__metadata__") or {}
    except Exception as error:  # the parser raises several types for bytes that are no header
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}). It may be cut short or be a "
            "renamed file of another kind; fetch or export it again."
        ) from error
    if not state:
        raise CheckpointError(f"{path}: holds no tensors.")
    if DIGEST_KEY in metadata and metadata[DIGEST_KEY] != digest(header, data):
        raise CheckpointError(
            f"{path}: was changed after it was written (its SHA-256 does not match). Copy it again."
        )
    return state, metadata


def _read_torch(path: Path) -> dict[str, Tensor]:
    return named_tensors(path, _unwrapped(path, read_restricted(path)))


def read_restricted(path: Path, stand_ins: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """What a ``.pt`` file holds, by torch's restricted loader: tensors and plain containers.

    Args:
        path: the file.
        stand_ins: functions and classes of this project, by the name of the global in the file
            that each is called in place of. The global itself is never looked up.

    Raises:
        CheckpointError: the file is damaged, or holds anything else.
    """
    _refuse_compressed(path)
    known: list[Any] = [(stand_in, name) for name, stand_in in (stand_ins or {}).items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            # A remark to torch's developers on the pickle's age, of no use to a user.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # Sparse tensors are refused below, by name.
            warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage raises nearly any type
        raise _unreadable(path, error) from error


def named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The weights among what :func:`read_restricted` gave, in the file's order.

    Raises:
        CheckpointError: there are none, something else is among them, or they are strange: sparse,
            complex, or larger than the file.
    """
    state = _dense(path, content)
    size = path.stat().st_size
    storages = {}
    for value in state.values():
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    # A few bytes can describe an expanded tensor of any size; tied weights may count twice.
    if sum(storages.values()) > 2 * size or claimed > 4 * size:
        raise CheckpointError(
            f"{path}: describes {claimed} bytes of weights and has {size}. Save the model's "
            "state_dict() again, as safetensors."
        )
    return state


def _unwrapped(path: Path, content: Any) -> Any:
    for _ in _WRAPPINGS:
        outer = plain_dict(content) or {}
        inner = next((outer[k] for k in _WRAPPINGS if isinstance(outer.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def plain_dict(value: object) -> dict[Any, Any] | None:
    """The entries of a dictionary out of a file; None for anything else.

    A pickle can hang attributes on an OrderedDict that hide its methods, so its type's are called.
    """
    return dict(type(value).items(value)) if isinstance(value, dict) else None


def shown(value: object) -> str:
    """What is out of a file, for a message; a text in up to 200 characters.

    It is cut while it is made: lists that share their members take no room in a file, and have no
    end when they are written out.
    """
    cut = reprlib.Repr()
    cut.maxstring = 200
    return cut.repr(value)[:200]


def _dense(path: Path, content: Any) -> dict[str, Tensor]:
    entries = plain_dict(content)
    if not entries:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, not names and tensors. Save the model's "
            "state_dict() as safetensors."
        )
    wrong = [
        f"{shown(name)}: {type(value).__name__}"
        for name, value in entries.items()
        if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: these entries are not named tensors:\n  "
            + "\n  ".join(wrong[:_MAX_LINES])
            + "\nSave the model's state_dict() alone, as safetensors."
        )
    # A pickle can hang attributes on a tensor that hide its methods; a detached one has none.
    state = {name: Tensor.detach(value) for name, value in entries.items()}
    strange = [
        f"{name}: {strange_tensor(value)}" for name, value in state.items() if strange_tensor(value)
    ]
    if strange:
        raise CheckpointError(
            f"{path}: these tensors are refused; save them dense and real:\n  "
            + "\n  ".join(strange[:_MAX_LINES])
        )
    return state


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return CheckpointError(
            f"{path}: holds more than weights ({refused[1]}), and loading that could run code. "
            "Nothing was run. If you must use the file, convert its weights to safetensors in a "
            "sandbox without network and data."
        )
    # torch's own text advises to load without the check, so only its gist is passed on.
    gist = re.search(r"(Unsupported operand .*|Trying to .*)", str(error))
    line = gist[0] if gist else next(iter(str(error).splitlines()), "")
    return CheckpointError(
        f"{path}: not a torch checkpoint of weights alone ({type(error).__name__}: "
        f"{line[:200]}). Nothing was run. It may be cut short, of another kind, or hold Python "
        "objects; fetch it again, or export the weights as safetensors."
    )


def _refuse_compressed(path: Path) -> None:
    """torch stores its zip members as they are, so a compressed one is a bomb or not torch's."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    size = path.stat().st_size
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
        sum(m.file_size for m in members) > size
    ):
        raise CheckpointError(
            f"{path}: has compressed members, which torch never writes; it could unpack to any "
            "size. Save it again with torch.save or as safetensors."
        )


def split_safetensors(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and data of a safetensors file: 8 bytes of length, JSON, tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), memoryview(content)[end:]


def digest(header: Mapping[str, Any], data: memoryview) -> str:
    """SHA-256 of header and data, without the entry that holds it."""
    metadata = {k: v for k, v in header["__metadata__"].items() if k != DIGEST_KEY}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode()
    sha = hashlib.sha256(text)
    sha.update(data)
    return sha.hexdigest()
