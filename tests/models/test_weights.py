"""Every reason why tensors do not fit a model is found and said."""

import pytest
import torch
from torch import Tensor

from pbe_fast.models import PreActResNet18, check_weights

Weights = dict[str, Tensor]


@pytest.fixture
def reference() -> Weights:
    torch.manual_seed(0)
    return PreActResNet18(43, 2).state_dict()


@pytest.fixture
def state(reference: Weights) -> Weights:
    return {name: value.clone() for name, value in reference.items()}


def test_equal_weights_fit(state: Weights, reference: Weights) -> None:
    assert check_weights(state, reference) == []


def test_reference_may_have_no_memory(state: Weights, reference: Weights) -> None:
    meta = {name: value.to("meta") for name, value in reference.items()}
    assert check_weights(state, meta) == []
    state["bn.weight"][3] = torch.nan
    assert len(check_weights(state, meta)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_fit(state: Weights, reference: Weights, dtype: torch.dtype) -> None:
    other = {n: v.to(dtype) if v.is_floating_point() else v.int() for n, v in state.items()}
    assert check_weights(other, reference) == []


def test_counters_may_be_absent(state: Weights, reference: Weights) -> None:
    fewer = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    assert len(fewer) < len(state)
    assert check_weights(fewer, reference) == []


def test_all_differences_are_listed(state: Weights, reference: Weights) -> None:
    del state["conv1.weight"]
    state["extra.weight"] = torch.zeros(2, 3)
    state["layer1.0.conv1.weight"] = torch.zeros(5, 5)
    state["layer1.0.bn1.weight"] = torch.zeros(2, dtype=torch.int64)
    state["layer1.0.bn1.num_batches_tracked"] = torch.tensor(1.5)
    state["layer1.1.conv1.weight"][0, 0, 0, :2] = torch.nan
    state["layer1.1.conv1.weight"][1, 0, 0, 0] = -torch.inf
    state["bn.running_var"][:3] = -0.1
    lines = check_weights(state, reference)
    assert len(lines) == 7
    for part in [
        "missing: conv1.weight (2, 3, 3, 3)",
        "unexpected: extra.weight (2, 3)",
        "layer1.0.conv1.weight: shape (5, 5) in the checkpoint, (2, 2, 3, 3) in the model",
        "layer1.0.bn1.weight: torch.int64 in the checkpoint, torch.float32 in the model",
        "layer1.0.bn1.num_batches_tracked: torch.float32",
        "layer1.1.conv1.weight: 2 NaN and 1 infinite of 36 values",
        "bn.running_var: 3 negative variances",
    ]:
        assert any(line.startswith(part) for line in lines), (part, lines)


def test_class_count_is_said_in_words(reference: Weights) -> None:
    lines = check_weights(PreActResNet18(10, 2).state_dict(), reference)
    assert lines[0] == ("the checkpoint has 10 classes, the data has 43 (last layer linear)")
    assert len(lines) == 3


def test_wrong_width_is_not_called_a_class_count(reference: Weights) -> None:
    lines = check_weights(PreActResNet18(43, 3).state_dict(), reference)
    assert lines
    assert not any("classes" in line for line in lines)


def test_another_last_layer_is_not_called_a_class_count(state: Weights, reference: Weights) -> None:
    state["linear.weight"] = torch.zeros(10, 8)
    (line,) = check_weights(state, reference)
    assert line == "linear.weight: shape (10, 8) in the checkpoint, (43, 16) in the model"


def test_double_that_overflows_float_is_infinite(state: Weights, reference: Weights) -> None:
    state["bn.bias"] = state["bn.bias"].double()
    state["bn.bias"][0] = 1e300
    assert check_weights(state, reference) == ["bn.bias: 0 NaN and 1 infinite of 16 values"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda v: v.to_sparse(), "sparse_coo"),
        (lambda v: v.to(torch.complex64), "complex"),
        (lambda v: v.to("meta"), "empty"),
        (lambda v: v.to(torch.float8_e4m3fn), "float8"),
        (lambda v: v > 0, "bool"),
    ],
)
def test_strange_tensors_are_refused(
    state: Weights, reference: Weights, make: object, kind: str
) -> None:
    state["bn.weight"] = make(state["bn.weight"])  # type: ignore[operator]  # a lambda above
    (line,) = check_weights(state, reference)
    assert line.startswith("bn.weight: ")
    assert kind in line
