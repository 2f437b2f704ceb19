"""Checkpoints that are damaged or hostile: each refused, and none of them runs code."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pbe_fast.errors import CheckpointError
from pbe_fast.models import ModelSpec, PreActResNet18, create_model, load_model, save_model

TINY = ModelSpec("builtin:preact_resnet18", 5, 8, {"width": 1})


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return PreActResNet18(5, 1).state_dict()


def with_header(path: Path, spec: Any, state: dict[str, Tensor] | None = None) -> Path:
    """A safetensors file with any description in its header and no digest."""
    text = spec if isinstance(spec, str) else json.dumps(spec)
    safetensors.torch.save_file(state or weights(), path, {"pbe_fast": text})
    return path


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.canary),))


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.tar", "m.bin", "m.safetensors"])
@pytest.mark.parametrize("bare", [True, False])
def test_no_code_in_a_pickle_runs(name: str, bare: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    if bare:
        path.write_bytes(pickle.dumps(Touch(canary), protocol=2))
    else:
        torch.save({"state_dict": weights(), "callback": Touch(canary)}, path)
    with pytest.raises(CheckpointError, match=rf"{name}: ") as caught:
        load_model(path, TINY)
    assert not canary.exists()
    assert "weights_only" not in str(caught.value)  # torch advises to switch its check off
    if name != "m.safetensors":
        assert "mkdir" in str(caught.value)
        assert "sandbox" in str(caught.value)
    # The canary works: the same bytes do run under an ordinary pickle.
    pickle.loads(pickle.dumps(Touch(canary)))  # noqa: S301  # our own object, to test the test
    assert canary.exists()


def test_no_code_runs_through_the_header(tmp_path: Path) -> None:
    canary, code = tmp_path / "canary", tmp_path / "evil.py"
    code.write_text(f"import os\nos.mkdir({str(canary)!r})\ndef make(num_classes): pass\n")
    path = with_header(tmp_path / "m.safetensors", {"name": f"{code}:make", "num_classes": 5})
    with pytest.raises(CheckpointError, match=r"refused.*\n?.*give the model's name yourself"):
        load_model(path)
    assert not canary.exists()
    with pytest.raises(ValueError, match="NoneType"):  # the caller's own word does run it
        load_model(path, ModelSpec(f"{code}:make", 5))
    assert canary.exists()


@pytest.mark.parametrize(
    "spec",
    [
        "not json",
        "[]",
        {"name": "builtin:preact_resnet18"},
        {"name": "timm:hf_hub:a/b", "num_classes": 5},
        {"name": "timm:no_such_model_at_all", "num_classes": 5},
        {"name": "timm:test_resnet", "num_classes": 5, "options": {"checkpoint_path": "x.pth"}},
        {"name": "timm:test_resnet", "num_classes": 5, "options": {"width": {"a": 1}}},
        {"name": "torchvision:squeezenet1_0", "num_classes": 5, "options": {"weights": "DEFAULT"}},
        {"name": TINY.name, "num_classes": 5, "options": {"width": 10**12}},
        {"name": TINY.name, "num_classes": 5, "options": {"width": 1}, "image_size": 4000},
        {"name": TINY.name, "num_classes": 10**12},
        {"name": TINY.name, "num_classes": 5, "unknown": 1},
        {"name": TINY.name, "num_classes": 5, "std": [0, 0, 0]},
    ],
)
def test_hostile_descriptions_are_refused(spec: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.safetensors: "):
        load_model(with_header(tmp_path / "m.safetensors", spec))


def test_a_header_cannot_make_us_allocate(tmp_path: Path) -> None:
    # 2800 times the weights of the usual model, 175 GB: refused on its shapes alone.
    spec = {"name": TINY.name, "num_classes": 5, "options": {"width": 4000}}
    with pytest.raises(CheckpointError, match=r"\(4000, 3, 3, 3\) in the model"):
        load_model(with_header(tmp_path / "m.safetensors", spec))


def test_a_file_without_description_needs_a_spec(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="Give the model's name"):
        load_model(tmp_path / "m.safetensors")
    load_model(tmp_path / "m.safetensors", TINY)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"garbage " * 40, b"PK\x03\x04" + b"x" * 90])
def test_garbage_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"m{suffix}: not a"):
        load_model(path, TINY)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_that_are_cut_short_are_refused(share: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch.save(weights(), path)
    else:
        save_model(create_model(TINY), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError):
        load_model(path, TINY)


def test_folders_missing_files_and_other_suffixes(tmp_path: Path) -> None:
    (tmp_path / "m.pt").mkdir()
    (tmp_path / "m.onnx").write_bytes(b"x")
    for name, message in [("m.pt", "folder"), ("n.pt", "no such file"), ("m.onnx", "kind")]:
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name, TINY)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in source.namelist():
            bomb.writestr(member, source.read(member))
    with pytest.raises(CheckpointError, match="compressed"):
        load_model(tmp_path / "bomb.pt", TINY)


def test_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1).expand(10**13)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="describes 40000000000000 bytes"):
        load_model(tmp_path / "m.pt", TINY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds list"),
        ({}, "holds dict"),
        ({"a": 3, "b": torch.zeros(2)}, "'a': int"),
        ({3: torch.zeros(2)}, "3: Tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "a: sparse_coo"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a: complex"),
        ({"a": torch.zeros(2, device="meta")}, "a: empty"),
        (torch.zeros(2), "holds Tensor"),
    ],
)
def test_contents_that_are_no_weights_are_listed(
    content: Any, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "m.pt", TINY)


def test_attributes_that_hide_a_tensors_methods(tmp_path: Path) -> None:
    state = weights()
    hidden = nn.Parameter(state["conv1.weight"])
    hidden.isnan = "not a method"  # type: ignore[assignment,method-assign]  # the attack
    state["conv1.weight"] = hidden
    torch.save(state, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", TINY)
    assert torch.equal(loaded.net.state_dict()["conv1.weight"], state["conv1.weight"].detach())


def test_values_that_are_no_weights_are_counted(tmp_path: Path) -> None:
    model = create_model(TINY)
    with torch.no_grad():
        model.net.state_dict()["bn.weight"][:3] = torch.nan
        model.net.state_dict()["bn.running_var"][0] = -1
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"3 NaN and 0 infinite of 8") as caught:
        load_model(tmp_path / "m.safetensors")
    assert "bn.running_var: 1 negative variances" in str(caught.value)


_FOLDER_IS_SHARED = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_DAMAGE = st.lists(
    # Half of the damage goes into the first half, where header and names are.
    st.tuples(st.floats(0, 1, exclude_max=True) | st.floats(0, 0.5), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damage: list[tuple[float, int]], share: float) -> bytes:
    result = bytearray(content)
    for place, value in damage:
        result[int(place * len(result))] = value
    return bytes(result[: round(share * len(result))])


@_FOLDER_IS_SHARED
@given(damage=_DAMAGE, share=st.sampled_from([1.0, 1.0, 1.0, 0.9]))
def test_damage_is_found_or_harmless(
    damage: list[tuple[float, int]], share: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = create_model(TINY)
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    path.write_bytes(damaged(path.read_bytes(), damage, share))
    try:
        again = load_model(path)
    except CheckpointError:
        return
    assert again.spec == model.spec
    expected = model.net.state_dict()
    assert all(torch.equal(v, expected[n]) for n, v in again.net.state_dict().items())


@_FOLDER_IS_SHARED
@given(damage=_DAMAGE, suffix=st.sampled_from([".safetensors", ".pt"]))
def test_damage_without_digest_is_a_checkpoint_error_or_loads(
    damage: list[tuple[float, int]], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch.save(weights(), path)
    else:
        with_header(path, TINY.to_json())
    path.write_bytes(damaged(path.read_bytes(), damage, 1.0))
    try:
        load_model(path, None if suffix == ".safetensors" else TINY)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017  # most damage raises, some does not
