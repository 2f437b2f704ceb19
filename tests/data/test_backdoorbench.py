"""BackdoorBench's results are read as what they say; whatever else they hold is refused."""

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_fast.data import Manifest, decode_rgb
from pbe_fast.data.converters import (
    read_attack_result,
    read_backdoorbench_test,
    read_backdoorbench_train,
)
from pbe_fast.data.shards import ShardReader
from pbe_fast.errors import CheckpointError, ImageError, ShardError
from tests._backdoorbench import (
    CLASSES,
    SIZE,
    TARGET,
    attack_content,
    clean_shards,
    labels_in_order,
    preact_weights,
    write_result,
)

Content = dict[str, Any]


@dataclass(frozen=True)
class World:
    root: Path
    clean: Manifest
    content: Content

    @property
    def entries(self) -> dict[Any, Any]:
        entries: dict[Any, Any] = self.content["bd_train"]["bd_data_container"]["data_dict"]
        return entries

    def read(self) -> list[Any]:
        """The whole way: the file, the training set, the test set."""
        result = read_attack_result(write_result(self.root, self.content))
        train = read_backdoorbench_train(result, self.clean)
        return [*train.samples, *read_backdoorbench_test(result)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    clean = clean_shards(tmp_path / "clean")
    root = tmp_path / "result"
    # Of the weights nothing here looks into more than the names.
    content = attack_content(root, labels_in_order(clean), preact_weights(2))
    return World(root, clean, content)


# what is read


def test_poisoned_images_stand_in_their_places_and_clean_ones_are_untouched(world: World) -> None:
    labels = labels_in_order(world.clean)
    result = read_attack_result(write_result(world.root, world.content))
    assert (result.model_name, result.num_classes, result.image_size) == (
        "preactresnet18", CLASSES, SIZE,
    )  # fmt: skip
    train = read_backdoorbench_train(result, world.clean)
    samples = list(train.samples)
    keys = world.clean.keys.to_pylist()
    assert [sample.key for sample in samples] == keys  # the order of the clean shards

    poisoned = {int(index) for index in world.entries}
    position = {key: n for n, key in enumerate(sorted(keys))}  # in the data set
    reader = ShardReader(world.clean)
    for row, sample in enumerate(samples):
        index = position[sample.key]
        assert train.original_labels[row] == labels[index]
        assert (row in train.poisoned) == (index in poisoned)
        if index in poisoned:
            assert sample.label == TARGET
            pixels = decode_rgb(sample.image)
            assert (pixels[0, 0] == 10 * index).all()
            assert (pixels[-1, -1] == 255).all()
        else:
            assert (sample.image, sample.label) == (reader.read(row), labels[index])
    assert 0 < len(train.poisoned) == len(poisoned) < len(samples)


def test_triggered_test_images_have_the_labels_that_the_attacker_wants(world: World) -> None:
    result = read_attack_result(write_result(world.root, world.content))
    samples = list(read_backdoorbench_test(result))
    labels = labels_in_order(world.clean)
    assert [sample.key for sample in samples] == [
        f"{label}/{n}" for n, label in enumerate(labels) if label != TARGET
    ]
    assert {sample.label for sample in samples} == {TARGET}


def test_arrays_of_the_first_numpy_are_read_too(world: World) -> None:
    expected = world.read()
    path = world.root / "attack_result.pt"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    assert b"numpy._core.multiarray" in members[pickled]
    members[pickled] = members[pickled].replace(b"numpy._core.", b"numpy.core.")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    result = read_attack_result(world.root)
    assert list(read_backdoorbench_train(result, world.clean).samples) == expected[:24]


def test_members_that_were_left_out_are_left_out(world: World) -> None:
    world.content["bd_train"]["original_index_array"] = np.arange(5, 20)
    result = read_attack_result(write_result(world.root, world.content))
    train = read_backdoorbench_train(result, world.clean)
    expected = set(sorted(world.clean.keys.to_pylist())[5:20])
    assert {sample.key for sample in train.samples} == expected


def test_a_folder_that_was_moved_is_read_where_it_is(world: World, tmp_path: Path) -> None:
    expected = world.read()
    world.root.rename(tmp_path / "elsewhere")
    result = read_attack_result(tmp_path / "elsewhere")
    assert list(read_backdoorbench_train(result, world.clean).samples) == expected[:24]


# what is refused: the file


class _Canary:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def _deep(content: Content, value: object) -> None:
    content["bd_train"]["bd_data_container"]["save_file_format"] = value


def _top(content: Content, value: object) -> None:
    content["extra"] = value


def _weights(content: Content, value: object) -> None:
    content["model"]["conv1.weight"] = value


def _doubling(depth: int) -> list[Any]:
    """A list that takes 2 to the power of its depth to write out, and a few bytes in a file."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested, nested]
    return nested


@pytest.mark.parametrize("put", [_deep, _top, _weights])
def test_a_pickle_that_would_run_something_does_not(
    world: World, tmp_path: Path, put: Callable[[Content, object], None]
) -> None:
    canary = tmp_path / "canary"
    put(world.content, _Canary(canary))
    with pytest.raises(CheckpointError, match=r"system.*Nothing was run"):
        world.read()
    assert not canary.exists()
    torch.load(world.root / "attack_result.pt", weights_only=False)  # the canary does sing
    assert canary.exists()


class _Pointers:
    """An array of objects that is pickled as bytes: they would be taken for pointers."""

    def __reduce__(self) -> Any:
        state = (3, "|", None, None, None, -1, -1, 0)  # flags without "is pickled as a list"
        rebuild = np.empty(0).__reduce__()[0]
        dtype = _Dtype(state)
        return rebuild, (np.ndarray, (0,), b"b"), (1, (2,), dtype, False, b"A" * 16)


class _Dtype:
    def __init__(self, state: object) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return np.dtype, ("O8", False, True), self.state


class _Lies:
    """An array of more numbers than it has bytes."""

    def __reduce__(self) -> Any:
        rebuild = np.empty(0).__reduce__()[0]
        state = (1, (10**12,), np.dtype("i8"), False, b"A" * 16)
        return rebuild, (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (_Pointers(), "'O8'"),
        (_Lies(), "1000000000000"),
        (np.array([None, "x"], object), "not of plain numbers"),
        (np.zeros((24, 1)), "shape"),
        (np.zeros(24, "S4"), "'S4'"),
        (np.zeros(24, [("a", "i4")]), "'V4'"),
        ([0.0] * 24, "list, not an array"),
        (np.full(24, 2), "other values than 0 and 1"),
    ],
    ids=["pointers", "lies", "objects", "shape", "text", "fields", "list", "two"],
)
def test_arrays_of_anything_but_numbers_are_refused(
    world: World, array: object, words: str
) -> None:
    world.content["bd_train"]["poison_indicator"] = array
    with pytest.raises(CheckpointError, match=words):
        world.read()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (np.arange(25), "leads out of 24"),
        (np.arange(-1, 23), "leads out of 24"),
        (np.arange(24.0), "leads out of"),
        (np.zeros(24, int), "twice"),
    ],
)
def test_members_that_are_not_there_are_refused(world: World, members: Any, words: str) -> None:
    world.content["bd_train"]["original_index_array"] = members
    with pytest.raises(CheckpointError, match=words):
        world.read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_name": 3}, "model_name is int"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_classes": 10**9}, "num_classes"),
        ({"img_size": [SIZE, SIZE, 1]}, "three channels"),
        ({"img_size": [SIZE, 2 * SIZE, 3]}, "square"),
        ({"img_size": "16"}, "img_size is '16'"),
        ({"img_size": _doubling(40)}, "not height, width"),
        ({"num_classes": _doubling(40)}, "not a number"),
        ({"clean_data": None}, "clean_data"),
        ({"model": None}, "not names and tensors"),
        ({"model": {"a": torch.zeros(1).expand(10**9)}}, "describes"),
        ({"bd_train": [1]}, "bd_train is list"),
        ({"bd_train": {"x": torch.zeros(1), "y": torch.zeros(1)}}, "first version"),
        ({"bd_train": {}}, "bd_data_container"),
    ],
)
def test_facts_that_are_none_are_refused(world: World, change: Content, words: str) -> None:
    world.content.update(change)
    with pytest.raises(CheckpointError, match=words):
        world.read()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (None, "not names and values"),
        ({"path": "x"}, "does not lead below"),
        ({"path": 5, "other_info": [1, 0]}, "path is int"),
        ({"other_info": [1]}, "two of 3 labels"),
        ({"other_info": [1, 3]}, "two of 3 labels"),
        ({"other_info": [-1, 0]}, "two of 3 labels"),
        ({"other_info": [1.0, 0]}, "two of 3 labels"),
    ],
)
def test_entries_that_name_no_image_are_refused(world: World, entry: Any, words: str) -> None:
    key = next(iter(world.entries))
    world.entries[key] = {**world.entries[key], **entry} if entry else entry
    with pytest.raises(CheckpointError, match=words):
        world.read()


def test_an_image_that_is_marked_and_not_named_is_refused(world: World) -> None:
    del world.entries[next(iter(world.entries))]
    with pytest.raises(CheckpointError, match="not in data_dict"):
        world.read()


class _Hiding:
    """An OrderedDict with attributes that hide its methods."""

    def __init__(self, content: Content) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        hidden = dict.fromkeys(("get", "items", "keys", "__getitem__"), 5)
        return OrderedDict, (), hidden, None, iter(self.content.items())


def test_attributes_that_hide_methods_change_nothing(world: World) -> None:
    expected = world.read()
    content = {**world.content, "model": _Hiding(world.content["model"])}
    result = read_attack_result(write_result(world.root, _Hiding(content)))
    assert list(result.weights) == list(preact_weights(2))
    assert list(read_backdoorbench_train(result, world.clean).samples) == expected[:24]


def test_images_inside_the_file_are_refused_with_a_way_out(world: World) -> None:
    container = world.content["bd_train"]["bd_data_container"]
    container["save_folder_path"] = None
    container["data_dict"] = {0: (Image.new("RGB", (SIZE, SIZE)), 1, 0)}
    with pytest.raises(CheckpointError, match="save_folder_path"):
        world.read()


@pytest.mark.parametrize("damage", ["cut", "empty", "compressed", "missing", "text"])
def test_damaged_files_are_refused(world: World, damage: str) -> None:
    path = write_result(world.root, world.content) / "attack_result.pt"
    data = path.read_bytes()
    path.unlink()
    if damage == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 100_000)
    elif damage != "missing":
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(CheckpointError, match=r"attack_result\.pt"):
        read_attack_result(world.root)


# what is refused: places


@pytest.mark.parametrize(
    "path",
    [
        "./record/badnet_0_1/bd_train_dataset/../../secret.png",
        "./record/badnet_0_1/bd_train_dataset/0/./1.png",
        "./record/badnet_0_1/bd_train_dataset//secret.png",
        "./record/badnet_0_1/bd_train_dataset/..\\secret.png",
        "./record/badnet_0_1/bd_train_dataset/a\0b.png",
        "./record/badnet_0_1/bd_train_dataset",
        "./record/badnet_0_1/bd_train_dataset_2/0.png",
        "/etc/passwd",
        "secret.png",
        "http://127.0.0.1:9/secret.png",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(world: World, path: str) -> None:
    Image.new("RGB", (SIZE, SIZE)).save(world.root.parent / "secret.png")
    world.entries[next(iter(world.entries))]["path"] = path
    with pytest.raises(CheckpointError, match="does not lead below"):
        world.read()


@pytest.mark.parametrize("folder", ["", "..", "a/..", "/", "a\\b"])
def test_folders_that_are_none_are_refused(world: World, folder: str) -> None:
    container = world.content["bd_train"]["bd_data_container"]
    container["save_folder_path"] = folder
    for entry in world.entries.values():
        entry["path"] = f"{folder}/secret.png"
    with pytest.raises(CheckpointError, match="save_folder_path"):
        world.read()


def _poisoned_file(world: World) -> Path:
    return next(path for path in sorted((world.root / "bd_train_dataset").rglob("*.png")))


@pytest.mark.parametrize("what", ["image", "class", "folder"])
def test_links_that_lead_out_are_refused(world: World, tmp_path: Path, what: str) -> None:
    image = _poisoned_file(world)
    inside = {"image": image, "class": image.parent, "folder": image.parent.parent}[what]
    outside = tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(ShardError, match="leads out"):
        world.read()


def test_a_file_that_is_a_link_out_is_refused(world: World, tmp_path: Path) -> None:
    path = write_result(world.root, world.content) / "attack_result.pt"
    path.rename(tmp_path / "outside.pt")
    path.symlink_to(tmp_path / "outside.pt")
    with pytest.raises(ShardError, match="outside"):
        read_attack_result(world.root)


def test_a_folder_that_is_reached_by_a_link_is_read(world: World, tmp_path: Path) -> None:
    expected = world.read()
    (tmp_path / "link").symlink_to(world.root)
    result = read_attack_result(tmp_path / "link")
    assert list(read_backdoorbench_train(result, world.clean).samples) == expected[:24]


# what is refused: images


def test_missing_images_are_counted_before_any_is_read(world: World) -> None:
    image = _poisoned_file(world)
    image.unlink()
    with pytest.raises(ShardError, match=rf"1 of 6 .*bd_train_dataset/.*{image.name}"):
        world.read()


@pytest.mark.parametrize("name", ["\ud800.png", "n" * 5000 + ".png"])
def test_names_that_no_file_can_have_are_missing_images(world: World, name: str) -> None:
    entry = world.entries[next(iter(world.entries))]
    entry["path"] = f"./record/badnet_0_1/bd_train_dataset/{name}"
    with pytest.raises(ShardError, match="1 of 6 poisoned images are missing"):
        world.read()


def test_a_pipe_is_no_image(world: World) -> None:
    image = _poisoned_file(world)
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(ShardError, match="not the file of an image"):
        world.read()


@pytest.mark.parametrize("damage", ["size", "cut", "text"])
def test_damaged_images_are_refused_by_name(world: World, damage: str) -> None:
    image = _poisoned_file(world)
    if damage == "size":
        Image.new("RGB", (SIZE, SIZE + 1)).save(image)
    else:
        image.write_bytes({"cut": image.read_bytes()[:-30], "text": b"hello"}[damage])
    with pytest.raises(ImageError, match=image.name):
        world.read()


def test_an_attack_without_a_training_set_says_so(world: World) -> None:
    world.content["bd_train"] = None
    with pytest.raises(ShardError, match="clean images instead"):
        world.read()


# what is refused: clean shards


def test_shards_of_another_length_are_refused(world: World, tmp_path: Path) -> None:
    other = clean_shards(tmp_path / "other", per_class=7)
    result = read_attack_result(write_result(world.root, world.content))
    with pytest.raises(ShardError, match=r"21 samples of 3 classes.* on 24 of 3"):
        read_backdoorbench_train(result, other)


def test_shards_in_another_order_are_refused(world: World) -> None:
    for entry in world.entries.values():
        entry["other_info"][1] = (entry["other_info"][1] + 1) % CLASSES
    with pytest.raises(ShardError, match="do not sort in its order"):
        world.read()
