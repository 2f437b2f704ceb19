"""ACC and ASR counted by hand, and the measures of the suspects by brute force."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from kernels import add_pattern, mix_pattern, warp
from pbe_fast.data.loader import ImageData
from pbe_fast.data.shards import Sample, write_shards
from pbe_fast.device import Device, MemoryFormat
from pbe_fast.errors import TriggerError
from pbe_fast.evaluate import Accuracy, auroc, evaluate, precision_at
from pbe_fast.triggers import (
    ATTACKS,
    SIG,
    Attack,
    BadNets,
    Blend,
    Grid,
    InputAware,
    Pattern,
    Trigger,
    WaNet,
)

CPU = Device(torch.device("cpu"), "float32")
SIZE = 8
CLASSES = ("a", "b", "c", "d")

# (true label, label that the model reads from the image), ten images
IMAGES = [(0, 0), (0, 1), (1, 1), (1, 1), (2, 2), (2, 0), (3, 3), (3, 3), (1, 3), (2, 2)]


class ReadsAPixel(nn.Module):
    """Answers with the top left pixel; with the class ``backdoor`` where BadNets' patch is.

    Images whose top left pixel is 0 resist the trigger.
    """

    def __init__(self, backdoor: int | None = None) -> None:
        super().__init__()
        self.backdoor = backdoor
        self.norm = nn.BatchNorm2d(3)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        answer = (images[:, 0, 0, 0] * 255 / 40).round().long()
        patch = images[:, 0, SIZE - 2, SIZE - 2] == 1
        if self.backdoor is not None:
            answer = torch.where(patch & (answer > 0), self.backdoor, answer)
        return nn.functional.one_hot(answer, len(CLASSES)).float()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    def sample(index: int, label: int, read: int) -> Sample:
        pixels = np.full((SIZE, SIZE, 3), 100, np.uint8)
        pixels[0, 0] = 40 * read
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return Sample(f"{index:03d}", file.getvalue(), "png", label)

    folder = tmp_path_factory.mktemp("test") / "set"
    rows = [sample(i, label, read) for i, (label, read) in enumerate(IMAGES)]
    write_shards(rows, folder, classes=CLASSES)
    return ImageData.open(folder, SIZE, workers=0)


def attack(mode: str = "all_to_one", size: int = SIZE, classes: int = 4) -> Attack:
    return Attack(BadNets(size), mode, 1, classes, size)  # type: ignore[arg-type]  # mode is checked


@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_acc_without_an_attack(data: ImageData, batch_size: int) -> None:
    result = evaluate(ReadsAPixel(), data, CPU, batch_size=batch_size)
    assert result == Accuracy(7 / 10, None, 10)
    assert result.as_dict() == {"acc": 7 / 10}


@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_asr_counts_images_of_other_classes_alone(data: ImageData, batch_size: int) -> None:
    # Seven images are not of class 1; of them, those that read 0 resist: (0, 0) and (2, 0).
    result = evaluate(ReadsAPixel(1), data, CPU, attack=attack(), batch_size=batch_size)
    assert result == Accuracy(7 / 10, 5 / 7, 10)
    assert result.as_dict() == {"acc": 7 / 10, "asr": 5 / 7}


def test_asr_of_a_model_that_ignores_the_trigger(data: ImageData) -> None:
    # (0, 1) alone gets label 1 without being of class 1.
    assert evaluate(ReadsAPixel(), data, CPU, attack=attack()).asr == 1 / 7


def test_asr_of_all_to_all(data: ImageData) -> None:
    # The wanted label is the next one; (0, 1) is the only image read as the class after its own.
    assert evaluate(ReadsAPixel(), data, CPU, attack=attack("all_to_all")).asr == 1 / 10


def test_some_images_alone(data: ImageData) -> None:
    result = evaluate(ReadsAPixel(1), data, CPU, attack=attack(), ids=np.array([9, 1, 2, 5]))
    # Of (2, 2), (0, 1), (1, 1), (2, 0) two are right; (1, 1) is not counted, (2, 0) resists.
    assert result == Accuracy(2 / 4, 2 / 3, 4)


def test_no_image_to_attack_gives_no_asr(data: ImageData) -> None:
    result = evaluate(ReadsAPixel(1), data, CPU, attack=attack(), ids=np.array([2, 3]))
    assert result == Accuracy(1.0, None, 2)


def test_an_attack_on_other_images_is_refused(data: ImageData) -> None:
    with pytest.raises(TriggerError, match="images of 16 pixels, but the data is read at 8"):
        evaluate(ReadsAPixel(), data, CPU, attack=attack(size=16))
    with pytest.raises(TriggerError, match="made for 5 classes"):
        evaluate(ReadsAPixel(), data, CPU, attack=attack(classes=5))


def test_every_modules_mode_is_restored(data: ImageData) -> None:
    model = ReadsAPixel().train()
    model.norm.eval()
    evaluate(model, data, CPU, attack=attack())
    assert model.modes == [False, False]
    assert model.training
    assert not model.norm.training


def test_modes_are_restored_when_the_model_raises(data: ImageData) -> None:
    model = ReadsAPixel(backdoor=9)  # no such class, which one_hot refuses
    with pytest.raises(RuntimeError):
        evaluate(model, data, CPU, attack=attack())
    assert model.training


class _Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []

    def phase(self, name: str, total: int, done: int = 0) -> None:
        self.lines.append((name, total))

    def advance(self, images: int) -> None:
        self.lines.append(("advance", images))

    def say(self, text: str) -> None: ...


def test_progress_counts_every_image(data: ImageData) -> None:
    log = _Log()
    evaluate(ReadsAPixel(), data, CPU, batch_size=4, phase="curve", progress=log)
    assert log.lines == [("curve", 10), ("advance", 4), ("advance", 4), ("advance", 2)]


def test_a_damaged_image_is_not_counted(tmp_path: Path, data: ImageData) -> None:
    rows = [
        Sample("bad", b"\x89PNG broken", "png", 0),
        Sample("good", _grey(), "png", 2),
    ]
    write_shards(rows, tmp_path / "set", classes=CLASSES)
    damaged = ImageData.open(tmp_path / "set", SIZE, workers=0)
    damaged.quarantine.budget = 1.0
    result = evaluate(ReadsAPixel(1), damaged, CPU, attack=attack())
    assert result == Accuracy(1.0, 1.0, 1)


def _grey() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE, 3), 80, np.uint8)).save(file, "PNG")
    return file.getvalue()


# What the model is shown

WIDE = 16  # pixels a side


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Forty images of coarse random colours, black and white among them."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 4, 4, generator=rng) * 400 - 70
    smooth = nn.functional.interpolate(coarse, (WIDE, WIDE), mode="bilinear").clamp(0, 255)
    rows = []
    for index, image in enumerate(smooth.to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        rows.append(Sample(f"{index:03d}", file.getvalue(), "png", index % len(CLASSES)))
    folder = tmp_path_factory.mktemp("coloured") / "set"
    write_shards(rows, folder, classes=CLASSES)
    return ImageData.open(folder, WIDE, workers=0)


def make_trigger(name: str) -> Trigger:
    if name == "badnets":
        return BadNets(WIDE)
    if name == "blend":
        rng = torch.Generator().manual_seed(1)
        return Blend(torch.randint(0, 256, (3, WIDE, WIDE), dtype=torch.uint8, generator=rng), 0.1)
    if name == "sig":
        return SIG(WIDE)
    if name == "wanet":
        return WaNet.random(WIDE, strength=2.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trigger = InputAware.build(4)
    trigger.pattern.eval().requires_grad_(False)
    trigger.mask.eval().requires_grad_(False)
    return trigger


def planted_by_hand(trigger: Trigger, images: Tensor) -> Tensor:
    """uint8 to uint8, by way of float images."""
    x = images.float() / 255
    content = trigger.content(torch.device("cpu"))
    if isinstance(content, Grid):
        x = warp(x, content.grid)
    else:
        if not isinstance(content, Pattern):
            content = content(x)
        if content.mask is None:
            x = add_pattern(x, content.pattern)
        else:
            x = mix_pattern(x, content.pattern, content.mask)
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


class Remembers(nn.Module):
    """A random linear model that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(2)
        self.weight = torch.randn(3 * WIDE * WIDE, len(CLASSES), generator=rng)
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return (images - 0.5).flatten(1) @ self.weight


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("mode", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("name", ATTACKS)
def test_triggered_images_are_those_planted_by_hand(
    coloured: ImageData,
    name: str,
    mode: Literal["all_to_one", "all_to_all"],
    layout: MemoryFormat,
) -> None:
    device = Device(torch.device("cpu"), "float32", layout)
    attack, model = Attack(make_trigger(name), mode, 1, len(CLASSES), WIDE), Remembers()
    result = evaluate(model, coloured, device, attack=attack, batch_size=16)
    hit = right = exposed = 0
    batches = list(coloured.read(coloured.ids, 16))
    for batch, clean, triggered in zip(batches, model.shown[::2], model.shown[1::2], strict=True):
        planted = planted_by_hand(attack.trigger, batch.images)
        for shown, pixels in ((clean, batch.images), (triggered, planted)):
            wanted = device.images(pixels)
            assert torch.equal(shown, wanted)
            assert shown.dtype == wanted.dtype
            assert shown.is_contiguous(memory_format=device.memory_format)
        right += int((model(device.images(batch.images)).argmax(1) == batch.labels).sum())
        answers = model(device.images(planted)).argmax(1).tolist()
        for label, answer in zip(batch.labels.tolist(), answers, strict=True):
            target = 1 if mode == "all_to_one" else (label + 1) % len(CLASSES)
            exposed += target != label
            hit += target != label and answer == target
    assert len(batches) == 3
    assert result == Accuracy(right / 40, hit / exposed, 40)
    assert hit > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ATTACKS)
def test_a_gpu_plants_the_same(coloured: ImageData, name: str) -> None:
    if triton.knobs.runtime.interpret or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and TRITON_INTERPRET=0")
    attack = Attack(make_trigger(name), "all_to_one", 1, len(CLASSES), WIDE)
    model = Remembers()
    model.weight = model.weight.cuda()
    evaluate(model, coloured, Device(torch.device("cuda"), "float32"), attack=attack)
    (batch,) = coloured.read(coloured.ids, 512)
    apart = model.shown[1].cpu() * 255 - planted_by_hand(attack.trigger, batch.images).float()
    # A warp weighs its neighbours in another order, and a generator's convolutions are another
    # library's: a level halfway between two others may become the other one.
    share = {"wanet": 0.002, "input_aware": 0.1}.get(name, 0.0)
    assert float(apart.abs().max()) < 1.001
    assert float((apart.abs() > 0.001).float().mean()) <= share


# The suspects

SCORES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, float("nan"), float("inf"), -float("inf")])
        | st.floats(-1, 1, width=32),
        st.booleans(),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=200)
@given(rows=SCORES)
def test_auroc_is_the_chance_that_a_positive_scores_lower(rows: list[tuple[float, bool]]) -> None:
    known = [(score, positive) for score, positive in rows if score == score]
    pairs = [(p, n) for p, yes in known if yes for n, other in known if not other]
    result = auroc(
        np.array([score for score, _ in rows], np.float32),
        np.array([positive for _, positive in rows], np.bool_),
    )
    if not pairs:
        assert result is None
        return
    wanted = sum(1.0 if p < n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert result == pytest.approx(wanted, abs=1e-12)


def test_auroc_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    assert auroc(scores, np.array([True, True, False, False])) == 1
    assert auroc(scores, np.array([False, False, True, True])) == 0
    assert auroc(scores, np.array([True, False, True, False])) == 0.75
    assert auroc(scores * 0, np.array([True, False, True, False])) == 0.5


@settings(deadline=None, max_examples=200)
@given(rows=SCORES)
def test_precision_is_the_share_of_positives_among_as_many_lowest(
    rows: list[tuple[float, bool]],
) -> None:
    known = [(score, i, yes) for i, (score, yes) in enumerate(rows) if score == score]
    count = sum(yes for _, _, yes in known)
    result = precision_at(
        np.array([score for score, _ in rows], np.float32),
        np.array([positive for _, positive in rows], np.bool_),
    )
    if not count:
        assert result is None
        return
    lowest = sorted((score, i, yes) for score, i, yes in known)[:count]
    assert result == pytest.approx(sum(yes for _, _, yes in lowest) / count)


def test_precision_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    assert precision_at(scores, np.array([True, True, False, False])) == 1
    assert precision_at(scores, np.array([True, False, True, False])) == 0.5
    assert precision_at(scores, np.array([False, False, False, True])) == 0
    assert precision_at(scores, np.zeros(4, np.bool_)) is None
    scores[0] = np.nan  # an undecodable image has no score, so it can be neither hit nor miss
    assert precision_at(scores, np.array([True, True, False, False])) == 1
