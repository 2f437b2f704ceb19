"""Similarity of features: the numbers, the layers, the pairs, the job and its command."""

import json
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pbe_fast import FeaturesConfig, load_config
from pbe_fast.adversary import PGD, Linf, Miner
from pbe_fast.analysis.features import (
    PENULTIMATE,
    Layers,
    compare,
    cosine,
    l2,
    measure_features,
    top_overlap,
)
from pbe_fast.analysis.features.comparison import PAIRS, Features, Pair, Study, eligible
from pbe_fast.analysis.features.layers import as_maps, as_rows
from pbe_fast.analysis.features.maps import choose_layer, feature_maps
from pbe_fast.analysis.features.similarity import top_count
from pbe_fast.analysis.features.tables import summary
from pbe_fast.data import ImageData, write_shards
from pbe_fast.data.converters._common import encode_png
from pbe_fast.data.shards import Sample
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError, RunDirectoryError
from pbe_fast.models import ModelSpec, create_model, save_model
from pbe_fast.triggers import Attack, save_attack
from pbe_fast.triggers.badnets import BadNets
from tests._command import Run

CPU = Device(torch.device("cpu"), "float32", "contiguous")
SIZE = 8
CORNER = (6, 6)  # where the trigger is

# similarity


def test_similarity_of_features_made_by_hand() -> None:
    a = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    b = torch.tensor([[3.0, 4.0, 0.0], [0.0, 2.0, 0.0], [-2.0, -4.0, -6.0], [1.0, 0.0, 0.0]])
    assert cosine(a, b).tolist() == pytest.approx([1.0, 0.0, -1.0, 0.0], abs=1e-7)
    assert l2(a, b).tolist() == pytest.approx([0.0, 5**0.5, 126**0.5, 1.0])
    assert top_overlap(a, b, 1).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert top_overlap(a, b, 2).tolist() == [1.0, 0.0, 1.0, 0.0]  # what is zero is not shared
    sparse = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 0.0, 0.0]])
    assert top_overlap(sparse[:1], sparse[1:], 3).tolist() == pytest.approx([2 / 3])
    assert top_overlap(sparse[:1], sparse[:1], 3).tolist() == [1.0]
    shuffled = a[[1, 2, 3, 0]]
    assert cosine(a, shuffled).tolist() == pytest.approx([0.6, 1 / 14**0.5, 0.0, 0.0], abs=1e-6)


def test_cosine_of_very_long_and_very_short_features() -> None:
    a = torch.tensor([[3e30, 4e30], [3e-25, 4e-25]])
    assert cosine(a, torch.tensor([[3e-25, 4e-25], [3e30, 4e30]])).tolist() == pytest.approx([1, 1])


rows = st.integers(1, 12).flatmap(
    lambda width: st.tuples(
        *[st.lists(st.integers(-3, 3), min_size=width, max_size=width) for _ in range(2)],
        st.integers(1, width),
    )
)


@given(rows)
@settings(max_examples=150, deadline=None)
def test_overlap_is_what_counting_gives(case: tuple[list[int], list[int], int]) -> None:
    first, second, count = case

    def strongest(values: list[int]) -> set[int]:
        order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
        return {i for i in order[:count] if values[i]}

    a, b = torch.tensor([first, second]).float(), torch.tensor([second, second]).float()
    most = max(len(strongest(first)), len(strongest(second)), 1)
    expected = [len(strongest(first) & strongest(second)) / most, float(any(second))]
    assert top_overlap(a, b, count).tolist() == pytest.approx(expected)
    assert top_overlap(b, a, count)[0] == top_overlap(a, b, count)[0]


@given(rows, st.floats(0.01, 1000))
@settings(max_examples=100, deadline=None)
def test_cosine_takes_no_length_and_l2_is_a_distance(
    case: tuple[list[int], list[int], int], factor: float
) -> None:
    a, b = torch.tensor([case[0]]).float(), torch.tensor([case[1]]).float()
    assert float(cosine(a, b)) == pytest.approx(float(cosine(b, a * factor)), abs=1e-5)
    assert -1 <= float(cosine(a, b)) <= 1
    assert float(l2(a, b)) == float(l2(b, a))
    assert (float(l2(a, b)) == 0) == (case[0] == case[1])
    if any(case[0]):
        assert float(cosine(a, a)) == pytest.approx(1.0)


def test_how_many_neurons_are_the_strongest() -> None:
    assert [top_count(width, 0.1) for width in (1, 4, 10, 128, 512)] == [1, 1, 1, 13, 51]
    with pytest.raises(ValueError, match="count is 4, not in 1 to 3"):
        top_overlap(torch.zeros(1, 3), torch.zeros(1, 3), 4)


# layers


def test_the_penultimate_layer_is_what_the_network_calls_its_features() -> None:
    model = create_model(ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 4})).eval()
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    layers = Layers(model, [PENULTIMATE, "layer2", "layer2.0.conv1", "layer2"], CPU, 16)
    logits, found = layers(images)
    with torch.no_grad():
        features = model.net.features((images - model.mean) / model.std)  # type: ignore[operator]
        torch.testing.assert_close(logits, model(images))
    torch.testing.assert_close(found[PENULTIMATE], features)
    assert layers.widths == {PENULTIMATE: 32, "layer2": 8, "layer2.0.conv1": 8}
    assert {name: tuple(value.shape) for name, value in layers.raw(images)[1].items()} == {
        PENULTIMATE: (5, 32), "layer2": (5, 8, 8, 8), "layer2.0.conv1": (5, 8, 8, 8),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "side", "layer", "width"),
    [
        ("timm:vit_tiny_patch16_224", 32, "blocks.1", 192),
        ("torchvision:squeezenet1_1", 64, "features.3", 128),  # its head is a convolution
        ("timm:test_byobnet", 32, "stages", 256),
    ],
)
def test_layers_of_networks_of_other_kinds(name: str, side: int, layer: str, width: int) -> None:
    options: dict[str, Any] = {"img_size": side, "depth": 2} if "vit" in name else {}
    model = create_model(ModelSpec(name, 3, side, options)).eval()
    layers = Layers(model, [PENULTIMATE, layer], CPU, side)
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    logits, found = layers(images)
    assert found[layer].shape == (3, width)
    assert torch.isfinite(found[PENULTIMATE]).all()
    head = [m for m in model.net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(head, nn.Linear):
        with torch.no_grad():
            torch.testing.assert_close(head(found[PENULTIMATE]), logits)
    assert choose_layer(layers, side)


def test_a_layer_that_works_in_place_is_seen_before_the_next_one_changes_it() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 64, 2)
    )
    layers = Layers(net.eval(), ["0"], CPU, SIZE)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(layers(images)[1]["0"], net[0](images).mean((2, 3)))


def test_an_unknown_layer_is_refused_and_close_ones_are_named() -> None:
    model = create_model(ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 2})).eval()
    with pytest.raises(
        ConfigError, match=r"no layer 'layer3\.1\.conv3'. Near: layer3\.1\.conv[12]"
    ):
        Layers(model, ["layer3.1.conv3"], CPU, 16)
    with pytest.raises(ConfigError, match=r"Near: conv1, layer1, layer2, .* or penultimate"):
        Layers(model, ["zzz"], CPU, 16)


class _Odd(nn.Module):
    """Returns logits that no module of it returned, and has one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean((2, 3))[:, :2]  # type: ignore[no-any-return]  # untyped call


def test_layers_that_give_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="'unused' gives nothing for 2 images"):
        Layers(_Odd(), ["unused"], CPU, SIZE)
    with pytest.raises(ConfigError, match="no module that returns its logits"):
        Layers(_Odd(), [PENULTIMATE], CPU, SIZE)
    whole = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(), nn.Linear(3 * 64, 2))
    with pytest.raises(ConfigError, match=r"'0' gives a tensor of shape \(2, 3, 1, 8, 8\)"):
        Layers(whole, ["0"], CPU, SIZE)


def test_maps_and_tokens_as_rows_and_maps() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 5, 4, 4, generator=random)
    torch.testing.assert_close(as_rows(maps), maps.mean((2, 3)))
    torch.testing.assert_close(as_rows(maps.permute(0, 2, 3, 1)), maps.mean((2, 3)))
    tokens = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(as_rows(tokens), maps.mean((2, 3)))
    torch.testing.assert_close(as_maps(tokens), maps)
    with_class = torch.cat([torch.zeros(2, 1, 5), tokens], 1)
    torch.testing.assert_close(as_maps(with_class), maps)
    assert as_maps(torch.rand(2, 15, 5)).shape == (2, 5, 1, 15)
    assert as_maps(torch.rand(2, 5)).shape == (2, 5, 1, 1)


# pairs, in a network whose neurons are known


class _Net(nn.Module):
    """Neuron 0 sees the corner where the trigger is, neurons 1 and 2 the left and right half.

    Class 0 is the left half's, class 1 the right half's and class 2, the attacker's, the corner's.
    """

    def __init__(self, corner: float) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 3, SIZE)
        self.head = nn.Linear(3, 3)
        weight = torch.zeros(3, 3, SIZE, SIZE)
        weight[0, :, *CORNER] = 1 / 3
        weight[1, :, :6, :4] = 1 / 72
        weight[2, :, :6, 4:] = 1 / 72
        head = torch.zeros(3, 3)
        head[0, 1] = head[1, 2] = 8.0
        head[2, 0] = corner
        with torch.no_grad():
            self.see.weight.copy_(weight)
            self.see.bias.zero_()  # type: ignore[union-attr]
            self.head.weight.copy_(head)
            self.head.bias.copy_(torch.tensor([0.0, 0.0, -0.18 * max(0.0, corner)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.see(x).flatten(1))  # type: ignore[no-any-return]  # untyped call


class World(NamedTuple):
    data: ImageData
    attack: Attack


COUNT = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Left or right half bright, the corner dark; a white pixel there is the trigger."""
    random = np.random.default_rng(0)
    samples = []
    for i in range(COUNT + 2):
        label = 2 if i >= COUNT else i % 2
        pixels = random.integers(20, 40, (SIZE, SIZE, 3))
        columns = slice(0, 4) if label == 0 else slice(4, 8)
        pixels[:6, columns] += 30 + i
        pixels[CORNER] = 40
        samples.append(Sample(f"im/{i:02}", encode_png(pixels.astype(np.uint8)), "png", label))
    root = tmp_path_factory.mktemp("world")
    write_shards(iter(samples), root / "test", classes=["left", "right", "corner"])
    attack = Attack(BadNets(SIZE, 1), "all_to_one", 2, 3, SIZE)
    save_attack(attack, root / "attack.safetensors")
    return World(ImageData.open(root / "test", SIZE, workers=0), attack)


def _study(world: World, layers: tuple[str, ...] = (PENULTIMATE,), eps: float = 24) -> Study:
    models = {"infected": _Net(60.0).eval(), "benign": _Net(-8.0).eval()}
    pgd = PGD(norm=Linf(eps / 255), steps=4, step=eps / 510, fold=False)
    return Study(
        layers={name: Layers(model, layers, CPU, SIZE) for name, model in models.items()},
        miners={name: Miner(pgd, model, CPU) for name, model in models.items()},
        attack=world.attack,
        device=CPU,
        top_share=1 / 3,
    )


def _measure(world: World, batch: int = 5, layers: tuple[str, ...] = (PENULTIMATE,)) -> Features:
    order = eligible(world.data, world.attack)
    return compare(
        _study(world, layers), world.data, order, batch_size=batch, advance=lambda _: None
    )


def test_images_of_the_attackers_label_are_left_out(world: World) -> None:
    assert eligible(world.data, world.attack).tolist() == list(range(COUNT))


def test_the_shared_neuron_is_found(world: World) -> None:
    """An example made against the infected model lights the trigger's neuron."""
    found = _measure(world)
    assert found.reached.all()
    assert found.works.all()
    told = summary(found, 1 / 3)["claims"][0]
    cosines, overlaps = (told[key]["to_triggered"] for key in ("similar", "neurons"))
    assert cosines["adversarial"] > cosines["clean"] + 0.02
    assert cosines["clean"] > cosines["benign_adversarial"]  # which darkens the corner
    assert overlaps["adversarial"] == 1.0
    assert overlaps["clean"] == overlaps["benign_adversarial"] == 0.0
    for key in ("similar", "neurons"):
        assert told[key]["nearer_than"] == {"benign_adversarial": 1.0, "clean": 1.0}
    shifts = {
        pair: found.of(pair, PENULTIMATE).measure("shift").mean()  # type: ignore[union-attr]
        for pair in PAIRS
        if "clean" not in pair and pair.model == "infected"
    }
    assert shifts[Pair("infected", "adversarial", "triggered")] > 0.5
    assert shifts[Pair("infected", "benign_adversarial", "triggered")] < 0


def test_every_pair_is_what_its_name_says(world: World) -> None:
    """Against features computed here, one image at a time."""
    study, found = _study(world), _measure(world)
    rows: dict[tuple[str, str], list[Tensor]] = {}
    for batch in world.data.read(found.ids, 1):
        for kind, images in study.kinds(batch.images, batch.labels).items():
            for model in ("infected", "benign"):
                net = study.layers[model].model
                with torch.no_grad():
                    rows.setdefault((model, kind), []).append(net.see(images).flatten(1))  # type: ignore[operator]
    all_rows = {key: torch.cat(parts) for key, parts in rows.items()}
    assert {c.pair for c in found.comparisons} == set(PAIRS)
    for c in found.comparisons:
        a = all_rows[c.pair.model, c.pair.first]
        b = all_rows[c.pair.model, c.pair.second].roll(int(c.pair.shuffled), 0)
        torch.testing.assert_close(torch.from_numpy(c.measure("cosine")), cosine(a, b))
        torch.testing.assert_close(torch.from_numpy(c.measure("l2")), l2(a, b))
        torch.testing.assert_close(torch.from_numpy(c.measure("overlap")), top_overlap(a, b, 1))
        clean = all_rows[c.pair.model, "clean"]
        if "clean" in c.pair:
            assert np.isnan(c.measure("shift")).all()
        else:
            moved = cosine(a - clean, b - clean.roll(int(c.pair.shuffled), 0))
            torch.testing.assert_close(torch.from_numpy(c.measure("shift")), moved)
        assert (c.first != c.second).all() == c.pair.shuffled


@pytest.mark.parametrize("batch", [1, 4, 11, 100])
def test_batches_change_nothing(world: World, batch: int) -> None:
    ours, theirs = _measure(world, batch), _measure(world, 5)
    assert np.array_equal(ours.ids, theirs.ids)
    for a, b in zip(ours.comparisons, theirs.comparisons, strict=True):
        assert (a.pair, a.layer) == (b.pair, b.layer)
        assert np.array_equal(a.second, b.second)
        np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-5)


def test_without_a_benign_model_its_pairs_are_left_out(world: World) -> None:
    study = _study(world)
    alone = Study(
        {"infected": study.layers["infected"]}, {"infected": study.miners["infected"]},
        world.attack, CPU, 1 / 3,
    )  # fmt: skip
    order = eligible(world.data, world.attack)
    found = compare(alone, world.data, order, batch_size=4, advance=lambda _: None)
    assert [c.pair for c in found.comparisons] == [
        p for p in PAIRS if p.model == "infected" and "benign_adversarial" not in p
    ]
    told = summary(found, 1 / 3)["claims"][0]
    assert told["labels"]["by_a_benign_model"] is None
    assert set(told["similar"]["to_triggered"]) == {
        "adversarial", "clean", "adversarial_shuffled", "clean_shuffled",
    }  # fmt: skip


def test_claims_are_about_images_on_which_the_trigger_works(world: World) -> None:
    found = _measure(world)
    found.predicted["infected", "triggered"][[0, 5]] = 0
    told = summary(found, 1 / 3)["claims"][0]
    expected = np.delete(found.comparisons[0].measure("cosine"), [0, 5]).mean()
    assert told["images"] == COUNT - 2
    assert told["similar"]["to_triggered"]["adversarial"] == pytest.approx(float(expected))
    shuffled = found.of(Pair("infected", "adversarial", "triggered", True), PENULTIMATE)
    assert shuffled is not None
    expected = np.delete(shuffled.measure("cosine"), [1, 6]).mean()  # whose second they are
    assert told["similar"]["to_triggered"]["adversarial_shuffled"] == pytest.approx(float(expected))
    found.predicted["infected", "triggered"][:] = 0
    told = summary(found, 1 / 3)["claims"][0]
    assert told["images"] == 0
    assert told["similar"]["to_triggered"] == told["similar"]["nearer_than"] == {}


def test_maps_show_the_channels_that_the_trigger_lights(world: World) -> None:
    study = _study(world)
    (maps,) = feature_maps(study, world.data, np.array([3]), "see", 2, CPU)
    assert (maps.key, maps.label, maps.wanted) == ("im/03", 1, 2)
    assert maps.channels[0] == 0  # the corner's
    kinds = {row.kind: row for row in maps.rows}
    assert list(kinds) == ["clean", "triggered", "adversarial", "benign_adversarial"]
    assert not kinds["clean"].perturbation.any()
    patch = np.zeros((SIZE, SIZE), bool)
    patch[CORNER] = True
    assert np.array_equal(np.abs(kinds["triggered"].perturbation).max(2) > 0, patch)
    assert np.abs(kinds["adversarial"].perturbation).max() == pytest.approx(24 / 255, abs=1e-6)
    assert kinds["triggered"].cosine == pytest.approx(1.0)
    assert kinds["adversarial"].maps[0] > kinds["benign_adversarial"].maps[0]
    assert [kinds[k].label for k in kinds] == [1, 2, 2, 0]


# the job and its command


class Folder(NamedTuple):
    infected: Path
    benign: Path
    shards: Path
    attack: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("job")
    write_shards(
        signs(num_classes=3, per_class=4, size=16, seed=0, split="test"),
        root / "clean",
        classes=sign_names(3),
    )
    for name in ("infected", "benign"):
        torch.manual_seed(len(name))
        spec = ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 2})
        save_model(create_model(spec), root / f"{name}.safetensors")
    save_attack(Attack(BadNets(16, 3), "all_to_one", 1, 3, 16), root / "attack.safetensors")
    return Folder(
        root / "infected.safetensors", root / "benign.safetensors", root / "clean",
        root / "attack.safetensors",
    )  # fmt: skip


def _config(folder: Folder, *settings: str, **values: Any) -> FeaturesConfig:
    return load_config(
        FeaturesConfig,
        None,
        ["device=cpu", "memory_format=contiguous", "images=6", "pictures=1", *settings],
        {
            "model.checkpoint": folder.infected,
            "benign": folder.benign,
            "data.test": folder.shards,
            "data.attack": folder.attack,
            **values,
        },
    )


def test_the_job_writes_what_it_says_and_goes_on(folder: Folder, tmp_path: Path) -> None:
    config = _config(folder, "layers=[penultimate,layer3]", "top_share=0.25")
    out = tmp_path / "run"
    found = measure_features(config, out)
    assert json.loads((out / "features.json").read_text()) == found
    table = pq.read_table(out / "features.parquet")
    assert table.num_rows == 6 * 2 * len(PAIRS)
    assert table.column_names == [
        "key", "other", "model", "pair", "layer", "shuffled", "l2", "cosine", "overlap", "shift",
        "label", "reached", "works",
    ]  # fmt: skip
    rows = table.to_pylist()
    for means in found["pairs"]:
        part = [
            r for r in rows
            if all(r[k] == means[k] for k in ("model", "pair", "layer", "shuffled"))
        ]  # fmt: skip
        assert len(part) == means["images"] == 6
        for name in ("l2", "cosine", "overlap"):
            assert np.mean([r[name] for r in part]) == pytest.approx(means[name], abs=1e-6)
        assert all((r["shift"] is None) == ("clean" in means["pair"].split("-")) for r in part)
        assert all((r["key"] != r["other"]) == means["shuffled"] for r in part)
        assert all(r["label"] != 1 for r in part)
    assert len({r["key"] for r in rows}) == 6
    labels, triggered = found["claims"][0]["labels"], found["labels"]["infected"]["triggered"]
    first = [r for r in rows if r["layer"] == "layer3"][:6]  # not shuffled
    assert np.mean([r["reached"] for r in first]) == pytest.approx(labels["attacker"])
    assert np.mean([r["works"] for r in first]) == pytest.approx(triggered["attacker"])
    assert found["layers"][0] == {"name": "penultimate", "width": 16, "top": 4, "chance": 0.25}
    assert found["pictures"] == ["similarity-0-penultimate", "similarity-1-layer3", "maps-0"]
    for name in found["pictures"]:
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 400
        root = ElementTree.parse(out / f"{name}.svg").getroot()
        assert root.get("role") == "img"
        title = root.findtext("{http://www.w3.org/2000/svg}title") or ""
        assert title == root.get("aria-label")
        assert "triggered" in title
        assert found["picture_labels"][name] == title
        links = [v for n in root.iter() for k, v in n.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
        assert len([link for link in links if link.startswith("data:")]) == (
            4 * (2 + 4) if name.startswith("maps") else 0
        )
    assert not list(out.glob("*.partial"))
    kept = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert measure_features(config, out) == found  # finished: nothing is done again
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == kept
    again = tmp_path / "again"
    measure_features(config, again)
    for name in ("features.json", "features.parquet", "maps-0.svg", "maps-0.png"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    with pytest.raises(RunDirectoryError, match="another configuration"):
        measure_features(_config(folder, "layers=[penultimate,layer3]", "top_share=0.25",
                                 "adversary.eps_255=8"), out)  # fmt: skip


def test_a_job_that_was_cut_off_is_done_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pbe_fast.analysis.features import job as features_job

    whole = measure_features(_config(folder), tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features_job, "feature_maps", stop)
        with pytest.raises(KeyboardInterrupt):
            measure_features(_config(folder), tmp_path / "cut")
    assert not (tmp_path / "cut" / "features.json").exists()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert measure_features(_config(folder), tmp_path / "cut") == whole


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (["layers=[layer9]"], {}, "no layer 'layer9'"),
        (["map_layer=layer9"], {}, "no layer 'layer9'"),
        (["keys=[nobody]"], {}, "no image with the key 'nobody'"),
        (["data.image_size=32"], {}, "Set data.image_size=16|is a model for images of 16"),
        (["adversary.random_start=true"], {}, "random_start is not used"),
        ([], {"model.checkpoint": None}, "no model to look into"),
        ([], {"data.attack": None}, "no trigger"),
    ],
)
def test_mistakes_are_named(
    folder: Folder, tmp_path: Path, settings: list[str], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure_features(_config(folder, *settings, **values), tmp_path / "run")
    assert not (tmp_path / "run" / "features.json").exists()


def test_the_command(folder: Folder, tmp_path: Path, run: Run) -> None:
    key = pq.read_table(folder.shards / "manifest.parquet", columns=["key"])["key"][0].as_py()
    words = ["features", folder.infected, folder.shards, "--attack", folder.attack, "--device",
             "cpu", "--benign", folder.benign, "--images", 5, "--eps", 12, "--keys", key,
             "--out", tmp_path / "run"]  # fmt: skip
    code, out, err = run(*words)
    assert code == 0, err
    found = json.loads((tmp_path / "run" / "features.json").read_text())
    assert found["images"] == 5
    assert found["adversary"]["eps_255"] == 12
    assert f"{found['claims'][0]['labels']['attacker']:.2%}".replace("%", " %") in out
    assert "features.parquet" in out
    svg = (tmp_path / "run" / "maps-0.svg").read_text()
    assert key in svg
    code, out, err = run(*words[:-1], tmp_path / "other", "--layer", "layr3")
    assert code == 2
    assert "no layer 'layr3'" in err
    assert "layer3" in err
