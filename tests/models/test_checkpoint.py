"""Saving and loading: equal logits, plain library loads, wrappings, and deterministic bytes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from pbe_fast.errors import CheckpointError, ModelError
from pbe_fast.models import (
    Classifier,
    ModelSpec,
    PreActResNet18,
    create_model,
    load_model,
    read_state,
    save_model,
)

TINY = ModelSpec("builtin:preact_resnet18", 5, 16, {"width": 2})


def trained(spec: ModelSpec) -> Classifier:
    """A model whose batch-norm statistics are not those of a new one."""
    torch.manual_seed(0)
    model = create_model(spec)
    with torch.no_grad():
        model(torch.rand(4, 3, spec.image_size, spec.image_size))
    return model.eval()


def logits(model: nn.Module, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.rand(3, 3, size, size, generator=generator))  # type: ignore[no-any-return]  # untyped call


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        (TINY, lambda: PreActResNet18(5, 2)),
        (
            ModelSpec("timm:test_resnet", 6, 64),
            lambda: timm.create_model("test_resnet", num_classes=6),
        ),
        (
            ModelSpec("torchvision:shufflenet_v2_x0_5", 6, 64),
            lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=6),
        ),
    ],
)
def test_round_trip_and_plain_library_load(
    spec: ModelSpec, plain: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = trained(spec)
    path = tmp_path / "m.safetensors"
    save_model(model, path, extra={"run": "7"})
    expected = logits(model, spec.image_size)

    again = load_model(path)
    assert again.spec == model.spec
    assert not again.training
    assert torch.equal(logits(again, spec.image_size), expected)

    net = plain().eval()
    net.load_state_dict(safetensors.torch.load_file(path))
    other = Classifier(net, model.spec)
    assert torch.equal(logits(other, spec.image_size), expected)
    with safe_open(path, "pt") as file:
        assert file.metadata()["run"] == "7"


def test_regnet_which_cannot_be_built_without_memory(tmp_path: Path) -> None:
    model = trained(ModelSpec("torchvision:regnet_x_400mf", 4, 32))
    save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(logits(load_model(tmp_path / "m.safetensors"), 32), logits(model, 32))


def test_same_model_same_bytes(tmp_path: Path) -> None:
    model = trained(TINY)
    extra = {f"k{i}": str(i) for i in range(20)}
    save_model(model, tmp_path / "a.safetensors", extra=extra)
    last = trained(TINY).to(memory_format=torch.channels_last)
    save_model(last, tmp_path / "b.safetensors", extra=dict(reversed(extra.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    save_model(trained(TINY), tmp_path / "m.safetensors")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(2), expected)


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, k):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(3, k)\n"
        "        self.b = self.a\n"
        "    def forward(self, x):\n"
        "        return self.b(x.mean((2, 3)))\n"
        "def make(num_classes):\n"
        "    return Net(num_classes)\n"
    )
    spec = ModelSpec(f"{tmp_path}/tied.py:make", 4, 8)
    model = trained(spec)
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors", spec)
    assert torch.equal(logits(again, 8), logits(model, 8))


WRAPPINGS: list[tuple[str, Callable[[dict[str, Tensor]], Any]]] = [
    ("plain", lambda s: s),
    ("state_dict", lambda s: {"state_dict": s, "epoch": 3}),
    ("model", lambda s: {"model": s, "acc": 0.5}),
    ("model_state_dict", lambda s: {"model_state_dict": s, "optimizer": {"lr": 0.1}}),
    ("net", lambda s: {"net": s}),
    ("twice", lambda s: {"model": {"state_dict": s}}),
    ("parallel", lambda s: {"module." + n: v for n, v in s.items()}),
    ("compiled", lambda s: {"_orig_mod." + n: v for n, v in s.items()}),
    ("both", lambda s: {"state_dict": {"_orig_mod.module." + n: v for n, v in s.items()}}),
    ("ours", lambda s: {"net." + n: v for n, v in s.items()}),
    ("parameters", lambda s: {n: nn.Parameter(v, v.is_floating_point()) for n, v in s.items()}),
    ("no counters", lambda s: {n: v for n, v in s.items() if not n.endswith("tracked")}),
    ("legacy", lambda s: s),
]


@pytest.mark.parametrize(("kind", "wrap"), WRAPPINGS, ids=[kind for kind, _ in WRAPPINGS])
@pytest.mark.parametrize("suffix", [".pt", ".tar"])
def test_usual_wrappings(kind: str, wrap: Any, suffix: str, tmp_path: Path) -> None:
    model = trained(TINY)
    path = tmp_path / f"m{suffix}"
    torch.save(wrap(model.net.state_dict()), path, _use_new_zipfile_serialization=kind != "legacy")
    assert torch.equal(logits(load_model(path, TINY), 16), logits(model, 16))


def test_a_model_of_its_own_with_net_in_its_names(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self, k):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Linear(3, k)\n"
        "    def forward(self, x):\n"
        "        return self.net(x.mean((2, 3)))\n"
        "def make(num_classes):\n"
        "    return Own(num_classes)\n"
    )
    spec = ModelSpec(f"{tmp_path}/own.py:make", 4, 8)
    model = trained(spec)
    torch.save(model.state_dict(), tmp_path / "outer.pt")  # net.net.weight
    torch.save(model.net.state_dict(), tmp_path / "inner.pt")  # net.weight
    for name in ("outer.pt", "inner.pt"):
        assert torch.equal(logits(load_model(tmp_path / name, spec), 8), logits(model, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = trained(TINY)
    torch.save(model.net.to(dtype).state_dict(), tmp_path / "m.pt")
    again = load_model(tmp_path / "m.pt", TINY)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    reference = model.float()
    assert torch.equal(logits(again, 16), logits(reference, 16))


def test_header_gives_the_normalisation_that_the_caller_left_open(tmp_path: Path) -> None:
    spec = ModelSpec(TINY.name, 5, 16, {"width": 2}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_model(trained(spec), tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", TINY).spec == spec
    mine = ModelSpec(TINY.name, 5, 16, {"width": 2}, (0.0,) * 3, (1.0,) * 3)
    assert load_model(tmp_path / "m.safetensors", mine).spec == mine


def test_read_state_keeps_names(tmp_path: Path) -> None:
    state = {"module.a": torch.arange(3.0), "module.b": torch.arange(4)}
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    read = read_state(tmp_path / "m.pth")
    assert list(read) == list(state)
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_differences_name_the_file_and_are_cut_at_twenty_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(trained(TINY), path)
    with pytest.raises(CheckpointError) as caught:
        load_model(path, ModelSpec(TINY.name, 5, 16, {"width": 3}))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(str(path))
    assert len(lines) == 22
    assert "more" in lines[20]
    assert "options" in lines[21]


def test_class_count_mismatch_is_said_in_words(tmp_path: Path) -> None:
    save_model(trained(TINY), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="the checkpoint has 5 classes, the data has 43"):
        load_model(tmp_path / "m.safetensors", ModelSpec(TINY.name, 43, 16, {"width": 2}))


def test_a_bad_spec_of_the_caller_is_a_model_error(tmp_path: Path) -> None:
    save_model(trained(TINY), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="Did you mean"):
        load_model(tmp_path / "m.safetensors", ModelSpec("timm:resnet1", 5))


def test_refused_destinations_and_extras(tmp_path: Path) -> None:
    model = trained(TINY)
    with pytest.raises(CheckpointError, match="safetensors"):
        save_model(model, tmp_path / "m.pt")
    for key in ("pbe_fast", "pbe_fast_sha256", "format"):
        with pytest.raises(CheckpointError, match="taken"):
            save_model(model, tmp_path / "m.safetensors", extra={key: "x"})
    assert not list(tmp_path.iterdir())


def test_remarks_for_torch_developers_are_silent(tmp_path: Path) -> None:
    torch.save(trained(TINY).net.state_dict(), tmp_path / "m.pt", pickle_protocol=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(tmp_path / "m.pt", TINY)
    assert not caught
