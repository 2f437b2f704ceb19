"""BackdoorBench's models in and out: the same numbers, the same names, plain files."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.backdoorbench import (
    import_attack_result,
    infected_model,
    write_defense_result,
)
from pbe_fast.data import Manifest, verify_shards
from pbe_fast.data.converters import read_attack_result
from pbe_fast.errors import CheckpointError, ModelError, RunDirectoryError, ShardError
from pbe_fast.models import ModelSpec, create_model, load_model, save_model
from tests._backdoorbench import (
    CLASSES,
    SIZE,
    TARGET,
    attack_content,
    clean_shards,
    labels_in_order,
    poisoned_set,
    preact_weights,
    write_result,
)

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))


def _model_result(folder: Path, weights: Mapping[str, Tensor], **changes: Any) -> Path:
    """A result with a model and nothing else."""
    content = attack_content(folder, [0, TARGET], weights)
    return write_result(folder, {**content, "bd_train": None, "bd_test": None, **changes})


def _theirs(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What BackdoorBench's PreActResNet18 makes of images in [0, 1], from its weights."""
    x = torchvision.transforms.functional.normalize(images, *CIFAR10)
    x = functional.conv2d(x, weights["conv1.weight"], padding=1)
    for layer in range(1, 5):
        for block in range(2):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            active = _norm_relu(weights, f"{name}.bn1", x)
            shortcut = x
            if f"{name}.shortcut.0.weight" in weights:
                shortcut = functional.conv2d(
                    active, weights[f"{name}.shortcut.0.weight"], stride=stride
                )
            y = functional.conv2d(active, weights[f"{name}.conv1.weight"], None, stride, 1)
            y = _norm_relu(weights, f"{name}.bn2", y)
            x = functional.conv2d(y, weights[f"{name}.conv2.weight"], padding=1) + shortcut
    return functional.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def _norm_relu(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    parts = [weights[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
    return functional.relu(functional.batch_norm(x, *parts))


# the model


def test_preactresnet18_gives_the_logits_that_it_gives_there(tmp_path: Path) -> None:
    weights = preact_weights()
    model = infected_model(read_attack_result(_model_result(tmp_path, weights)))
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    expected = _theirs(weights, images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01  # there is something to compare


def test_preactresnet18_goes_out_as_it_came_in(tmp_path: Path) -> None:
    weights = preact_weights()
    model = infected_model(read_attack_result(_model_result(tmp_path / "in", weights)))
    save_model(model, tmp_path / "purified.safetensors")
    path = write_defense_result(tmp_path, tmp_path / "purified.safetensors")
    assert path.name == "defense_result.pt"
    content = torch.load(path, weights_only=True)
    assert {key: content[key] for key in content if key != "model"} == {
        "model_name": "preactresnet18", "num_classes": CLASSES,
    }  # fmt: skip
    # BackdoorBench matches names by their order.
    assert list(content["model"]) == list(weights)
    assert all(torch.equal(content["model"][name], weights[name]) for name in weights)
    assert {type(value) for value in content["model"].values()} == {Tensor}
    before = path.read_bytes()
    assert write_defense_result(tmp_path, tmp_path / "purified.safetensors").read_bytes() == before


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchvisions_models_keep_their_names(tmp_path: Path, wrapped: bool) -> None:
    torch.manual_seed(0)
    net = torchvision.models.shufflenet_v2_x1_0(num_classes=CLASSES).eval()
    state = net.state_dict()
    given = {f"module.{key}": value for key, value in state.items()} if wrapped else state
    folder = _model_result(tmp_path / "in", OrderedDict(given), model_name="shufflenet_v2_x1_0",
                           clean_data="gtsrb")  # fmt: skip
    model = infected_model(read_attack_result(folder))
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net(images))  # GTSRB is not normalised
    save_model(model, tmp_path / "purified.safetensors")
    content = torch.load(
        write_defense_result(tmp_path, tmp_path / "purified.safetensors"), weights_only=True
    )
    assert content["model_name"] == "shufflenet_v2_x1_0"
    assert list(content["model"]) == list(state)


def test_a_model_that_resizes_is_one_here_too(tmp_path: Path) -> None:
    """As BackdoorBench's ViTs, with a model that takes less memory."""
    torch.manual_seed(0)
    net = nn.Sequential(
        torchvision.transforms.Resize((64, 64)),
        torchvision.models.squeezenet1_0(num_classes=CLASSES),
    ).eval()
    spec = ModelSpec("torchvision:squeezenet1_0", CLASSES, SIZE, {"resize": 64})
    save_model(create_model(spec), tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors")
    assert list(model.net.state_dict()) == list(net.state_dict())
    model.net.load_state_dict(net.state_dict())
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net((images - model.mean) / model.std))


@pytest.mark.parametrize("side", [0, -1, 2.0, True, 5000])
def test_absurd_sides_are_refused(side: Any) -> None:
    spec = ModelSpec("torchvision:squeezenet1_0", CLASSES, SIZE, {"resize": side})
    with pytest.raises(ModelError, match="resize is"):
        create_model(spec)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("googlenet", "auxiliary"),
        ("mnasnet1_0", "version number"),
        ("senet18", "architecture of BackdoorBench's own"),
        ("net.py:make", "not supported; "),
        ("../../evil.py:make", "not supported; "),
        ("timm:resnet18", "not supported; "),
    ],
)
def test_models_that_are_not_supported_are_named(tmp_path: Path, name: str, words: str) -> None:
    folder = _model_result(tmp_path, preact_weights(2), model_name=name)
    with pytest.raises(ModelError, match=words):
        infected_model(read_attack_result(folder))


def test_data_sets_that_are_not_supported_are_named(tmp_path: Path) -> None:
    folder = _model_result(tmp_path, preact_weights(2), clean_data="mnist")
    with pytest.raises(ModelError, match=r"'mnist' is not supported; .*cifar10"):
        infected_model(read_attack_result(folder))


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    weights = preact_weights()
    weights["layer1.0.bn1.weight"] = torch.ones(3)
    del weights["linear.bias"]
    with pytest.raises(CheckpointError, match=r"missing: linear\.bias") as caught:
        infected_model(read_attack_result(_model_result(tmp_path, weights)))
    assert "layer1.0.bn1.weight: shape (3,)" in str(caught.value)


def test_a_model_that_backdoorbench_has_not_goes_nowhere(tmp_path: Path) -> None:
    model = create_model(ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 2}))
    save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="BackdoorBench has no such model"):
        write_defense_result(tmp_path, tmp_path / "model.safetensors")
    assert not (tmp_path / "defense_result.pt").exists()


# the conversion


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result folder, with clean shards in ``clean`` beside it."""
    labels = labels_in_order(clean_shards(tmp_path / "clean"))
    folder = tmp_path / "result"
    return write_result(folder, attack_content(folder, labels, preact_weights()))


def test_a_result_becomes_shards_truth_and_a_model_once(tmp_path: Path, result: Path) -> None:
    out = tmp_path / "run"
    values = import_attack_result(result, out, tmp_path / "clean")
    made = out / "backdoorbench"
    assert values == {
        "model.checkpoint": made / "model.safetensors",
        "data.image_size": SIZE,
        "data.train": made / "train",
        "data.truth": made / "train" / "truth.parquet",
    }
    assert load_model(made / "model.safetensors").spec.options == {"final_norm": False}
    train = Manifest.load(made / "train")
    assert verify_shards(train) == []
    truth = pq.read_table(made / "train" / "truth.parquet").to_pylist()
    clean = Manifest.load(tmp_path / "clean")
    assert [row["key"] for row in truth] == clean.keys.to_pylist() == train.keys.to_pylist()
    assert [row["original_label"] for row in truth] == clean.labels.tolist()
    for row, label in zip(truth, train.labels.tolist(), strict=True):
        assert label == (TARGET if row["poisoned"] else row["original_label"])
    assert 0 < sum(row["poisoned"] for row in truth) < len(truth)
    triggered = Manifest.load(made / "triggered")
    assert set(triggered.labels.tolist()) == {TARGET}
    assert triggered.classes == clean.classes

    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert import_attack_result(result, out, tmp_path / "clean") == values
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_conversion_that_was_stopped_is_done_again(tmp_path: Path, result: Path) -> None:
    out = tmp_path / "run"
    import_attack_result(result, out, tmp_path / "clean")
    source = out / "backdoorbench" / "source.json"
    expected = source.read_bytes()
    source.unlink()
    (out / "backdoorbench" / "model.safetensors").unlink()
    import_attack_result(result, out, tmp_path / "clean")
    assert source.read_bytes() == expected
    load_model(out / "backdoorbench" / "model.safetensors")


def test_another_result_does_not_go_into_the_same_run(tmp_path: Path, result: Path) -> None:
    out = tmp_path / "run"
    import_attack_result(result, out, tmp_path / "clean")
    with pytest.raises(RunDirectoryError, match="another attack result"):
        import_attack_result(result, out)
    (out / "backdoorbench" / "source.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="damaged"):
        import_attack_result(result, out, tmp_path / "clean")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, result: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(RunDirectoryError, match=r"thesis\.txt"):
        import_attack_result(result, out, tmp_path / "clean")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_mistake_leaves_nothing_that_looks_finished(tmp_path: Path, result: Path) -> None:
    next((result / "bd_train_dataset").rglob("*.png")).unlink()
    with pytest.raises(ShardError, match="missing"):
        import_attack_result(result, tmp_path / "run", tmp_path / "clean")
    assert not (tmp_path / "run" / "backdoorbench").exists()


def test_without_shards_only_the_model_and_the_triggered_images_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    test = poisoned_set(folder, "bd_test_dataset", [0, 2], [0, 1], [0, 1])
    _model_result(folder, preact_weights(), bd_test=test)
    values = import_attack_result(folder, tmp_path / "run")
    assert set(values) == {"model.checkpoint", "data.image_size"}
    made = tmp_path / "run" / "backdoorbench"
    assert sorted(path.name for path in made.iterdir()) == [
        "model.safetensors", "source.json", "triggered",
    ]  # fmt: skip
    assert list(json.loads((made / "source.json").read_text())) == ["attack_result"]
