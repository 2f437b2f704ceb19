"""``attack_result.pt`` of BackdoorBench, a hostile file until proven otherwise, as plain facts.

It is read by torch's restricted loader, which makes tensors and plain containers alone. The file
also holds NumPy arrays and numbers. NumPy's own functions that unpickle those were never meant for
hostile bytes (the state of a dtype can make an array take bytes for pointers to objects), so they
are not called: stand-ins of this module are, which take the bytes of numbers of a few known types.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pbe_fast.data.converters._common import refuse_escape
from pbe_fast.errors import CheckpointError
from pbe_fast.models._reading import named_tensors, plain_dict, read_restricted, shown

__all__ = [
    "ATTACK_RESULT_NAME",
    "AttackResult",
    "PoisonedImage",
    "PoisonedSet",
    "read_attack_result",
]

ATTACK_RESULT_NAME = "attack_result.pt"
_MAX_CLASSES = 1_000_000
_MAX_IMAGE_SIZE = 1024  # a trial run of the model takes memory in its square
_AGAIN = "Give the folder of an attack that a recent BackdoorBench has finished."


@dataclass(frozen=True)
class PoisonedImage:
    """One image that the attack changed: its file below the set's folder, and its labels."""

    file: PurePosixPath
    label: int  # what the model was trained to say
    original_label: int


@dataclass(frozen=True, eq=False)
class PoisonedSet:
    """A training or test set of the attack, as changes to a clean data set.

    Attributes:
        folder: the name of the folder of its images, beside the file.
        count: samples in the clean data set.
        members: ``(M,)`` int64, which of those are in this set; an index of the clean data set
            each.
        images: what takes the place of a member, by its index; members without are clean.
    """

    folder: str
    count: int
    members: npt.NDArray[np.int64]
    images: Mapping[int, PoisonedImage]


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an ``attack_result.pt`` says; checked in itself, not against any other file.

    Attributes:
        path: the file.
        model_name: BackdoorBench's, such as ``preactresnet18``.
        num_classes: K.
        dataset: BackdoorBench's name, such as ``cifar10``.
        image_size: side in pixels.
        weights: names and tensors of the infected model, in the file's order.
        train: None where the attack kept no training set.
        test: triggered test images; None where there are none.
    """

    path: Path
    model_name: str
    num_classes: int
    dataset: str
    image_size: int
    weights: Mapping[str, Tensor]
    train: PoisonedSet | None
    test: PoisonedSet | None


def read_attack_result(folder: Path) -> AttackResult:
    """Read ``attack_result.pt`` in a result folder of BackdoorBench; nothing in it is run.

    Raises:
        CheckpointError: the file is missing, damaged, of BackdoorBench's first version, or holds
            more than tensors, arrays of numbers and plain values.
        ShardError: it is a link that leads out of the folder.
    """
    folder = Path(folder)
    path = folder / ATTACK_RESULT_NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. {_AGAIN}")
    refuse_escape(path, folder.resolve())
    try:
        content = read_restricted(path, _STAND_INS)
    except CheckpointError as error:
        if "(PIL." not in str(error):
            raise
        raise CheckpointError(
            f"{path}: holds images as Python objects (PIL), which are not read, because loading "
            "them could run code. Let the attack write them to bd_train_dataset/ and "
            "bd_test_dataset/, by giving its data sets a save_folder_path."
        ) from error
    reader = _Reader(path)
    content = reader.mapping(content, "the file")
    classes = reader.integer(content, "num_classes", 2, _MAX_CLASSES)
    return AttackResult(
        path=path,
        model_name=reader.text(content, "model_name"),
        num_classes=classes,
        dataset=reader.text(content, "clean_data"),
        image_size=reader.image_size(content),
        weights=named_tensors(path, content.get("model")),
        train=reader.poisoned_set(content, "bd_train", classes),
        test=reader.poisoned_set(content, "bd_test", classes),
    )


@dataclass(frozen=True)
class _Reader:
    """Takes values out of the content of a file, and says what is wrong with them."""

    path: Path

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}. {_AGAIN}")

    def mapping(self, value: object, what: str) -> Mapping[Any, Any]:
        entries = plain_dict(value)
        if entries is None:
            raise self.wrong(f"{what} is {type(value).__name__}, not names and values")
        return entries

    def text(self, content: Mapping[Any, Any], name: str) -> str:
        value = content.get(name)
        if type(value) is not str or not value:
            raise self.wrong(f"{name} is {type(value).__name__}, not a text")
        return value

    def integer(self, content: Mapping[Any, Any], name: str, low: int, high: int) -> int:
        value = content.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(f"{name} is {shown(value)}, not a number from {low} to {high}")
        return value

    def image_size(self, content: Mapping[Any, Any]) -> int:
        sizes = content.get("img_size")
        plain = isinstance(sizes, list | tuple) and all(type(n) is int for n in sizes)
        if not plain or len(sizes) not in (2, 3):  # type: ignore[arg-type]  # a list by now
            raise self.wrong(f"img_size is {shown(sizes)}, not height, width and channels")
        height, width, *channels = sizes  # type: ignore[misc]
        if height != width or channels not in ([], [3]) or not 1 <= height <= _MAX_IMAGE_SIZE:
            raise CheckpointError(
                f"{self.path}: images are {shown(sizes)}; only square ones of up to "
                f"{_MAX_IMAGE_SIZE} pixels and three channels can be "
                "used."
            )
        return int(height)

    def poisoned_set(
        self, content: Mapping[Any, Any], name: str, classes: int
    ) -> PoisonedSet | None:
        if content.get(name) is None:
            return None
        state = self.mapping(content[name], name)
        if "x" in state and "bd_data_container" not in state:
            raise self.wrong(
                f"{name} holds images as tensors, as BackdoorBench's first version did"
            )
        container = self.mapping(state.get("bd_data_container"), f"{name}: bd_data_container")
        saved = self.text(container, "save_folder_path")
        folder = PurePosixPath(saved).name
        if folder in ("", "..") or "\\" in saved or "\0" in saved:
            raise self.wrong(
                f"{name}: save_folder_path is {shown(saved)}, not the path of a folder"
            )
        indicator = self.numbers(state.get("poison_indicator"), f"{name}: poison_indicator")
        members = self.numbers(state.get("original_index_array"), f"{name}: original_index_array")
        if not np.isin(indicator, (0, 1)).all():
            raise self.wrong(f"{name}: poison_indicator has other values than 0 and 1")
        inside = (members >= 0) & (members < len(indicator))
        if members.dtype.kind not in "iu" or not inside.all():
            raise self.wrong(f"{name}: original_index_array leads out of {len(indicator)} samples")
        if len(np.unique(members)) != len(members):
            raise self.wrong(f"{name}: original_index_array has an index twice")
        members = members.astype(np.int64)
        entries = self.mapping(container.get("data_dict"), f"{name}: data_dict")
        images = {}
        for index in members[indicator[members] == 1].tolist():
            where = f"{name}: image {index}"
            if index not in entries:
                raise self.wrong(f"{where} is marked as poisoned and not in data_dict")
            images[index] = self.image(entries[index], where, saved, classes)
        return PoisonedSet(folder, len(indicator), members, images)

    def image(self, entry: object, where: str, saved: str, classes: int) -> PoisonedImage:
        values = self.mapping(entry, where)
        recorded, labels = self.text(values, "path"), values.get("other_info")
        # Only the part below the folder that the file names counts: the result may have been made
        # on another machine, and a path in it must not lead anywhere else.
        below = recorded.removeprefix(saved.rstrip("/") + "/")
        parts = below.split("/")
        if below == recorded or "\\" in below or "\0" in below or {"", ".", ".."} & {*parts}:
            raise self.wrong(
                f"{where}: the path {shown(recorded)} does not lead below {shown(saved)}"
            )
        right = isinstance(labels, list | tuple) and len(labels) == 2
        if not right or any(type(n) is not int or not 0 <= n < classes for n in labels):  # type: ignore[union-attr]
            raise self.wrong(f"{where}: other_info is {shown(labels)}, not two of {classes} labels")
        return PoisonedImage(PurePosixPath(below), *labels)  # type: ignore[misc]

    def numbers(self, value: object, what: str) -> npt.NDArray[Any]:
        values = value.values if type(value) is _Array else None
        if values is None:
            raise self.wrong(f"{what} is {type(value).__name__}, not an array of numbers")
        return values


_CODES = frozenset({"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"})


class _Dtype:
    """In place of ``numpy.dtype``: a code such as ``i8``, and the order of bytes."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype[Any]:
        if self.code not in _CODES or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of {shown(self.code)}, not of plain numbers")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """In place of ``numpy.ndarray``: numbers in one dimension, copied from their bytes."""

    def __init__(self, *_: object) -> None:
        self.values: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        self.values = _from_bytes(dtype, data)
        if shape != self.values.shape:
            raise ValueError(f"an array of shape {shown(shape)} with {len(self.values)} numbers")


def _scalar(dtype: object, data: object) -> int | float | bool:
    """In place of NumPy's function of this name: one number, as Python's."""
    values = _from_bytes(dtype, data)
    if len(values) != 1:
        raise ValueError(f"a number of {len(values)} parts")
    number: int | float | bool = values[0].item()
    return number


def _from_bytes(dtype: object, data: object) -> npt.NDArray[Any]:
    if type(dtype) is not _Dtype or type(data) is not bytes:
        raise ValueError("an array that is not of plain numbers")
    return np.frombuffer(data, dtype.plain()).copy()


_STAND_INS = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.multiarray.{name}": stand_in
        for core in ("core", "_core")  # of NumPy 1 and 2
        for name, stand_in in (("_reconstruct", _Array), ("scalar", _scalar))
    },
}
