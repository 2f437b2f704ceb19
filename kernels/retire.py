"""Which adversarial examples are done, and who takes their slots.

A model works on N slots; sample rows[i] of a pool of M is in slot i, after age[i] steps. With a
its logits and y its label,

    beaten = max over k != y of a[k] - a[y] > margin              (untargeted)
    beaten = a[y] - max over k != y of a[k] > margin              (targeted)

A beaten sample leaves its slot as it is; one that makes its last step now leaves after it. A free
slot takes the next sample of the queue, the lowest slot first. When the queue is empty, ``order``
lists the slots that still work, so that a caller can make the batch smaller. Nothing waits for
the host.

Traffic: the logits once; 50 bytes a slot.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._common import operation

__all__ = ["beaten", "retire", "torch_retire", "triton_retire"]

_BLOCK = 1024


def torch_retire(
    logits: Tensor,
    labels: Tensor,
    rows: Tensor,
    age: Tensor,
    queue: Tensor,
    cursor: Tensor,
    first_age: int,
    steps: int,
    margin: float,
    targeted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decide about every slot; ``rows``, ``age`` and ``cursor`` are brought up to date in place.

    Args:
        logits: ``(N, K)``, any float dtype, K at least 2.
        labels: ``(M,)`` int64, of the pool's samples: true ones, or the wanted ones (targeted).
        rows: ``(N,)`` int64, the sample of each slot; -1 for an idle one.
        age: ``(N,)`` int32, steps that were made to reach these logits.
        queue: ``(Q,)`` int64, samples that wait for a slot, each once and in no slot.
        cursor: ``(2,)`` int64, the place in the queue of the next one, and of the end.
        first_age: steps that the samples of the queue have made.
        steps: at most so many for a sample.
        margin: at least 0, in units of logits.

    Returns:
        ``stepping`` ``(N,)`` int64: the samples that make a step now, -1 for none;
        ``order`` ``(N,)`` int64: the slots, those with a sample first;
        ``active`` ``(1,)`` int64: how many those are.
    """
    idle = rows < 0
    stops = idle | (age >= steps)
    stops = stops | beaten(logits, labels[rows.clamp_min(0)], margin, targeted)
    free = stops | (age + 1 >= steps)
    stepping = torch.where(stops, -1, rows)
    place = cursor[0] + torch.cumsum(free, 0) - 1
    taken = torch.full_like(rows, -1)
    if len(queue):
        taken = torch.where(place < cursor[1], queue[place.clamp(0, len(queue) - 1)], taken)
    rows.copy_(torch.where(free, taken, rows))
    age.copy_(torch.where(free, first_age, age + 1))
    cursor[0] = torch.minimum(cursor[0] + free.sum(), cursor[1])
    working = rows >= 0
    order = torch.argsort(working.int(), descending=True, stable=True)
    return stepping, order, working.sum().view(1)


def beaten(logits: Tensor, labels: Tensor, margin: float, targeted: bool) -> Tensor:
    """``(N,)`` bool as above, in plain torch; a row that has a NaN is never beaten."""
    logits = logits.float()
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return (own - others > margin) if targeted else (others - own > margin)


@triton.jit
def _judge_kernel(
    logits_ptr,  # (N, K) float
    labels_ptr,  # (M,) int64
    rows_ptr,  # (N,) int64
    beaten_ptr,  # (N,) int32
    classes: tl.constexpr,  # K; known, so that loads are wide where it is a multiple of 8
    margin,
    TARGETED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + tl.maximum(tl.load(rows_ptr + slot), 0))
    own = tl.zeros((), tl.float32)
    others = tl.full((), float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        a = tl.load(logits_ptr + slot * classes + k, mask=k < classes, other=0).to(tl.float32)
        own += tl.sum(tl.where(k == label, a, 0.0), axis=0)
        rest = tl.where((k < classes) & (k != label), a, float("-inf"))
        others = tl.maximum(others, tl.max(rest, axis=0))
        # A row with NaN is never beaten, whatever the maximum makes of it.
        bad = tl.sum((a != a).to(tl.int32), axis=0) > 0
        own = tl.where(bad, float("nan"), own)
    ahead = others - own
    if TARGETED:
        ahead = own - others
    tl.store(beaten_ptr + slot, (ahead > margin).to(tl.int32))


@triton.jit
def _assign_kernel(
    rows_ptr,  # (N,) int64, in and out
    age_ptr,  # (N,) int32, in and out
    queue_ptr,  # (Q,) int64
    cursor_ptr,  # (2,) int64, in and out
    beaten_ptr,  # (N,) int32
    stepping_ptr,  # (N,) int64
    order_ptr,  # (N,) int64
    active_ptr,  # (1,) int64
    count,  # N
    first_age,
    steps,
    BLOCK: tl.constexpr,
):
    cursor = tl.load(cursor_ptr)
    end = tl.load(cursor_ptr + 1)
    active = cursor * 0
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        inside = slot < count
        row = tl.load(rows_ptr + slot, mask=inside, other=0)
        age = tl.load(age_ptr + slot, mask=inside, other=0)
        beaten = tl.load(beaten_ptr + slot, mask=inside, other=0) != 0
        stops = (row < 0) | beaten | (age >= steps)
        free = (stops | (age + 1 >= steps)) & inside
        tl.store(stepping_ptr + slot, tl.where(stops, -1, row), mask=inside)
        rank = tl.cumsum(free.to(tl.int64), axis=0)
        place = cursor + rank - 1
        taken = tl.load(queue_ptr + place, mask=free & (place < end), other=-1)
        row = tl.where(free, taken, row)
        tl.store(rows_ptr + slot, row, mask=inside)
        tl.store(age_ptr + slot, tl.where(free, first_age, age + 1), mask=inside)
        cursor += tl.sum(free.to(tl.int64), axis=0)
        working = (row >= 0) & inside
        place = active + tl.cumsum(working.to(tl.int64), axis=0) - 1
        tl.store(order_ptr + place, slot.to(tl.int64), mask=working)
        active += tl.sum(working.to(tl.int64), axis=0)
    tl.store(cursor_ptr, tl.minimum(cursor, end))
    tl.store(active_ptr, active)
    # The idle slots come after all that work.
    behind = active
    tl.debug_barrier()  # rows were written by other threads of this program
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        row = tl.load(rows_ptr + slot, mask=slot < count, other=0)
        idle = (row < 0) & (slot < count)
        place = behind + tl.cumsum(idle.to(tl.int64), axis=0) - 1
        tl.store(order_ptr + place, slot.to(tl.int64), mask=idle)
        behind += tl.sum(idle.to(tl.int64), axis=0)


def triton_retire(
    logits: Tensor,
    labels: Tensor,
    rows: Tensor,
    age: Tensor,
    queue: Tensor,
    cursor: Tensor,
    first_age: int,
    steps: int,
    margin: float,
    targeted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels on a CUDA device; as :func:`torch_retire`."""
    count, classes = logits.shape
    out = _fake(logits, labels, rows, age, queue, cursor, first_age, steps, margin, targeted)
    if not count:
        out[2].zero_()
        return out
    done = torch.empty(count, dtype=torch.int32, device=logits.device)
    dense_rows, dense_age = rows.contiguous(), age.contiguous()
    _judge_kernel[(count,)](
        logits.contiguous(),
        labels.contiguous(),
        dense_rows,
        done,
        classes,
        margin,
        TARGETED=targeted,
        BLOCK=min(_BLOCK, triton.next_power_of_2(classes)),
        num_warps=1,
        enable_fp_fusion=False,
    )
    _assign_kernel[(1,)](
        dense_rows,
        dense_age,
        queue.contiguous(),
        cursor,
        done,
        *out,
        count,
        first_age,
        steps,
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
    if dense_rows is not rows:
        rows.copy_(dense_rows)
    if dense_age is not age:
        age.copy_(dense_age)
    return out


def _fake(
    logits: Tensor,
    labels: Tensor,
    rows: Tensor,
    age: Tensor,
    queue: Tensor,
    cursor: Tensor,
    first_age: int,
    steps: int,
    margin: float,
    targeted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(cursor[:1])


retire = operation("retire", torch_retire, triton_retire, _fake, mutates=["rows", "age", "cursor"])
