"""The training loop: which batches are adversarial, what it reports, what it refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbe_fast.adversary import PGD, Linf
from pbe_fast.data.loader import ImageData
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.device import Device
from pbe_fast.progress import Clock, Silent
from pbe_fast.training import Position, Stage, Step, fit

CPU = Device(torch.device("cpu"), "float32")
PGD2 = PGD(norm=Linf(6 / 255), steps=2, step=1.2 / 255)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """45 signs of 16 pixels."""
    folder = tmp_path_factory.mktemp("signs")
    write_shards(
        signs(num_classes=3, per_class=15, size=16, seed=0, split="train"),
        folder,
        classes=sign_names(3),
        overwrite=True,
    )
    return ImageData.open(folder, 16)


class Net(nn.Module):
    """A small network that remembers the images it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 16 * 16, 3)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        result: Tensor = self.head(self.norm(images).flatten(1))
        return result


def _stage(**changes: object) -> Stage:
    values: dict[str, object] = {
        "name": "test",
        "epochs": 2,
        "batch_size": 10,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0,
    }
    return Stage(**{**values, **changes})  # type: ignore[arg-type]  # a table of defaults


def _fit(
    data: ImageData,
    stage: Stage,
    pgd: PGD | None = PGD2,
    start: Position | None = None,
    net: Net | None = None,
    checkpoint_seconds: float = 1e9,
) -> tuple[Net, list[Step], list[Position], list[int], Clock]:
    net = net or Net()
    steps: list[Step] = []
    saved: list[Position] = []
    epochs: list[int] = []
    clock = Clock()
    fit(
        net,
        data,
        data.ids,
        stage,
        CPU,
        pgd=pgd,
        seed=0,
        start=start or Position(),
        progress=Silent(),
        clock=clock,
        on_step=steps.append,
        on_epoch=epochs.append,
        checkpoint=saved.append,
        checkpoint_seconds=checkpoint_seconds,
    )
    return net, steps, saved, epochs, clock


def _checkpoints(
    net: Net, data: ImageData, stage: Stage, pgd: PGD | None
) -> list[tuple[Position, dict[str, Tensor]]]:
    """Train, and keep every checkpoint with the weights of its moment."""
    states: list[tuple[Position, dict[str, Tensor]]] = []

    def checkpoint(position: Position) -> None:
        weights = {k: v.clone() for k, v in net.state_dict().items()}
        momentum = {k: v.clone() for k, v in position.momentum.items()}
        states.append((Position(position.epoch, position.batch, momentum), weights))

    fit(
        net, data, data.ids, stage, CPU, pgd=pgd, seed=0, progress=Silent(), clock=Clock(),
        on_step=lambda _step: None, on_epoch=lambda _epoch: None, checkpoint=checkpoint,
        checkpoint_seconds=0,
    )  # fmt: skip
    return states


def test_every_image_is_seen_once_an_epoch(data: ImageData) -> None:
    net, steps, saved, epochs, clock = _fit(data, _stage(), pgd=None)
    assert [s.images for s in steps] == [10, 10, 10, 10, 5] * 2
    assert epochs == [1, 2]
    assert saved == []
    assert clock.images == {"finetune": 90}
    assert not net.training
    first = torch.cat(net.seen[:5]).flatten(1).sum(1).sort().values
    second = torch.cat(net.seen[5:]).flatten(1).sum(1).sort().values
    assert torch.equal(first, second)  # the same images, in another order
    assert not torch.equal(net.seen[0], net.seen[5])


def test_adversarial_batches_are_where_the_stage_says(data: ImageData) -> None:
    stage = _stage(adversarial_batches=2)
    net, steps, _, _, clock = _fit(data, stage)
    assert [s.adversarial for s in steps] == [True, True] + [False] * 8
    assert clock.images == {"finetune_adversarial": 20, "finetune": 70}
    plain, *_ = _fit(data, _stage(), pgd=None)
    distance = (net.seen[0] - plain.seen[0]).abs().max()
    assert 1.1 / 255 < float(distance) <= 6.001 / 255  # moved, and inside the ball
    assert float(net.seen[0].min()) >= 0
    assert float(net.seen[0].max()) <= 1


def test_adversarial_batches_need_an_adversary(data: ImageData) -> None:
    with pytest.raises(ValueError, match="no adversary"):
        _fit(data, _stage(adversarial_epochs=1), pgd=None)


def test_training_lowers_the_loss(data: ImageData) -> None:
    _, steps, *_ = _fit(data, _stage(epochs=20), pgd=None)
    assert float(steps[-1].loss) < 0.5 * float(steps[0].loss)


def test_the_cosine_schedule_ends_near_zero() -> None:
    stage = _stage(schedule="cosine")
    assert stage.lr_at(0) == pytest.approx(0.01)
    assert stage.lr_at(0.5) == pytest.approx(0.005)
    assert stage.lr_at(1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("stop", [0, 3, 4, 6, 8])
def test_every_checkpoint_leads_to_the_same_weights(data: ImageData, stop: int) -> None:
    stage = _stage(adversarial_batches=2, augment="crop_rotate", schedule="cosine")
    whole, *_ = _fit(data, stage)
    net = Net()
    states = _checkpoints(net, data, stage, PGD2)
    assert [(p.epoch, p.batch) for p, _ in states] == [
        (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4),
    ]  # fmt: skip
    position, weights = states[stop]
    again = Net()
    again.load_state_dict(weights)
    _fit(data, stage, start=position, net=again)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_batch_of_one_is_passed_over(data: ImageData) -> None:
    """Batch norm cannot learn from one image; 45 in batches of 11 leave one."""
    _, steps, *_ = _fit(data, _stage(batch_size=11, epochs=1), pgd=None)
    assert [s.images for s in steps] == [11, 11, 11, 11]


@pytest.mark.parametrize(("size", "images"), [(40, [40, 5]), (41, [41]), (400, [45])])
def test_a_last_batch_of_less_than_an_eighth_is_passed_over(
    data: ImageData, size: int, images: list[int]
) -> None:
    """A first one never is."""
    _, steps, *_ = _fit(data, _stage(batch_size=size, epochs=1), pgd=None)
    assert [s.images for s in steps] == images


def test_weights_without_momentum_start_afresh(data: ImageData) -> None:
    net, *_ = _fit(data, _stage(momentum=0.0, epochs=1), pgd=None)
    assert all(np.isfinite(v.numpy()).all() for v in net.state_dict().values())


def test_dropout_goes_on_where_it_was(data: ImageData) -> None:
    """A resumed stage draws the same dropout masks, and leaves torch's generator as it was."""

    class Dropping(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(images, 0.5, self.training))

    whole = Dropping()
    before = torch.get_rng_state()
    _fit(data, _stage(), pgd=None, net=whole)
    assert torch.equal(before, torch.get_rng_state())
    net = Dropping()
    states = _checkpoints(net, data, _stage(), None)
    position, weights = states[2]
    again = Dropping()
    again.load_state_dict(weights)
    torch.rand(7)  # what a new process has drawn is anybody's guess
    _fit(data, _stage(), pgd=None, start=position, net=again)
    assert torch.equal(whole.head.weight, again.head.weight)
