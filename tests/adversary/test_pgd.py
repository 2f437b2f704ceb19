"""The PGD loop against closed forms and a plain loop, and that it leaves the model alone."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.adversary import L2, PGD, Linf, Miner
from pbe_fast.device import Device

CPU = Device(torch.device("cpu"), "float32")
HALF = Device(torch.device("cpu"), "bfloat16")
EPS = 6 / 255
ROUNDING = 1.2e-7
LINF = PGD(norm=Linf(EPS), steps=7, step=EPS / 5)
L2_PGD = PGD(norm=L2(0.5), steps=7, step=0.1)


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


class Linear(nn.Module):
    """Two classes; the logit of class 1 is <w, x>, so the gradient never changes its direction."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        one = (images * self.weight).sum((1, 2, 3))
        return torch.stack((torch.zeros_like(one), one), 1)


def batch(count: int = 6, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = (torch.rand(count, 3, size, size, generator=rng) * 1.4 - 0.2).clamp(0, 1)
    return images, torch.randint(0, 5, (count,), generator=rng)


def mine(
    pgd: PGD,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    device: Device = CPU,
    ids: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    return Miner(pgd, model, device)(images, labels, ids=ids, seed=seed)


def losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.cross_entropy(model(images), labels, reduction="none")


@pytest.mark.parametrize("pgd", [LINF, L2_PGD])
@pytest.mark.parametrize("device", [CPU, HALF])
def test_result_lies_in_the_ball_and_in_the_image_range(pgd: PGD, device: Device) -> None:
    images, labels = batch()
    before = images.clone()
    out = mine(pgd, small_net(), images, labels, device)
    d = out - images
    size = d.abs().max() if pgd is LINF else d.flatten(1).norm(dim=1).max()
    assert float(size) <= pgd.norm.eps + ROUNDING
    assert float(size) > 0.9 * pgd.norm.eps  # and it is used
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert out.dtype == torch.float32
    assert not out.requires_grad
    torch.testing.assert_close(images, before, rtol=0, atol=0)


@pytest.mark.parametrize("norm", [Linf(EPS), L2(0.5)])
def test_untargeted_raises_the_loss_and_targeted_lowers_it(norm: Linf | L2) -> None:
    model = small_net().eval()
    images, labels = batch(16)
    before = losses(model, images, labels)
    up = mine(PGD(norm=norm, steps=7, step=norm.eps / 5), model, images, labels)
    towards = PGD(norm=norm, steps=7, step=norm.eps / 5, targeted=True)
    down = mine(towards, model, images, labels)
    assert (losses(model, up, labels) > before).all()
    assert (losses(model, down, labels) < before).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_linf_on_a_linear_model_is_the_closed_form(targeted: bool, label: int) -> None:
    # Small, because a softmax that rounds to 1 has no gradient.
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)) / 20
    images, _ = batch()
    labels = torch.full((len(images),), label)
    pgd = PGD(norm=Linf(EPS), steps=7, step=EPS / 5, targeted=targeted)
    out = mine(pgd, Linear(weight), images, labels)
    rises = (1 if label == 0 else -1) * (-1 if targeted else 1)  # does the logit of 1 rise?
    wanted = (images.double() + EPS * rises * weight.double().sign()).clamp(0, 1)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2 * ROUNDING)


@pytest.mark.parametrize("label", [0, 1])
def test_l2_on_a_linear_model_is_the_closed_form(label: int) -> None:
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)) / 20
    # Away from the ends of the range, so that the clamp does not bend the path.
    images = batch()[0] * 0.2 + 0.4
    out = mine(L2_PGD, Linear(weight), images, torch.full((6,), label))
    rises = 1 if label == 0 else -1
    wanted = images.double() + rises * 0.5 * weight.double() / weight.double().norm()
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-6)


def plain_linf(model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """What the paper says, one image at a time."""
    rows = []
    for i in range(len(x)):
        d = start[i : i + 1].clone()
        for _ in range(LINF.steps):
            image = (x[i : i + 1] + d).clone().requires_grad_(True)
            loss = functional.cross_entropy(model(image), y[i : i + 1])
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            assert image.grad is not None
            d = torch.max(torch.min(d + LINF.step * image.grad.sign(), EPS * torch.ones(())),
                          -EPS * torch.ones(()))  # fmt: skip
            d = torch.min(torch.max(x[i : i + 1] + d, torch.zeros(())), torch.ones(()))
            d = d - x[i : i + 1]
        rows.append(x[i : i + 1] + d)
    return torch.cat(rows)


@pytest.mark.parametrize("random_start", [False, True])
def test_equals_a_plain_loop(random_start: bool) -> None:
    model = small_net().eval()
    images, labels = batch(8)
    ids = torch.arange(8) + 40
    pgd = PGD(norm=Linf(EPS), steps=7, step=EPS / 5, random_start=random_start)
    start = (
        Linf(EPS).start(images, ids, 5, torch.float32) if random_start else torch.zeros_like(images)
    )
    wanted = plain_linf(model, images, labels, start)
    out = mine(pgd, model, images, labels, CPU, ids=ids, seed=5)
    # A gradient within rounding of 0 may take either sign; hardly any does.
    apart = (out - wanted).abs() > 2 * ROUNDING
    assert float(apart.float().mean()) < 0.005
    assert float((out - wanted).abs().max()) <= 2 * EPS + ROUNDING


def test_random_start_needs_ids_and_depends_on_seed_and_id_alone() -> None:
    model = small_net().eval()
    images, labels = batch(6)
    ids = torch.tensor([3, 1, 4, 15, 9, 2])
    pgd = PGD(norm=Linf(EPS), steps=0, step=EPS, random_start=True)
    with pytest.raises(ValueError, match="random_start needs the samples' ids"):
        mine(pgd, model, images, labels, CPU)
    whole = mine(pgd, model, images, labels, CPU, ids=ids, seed=1)
    assert not torch.equal(whole, images)
    parts = [
        mine(pgd, model, images[part], labels[part], CPU, ids=ids[part], seed=1)
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    torch.testing.assert_close(
        mine(pgd, model, images, labels, CPU, ids=ids, seed=1), whole, rtol=0, atol=0
    )
    assert not torch.equal(whole, mine(pgd, model, images, labels, CPU, ids=ids, seed=2))


def test_no_steps_and_no_start_give_the_clean_images() -> None:
    images, labels = batch()
    out = mine(PGD(norm=Linf(EPS), steps=0, step=EPS), small_net(), images, labels)
    torch.testing.assert_close(out, images, rtol=0, atol=0)


def test_one_sample_does_not_depend_on_the_batch() -> None:
    model = small_net()
    images, labels = batch(8)
    whole = mine(LINF, model, images, labels, CPU)
    alone = torch.cat([mine(LINF, model, images[i:][:1], labels[i:][:1], CPU) for i in range(8)])
    assert float(((whole - alone).abs() > 2 * ROUNDING).float().mean()) < 0.005


def test_no_images() -> None:
    empty = torch.zeros(0, 3, 8, 8)
    out = mine(LINF, small_net(), empty, torch.zeros(0, dtype=torch.int64), CPU)
    assert out.shape == empty.shape


class State:
    """What must be the same about a model before and after."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [module.training for module in model.modules()]
        self.wanted = [parameter.requires_grad for parameter in model.parameters()]
        self.values = {name: value.clone() for name, value in model.state_dict().items()}

    def check(self, model: nn.Module) -> None:
        assert [module.training for module in model.modules()] == self.modes
        assert [parameter.requires_grad for parameter in model.parameters()] == self.wanted
        assert all(parameter.grad is None for parameter in model.parameters())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, self.values[name], rtol=0, atol=0)


def mixed_net() -> nn.Sequential:
    """Some modules train and some parameters want gradients, others not."""
    model = small_net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def test_the_model_is_left_as_it_was() -> None:
    model = mixed_net()
    state = State(model)
    mine(LINF, model, *batch(), CPU)
    state.check(model)


def test_the_model_runs_in_eval_mode_without_parameter_gradients() -> None:
    model = mixed_net()
    seen: list[tuple[bool, bool]] = []

    def look(module: nn.Module, _inputs: object) -> None:
        wanted = any(parameter.requires_grad for parameter in module.parameters())
        seen.append((any(part.training for part in module.modules()), wanted))

    miner = Miner(LINF, model, CPU)
    miner(*batch())  # makes the copy
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model itself was run"))
    assert miner._copy is not None
    miner._copy.net.register_forward_pre_hook(look)
    miner(*batch())
    assert seen == [(False, False)] * LINF.steps


def test_the_model_is_left_as_it_was_when_it_raises() -> None:
    model = mixed_net()
    state = State(model)

    def fail(_module: nn.Module, _inputs: object) -> None:
        raise RuntimeError("out of memory")

    hook = model[4].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        mine(LINF, model, *batch(), CPU)
    hook.remove()
    state.check(model)


def test_works_where_gradients_are_off() -> None:
    images, labels = batch()
    wanted = mine(LINF, small_net(), images, labels, CPU)
    with torch.no_grad():
        out = mine(LINF, small_net(), images, labels, CPU)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)


def test_images_that_want_gradients_do_not_drag_a_graph_along() -> None:
    images, labels = batch()
    out = mine(LINF, small_net(), images.clone().requires_grad_(), labels, CPU)
    assert not out.requires_grad
    torch.testing.assert_close(out, mine(LINF, small_net(), images, labels, CPU), rtol=0, atol=0)


def test_channels_last_stays() -> None:
    images, labels = batch()
    out = mine(LINF, small_net(), images.contiguous(memory_format=torch.channels_last), labels, CPU)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_no_global_random_number_is_drawn() -> None:
    model, (images, labels) = small_net(), batch()
    state = torch.random.get_rng_state()
    pgd = PGD(norm=L2(0.5), steps=2, step=0.1, random_start=True)
    mine(pgd, model, images, labels, CPU, ids=torch.arange(6))
    assert torch.equal(torch.random.get_rng_state(), state)
