"""The baselines on a small infected model, and the formula of each on something smaller."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.baselines import BASELINES, anp, fp, ibau, nad, run, sau
from bench.baselines._common import drawn_batches, frozen_statistics, minibatches
from bench.baselines._layers import last_linear, outputs, stages
from bench.baselines.anp import Neurons, learn_masks, neuron_pruning
from bench.baselines.fp import channel_activity, fine_pruning, prune_dormant
from bench.baselines.ft import STAGE, fine_tuning
from bench.baselines.ft_sam import SharpnessAware, climb, sharpness_aware_tuning
from bench.baselines.ibau import hypergradient, implicit_unlearning, projected
from bench.baselines.nad import attention, attention_distillation, cut_out
from bench.baselines.run import erase
from bench.baselines.sau import divergence, shared_examples, shared_loss, shared_unlearning
from bench.study import Case, DataSet, collect, run_cell
from pbe_fast import PurifyConfig, TrainConfig, load_config, load_model, poison, purify, train
from pbe_fast.config import PoisonConfig
from pbe_fast.data.loader import ImageData
from pbe_fast.data.shards import Sample, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.device import Device
from pbe_fast.erase import first_subset
from pbe_fast.errors import ConfigError, DivergenceError, RunDirectoryError
from pbe_fast.evaluate import Accuracy, evaluate
from pbe_fast.models import Classifier, ModelSpec, create_model
from pbe_fast.progress import Silent
from pbe_fast.triggers import Attack, load_attack

CPU = Device(torch.device("cpu"), "float32", "contiguous")
SIZE = 16
NAMES = ("limit-30", "ahead", "danger", "priority")  # unlike each other at 16 pixels
CLASSES = len(NAMES)

QUICK: Mapping[str, Callable[..., None]] = {
    "ft": partial(fine_tuning, stage=replace(STAGE, epochs=2, batch_size=32)),
    "fp": partial(
        fine_pruning,
        settings=fp.FinePruning(rounds=8, stage=replace(STAGE, epochs=2, batch_size=32)),
    ),
    "nad": partial(
        attention_distillation,
        settings=nad.Distillation(epochs=3, batch_size=32, lr=0.01, betas=(50.0, 100.0, 100.0)),
    ),
    # Pushes of 0.4 take the accuracy of so narrow a network with them.
    "anp": partial(neuron_pruning, settings=anp.Pruning(iterations=60, batch_size=32, eps=0.2)),
    "ibau": partial(implicit_unlearning, settings=ibau.Unlearning(rounds=1, batch_size=64)),
    "sau": partial(shared_unlearning, settings=sau.Unlearning(epochs=3, batch_size=32)),
    "ft_sam": partial(sharpness_aware_tuning, settings=SharpnessAware(epochs=2, batch_size=32)),
}


@dataclass(frozen=True)
class World:
    """Clean and poisoned shards of drawn signs, and a model that has learned the trigger."""

    root: Path
    clean: ImageData
    test: ImageData
    attack: Attack

    @property
    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Of the clean images that a baseline gets."""
        return first_subset(len(self.clean.manifest), 0.4, 0)

    def infected(self) -> Classifier:
        """A fresh copy."""
        return load_model(self.root / "infected" / "model.safetensors").eval()

    def erased(self, name: str, seed: int = 0) -> Classifier:
        """By one of the baselines, with few steps."""
        model = self.infected()
        QUICK[name](model, self.clean, self.ids, CPU, seed, Silent())
        return model

    def measured(self, model: Classifier) -> Accuracy:
        """On the test images."""
        return evaluate(model, self.test, CPU, attack=self.attack)


def _drawn(split: str, per_class: int) -> Iterator[Sample]:
    labels = {
        label: NAMES.index(name) for label, name in enumerate(sign_names(10)) if name in NAMES
    }
    for sample in signs(num_classes=10, per_class=per_class, size=SIZE, seed=0, split=split):
        if sample.label in labels:
            yield replace(sample, label=labels[sample.label])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    for split, per_class in (("train", 60), ("test", 20)):
        write_shards(_drawn(split, per_class), root / split, classes=list(NAMES))
    poison(root / "train", root / "bad", PoisonConfig(image_size=SIZE, target=1, patch_size=4))
    values = {
        "data.train": root / "bad",
        "data.test": root / "test",
        "data.attack": root / "bad" / "attack.safetensors",
        "data.image_size": SIZE,
        "data.augment": "none",
        "model.options.width": 4,
        "epochs": 20,
        "batch_size": 32,
        "lr": 0.05,
        "precision": "float32",
        "memory_format": "contiguous",
        "device": "cpu",
        "curve_samples": 0,
    }
    train(load_config(TrainConfig, values=values), root / "infected")
    clean, test = (ImageData.open(root / split, SIZE) for split in ("train", "test"))
    return World(root, clean, test, load_attack(root / "bad" / "attack.safetensors"))


def _same(first: Classifier, second: Classifier) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_model_is_infected(world: World) -> None:
    found = world.measured(world.infected())
    assert found.acc > 0.85
    assert found.asr is not None
    assert found.asr > 0.9


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_gives_the_same_bytes_and_accuracy_is_kept(world: World, name: str) -> None:
    infected, first, second = world.infected(), world.erased(name), world.erased(name)
    assert _same(first, second)
    assert not _same(first, infected)
    assert not any(module.training for module in first.modules())
    assert not any(module._forward_hooks for module in first.modules())
    assert world.measured(first).acc > world.measured(infected).acc - 0.15


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"anp"}))
def test_another_seed_gives_another_model(world: World, name: str) -> None:
    assert not _same(world.erased(name, 0), world.erased(name, 1))


@pytest.mark.parametrize("name", BASELINES)
def test_a_single_clean_image_is_too_few(world: World, name: str) -> None:
    with pytest.raises(ConfigError, match="1 "):
        QUICK[name](world.infected(), world.clean, world.ids[:1], CPU, 0, Silent())


def test_batches_are_all_images_of_each_epoch_in_orders_of_their_own(world: World) -> None:
    seen = list(
        minibatches(world.clean, world.ids, CPU, 0, Silent(), phase="x", epochs=2, batch_size=40)
    )
    assert [len(batch.labels) for batch in seen] == [40, 40, 16] * 2
    assert [batch.epoch for batch in seen] == [0, 0, 0, 1, 1, 1]
    assert [batch.done for batch in seen] == pytest.approx([i / 6 for i in range(6)])
    first, second = (torch.cat([b.labels for b in seen if b.epoch == e]) for e in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_frozen_statistics_are_those_from_before() -> None:
    norm = nn.BatchNorm2d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with frozen_statistics(norm):
        norm(torch.randn(4, 2, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert norm.momentum == 0.1
    norm(torch.randn(4, 2, 3, 3))
    assert norm.num_batches_tracked == 1


# Fine-pruning


def test_the_dormant_channels_are_cut_first_and_while_accuracy_allows() -> None:
    worth = torch.tensor([0.5, 0.0, 0.03, 0.2])
    asked: list[list[float]] = []

    def accuracy(mask: Tensor) -> float:
        asked.append(mask.tolist())
        return float((worth * mask).sum())

    mask = prune_dormant(torch.tensor([4.0, 0.0, 1.0, 2.0]), accuracy, 0.04, 64)
    assert asked == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0]]
    assert mask.tolist() == [1, 0, 0, 1]
    asked.clear()
    assert prune_dormant(torch.arange(4.0), lambda mask: 1.0, 0.0, 2).tolist() == [0, 0, 0, 1]


class Small(nn.Module):
    """Two convolutions at two resolutions; the third channel of the second one is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, stride=2, padding=1)
        self.head = nn.Linear(3, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
            self.second.weight[2], self.second.bias[2] = 0, -1

    def features(self, x: Tensor) -> Tensor:
        x = functional.relu(self.second(functional.relu(self.first(x))))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x))
        return result


def test_activity_is_that_of_the_last_linear_layers_features(world: World) -> None:
    net = Small().eval()
    layer = last_linear(net, torch.rand(2, 3, SIZE, SIZE))
    assert layer is net.head
    activity = channel_activity(net, layer, world.clean, world.ids, CPU)
    batch = next(iter(world.clean.read(world.ids, 1000)))
    assert activity[2] == 0
    expected = net.features(batch.images / 255).mean(0)
    assert torch.allclose(activity, expected, rtol=1e-4, atol=1e-6)


def test_what_is_cut_stays_cut(world: World) -> None:
    model = world.infected()
    settings = fp.FinePruning(tolerance=2.0, stage=replace(STAGE, epochs=1, batch_size=32))
    fine_pruning(model, world.clean, world.ids, CPU, 0, Silent(), settings)
    layer = last_linear(model, torch.rand(2, 3, SIZE, SIZE))
    assert layer is model.get_submodule("net.linear")
    # Past the shortcuts, too: nothing of a feature that is cut gets to the logits.
    assert int((layer.weight.abs().sum(0) > 0).sum()) == 1
    assert not torch.equal(layer.weight, world.infected().get_submodule("net.linear").weight)


def test_a_network_without_a_linear_layer_is_not_pruned() -> None:
    with pytest.raises(ConfigError, match="has none"):
        last_linear(nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten()), torch.rand(2, 3, 2, 2))


# Attention distillation


def test_attention_is_that_of_the_paper() -> None:
    features = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[-1.0, 3.0], [0.0, 0.0]]]])
    summed = torch.tensor([2.0, 9.0, 4.0, 0.0])
    assert torch.allclose(attention(features), (summed / 101**0.5)[None])
    cubed = torch.tensor([2.0, 27.0, 8.0, 0.0])
    assert torch.allclose(attention(features, 3), (cubed / 797**0.5)[None])
    assert attention(torch.randn(5, 3, 4, 4).bfloat16()).norm(dim=1).tolist() == pytest.approx(
        [1.0] * 5
    )


def test_a_square_is_cut_out_of_each_image() -> None:
    images = torch.ones(500, 3, 32, 32)
    cut = cut_out(images, 9 / 32, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(cut[:, 0], cut[:, 2])
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert int(rows.max()) == int(columns.max()) == 9
    assert int(rows.min()) >= 4  # at an edge half of it is lost
    assert float((rows == 9).float().mean()) == pytest.approx(24 / 32, abs=0.08)
    assert bool(cut.any(0).all())  # anywhere
    assert bool((images == 1).all())


def test_stages_end_with_their_last_block() -> None:
    model = create_model(ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 2}))
    names = [f"net.layer{i}" for i in (1, 2, 3, 4)]
    assert stages(model, torch.rand(2, 3, 16, 16)) == names
    assert model.training  # as it was
    halved = nn.Conv2d(4, 3, 3, stride=2, padding=1)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), halved, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(3, 3),
    )  # fmt: skip
    assert stages(plain, torch.rand(2, 3, 16, 16)) == ["0", "2"]
    with pytest.raises(ConfigError, match="several resolutions"):
        stages(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), torch.rand(2, 3, 8, 8))


def test_parts_of_other_architectures_are_found() -> None:
    images = torch.rand(2, 3, 64, 64)
    model = create_model(ModelSpec("torchvision:resnet18", 3, 64)).eval()
    assert last_linear(model, images) is model.get_submodule("net.fc")
    assert stages(model, images) == ["net.relu", *(f"net.layer{i}" for i in (1, 2, 3, 4))]
    transformer = create_model(
        ModelSpec("timm:vit_tiny_patch16_224", 3, 64, {"img_size": 64, "depth": 1})
    ).eval()
    with pytest.raises(ConfigError, match="several resolutions, and the network has 1"):
        stages(transformer, images)
    with pytest.raises(ConfigError, match="has none"):
        Neurons(transformer)


def test_the_student_takes_the_attention_of_its_teacher(world: World) -> None:
    """With a weight on it, more than without one; the teacher is another model here."""
    teacher = world.erased("ft_sam").requires_grad_(False)
    name = "net.layer3"
    images = next(iter(world.clean.read(world.ids, 100))).images / 255

    def maps(model: Classifier) -> Tensor:
        with torch.no_grad(), outputs(model, [name]) as seen:
            model(images)
        return attention(seen[name])

    def apart(beta: float) -> float:
        model = world.infected()
        settings = nad.Distillation(epochs=8, batch_size=32, lr=0.01, betas=(beta,))
        nad._train(
            model,
            teacher,
            clean=world.clean,
            ids=world.ids,
            device=CPU,
            seed=0,
            progress=Silent(),
            names=[name],
            settings=settings,
        )
        return float((maps(model) - maps(teacher)).square().mean())

    assert apart(1000.0) < 0.7 * apart(0.0)


# Adversarial neuron pruning


def test_masks_stay_in_the_unit_interval_and_the_network_as_it_was(world: World) -> None:
    model = world.infected()
    neurons = Neurons(model)
    asked: list[tuple[Tensor, Tensor]] = []
    original = neurons.logits

    def watched(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        assert len(images) == 40  # every batch is full
        asked.append((weight.detach().clone(), bias.detach().clone()))
        return original(images, weight, bias)

    settings = anp.Pruning(iterations=6, lr=20.0, batch_size=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neurons, "logits", watched)
        masks = learn_masks(neurons, world.clean, world.ids, CPU, 0, Silent(), settings)
    assert masks.min() == 0
    assert masks.max() == 1
    assert len(asked) == 18
    for start, plain, pushed in zip(asked[::3], asked[1::3], asked[2::3], strict=True):
        assert float(plain[0].min()) >= 0
        assert float(plain[0].max()) <= 1
        assert bool((plain[1] == 1).all())
        first, last = start[1] - 1, pushed[1] - 1  # of the biases, whose mask is one
        assert float(first.abs().max()) <= settings.eps
        step = (last - first).abs()
        assert bool(((step < 1e-6) | ((step - settings.eps).abs() < 1e-6)).all())
        assert float((step > 0).float().mean()) > 0.5
    assert _same(model, world.infected())


def test_drawn_batches_are_the_images_that_were_drawn(world: World) -> None:
    drawn = np.array([[3, 3, 7], [1, 0, 3]])
    batches = list(drawn_batches(world.clean, drawn, CPU, 0, Silent(), phase="x"))
    labels = world.clean.manifest.labels
    assert [batch.labels.tolist() for batch in batches] == [labels[ids].tolist() for ids in drawn]
    assert [batch.done for batch in batches] == [0, 0.5]
    # The same image in two batches is augmented in two ways.
    assert not torch.equal(batches[0].images[0], batches[1].images[2])


def test_a_mask_of_zero_is_a_neuron_that_is_cut(world: World) -> None:
    model = world.infected()
    neurons = Neurons(model)
    images = next(iter(world.test.read(world.test.ids, 8))).images / 255
    ones = torch.ones(neurons.count)
    assert torch.equal(neurons.logits(images, ones, ones), model(images))
    mask = ones.clone()
    mask[[0, 20, neurons.count - 1]] = 0
    expected = neurons.logits(images, mask, ones)
    assert not torch.allclose(expected, model(images))
    neurons.cut(mask == 0)
    assert torch.allclose(expected, model(images), atol=1e-5)
    last = neurons.norms["net.bn"]
    assert last.weight[-1] == 0
    assert last.bias[-1] != 0


def test_a_network_without_batch_norm_has_no_neurons_to_prune() -> None:
    with pytest.raises(ConfigError, match="has none"):
        Neurons(Small())


# Implicit unlearning


def _quadratic() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    root, mixed = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    theta, wanted = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(3, dtype=torch.float64), mixed, theta, wanted


def test_the_hypergradient_is_that_of_the_maximiser() -> None:
    """Inner -d'Ad/2 + d'B theta has its maximum at d = inverse(A) B theta."""
    curved, mixed, theta, wanted = _quadratic()
    theta.requires_grad_()

    def inner(d: Tensor) -> Tensor:
        return -d @ curved @ d / 2 + d @ mixed @ theta

    def outer(d: Tensor) -> Tensor:
        return (d - wanted).square().sum() / 2 + theta.pow(4).sum()

    def best(theta: Tensor) -> Tensor:
        return torch.linalg.solve(curved, mixed @ theta)

    step = 1 / float(torch.linalg.eigvalsh(curved).max())
    delta = best(theta).detach()
    (found,) = hypergradient(outer, inner, delta, [theta], step, 500)
    at = theta.detach()
    closed = 4 * at**3 + mixed.T @ torch.linalg.solve(curved, delta - wanted)
    assert torch.allclose(found, closed, atol=1e-9)

    def value(theta: Tensor) -> Tensor:
        return (best(theta) - wanted).square().sum() / 2 + theta.pow(4).sum()

    nudge = 1e-6 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([(value(at + n) - value(at - n)) / 2e-6 for n in nudge])
    assert torch.allclose(found, differences, atol=1e-6)
    # Cut short after one term of the series, the rest of the Neumann series is missing.
    (short,) = hypergradient(outer, inner, delta, [theta], step, 1)
    assert torch.allclose(short, 4 * at**3 + step * mixed.T @ (delta - wanted))
    (two,) = hypergradient(outer, inner, delta, [theta], step, 2)
    series = (2 * torch.eye(3, dtype=torch.float64) - step * curved) @ (delta - wanted)
    assert torch.allclose(two, 4 * at**3 + step * mixed.T @ series)


def test_a_perturbation_is_cut_to_its_ball() -> None:
    long = torch.full((1, 3, 4, 4), 2.0)
    assert float(projected(long, 3.0).norm()) == pytest.approx(3.0)
    assert torch.equal(projected(long / 100, 3.0), long / 100)
    assert torch.equal(projected(torch.zeros(3), 3.0), torch.zeros(3))


# Shared unlearning


def test_the_shared_loss_is_about_the_infected_models_wrong_labels() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    assert shared_loss(logits, labels, labels).item() == 0
    wrong = torch.tensor([0, 1])
    p = logits.softmax(1)[1, 1].item()
    loss = shared_loss(logits, wrong, labels)
    assert loss.item() == pytest.approx(-math.log(1 - p) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient[0].abs().max()) == 0
    assert gradient[1, 1] > 0  # a step down the loss believes less in the wrong label
    assert gradient[1, 0] < 0
    sure = torch.tensor([[0.0, 200.0, 0.0]])
    assert float(shared_loss(sure, wrong[1:], labels[1:])) == pytest.approx(200, rel=0.01)


def test_the_divergence_is_zero_for_equals_and_log_2_for_strangers() -> None:
    first = torch.tensor([[0.0, 0.0], [60.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[5.0, 5.0], [0.0, 60.0], [0.0, 1.0]])
    found = divergence(first, second)
    assert found[:2].tolist() == pytest.approx([0.0, 0.6931472], abs=1e-6)
    p, q = first[2].softmax(0), second[2].softmax(0)
    m = (p + q) / 2
    by_hand = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert float(found[2]) == pytest.approx(float(by_hand))
    assert torch.allclose(divergence(second, first), found)


def test_shared_examples_fool_both_models_alike(world: World) -> None:
    infected, current = world.infected(), world.erased("ft")
    batch = next(iter(world.clean.read(world.ids, 60)))
    images, labels = batch.images / 255, batch.labels
    settings = sau.Unlearning()
    start = torch.zeros_like(images)
    found = shared_examples(infected, current, images, labels, start, CPU, settings)
    assert float((found - images).abs().max()) <= settings.eps + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1

    def shared(examples: Tensor) -> int:
        with torch.no_grad():
            first, second = infected(examples).argmax(1), current(examples).argmax(1)
        return int(((first == second) & (first != labels)).sum())

    def apart(examples: Tensor) -> float:
        with torch.no_grad():
            return divergence(infected(examples), current(examples)).mean().item()

    assert shared(found) > shared(images)
    lonely = replace(settings, agree=-1.0)  # drives the models apart instead
    other = shared_examples(infected, current, images, labels, start, CPU, lonely)
    assert apart(found) < 0.5 * apart(other)


# Sharpness-aware fine-tuning


def test_the_climb_is_the_steepest_in_its_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    gradients = [torch.randn(w.shape, generator=generator) for w in weights]
    rho = 2.0
    steps = climb(weights, gradients, rho)
    w, g, e = (torch.cat([x.flatten() for x in xs]) for xs in (weights, gradients, steps))
    assert torch.allclose(e, rho * w**2 * g / (w * g).norm(), rtol=1e-5)
    assert float((e / w.abs()).norm()) == pytest.approx(rho, rel=1e-5)
    for _ in range(100):
        direction = torch.randn(w.shape, generator=generator)
        other = rho * w.abs() * direction / direction.norm()  # on the edge of the same ball
        assert float(other @ g) < float(e @ g)
    flat = climb(weights, [torch.zeros_like(x) for x in weights], rho)
    assert all(float(x.abs().max()) == 0 for x in flat)


def test_without_a_climb_it_is_plain_sgd(world: World) -> None:
    """A radius of zero: the second gradient is the first one, and statistics are learned once."""
    settings = SharpnessAware(epochs=1, batch_size=100, rho=0.0)
    model, plain = world.infected(), world.infected()
    arguments = (world.clean, world.ids, CPU, 0, Silent())
    sharpness_aware_tuning(model, *arguments, settings)
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    plain.train()
    (batch,) = minibatches(*arguments, phase="ft_sam", epochs=1, batch_size=100)
    functional.cross_entropy(plain(batch.images), batch.labels).backward()
    optimizer.step()
    for (name, found), expected in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-6), name


# As a job


def _config(world: World, **more: Any) -> PurifyConfig:
    values = {
        "model.checkpoint": world.root / "infected" / "model.safetensors",
        "data.clean": world.root / "train",
        "data.clean_fraction": 0.4,
        "data.train": world.root / "bad",
        "data.truth": world.root / "bad" / "truth.parquet",
        "data.test": world.root / "test",
        "data.attack": world.root / "bad" / "attack.safetensors",
        "data.image_size": SIZE,
        "precision": "float32",
        "memory_format": "contiguous",
        "device": "cpu",
        "curve_samples": 0,
    }
    return load_config(PurifyConfig, values=values | more)


def test_a_run_says_what_purify_says(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASELINES, "ft", QUICK["ft"])
    quick = {"aft.epochs": 1, "aft.adversarial_epochs": 1, "adversary.steps": 1}
    theirs = purify(_config(world, method="aft", **quick), tmp_path / "aft")
    metrics = erase(_config(world), "ft", tmp_path / "ft")
    assert metrics.keys() == theirs.keys()
    assert metrics["method"] == "ft"
    for key in ("infected", "suspects", "attack", "versions"):
        assert metrics[key].keys() == theirs[key].keys()
    assert metrics["infected"] == theirs["infected"]
    assert metrics["seconds"].keys() == {"erase", "score"}
    assert metrics["rounds"] == [
        {"round": 0, "subset": len(world.ids), "auroc": metrics["suspects"]["auroc"]}
    ]
    files = {path.name for path in (tmp_path / "ft").iterdir()}
    assert {"purified.safetensors", "suspects.parquet", "report.html", "metrics.json"} <= files
    purified = load_model(tmp_path / "ft" / "purified.safetensors")
    assert _same(purified, world.erased("ft"))
    assert world.measured(purified).as_dict() == metrics["purified"]

    def never(*arguments: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setitem(BASELINES, "ft", never)
    assert erase(_config(world), "ft", tmp_path / "ft") == metrics
    with pytest.raises(RunDirectoryError, match="not of nad"):
        erase(_config(world), "nad", tmp_path / "ft")


def test_a_run_without_a_training_set_has_no_suspects(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASELINES, "ft", QUICK["ft"])
    config = _config(world, **{"data.train": None, "data.truth": None})
    metrics = erase(config, "ft", tmp_path)
    assert "suspects" not in metrics
    assert metrics["purified"]["acc"] > 0.8


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("other", {}, "there are ft, fp"),
        ("ft", {"data.clean": None}, "give data.clean"),
        ("ft", {"method": "pbe"}, "leave method out"),
        ("ft", {"data.mined": "somewhere"}, "leave data.mined out"),
        ("ft", {"data.flip": True}, "leave data.augment"),
        ("ft", {"data.train": None}, "give data.train too"),
    ],
)
def test_what_a_baseline_would_leave_aside_is_refused(
    world: World, tmp_path: Path, name: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        erase(_config(world, **more), name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_diverged_is_not_given_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(model: Classifier, *arguments: object) -> None:
        next(model.parameters()).data.fill_(torch.nan)

    monkeypatch.setitem(BASELINES, "ft", diverge)
    with pytest.raises(DivergenceError, match="ft: diverged"):
        erase(_config(world), "ft", tmp_path)
    assert not (tmp_path / run.PURIFIED_NAME).exists()


def test_a_cell_of_the_study_gets_the_clean_images_of_aft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[PurifyConfig, str, Path]] = []
    monkeypatch.setattr(
        "bench.study.erase", lambda config, name, out, progress: asked.append((config, name, out))
    )
    case, data = Case("badnets"), DataSet("tiny", CLASSES)
    for name in ("anp", "sau"):
        run_cell(tmp_path, tmp_path / "clean", data, case, name, "cpu", Silent())
    for (config, name, out), expected in zip(asked, ("anp", "sau"), strict=True):
        assert name == expected
        assert out == tmp_path / "tiny" / case.name / name
        assert config.data.clean == tmp_path / "clean" / "train"
        assert config.data.clean_fraction == 0.05
        assert config.data.truth is not None
    assert collect(tmp_path, data) == []
