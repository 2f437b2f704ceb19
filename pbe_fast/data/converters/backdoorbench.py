"""Poisoned training and test sets of BackdoorBench (Wu et al., 2022), as samples.

A result folder holds ``attack_result.pt`` and the images that the attack changed, as PNG files in
``bd_train_dataset/`` and ``bd_test_dataset/``. It holds no clean image: BackdoorBench takes those
from the original data set, by their position in it. So the original training set is needed as
shards, and position i of the data set is the i-th of the shards' keys in sorted order: that of
CIFAR-10 and GTSRB in the shards that this package makes, and of an image folder whose classes and
files torchvision sorts by name. Each poisoned image's original label is held against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbe_fast.data.converters._attack_result import (
    AttackResult,
    PoisonedImage,
    PoisonedSet,
)
from pbe_fast.data.converters._common import Samples, read_image_file, some_names
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import Sample, ShardReader
from pbe_fast.errors import ImageError, ShardError

__all__ = ["PoisonedTraining", "read_backdoorbench_test", "read_backdoorbench_train"]

_MAX_IMAGE_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class PoisonedTraining:
    """A poisoned training set of M samples.

    Attributes:
        samples: in the order and under the keys of the clean shards.
        original_labels: ``(M,)`` int32, those of the clean shards.
        poisoned: positions of the poisoned samples, int64, sorted.
    """

    samples: Samples
    original_labels: npt.NDArray[np.int32]
    poisoned: npt.NDArray[np.int64]


def read_backdoorbench_train(result: AttackResult, clean: Manifest) -> PoisonedTraining:
    """The training set that an attack made of a clean one; images are read as they are taken.

    Args:
        result: of ``read_attack_result``.
        clean: the shards of the original training set, unpoisoned and whole.

    Raises:
        ShardError: the attack kept no training set, an image is missing or lies elsewhere, or the
            shards are of another data set or in another order.
        ImageError: while samples are taken, a damaged image or one of another size.
    """
    part = _needed(result.train, result.path, "bd_train")
    if clean.num_classes != result.num_classes or len(clean) != part.count:
        raise ShardError(
            f"{clean.root}: {len(clean)} samples of {clean.num_classes} classes, but the attack in "
            f"{result.path} was on {part.count} of {result.num_classes} ({result.dataset!r:.40}). "
            "Give the shards of the whole training set that it was on."
        )
    files = _located(result, part)
    order = _in_order(clean)  # (N,) position in the data set to sample id
    for index, image in part.images.items():
        there = int(clean.labels[order[index]])
        if there != image.original_label:
            raise ShardError(
                f"{clean.root}: position {index} of the data set had the label "
                f"{image.original_label} when it was attacked, but "
                f"{clean.keys[int(order[index])].as_py()!r} has {there}. These shards are of "
                f"another data set than {result.dataset!r}, or their keys do not sort in its order."
            )
    index_of = np.empty(len(order), np.int64)
    index_of[order] = np.arange(len(order))
    ids = np.sort(order[part.members])  # (M,) sample ids
    reader = ShardReader(clean)

    def read(position: int) -> Sample:
        sample_id = int(ids[position])
        key, label = clean.keys[sample_id].as_py(), int(clean.labels[sample_id])
        index = int(index_of[sample_id])
        if index in files:
            changed = part.images[index]
            return Sample(key, *_read_poisoned(files[index], result), changed.label)
        return Sample.copied(key, reader.read(sample_id), label)

    poisoned = np.isin(index_of[ids], np.fromiter(files, np.int64, len(files)))
    return PoisonedTraining(
        Samples(len(ids), read),
        clean.labels[ids].astype(np.int32),
        np.flatnonzero(poisoned).astype(np.int64),
    )


def read_backdoorbench_test(result: AttackResult) -> Samples:
    """The triggered test images, each with the label that the attacker wants.

    So the accuracy on these is the attack's success rate. Keys are ``ORIGINAL_LABEL/INDEX``.

    Raises:
        ShardError: there are none, or an image is missing or lies elsewhere.
        ImageError: while samples are taken, a damaged image or one of another size.
    """
    part = _needed(result.test, result.path, "bd_test")
    files = _located(result, part)
    indices = sorted(files)

    def read(position: int) -> Sample:
        index = indices[position]
        image = part.images[index]
        key = f"{image.original_label}/{index}"
        return Sample(key, *_read_poisoned(files[index], result), image.label)

    return Samples(len(indices), read)


def _needed(part: PoisonedSet | None, path: Path, name: str) -> PoisonedSet:
    if part is None or not part.images:
        raise ShardError(
            f"{path}: holds no poisoned images ({name}); some attacks keep none. Purify the model "
            "with clean images instead."
        )
    return part


def _in_order(clean: Manifest) -> npt.NDArray[np.int64]:
    """Sample ids in the order of the keys: folders first, then file names up to their extension."""

    def place(sample_id: int) -> tuple[str, ...]:
        *folders, stem = keys[sample_id].split("/")
        return (*folders, f"{stem}.")  # as a file name sorts, with its dot

    keys: list[str] = clean.keys.to_pylist()
    return np.array(sorted(range(len(keys)), key=place), np.int64)


def _located(result: AttackResult, part: PoisonedSet) -> Mapping[int, Path]:
    """The file of each poisoned image; all there, and none outside the result's own folder."""
    root = result.path.parent / part.folder
    own = result.path.parent.resolve()
    files, missing = {}, []
    for index, image in part.images.items():
        path = root / image.file
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # a name that no file can have, too
            missing.append(_name(part, image))
            continue
        if not target.is_relative_to(own):
            raise ShardError(
                f"{path}: a symbolic link leads out of {own}, to {target}. Copy the images in."
            )
        if not target.is_file() or target.stat().st_size > _MAX_IMAGE_BYTES:
            raise ShardError(f"{path}: not the file of an image. Copy the result's folder again.")
        files[index] = path
    if missing:
        raise ShardError(
            f"{result.path.parent}: {len(missing)} of {len(part.images)} poisoned images are "
            f"missing: {some_names(missing)}. Copy the whole folder of the result."
        )
    return files


def _name(part: PoisonedSet, image: PoisonedImage) -> str:
    return f"{part.folder}/{image.file}"


def _read_poisoned(path: Path, result: AttackResult) -> tuple[bytes, str]:
    """The bytes of an image that decodes to the attack's size, and their extension."""
    data, extension = read_image_file(path)
    try:
        height, width = decode_rgb(data).shape[:2]
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    if (height, width) != (result.image_size, result.image_size):
        raise ImageError(
            f"{path}: {width} x {height} pixels, but the attack was on images of "
            f"{result.image_size} x {result.image_size}. Copy the result's folder again."
        )
    return data, extension
