"""Attack files: round trips, and damaged or hostile ones."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pbe_fast.errors import TriggerError
from pbe_fast.triggers import ATTACKS, Attack, load_attack, plant, save_attack

KEY = "pbe_fast_attack"


def pixels(size: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=rng)


def parts(attack: Attack) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = {
        "name": attack.trigger.name,
        "mode": attack.mode,
        "target": attack.target,
        "num_classes": attack.num_classes,
        "image_size": attack.image_size,
        "clean_label": attack.clean_label,
        "options": dict(attack.trigger.options()),
    }
    return header, dict(attack.trigger.tensors())


def write(path: Path, header: object, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), path, metadata={KEY: json.dumps(header)})
    return path


@pytest.mark.parametrize("size", [8, 33])
@pytest.mark.parametrize("name", ATTACKS)
def test_round_trip(make_trigger: Any, tmp_path: Path, name: str, size: int) -> None:
    attack = Attack(make_trigger(name, size), "all_to_all", 2, 5, size)
    save_attack(attack, tmp_path / "a")
    state = torch.random.get_rng_state()
    loaded = load_attack(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), state)  # reading a file draws no numbers
    assert parts(loaded)[0] == parts(attack)[0]
    images = pixels(size)
    here = torch.device("cpu")
    assert torch.equal(
        plant(loaded.trigger.content(here), images), plant(attack.trigger.content(here), images)
    )
    first, second = attack.trigger.tensors(), loaded.trigger.tensors()
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_attack_gives_the_same_bytes(make_trigger: Any, tmp_path: Path, name: str) -> None:
    attack = Attack(make_trigger(name, 32), "all_to_one", 2, 5, 32, clean_label=name == "sig")
    save_attack(attack, tmp_path / "a")
    save_attack(attack, tmp_path / "b")
    save_attack(load_attack(tmp_path / "a"), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    assert load_attack(tmp_path / "a").clean_label is (name == "sig")


def test_a_loaded_generator_is_frozen_and_in_eval_mode(make_trigger: Any, tmp_path: Path) -> None:
    save_attack(Attack(make_trigger("input_aware", 8), "all_to_one", 0, 2, 8), tmp_path / "a")
    trigger: Any = load_attack(tmp_path / "a").trigger
    for net in (trigger.pattern, trigger.mask):
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert not any(value.is_meta for value in net.state_dict().values())


def test_a_picture_that_is_not_contiguous_can_be_kept(tmp_path: Path) -> None:
    from pbe_fast.triggers import Blend

    picture = pixels(8)[0].permute(0, 2, 1)
    save_attack(Attack(Blend(picture), "all_to_one", 0, 2, 8), tmp_path / "a")
    torch.testing.assert_close(load_attack(tmp_path / "a").trigger.tensors()["picture"], picture)


@pytest.mark.parametrize("key", ["name", "mode", "target", "num_classes", "image_size", "options"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_missing_entry(make_trigger: Any, tmp_path: Path, name: str, key: str) -> None:
    header, tensors = parts(Attack(make_trigger(name, 8), "all_to_one", 0, 5, 8))
    del header[key]
    with pytest.raises(TriggerError, match=f"bad: not an attack written by pbe-fast .'{key}'"):
        load_attack(write(tmp_path / "bad", header, tensors))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_missing_option(make_trigger: Any, tmp_path: Path, name: str) -> None:
    header, tensors = parts(Attack(make_trigger(name, 8), "all_to_one", 0, 5, 8))
    header["options"] = {}
    with pytest.raises(TriggerError, match="bad: not an attack written by pbe-fast"):
        load_attack(write(tmp_path / "bad", header, tensors))


@pytest.mark.parametrize("name", ["blend", "wanet", "input_aware"])
def test_missing_and_misshapen_tensors(make_trigger: Any, tmp_path: Path, name: str) -> None:
    header, tensors = parts(Attack(make_trigger(name, 8), "all_to_one", 0, 5, 8))
    for key in list(tensors)[:3]:
        rest = {k: v for k, v in tensors.items() if k != key}
        value = tensors[key]
        swaps: list[dict[str, Tensor]] = [
            {},
            {key: value[..., None]},
            {key: torch.cat((value, value))},
            {key: value.flatten()[:0]},
            {key: torch.tensor(1, dtype=value.dtype)},
            {key: value.to(torch.float64)},
        ]
        for swap in swaps:
            with pytest.raises(TriggerError, match="bad: "):
                load_attack(write(tmp_path / "bad", header, rest | swap))


@pytest.mark.parametrize("name", ["wanet", "input_aware"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_tensors_that_are_not_finite(
    make_trigger: Any, tmp_path: Path, name: str, value: float
) -> None:
    header, tensors = parts(Attack(make_trigger(name, 8), "all_to_one", 0, 5, 8))
    key = next(iter(tensors))
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[0] = value
    with pytest.raises(TriggerError, match=r"bad: .* not finite"):
        load_attack(write(tmp_path / "bad", header, tensors))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sig", {"name": "trojan"}),
        ("sig", {"name": ["sig"]}),
        ("sig", {"name": None}),
        ("sig", {"mode": "all"}),
        ("sig", {"mode": {}}),
        ("sig", {"target": 5}),
        ("sig", {"target": None}),
        ("sig", {"target": "one"}),
        ("sig", {"target": float("inf")}),
        ("sig", {"num_classes": float("nan")}),
        ("sig", {"num_classes": -3}),
        ("sig", {"image_size": 0}),
        ("sig", {"image_size": 10**12}),
        ("sig", {"image_size": float("inf")}),
        ("badnets", {"image_size": 10**12}),
        ("wanet", {"image_size": 10**12}),
        ("input_aware", {"image_size": 10**12}),
        ("blend", {"image_size": 9}),
        ("badnets", {"image_size": -1}),
        ("sig", {"options": []}),
        ("sig", {"options": None}),
        ("sig", {"options": {"amplitude_255": 1e9, "frequency": 6}}),
        ("sig", {"options": {"amplitude_255": "loud", "frequency": 6}}),
        ("sig", {"options": {"amplitude_255": 20, "frequency": float("inf")}}),
        ("blend", {"options": {"alpha": 2}}),
        ("blend", {"options": {"alpha": float("nan")}}),
        ("wanet", {"options": {"strength": -1}}),
        ("wanet", {"options": {"strength": float("inf")}}),
        ("badnets", {"options": {"patch_size": 9}}),
        ("badnets", {"options": {"patch_size": 10**30}}),
        ("input_aware", {"options": {"width": 10**9}}),
        ("input_aware", {"options": {"width": 0}}),
        ("input_aware", {"options": {"width": 8}}),
        ("input_aware", {"options": {"width": float("inf")}}),
        ("sig", {"clean_label": True, "mode": "all_to_all"}),
    ],
)
def test_impossible_values(
    make_trigger: Any, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    header, tensors = parts(Attack(make_trigger(name, 8), "all_to_one", 0, 5, 8))
    load_attack(write(tmp_path / "good", header, tensors))
    with pytest.raises(TriggerError, match="bad: "):
        load_attack(write(tmp_path / "bad", header | change, tensors))


def test_unknown_names_list_the_known_ones(make_trigger: Any, tmp_path: Path) -> None:
    header, tensors = parts(Attack(make_trigger("sig", 8), "all_to_one", 0, 5, 8))
    with pytest.raises(TriggerError, match=r"'trojan' is unknown; known: badnets, blend, sig"):
        load_attack(write(tmp_path / "bad", header | {"name": "trojan"}, tensors))


@pytest.mark.parametrize("header", [[], "text", 7, None, [[["deep"]]]])
def test_a_header_that_is_no_object(tmp_path: Path, header: object) -> None:
    with pytest.raises(TriggerError, match="not an attack written by pbe-fast"):
        load_attack(write(tmp_path / "bad", header, {}))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 10_000])
def test_a_header_that_is_no_json(tmp_path: Path, text: str) -> None:
    save_file({}, tmp_path / "bad", metadata={KEY: text})
    with pytest.raises(TriggerError, match="not an attack written by pbe-fast"):
        load_attack(tmp_path / "bad")


def test_files_that_are_something_else(make_trigger: Any, tmp_path: Path) -> None:
    good = tmp_path / "good"
    save_attack(Attack(make_trigger("blend", 8), "all_to_one", 0, 5, 8), good)
    content = good.read_bytes()
    save_file({"weight": torch.zeros(3)}, tmp_path / "model")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "garbage").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "short").write_bytes(content[:-20])
    (tmp_path / "long").write_bytes(content + b"more")
    (tmp_path / "huge_header").write_bytes(b"\xff" * 8 + content[8:])
    (tmp_path / "folder").mkdir()
    for name in ("model", "pickle", "empty", "garbage", "short", "long", "huge_header", "folder"):
        with pytest.raises(TriggerError, match=f"{name}: not an attack written by pbe-fast"):
            load_attack(tmp_path / name)


def test_every_cut_and_flipped_byte_gives_an_attack_or_an_error(
    make_trigger: Any, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    save_attack(Attack(make_trigger("wanet", 8), "all_to_one", 0, 5, 8), good)
    content = good.read_bytes()
    bad = tmp_path / "bad"
    for position in range(0, len(content), 3):
        for damaged in (
            content[:position],
            content[:position] + bytes([content[position] ^ 0x21]) + content[position + 1 :],
        ):
            bad.write_bytes(damaged)
            with suppress(TriggerError):
                load_attack(bad)


def test_a_missing_file_says_where_attacks_come_from(tmp_path: Path) -> None:
    with pytest.raises(TriggerError, match="there is no such file; 'pbe-fast poison' writes"):
        load_attack(tmp_path / "none")
