"""Who leaves a slot and who takes it: the twin against a plain model, the kernels against it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import retire
from kernels.retire import torch_retire, triton_retire

Retire = Callable[..., tuple[Tensor, Tensor, Tensor]]

# The interpreter compares NaN with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def model(
    logits: list[list[float]],
    labels: list[int],
    rows: list[int],
    age: list[int],
    queue: list[int],
    cursor: list[int],
    first_age: int,
    steps: int,
    margin: float,
    targeted: bool,
) -> list[list[int]]:
    """The rules, slot by slot: stepping, order, active, and the new rows, age and cursor."""
    stepping, rows, age = [], list(rows), list(age)
    waiting, left = queue[cursor[0] : cursor[1]], 0
    for slot, row in enumerate(rows):
        leaves = True
        if row < 0:
            stepping.append(-1)
        else:
            own = logits[slot][labels[row]]
            best = max(v for k, v in enumerate(logits[slot]) if k != labels[row])
            beaten = own - best > margin if targeted else best - own > margin
            if beaten or age[slot] >= steps:
                stepping.append(-1)
            else:
                stepping.append(row)
                leaves = age[slot] + 1 >= steps
        if leaves:
            age[slot] = first_age
            rows[slot] = waiting[left] if left < len(waiting) else -1
            left = min(left + 1, len(waiting))
        else:
            age[slot] += 1
    working = [slot for slot, row in enumerate(rows) if row >= 0]
    idle = [slot for slot, row in enumerate(rows) if row < 0]
    return [stepping, working + idle, [len(working)], rows, age, [cursor[0] + left, cursor[1]]]


def case(
    slots: int,
    pool: int,
    classes: int,
    seed: int,
    *,
    first_age: int = 0,
    steps: int = 5,
    margin: float = 0.3,
    targeted: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Any]:
    """Arguments in the midst of a run: idle slots, finished ones, ages up to the last step."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(slots, classes, generator=random).to(dtype)
    labels = torch.randint(0, classes, (pool,), generator=random)
    shuffled = torch.randperm(pool, generator=random)
    rows, queue = shuffled[:slots].clone(), shuffled[slots:]
    rows[torch.rand(slots, generator=random) < 0.2] = -1
    age = torch.randint(0, steps + 1, (slots,), dtype=torch.int32, generator=random)
    # Some of the queue had its turn, and some of its end does not count.
    cursor = torch.randint(0, len(queue) + 1, (2,), generator=random).sort().values
    return [logits, labels, rows, age, queue, cursor, first_age, steps, margin, targeted]


def run(
    function: Retire, arguments: list[Any], device: torch.device | str = "cpu"
) -> list[list[int]]:
    """Everything that a call returns or changes."""
    moved = [a.clone().to(device) if isinstance(a, Tensor) else a for a in arguments]
    out = function(*moved)
    assert [t.dtype for t in out] == [torch.int64] * 3
    assert torch.equal(moved[0].cpu().nan_to_num(7.0), arguments[0].nan_to_num(7.0))
    assert torch.equal(moved[1].cpu(), arguments[1])
    assert torch.equal(moved[4].cpu(), arguments[4])
    return [t.tolist() for t in (*out, *state(moved))]


def state(arguments: list[Any]) -> list[Tensor]:
    """What is changed in place: rows, age, cursor."""
    return [arguments[2], arguments[3], arguments[5]]


def check_model(function: Retire, cases: list[list[Any]]) -> None:
    """All that it must do; raises AssertionError where it does not."""
    for arguments in cases:
        plain = [a.tolist() if isinstance(a, Tensor) else a for a in arguments]
        assert run(function, arguments) == model(*plain)


def check_kernel(function: Retire, cases: list[list[Any]], device: torch.device) -> None:
    """The kernels do as the twin does, exactly; raises AssertionError where they do not."""
    for arguments in cases:
        assert run(function, arguments, device) == run(torch_retire, arguments)


def some() -> list[list[Any]]:
    sizes = [(1, 1, 2), (5, 9, 3), (7, 7, 43), (4, 100, 1000), (3, 3, 2500), (12, 19, 3)]
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    return [
        case(
            *size,
            turn,
            targeted=turn % 2 == 0,
            dtype=dtypes[turn % 3],
            first_age=turn % 3,
            steps=turn % 4 + 1,
        )
        for turn, size in enumerate(sizes * 2)
    ]


def few() -> list[list[Any]]:
    """What a broken copy stumbles over."""
    out = [case(9, 16, 3, seed, targeted=seed % 2 == 0, first_age=seed % 3) for seed in range(6)]
    out.append(case(4, 40, 3, 5))  # more wait than can enter
    # Two blocks of classes: the label's logit in one, the best of the others in the other.
    out.append(case(2, 5, 1100, 9, margin=0.0))
    logits, labels, rows, age = out[-1][:4]
    logits[:], rows[:], age[:] = 0.0, torch.arange(2), 0
    labels[0], labels[1] = 3, 1050
    logits[:, 3], logits[:, 1050] = 5.0, 4.0
    # Nobody has made a step, all leave: what is beaten, and how the end of a queue is met.
    for seed in (7, 8):
        out.append(case(6, 9, 2, seed, steps=1, margin=0.0))
        out[-1][3].zero_()
        out[-1][5][:] = torch.tensor([1, 3])
    return out


@settings(deadline=None, max_examples=80)
@given(
    slots=st.integers(1, 12),
    more=st.integers(0, 19),
    first_age=st.integers(0, 2),
    classes=st.integers(2, 5),
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.3, 2.0]),
    targeted=st.booleans(),
)
def test_the_twin_is_the_model(
    slots: int,
    more: int,
    first_age: int,
    classes: int,
    seed: int,
    steps: int,
    margin: float,
    targeted: bool,
) -> None:
    rules = {"first_age": first_age, "steps": steps, "margin": margin, "targeted": targeted}
    check_model(torch_retire, [case(slots, slots + more, classes, seed, **rules)])


def test_the_kernel_is_the_twin(device: torch.device) -> None:
    check_kernel(triton_retire, some() + few(), device)


def test_more_slots_than_a_block(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    # Smaller blocks, since the interpreter judges slot by slot.
    monkeypatch.setattr(import_module("kernels.retire"), "_BLOCK", 16)
    check_kernel(triton_retire, [case(40, 70, 20, 1), case(48, 60, 16, 2)], device)


def test_a_tie_is_not_beaten_at_margin_0(device: torch.device) -> None:
    tie = [torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)]
    nobody = torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    tie += [torch.zeros(1, dtype=torch.int32), *nobody, 0, 5, 0.0]
    for targeted in (False, True):
        for function, place in ((torch_retire, "cpu"), (triton_retire, device)):
            assert run(function, [*tie, targeted], place)[0] == [0]


@pytest.mark.parametrize("targeted", [False, True])
def test_logits_that_are_not_finite(device: torch.device, targeted: bool) -> None:
    arguments = case(8, 20, 4, 3, targeted=targeted, margin=0.0)
    logits, labels, rows = arguments[:3]
    rows[:] = torch.arange(8)
    for slot, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        logits[slot, labels[slot]] = value
        logits[slot + 3, (labels[slot + 3] + 1) % 4] = value
    logits[6] = torch.inf
    logits[7] = torch.nan
    check_kernel(triton_retire, [arguments], device)
    arguments[3].zero_()
    stepping = run(torch_retire, arguments)[0]
    # NaN says nothing: its sample goes on. An infinite logit wins or loses as any other.
    assert [stepping[slot] for slot in (0, 3, 6, 7)] == [0, 3, 6, 7]
    assert [stepping[slot] for slot in (1, 4)] == ([-1, 4] if targeted else [1, -1])


def test_tensors_that_do_not_lie_densely(device: torch.device) -> None:
    arguments = case(6, 9, 4, 2)
    wanted = run(torch_retire, arguments)
    moved: list[Any] = []
    for argument in arguments:
        if argument is arguments[5]:
            argument = argument.to(device)  # two numbers of the caller's own
        elif isinstance(argument, Tensor):
            wide = torch.zeros(*argument.shape, 2, dtype=argument.dtype, device=device)
            argument = wide[..., 0].copy_(argument)
            assert not argument.is_contiguous()
        moved.append(argument)
    out = triton_retire(*moved)
    assert [t.tolist() for t in (*out, *state(moved))] == wanted


def test_no_slots(device: torch.device) -> None:
    arguments = case(0, 3, 2, 1)
    for function, place in ((torch_retire, "cpu"), (triton_retire, device)):
        assert run(function, arguments, place)[:5] == [[], [], [0], [], []]


def simulate(function: Retire, slots: int, pool: int, steps: int, seed: int, device: Any) -> None:
    """A whole run with random logits: what holds at every call, and at its end."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (pool,), generator=random).to(device)
    rows = torch.full((slots,), -1, device=device)
    rows[: min(slots, pool)] = torch.arange(min(slots, pool), device=device)
    age = torch.zeros(slots, dtype=torch.int32, device=device)
    queue = (torch.randperm(max(0, pool - slots), generator=random) + slots).to(device)
    cursor = torch.tensor([0, len(queue)], device=device)
    rest = 0, steps, 0.5, False
    stepped = [0] * pool
    entered = [row for row in rows.tolist() if row >= 0]
    for _ in range((pool // slots + 2) * (steps + 1)):
        before = rows.tolist()
        logits = torch.randn(slots, 3, generator=random).to(device)
        stepping, order, active = function(logits, labels, rows, age, queue, cursor, *rest)
        for slot, (row, new) in enumerate(zip(stepping.tolist(), rows.tolist(), strict=True)):
            assert row in (-1, before[slot])
            if row >= 0:
                stepped[row] += 1
            if new != before[slot] and new >= 0:
                entered.append(new)
                assert int(age[slot]) == 0
        working = [slot for slot, row in enumerate(rows.tolist()) if row >= 0]
        assert int(active) == len(working)
        assert order.tolist()[: len(working)] == working
        assert sorted(order.tolist()) == list(range(slots))
        assert len({row for row in rows.tolist() if row >= 0}) == len(working)
        if not working:
            break
    assert not int(active)
    assert cursor.tolist() == [len(queue)] * 2
    assert entered == [*range(min(slots, pool)), *queue.tolist()]  # every sample once, in order
    assert max(stepped) == steps
    assert min(stepped) < steps  # some were beaten before


def test_a_run_ends_and_every_sample_has_its_turn() -> None:
    for seed, (slots, pool) in enumerate([(4, 30), (7, 8), (9, 5), (1, 12)]):
        simulate(torch_retire, slots, pool, 3, seed, "cpu")


def test_a_run_on_the_kernels(device: torch.device) -> None:
    simulate(triton_retire, 4, 18, 3, 5, device)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("torch_retire", "idle | (age >= steps)", "idle"),
        ("torch_retire", "idle | (age >= steps)", "(age >= steps)"),
        ("torch_retire", "(age + 1 >= steps)", "(age >= steps)"),
        ("torch_retire", "torch.cumsum(free, 0) - 1", "torch.cumsum(free, 0)"),
        ("torch_retire", "place < cursor[1]", "place <= cursor[1]"),
        ("torch_retire", "torch.where(free, first_age, age + 1)", "age + 1"),
        ("torch_retire", "torch.minimum(cursor[0] + free.sum(), cursor[1])", "cursor[1]"),
        ("torch_retire", "descending=True", "descending=False"),
        ("beaten", "if targeted", "if not targeted"),
        ("beaten", 'float("-inf")', "0.0"),
    ],
)
def test_a_broken_twin_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("retire", f"retire.{place}", old, new)
    with pytest.raises(AssertionError):
        check_model(broken.torch_retire, few())


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("_judge_kernel", "own += tl.sum", "own = tl.sum"),
        ("_judge_kernel", "(k < classes) & (k != label)", "k < classes"),
        ("_judge_kernel", "(k < classes) & (k != label)", "k != label"),
        (
            "_judge_kernel",
            "others = tl.maximum(others, tl.max(rest, axis=0))",
            "others = tl.max(rest, axis=0)",
        ),
        ("_judge_kernel", "if TARGETED", "if False"),
        ("_judge_kernel", "ahead > margin", "ahead > 0"),
        (
            "_judge_kernel",
            "tl.load(labels_ptr + tl.maximum(tl.load(rows_ptr + slot), 0))",
            "tl.load(labels_ptr)",
        ),
        ("_assign_kernel", "(row < 0) | beaten | (age >= steps)", "(row < 0) | beaten"),
        ("_assign_kernel", "(row < 0) | beaten", "beaten"),
        ("_assign_kernel", "(age + 1 >= steps)", "(age >= steps)"),
        ("_assign_kernel", "cursor + rank - 1", "rank - 1"),
        ("_assign_kernel", "(place < end)", "(place < end - 1)"),
        ("_assign_kernel", "tl.where(free, first_age, age + 1)", "tl.where(free, 0, age + 1)"),
        ("_assign_kernel", "tl.minimum(cursor, end)", "cursor"),
        ("_assign_kernel", "idle = (row < 0)", "idle = (row < -1)"),
        ("_assign_kernel", "behind = active", "behind = active * 0"),
    ],
)
def test_a_broken_kernel_is_noticed(mutant: Any, place: str, old: str, new: str) -> None:
    broken = mutant("retire", f"retire.{place}", old, new)
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_retire, few(), torch.device("cpu"))


def test_a_kernel_that_lets_nan_win_is_noticed(mutant: Any) -> None:
    broken = mutant("retire", "retire._judge_kernel", 'tl.where(bad, float("nan"), own)', "own")
    cases = []
    for targeted in (False, True):
        arguments = case(2, 4, 3, 1, targeted=targeted, margin=0.0)
        arguments[2][:] = torch.arange(2)
        arguments[3].zero_()
        arguments[0][0, (arguments[1][0] + 1) % 3] = torch.nan
        arguments[0][0, arguments[1][0]] = 9.0 if targeted else -9.0
        cases.append(arguments)
    with pytest.raises(AssertionError):
        check_kernel(broken.triton_retire, cases, torch.device("cpu"))


def test_the_operation_is_the_twin_on_the_cpu() -> None:
    for arguments in few():
        assert run(retire, arguments) == run(torch_retire, arguments)
