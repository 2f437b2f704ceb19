"""Result folders as BackdoorBench writes them, made from drawn signs."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pbe_fast.data import Manifest, write_shards
from pbe_fast.data.shards import Sample
from pbe_fast.data.signs import sign_names, signs

CLASSES, SIZE, TARGET = 3, 16, 1
SAVED = "./record/badnet_0_1"


def clean_shards(folder: Path, per_class: int = 8) -> Manifest:
    """Shards with keys such as those of CIFAR-10, whose order is not that of the shards."""
    drawn = list(signs(num_classes=CLASSES, per_class=per_class, size=SIZE, seed=0, split="train"))
    samples = [
        Sample(f"data_batch_{1 + n // 12}-{n % 12:05d}", s.image, "png", s.label)
        for n, s in enumerate(drawn)
    ]
    return write_shards(samples[::-1], folder, classes=sign_names(CLASSES))


def preact_names() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of BackdoorBench's PreActResNet18, in its order."""
    yield "conv1.weight", (64, 3, 3, 3)
    inside = 64
    for layer, outside in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{layer}.{block}"
            yield from _norm(f"{name}.bn1", inside)
            yield f"{name}.conv1.weight", (outside, inside, 3, 3)
            yield from _norm(f"{name}.bn2", outside)
            yield f"{name}.conv2.weight", (outside, outside, 3, 3)
            if inside != outside:
                yield f"{name}.shortcut.0.weight", (outside, inside, 1, 1)
            inside = outside
    yield "linear.weight", (CLASSES, 512)
    yield "linear.bias", (CLASSES,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def preact_weights(count: int | None = None) -> OrderedDict[str, Tensor]:
    """Random weights of it that keep numbers in bounds; only the first ``count``."""
    rng = torch.Generator().manual_seed(0)
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in islice(preact_names(), count):
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            weights[name] = torch.rand(shape, generator=rng) + 0.5
        elif len(shape) == 4:
            scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            weights[name] = scale * torch.randn(shape, generator=rng)
        else:
            weights[name] = 0.1 * torch.randn(shape, generator=rng)
    return weights


def poisoned_set(
    root: Path, name: str, labels: list[int], poisoned: list[int], members: list[int] | None = None
) -> dict[str, Any]:
    """The state of one data set, and its images beside it: a white corner on grey."""
    indicator = np.zeros(len(labels))
    indicator[poisoned] = 1
    entries = {}
    for index in poisoned:
        below = f"{labels[index]}/{index}.png"
        path = root / name / below
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((SIZE, SIZE, 3), 10 * index, np.uint8)
        pixels[-3:, -3:] = 255
        Image.fromarray(pixels).save(path)
        entries[np.int64(index)] = {
            "path": f"{SAVED}/{name}/{below}",
            "other_info": [TARGET, labels[index]],
        }
    return {
        "bd_data_container": {
            "save_folder_path": f"{SAVED}/{name}",
            "data_dict": entries,
            "save_file_format": ".png",
        },
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(len(labels)) if members is None else np.array(members),
        "poison_indicator": indicator,
        "save_folder_path": f"{SAVED}/{name}",
    }


def attack_content(root: Path, labels: list[int], weights: object) -> dict[str, Any]:
    """What ``attack_result.pt`` holds, with the images written."""
    attacked = [n for n, label in enumerate(labels) if label != TARGET]
    return {
        "model_name": "preactresnet18",
        "num_classes": CLASSES,
        "model": weights,
        "data_path": "./data/cifar10",
        "img_size": (SIZE, SIZE, 3),
        "clean_data": "cifar10",
        "bd_train": poisoned_set(root, "bd_train_dataset", labels, attacked[::3]),
        "bd_test": poisoned_set(root, "bd_test_dataset", labels, attacked, attacked),
    }


def write_result(root: Path, content: object) -> Path:
    """The folder with its ``attack_result.pt``."""
    root.mkdir(parents=True, exist_ok=True)
    torch.save(content, root / "attack_result.pt")
    return root


def labels_in_order(manifest: Manifest) -> list[int]:
    """Of the data set in its own order, which for these keys is that of the alphabet."""
    keys = manifest.keys.to_pylist()
    return [int(manifest.labels[keys.index(key)]) for key in sorted(keys)]
