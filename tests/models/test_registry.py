"""Models by name: what is built, what is suggested, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pbe_fast.errors import ModelError
from pbe_fast.models import Classifier, ModelSpec, create_model


def make(name: str, size: int = 64, **options: Any) -> Classifier:
    return create_model(ModelSpec(name, 7, size, options))


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        ("builtin:preact_resnet18", 16, 0.5),
        ("timm:test_resnet", 64, 0.5),
        ("timm:test_resnet.r160_in1k", 64, 0.5),
        ("timm:resnet10t.c3_in1k", 64, 0.485),
        ("torchvision:shufflenet_v2_x0_5", 64, 0.485),
        ("torchvision:squeezenet1_0", 64, 0.485),
    ],
)
def test_each_kind_gives_logits_and_its_own_normalisation(
    name: str, size: int, mean: float
) -> None:
    model = make(name, size, **({"width": 2} if name.startswith("builtin") else {}))
    assert model(torch.rand(3, 3, size, size)).shape == (3, 7)
    assert model.spec.mean is not None
    assert model.spec.mean[0] == pytest.approx(mean)
    assert float(model.mean[0, 0]) == pytest.approx(mean)


def test_given_mean_and_std_are_kept() -> None:
    spec = ModelSpec("timm:test_resnet", 7, 64, {}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert create_model(spec).spec == spec


def test_one_of_mean_and_std_may_be_given() -> None:
    spec = create_model(ModelSpec("timm:test_resnet", 7, 64, {}, None, (0.4, 0.5, 0.6))).spec
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))


def test_options_reach_the_model() -> None:
    wide = make("builtin:preact_resnet18", 16, width=3)
    assert wide.net.state_dict()["conv1.weight"].shape == (3, 3, 3, 3)
    vit = make("timm:test_vit", 32, img_size=32)
    assert vit(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("builtin:preact_resnet81", "preact_resnet18"),
        ("timm:resnet5O", "resnet50"),
        ("timm:resnet10t.c3_in1", "resnet10t.c3_in1k"),
        ("torchvision:resnet_18", "resnet18"),
        ("torchvision:shufflenet_v2_x05", "shufflenet_v2_x0_5"),
    ],
)
def test_unknown_names_get_near_ones(name: str, suggestion: str) -> None:
    with pytest.raises(ModelError, match=rf"Did you mean .*{suggestion}"):
        make(name)


@pytest.mark.parametrize(
    "name",
    [
        "timm:hf_hub:timm/resnet18",
        "timm:hf-hub:timm/resnet18",
        "timm:local-dir:/tmp/x",
        "timm:local-dir:x",
        "timm:user/model",
        "timm:..\\x",
        "timm:",
        "torchvision:https://example.org/x",
    ],
)
def test_names_that_reach_out_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="refused"):
        make(name)


@pytest.mark.parametrize("name", ["resnet18", "hub:resnet18", "x.txt:f", "model.py", "model.py:"])
def test_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="Give builtin:"):
        make(name)


@pytest.mark.parametrize(
    "name",
    ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "raft_small", "quantized_resnet18"],
)
def test_torchvision_gives_classifiers_alone(name: str) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        make(f"torchvision:{name}")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_resnet", {"pretrained": True}),
        ("timm:test_resnet", {"checkpoint_path": "evil.pth"}),
        ("timm:test_resnet", {"pretrained_cfg": "x"}),
        ("timm:test_resnet", {"features_only": True}),
        ("torchvision:squeezenet1_0", {"weights": "DEFAULT"}),
        ("builtin:preact_resnet18", {"num_classes": 3}),
    ],
)
def test_options_that_load_weights_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="are refused"):
        make(name, **options)


@pytest.mark.parametrize(
    "name", ["builtin:preact_resnet18", "timm:test_resnet", "torchvision:squeezenet1_0"]
)
def test_unknown_options_are_named(name: str) -> None:
    with pytest.raises(ModelError, match="widht"):
        make(name, widht=16)


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:squeezenet1_0"])
def test_wrong_image_size_says_what_to_do(name: str) -> None:
    with pytest.raises(ModelError, match=r"cannot take 8x8 images.*Set image_size.*img_size"):
        make(name, 8)


def test_auxiliary_heads_are_off_and_do_not_warn() -> None:
    model = make("torchvision:googlenet", 64)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)  # in training mode too


FACTORY = """
from __future__ import annotations
from dataclasses import dataclass
import torch

@dataclass
class Size:
    side: int | None = None  # needs the module to be in sys.modules

class Net(torch.nn.Module):
    def __init__(self, k, scale):
        super().__init__()
        self.k, self.scale = k, scale
        self.head = torch.nn.Linear(3, k)
    def forward(self, x):
        return self.scale * self.head(x.mean((2, 3)))

def make(num_classes, scale=1.0):
    return Net(num_classes, scale)

def broken(num_classes):
    raise RuntimeError("no luck")

def nothing(num_classes):
    return None

def short(num_classes):
    return Net(num_classes - 1, 1.0)
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "my model.py"
    path.write_text(FACTORY)
    return path


def test_file_factory_takes_raw_pixels_and_leaves_sys_path(factory: Path) -> None:
    before = list(sys.path)
    model = make(f"{factory}:make", 8, scale=2.0)
    assert sys.path == before
    assert (model.spec.mean, model.spec.std) == ((0.0,) * 3, (1.0,) * 3)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x), model.net(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mak", "Did you mean make"),
        ("broken", "RuntimeError: no luck"),
        ("nothing", "returned NoneType"),
        ("short", r"\(2, 6\)"),
    ],
)
def test_file_factories_that_fail_are_explained(factory: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(f"{factory}:{name}", 8)


def test_missing_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        make(f"{tmp_path}/none.py:make")
    (tmp_path / "bad.py").write_text("def make(:\n")
    with pytest.raises(ModelError, match="SyntaxError"):
        make(f"{tmp_path}/bad.py:make")
