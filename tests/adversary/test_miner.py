"""The miner: fresh weights at every call, exact against the reference loop, and retiring."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.adversary import L2, PGD, Linf, Miner
from pbe_fast.adversary._graphs import Graphs
from pbe_fast.adversary.pgd import Pool
from pbe_fast.device import Device
from pbe_fast.models import Classifier, ModelSpec, create_model

CPU = Device(torch.device("cpu"), "float32", "contiguous")
HALF = Device(torch.device("cpu"), "bfloat16")
EPS = 6 / 255


def classifier(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    spec = ModelSpec(
        "builtin:preact_resnet18",
        num_classes=5,
        image_size=16,
        options={"width": 4},
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )
    model = create_model(spec).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def batch(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return images, torch.randint(0, 5, (count,), generator=rng)


def pgd(**changes: Any) -> PGD:
    values: dict[str, Any] = {"norm": Linf(EPS), "steps": 5, "step": EPS / 4}
    values |= {"fold": False, "margin": 0.0}
    return PGD(**{**values, **changes})


def reference(model: Classifier, images: Tensor, labels: Tensor, rule: PGD) -> Tensor:
    """The loop as the method says it, on the model itself, all steps for all samples."""
    model.eval()
    x = images.float() * (1 / 255)
    adversarial = x.clone()
    for _ in range(rule.steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = functional.cross_entropy(model(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        d = (adversarial.detach() - x) + rule.step * gradient.sign()
        adversarial = (x + d.clamp(-EPS, EPS)).clamp(0, 1)
    return adversarial


def test_exact_is_the_reference_loop() -> None:
    model, (images, labels) = classifier(), batch()
    wanted = reference(model, images, labels, pgd())
    out = Miner(pgd(), model, CPU)(images, labels)
    # Autograd of the normalisation may round a gradient near 0 to the other sign; hardly any.
    apart = (out - wanted).abs() > 2e-7
    assert float(apart.float().mean()) < 1e-3
    folded = Miner(pgd(fold=True), model, CPU)(images, labels)
    apart = (folded - wanted).abs() > 2e-7
    assert float(apart.float().mean()) < 0.01


def test_weights_are_fresh_at_every_call() -> None:
    model, (images, labels) = classifier(), batch()
    miner = Miner(pgd(fold=True), model, CPU)
    first = miner(images, labels)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch's stub
    optimizer.step()
    second = miner(images, labels)
    torch.testing.assert_close(
        second, Miner(pgd(fold=True), model, CPU)(images, labels), rtol=0, atol=0
    )
    assert not torch.equal(first, second)
    assert all(module.training for module in model.modules())


def margins(model: Classifier, adversarial: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model.eval()(adversarial)
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], float("-inf")).amax(1) - own


class Counting:
    """How many samples pass through a miner's model."""

    def __init__(self, miner: Miner, images: Tensor, labels: Tensor) -> None:
        self.samples: list[int] = []
        miner(images[:1], labels[:1])  # makes the copy
        assert miner._copy is not None
        miner._copy.net.register_forward_pre_hook(self._count)

    def _count(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.samples.append(len(inputs[0]))


@pytest.mark.parametrize("slots", [1, 5, 12, 100])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_retire_leaves_a_sample_when_it_is_first_beaten(slots: int, margin: float) -> None:
    """The path is the exact one, after one look at the end of a step of length eps."""
    model, (images, labels) = classifier(), batch(60, seed=4)
    rule = pgd(norm=Linf(1 / 255), step=0.25 / 255)
    clean = images * (1 / 255)
    paths = [clean]
    paths += [
        Miner(replace(rule, steps=k), model, CPU)(images, labels) for k in range(1, rule.steps + 1)
    ]
    probe = Miner(replace(rule, steps=1, step=1 / 255), model, CPU)(images, labels)
    ahead = torch.stack([margins(model, path, labels) for path in paths]) > margin
    probed = margins(model, probe, labels) > margin
    wanted, passes, kinds = [], [], set()
    for i in range(len(images)):
        # A sample makes its last step without being looked at again.
        end = int(ahead[:5, i].int().argmax()) if ahead[:5, i].any() else 5
        by_probe = bool(probed[i]) and end > 0
        kinds.add("probe" if by_probe else end)
        wanted.append(probe[i] if by_probe else paths[end][i])
        passes.append(2 if by_probe or end == 0 else 2 + min(end, 4))
    assert kinds == {0, "probe", 5} or len(kinds) > 3
    miner = Miner(replace(rule, mode="retire", margin=margin), model, CPU, slots=slots)
    counting = Counting(miner, images, labels)
    out = miner(images, labels)
    assert float(((out - torch.stack(wanted)).abs() > 2e-7).float().mean()) < 2e-3
    assert sum(counting.samples) == sum(passes)
    assert max(counting.samples) == min(slots, 60)


def test_a_pool_that_is_refilled_gives_what_single_samples_give() -> None:
    model, (images, labels) = classifier(), batch(40, seed=3)
    rule = pgd(mode="retire")
    whole = Miner(rule, model, CPU, slots=7)(images, labels)
    alone = Miner(rule, model, CPU)
    single = torch.cat([alone(images[i:][:1], labels[i:][:1]) for i in range(40)])
    assert float(((whole - single).abs() > 2e-7).float().mean()) < 2e-3


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(0, 9),
    slots=st.integers(1, 12),
    steps=st.integers(1, 4),
    margin=st.floats(0, 1),
    targeted=st.booleans(),
    euclidean=st.booleans(),
    random_start=st.booleans(),
)
def test_whatever_is_mined_stays_in_the_ball(
    count: int,
    slots: int,
    steps: int,
    margin: float,
    targeted: bool,
    euclidean: bool,
    random_start: bool,
) -> None:
    model, (images, labels) = classifier(), batch(count)
    norm = L2(0.5) if euclidean else Linf(EPS)
    for device in (CPU, HALF):
        for mode in ("exact", "retire"):
            rule = pgd(
                norm=norm, step=norm.eps / 2, steps=steps, margin=margin, mode=mode,
                targeted=targeted, random_start=random_start, fold=True,
            )  # fmt: skip
            miner = Miner(rule, model, device, slots=slots)
            out = miner(images, labels, ids=torch.arange(count), seed=2)
            assert out.shape == images.shape
            assert out.dtype == torch.float32
            assert ((out >= 0) & (out <= 1)).all()
            d = (out - images * (1 / 255)).flatten(1).double()
            size = d.norm(dim=1) if euclidean else d.abs().amax(1)
            assert (size <= norm.eps * (1 + 1e-5)).all()


def test_targeted_retires_what_has_arrived() -> None:
    model, (images, labels) = classifier(), batch()
    miner = Miner(pgd(mode="retire", targeted=True), model, CPU)
    out = miner(images, labels)
    with torch.no_grad():
        there = model(images * (1 / 255)).argmax(1) == labels
    assert there.any()
    torch.testing.assert_close(out[there], images[there] * (1 / 255), rtol=0, atol=0)
    assert not torch.equal(out[~there], images[~there] * (1 / 255))


@pytest.mark.parametrize("mode", ["exact", "retire"])
@pytest.mark.parametrize("norm", [Linf(EPS), L2(0.5)])
@pytest.mark.parametrize(("count", "slots"), [(1, None), (12, None), (40, 7), (33, 16), (5, 64)])
def test_recorded_loops_do_what_the_eager_one_does(
    monkeypatch: pytest.MonkeyPatch, mode: str, norm: Linf | L2, count: int, slots: int | None
) -> None:
    """With a stand-in for the recorder, which runs the body where a graph would be replayed."""

    def recorded(_self: Graphs, body: Callable[[], None]) -> Callable[[], None]:
        for _ in range(4):
            body()
        return body

    monkeypatch.setattr(Graphs, "_captured", recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model = classifier()
    rule = pgd(mode=mode, norm=norm, step=norm.eps / 4)
    eager = Miner(rule, model, CPU, slots=slots)
    replayed = Miner(rule, model, CPU, slots=slots)
    for seed in (1, 2):
        images, labels = batch(count, seed=seed)
        wanted = eager(images, labels)
        if replayed._graphs is None:
            assert eager._copy is not None
            pool = Pool(images, labels, torch.zeros(images.shape))
            replayed._copy = eager._copy
            loop = replayed._loop(eager._copy.net)
            replayed._graphs = Graphs(loop, pool, replayed._count(pool))
        assert replayed._graphs.fits(Pool(images, labels, wanted))
        found = replayed(images, labels)
        assert float(((found - wanted).abs() > 2e-7).float().mean()) < 2e-3


def test_a_model_that_cannot_be_recorded_is_mined_eagerly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError("no graphs here\nand more")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", refuse)
    said: list[str] = []
    images, labels = batch(2)
    miner = Miner(pgd(), classifier(), CPU)
    miner(images, labels)
    assert miner._copy is not None
    pool = Pool(images, labels, torch.zeros(images.shape))
    assert Graphs.of(miner._loop(miner._copy.net), pool, 2, said.append) is None
    assert said == ["not compiled (RuntimeError: no graphs here); mining runs eagerly"]


def test_the_miner_says_how_it_mines() -> None:
    said: list[str] = []
    miner = Miner(pgd(fold=True), classifier(), CPU, say=said.append)
    for _ in range(2):
        miner(*batch())
    assert said == ["mining in float32, contiguous, 8 of 17 batch norms folded, eager, exact"]
