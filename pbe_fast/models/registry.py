"""Models by name: the built-in one, timm's, torchvision's, or one from the user's own file.

No name leads to the network, and no name loads weights: a model starts random (seed it with
``torch.manual_seed``) and gets its weights from :mod:`pbe_fast.models.checkpoint`.

The option ``resize`` of a torchvision model brings the normalised images to that side inside the
model, so that small images can be given to one that takes a fixed size, such as ``vit_b_16``. The
weights' names then begin with ``1.``, those of a sequence of the resizing and the model.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from pbe_fast.errors import ModelError
from pbe_fast.models.classifier import Classifier, ModelSpec, Triple
from pbe_fast.models.preact_resnet import PreActResNet18

__all__ = ["build_net", "create_model", "runs_user_code"]

_BUILTIN = {"preact_resnet18": PreActResNet18}
_HALF: Triple = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_MAX_RESIZE = 1024
_FILE = re.compile(r"(?P<path>.+\.py):(?P<factory>[A-Za-z_]\w*)", re.DOTALL)
_KINDS = "builtin:preact_resnet18, timm:NAME, torchvision:NAME or PATH/file.py:factory"

# Options that would fetch or unpickle weights, change what is returned, or contradict the spec.
_RESERVED = frozenset(
    {"num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
    | {"cache_dir", "weights", "weights_backbone", "progress", "features_only", "scriptable"}
)


def create_model(spec: ModelSpec) -> Classifier:
    """Build a model with random weights.

    The random state is the caller's: call ``torch.manual_seed`` first. A ``file.py:factory``
    name imports that file, which runs whatever code it holds with the user's rights: use it
    for your own files only.

    Args:
        spec: the name, the number of classes and the options; see :class:`ModelSpec`.

    Returns:
        A classifier on the CPU in training mode; its spec has mean and std filled in.

    Raises:
        ModelError: the name is unknown, an option is refused, or the model does not map
            (N, 3, image_size, image_size) to (N, num_classes).
    """
    net, resolved = build_net(spec)
    return Classifier(net, resolved)


def build_net(spec: ModelSpec) -> tuple[nn.Module, ModelSpec]:
    """The bare network and the resolved spec, without the trial run of :class:`Classifier`.

    Under ``torch.device("meta")`` this allocates no weights, which is how a checkpoint's
    shapes are compared before anything of their size is made.

    Raises:
        ModelError: as for :func:`create_model`.
    """
    reserved = sorted(_RESERVED & set(spec.options))
    if reserved:
        raise ModelError(
            f"{spec.name}: options {reserved} are refused. Weights come from a checkpoint "
            "alone; classes and image size have their own fields."
        )
    kind, _, name = spec.name.partition(":")
    if kind == "builtin":
        net, mean, std = _builtin(spec, name)
    elif kind == "timm":
        net, mean, std = _timm(spec, name)
    elif kind == "torchvision":
        net, mean, std = _torchvision(spec, name)
    elif runs_user_code(spec):
        net, mean, std = _from_file(spec)
    else:
        raise ModelError(f"{spec.name}: not the name of a model. Give {_KINDS}.")
    resolved = replace(
        spec,
        mean=mean if spec.mean is None else spec.mean,
        std=std if spec.std is None else spec.std,
    )
    return net, resolved


def runs_user_code(spec: ModelSpec) -> bool:
    """Whether building this model runs a Python file that the name points to."""
    return _FILE.fullmatch(spec.name) is not None and not spec.name.startswith(
        ("builtin:", "timm:", "torchvision:")
    )


_Built = tuple[nn.Module, Triple, Triple]


def _builtin(spec: ModelSpec, name: str) -> _Built:
    if name not in _BUILTIN:
        raise _unknown(spec, name, _BUILTIN)
    try:
        return _BUILTIN[name](spec.num_classes, **spec.options), _HALF, _HALF  # type: ignore[arg-type]  # options are checked by the model
    except TypeError as error:
        raise _bad_options(spec, error) from error


def _timm(spec: ModelSpec, name: str) -> _Built:
    _refuse_addresses(spec, name)
    import timm  # here, because it takes seconds and many runs do not need it

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(spec, architecture, timm.list_models())
    if tag and name not in timm.list_models(f"{architecture}.*", pretrained=True):
        raise _unknown(spec, name, timm.list_models(f"{architecture}.*", pretrained=True))
    try:
        options: dict[str, Any] = dict(spec.options)
        net = timm.create_model(name, pretrained=False, num_classes=spec.num_classes, **options)
    except Exception as error:  # timm raises many types for a bad option
        raise _bad_options(spec, error) from error
    config = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None) or {}
    return (
        net,
        _triple(config.get("mean"), _IMAGENET_MEAN),
        _triple(config.get("std"), _IMAGENET_STD),
    )


def _torchvision(spec: ModelSpec, name: str) -> _Built:
    _refuse_addresses(spec, name)
    import torchvision  # here, because it takes long and many runs do not need it

    # Only the classifiers are in this module; detection, segmentation and video have their own.
    models: Any = torchvision.models  # its names are not declared as exported
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown(spec, name, names)
    options = dict(spec.options)
    if name in ("googlenet", "inception_v3"):
        # The auxiliary heads make a tuple of the output in training; nothing here uses them.
        # init_weights said explicitly keeps torchvision from warning that it will change.
        options = {"aux_logits": False, "init_weights": True, **options}
    side = options.pop("resize", None)
    if side is not None and (type(side) is not int or not 1 <= side <= _MAX_RESIZE):
        raise ModelError(f"{spec.name}: resize is {side!r}: give a side of 1 to {_MAX_RESIZE}.")
    try:
        net = models.get_model(name, weights=None, num_classes=spec.num_classes, **options)
    except Exception as error:  # torchvision raises many types for a bad option
        raise _bad_options(spec, error) from error
    if side is not None:
        net = nn.Sequential(torchvision.transforms.Resize((side, side)), net)
    return net, _IMAGENET_MEAN, _IMAGENET_STD


def _from_file(spec: ModelSpec) -> _Built:
    match = _FILE.fullmatch(spec.name)
    if match is None:
        raise ModelError(f"{spec.name}: not PATH/file.py:factory.")
    path, factory_name = Path(match["path"]), match["factory"]
    if not path.is_file():
        raise ModelError(f"{spec.name}: there is no file {path}. Give {_KINDS}.")
    # A name that no package has; dataclasses in the file need it to be in sys.modules.
    module_name = "_pbe_fast_model_" + sha256(str(path.resolve()).encode()).hexdigest()[:16]
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise ModelError(f"{path}: cannot be imported as Python.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            public = [key for key, value in vars(module).items() if callable(value)]
            raise _unknown(spec, factory_name, public)
        net = factory(num_classes=spec.num_classes, **spec.options)
    except ModelError:
        raise
    except Exception as error:  # the file is foreign code; whatever it raises is its mistake
        raise ModelError(
            f"{spec.name}: the file or its factory failed with {type(error).__name__}: {error}. "
            f"It is called as {factory_name}(num_classes={spec.num_classes}, **options) with "
            f"options {dict(spec.options)}."
        ) from error
    return net, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def _refuse_addresses(spec: ModelSpec, name: str) -> None:
    if not name or any(mark in name for mark in ":/\\"):
        raise ModelError(
            f"{spec.name}: hub names and paths are refused, because they reach the network or "
            "load pickles. Give an architecture such as timm:resnet18, and its weights as a "
            "checkpoint file."
        )


def _triple(values: object, default: Triple) -> Triple:
    if isinstance(values, list | tuple) and len(values) == 3:
        return (float(values[0]), float(values[1]), float(values[2]))
    return default


def _unknown(spec: ModelSpec, name: str, known: Iterable[str]) -> ModelError:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if near:
        hint = "Did you mean " + ", ".join(near) + "?"
    else:
        hint = f"Known are {', '.join(names[:8])}{' and others' if len(names) > 8 else ''}."
    return ModelError(f"{spec.name}: there is no model {name!r}. {hint}")


def _bad_options(spec: ModelSpec, error: Exception) -> ModelError:
    return ModelError(
        f"{spec.name}: cannot be built with options {dict(spec.options)} "
        f"({type(error).__name__}: {error}). Remove or mend the option."
    )
