"""BackdoorBench's results in, and its form of a purified model out.

:func:`import_attack_result` makes of a result folder what ``purify`` takes: the poisoned training
set as shards with their truth, the triggered test images as shards, and the infected model as
safetensors. :func:`write_defense_result` writes the purified model as BackdoorBench's defences do.
"""

import io
import json
import re
from collections.abc import Mapping
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pbe_fast._files import sha256_file, write_bytes, write_text
from pbe_fast._location import location
from pbe_fast.data.converters import (
    AttackResult,
    read_attack_result,
    read_backdoorbench_test,
    read_backdoorbench_train,
)
from pbe_fast.data.loader import ImageData
from pbe_fast.data.shards import write_shards
from pbe_fast.errors import ModelError, RunDirectoryError
from pbe_fast.models import Classifier, ModelSpec, load_model, save_model
from pbe_fast.models.checkpoint import model_of
from pbe_fast.progress import Progress, Silent
from pbe_fast.run_directory import CONVERTED_NAME, RunDirectory
from pbe_fast.triggers.poisoning import TRUTH_NAME, Plan, write_truth

__all__ = [
    "DEFENSE_RESULT_NAME",
    "TRIGGERED_NAME",
    "import_attack_result",
    "infected_model",
    "write_defense_result",
]

DEFENSE_RESULT_NAME = "defense_result.pt"
TRIGGERED_NAME = "triggered"
_MODEL_NAME, _TRAIN_NAME, _SOURCE_NAME = "model.safetensors", "train", "source.json"

_PREACT = "preactresnet18"
_TORCHVISION = frozenset(
    {"alexnet", "convnext_tiny", "densenet121", "densenet161", "efficientnet_b0"}
    | {"efficientnet_b3", "mobilenet_v2", "mobilenet_v3_large", "resnet18"}
    | {"resnet34", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0"}
    | {"vgg11", "vgg16", "vgg19", "vgg19_bn", "wide_resnet50_2"}
)
# Preceded by a resizing of the normalised images to 224 pixels, as a part of the model.
_RESIZED = frozenset({"vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"})
_REFUSED = {
    "inception_v3": "its auxiliary head",
    "googlenet": "its auxiliary heads",
    "mnasnet1_0": "its weights need a version number that plain tensors do not carry",
    "resnext29": "an architecture of BackdoorBench's own",
    "senet18": "an architecture of BackdoorBench's own",
}
# Mean and standard deviation that BackdoorBench normalises the images of a data set with.
_NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Our block's shortcut is a convolution, theirs a sequence of one.
_THEIR_SHORTCUT = re.compile(r"(layer\d\.\d\.shortcut)\.0\.weight")
_OUR_SHORTCUT = re.compile(r"(layer\d\.\d\.shortcut)\.weight")


def import_attack_result(
    folder: Path,
    out: Path,
    clean: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Convert a result folder of BackdoorBench, once, into the run directory.

    ``OUT/backdoorbench/`` gets ``model.safetensors``; with ``clean`` ``train/``, shards with
    ``truth.parquet``; and ``triggered/`` where the result has triggered test images: shards with
    the labels that the attacker wants, so accuracy on them is the attack's success rate.

    Args:
        folder: holds ``attack_result.pt`` and the folders of images that it names.
        out: the run directory of the purification.
        clean: shards of the original training set; None where only the model is wanted.

    Returns:
        the values of the purification's configuration that follow, by dotted key.

    Raises:
        CheckpointError: the file is unsafe or damaged, or its weights do not fit its model.
        ModelError: the model or the data set is not supported.
        ShardError, ImageError: the images, or the clean shards, are not those of the attack.
        RunDirectoryError: ``out`` holds something else, or was made from another result.
    """
    progress = progress or Silent()
    result = read_attack_result(folder)
    made = out / CONVERTED_NAME
    values: dict[str, Any] = {
        "model.checkpoint": made / _MODEL_NAME,
        "data.image_size": result.image_size,
    }
    if clean is not None:
        values["data.train"] = made / _TRAIN_NAME
        values["data.truth"] = made / _TRAIN_NAME / TRUTH_NAME
    RunDirectory(out).require_usable()
    data = None if clean is None else ImageData.open(location(clean), result.image_size)
    source: dict[str, object] = {"attack_result": sha256_file(result.path)}
    if data is not None:
        source["clean"] = [shard.sha256 for shard in data.manifest.shards]
    if _made_before(made, source):
        progress.say(f"{made} is converted already.")
        return values
    model = infected_model(result)  # refused, if it must be, before any long work
    if data is not None:
        _write_train(result, data, made / _TRAIN_NAME, progress)
    if result.test is not None and (result.path.parent / result.test.folder).is_dir():
        classes = data.manifest.classes if data else tuple(map(str, range(result.num_classes)))
        samples = read_backdoorbench_test(result)
        progress.phase("write triggered test shards", length_hint(samples))
        write_shards(
            samples,
            made / TRIGGERED_NAME,
            classes=classes,
            prefix=TRIGGERED_NAME,
            overwrite=True,
            on_sample=lambda _count: progress.advance(1),
        )
    save_model(model, made / _MODEL_NAME)
    write_text(made / _SOURCE_NAME, json.dumps(source, indent=2) + "\n")
    return values


def infected_model(result: AttackResult) -> Classifier:
    """The infected model of a result, with BackdoorBench's normalisation.

    Raises:
        ModelError: the architecture or the data set is not supported.
        CheckpointError: the weights do not fit.
    """
    if result.dataset not in _NORMALISATION:
        raise ModelError(
            f"{result.path}: the data set {result.dataset!r:.80} is not supported; "
            f"{', '.join(sorted(_NORMALISATION))} are."
        )
    name, options = _our_model(result.model_name, result.path)
    mean, std = _NORMALISATION[result.dataset]
    spec = ModelSpec(name, result.num_classes, result.image_size, options, mean, std)
    weights = result.weights
    if all(key.startswith("module.") for key in weights):  # of DataParallel
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    if result.model_name == _PREACT:
        weights = {_THEIR_SHORTCUT.sub(r"\1.weight", key): v for key, v in weights.items()}
    return model_of(result.path, weights, spec)


def write_defense_result(out: Path, purified: Path) -> Path:
    """Write ``defense_result.pt`` into a run directory, as BackdoorBench's defences do.

    It holds ``model_name``, ``num_classes`` and ``model``, the names and tensors of the weights
    on the CPU in BackdoorBench's order: plain values, which torch's restricted loader reads.

    Args:
        purified: a model that was infected as :func:`infected_model` gives it.

    Raises:
        CheckpointError: ``purified`` cannot be loaded.
        ModelError: BackdoorBench has no such model.
    """
    model = load_model(purified)
    name = _their_model(model.spec)
    state: dict[str, Tensor] = {}
    for key, value in model.net.state_dict().items():
        theirs = _OUR_SHORTCUT.sub(r"\1.0.weight", key) if name == _PREACT else key
        state[theirs] = value.detach().cpu()
    content = {"model_name": name, "num_classes": model.spec.num_classes, "model": state}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = out / DEFENSE_RESULT_NAME
    write_bytes(path, buffer.getvalue())
    return path


def _our_model(name: str, path: Path) -> tuple[str, Mapping[str, int | float | str | bool]]:
    if name == _PREACT:
        return "builtin:preact_resnet18", {"final_norm": False}
    if name in _TORCHVISION:
        return f"torchvision:{name}", {}
    if name in _RESIZED:
        return f"torchvision:{name}", {"resize": 224}
    why = f" ({_REFUSED[name]})" if name in _REFUSED else ""
    known = ", ".join(sorted({_PREACT} | _TORCHVISION | _RESIZED))
    raise ModelError(f"{path}: the model {name!r:.80} is not supported{why}; {known} are.")


def _their_model(spec: ModelSpec) -> str:
    kind, _, name = spec.name.partition(":")
    if spec.name == "builtin:preact_resnet18" and dict(spec.options) == {"final_norm": False}:
        return _PREACT
    wanted: dict[str, object] = {"resize": 224} if name in _RESIZED else {}
    if kind == "torchvision" and name in _TORCHVISION | _RESIZED and dict(spec.options) == wanted:
        return name
    raise ModelError(
        f"{spec.name} with options {dict(spec.options)}: BackdoorBench has no such model, so there "
        f"can be no {DEFENSE_RESULT_NAME} of it."
    )


def _made_before(made: Path, source: Mapping[str, object]) -> bool:
    """Whether this very result was converted whole before.

    Raises:
        RunDirectoryError: another one was.
    """
    path = made / _SOURCE_NAME
    try:
        before = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path}: is damaged ({error}). Choose another --out.") from error
    if before != source:
        raise RunDirectoryError(
            f"{made}: was made from another attack result or other clean shards. Give the same "
            "ones to go on, or choose another --out."
        )
    return True


def _write_train(result: AttackResult, data: ImageData, folder: Path, progress: Progress) -> None:
    poisoned = read_backdoorbench_train(result, data.manifest)
    progress.phase("write poisoned shards", length_hint(poisoned.samples))
    chosen = Plan(poisoned.poisoned, np.empty(0, np.int64))
    write_shards(
        poisoned.samples,
        folder,
        classes=data.manifest.classes,
        prefix="poisoned",
        overwrite=True,
        on_sample=lambda _count: progress.advance(1),
        beside={
            TRUTH_NAME: lambda path, made: write_truth(path, made, poisoned.original_labels, chosen)
        },
    )
