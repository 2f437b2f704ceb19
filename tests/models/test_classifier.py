"""The spec's checks, normalisation inside the model, and the trial run upon creation."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbe_fast.errors import ModelError
from pbe_fast.models import Classifier, ModelSpec, create_model

TINY = ModelSpec("builtin:preact_resnet18", 5, 16, {"width": 2})
PLAIN = ModelSpec("x.py:f", 4, 8, {}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Means(nn.Module):
    """Logits are the mean of channel 0 in four copies, or whatever ``wrap`` makes of them."""

    def __init__(self, classes: int = 4, wrap: Any = lambda x: x) -> None:
        super().__init__()
        self.classes, self.wrap = classes, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x[:, :1].mean((2, 3)).expand(-1, self.classes))


def test_normalisation_is_part_of_the_model() -> None:
    spec = ModelSpec("x.py:f", 4, 8, {}, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    model = Classifier(
        nn.Sequential(
            nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 4, bias=False)
        ),
        spec,
    )
    weight = model.net[3].weight  # type: ignore[index]  # a Sequential
    pixels = torch.tensor([0.6, 0.2, 0.9]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    expected = weight @ torch.tensor([1.0, 0.0, 0.3])
    torch.testing.assert_close(model(pixels)[0], expected)


def test_uint8_images_are_divided_by_255() -> None:
    model = create_model(TINY).eval()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(model(images), model(images.float() / 255))


def test_normalisation_keeps_channels_last() -> None:
    layouts = []
    net = Means(wrap=lambda x: x)
    net.register_forward_pre_hook(
        lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    model = Classifier(net, PLAIN)
    model(torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last))
    assert layouts[-1]


def test_mean_and_std_are_no_weights() -> None:
    model = create_model(TINY)
    assert all(name.startswith("net.") for name in model.state_dict())
    assert model.mean.shape == model.std.shape == (1, 3, 1, 1)
    assert model.spec.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: {"logits": x}, "dict"),
        (lambda x: x[:, :3], r"\(2, 3\)"),
        (lambda x: x[0], r"\(4,\)"),
        (lambda x: x.argmax(1), "int64"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_models_without_logits_are_refused(wrap: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Classifier(Means(wrap=wrap), PLAIN)


def test_a_trial_run_that_lacks_memory_is_not_the_models_mistake() -> None:
    def wrap(logits: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("not enough memory")

    with pytest.raises(torch.OutOfMemoryError, match="not enough"):
        Classifier(Means(wrap=wrap), PLAIN)


def test_trial_run_leaves_no_trace() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.body = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
            self.body.eval()  # a part that the user froze stays frozen

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(self.norm(x)) + torch.rand(())  # draws in eval mode too
            return x.mean((2, 3))[:, :1].expand(-1, 4)

    net = Noisy()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Classifier(net, PLAIN)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.norm.training
    assert not net.body.training
    assert not net.body[1].training


def test_create_model_depends_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(create_model(TINY).net.state_dict()["conv1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_spec_survives_json_and_sorts_its_options() -> None:
    one = ModelSpec("timm:x", 10, 64, {"b": 1, "a": "t", "c": 0.5, "d": True}, (0, 0, 0), (1, 1, 1))
    two = ModelSpec("timm:x", 10, 64, {"d": True, "c": 0.5, "a": "t", "b": 1}, (0, 0, 0), (1, 1, 1))
    assert one.to_json() == two.to_json()
    assert ModelSpec.from_json(one.to_json()) == one
    assert list(json.loads(one.to_json())) == sorted(json.loads(one.to_json()))


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": 3},
        {"num_classes": 1},
        {"num_classes": 2.0},
        {"num_classes": True},
        {"num_classes": 10**9},
        {"image_size": 0},
        {"image_size": 10**6},
        {"options": {"width": [1]}},
        {"options": {"width": None}},
        {"options": {"width": float("nan")}},
        {"options": {"a b": 1}},
        {"options": {1: 1}},
        {"options": [1]},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5, 0.5, float("inf"))},
        {"std": (1.0, 0.0, 1.0)},
        {"std": ("1", "1", "1")},
    ],
)
def test_impossible_specs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        ModelSpec(**{"name": "timm:resnet18", "num_classes": 10, **change})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"name": "x"}',
        '{"name": "x", "num_classes": 3, "run": 1}',
        "[" * 100_000,
        '{"name": "x", "num_classes": ' + "9" * 9999 + "}",
    ],
)
def test_json_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        ModelSpec.from_json(text)
