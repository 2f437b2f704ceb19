"""Several ranks make the steps of one process; real processes, over gloo on loopback."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pbe_fast.errors import ConfigError
from pbe_fast.parallel import Share, share_batch_norm

# Trains on batches of 22, 22, 7 and 3 images; alone, or as one of WORLD ranks.
PROGRAM = """
import sys
import numpy as np, torch
from torch import nn
from torch.nn import functional
import torch.distributed as dist
from pbe_fast.parallel import Share, share_batch_norm

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
    nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(72, 6),
    nn.BatchNorm1d(6, affine=False),
)
unused = nn.Linear(2, 2)  # has no gradient
model.add_module("unused", unused)
body = lambda x: model[:-1](x)
generator = torch.Generator().manual_seed(1)
images = torch.rand(22, 3, 9, 9, generator=generator)
labels = torch.randint(0, 6, (22,), generator=generator)
share = Share(rank, world)
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
    share_batch_norm(model)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
losses = []
for count in (22, 22, 7, 3):
    ids = share.part(np.arange(count))
    logits = body(images[ids])
    optimizer.zero_grad()
    if world == 1:
        loss = functional.cross_entropy(logits, labels[ids])
        loss.backward()
    else:
        total = functional.cross_entropy(logits, labels[ids], reduction="sum")
        total.backward()
        right = (logits.argmax(1) == labels[ids]).sum()
        loss, _ = share.total(model.parameters(), total, right, len(ids))
    optimizer.step()
    losses.append(float(loss.detach()))
torch.save({"losses": losses, "state": model.state_dict()}, f"{out}-{rank}.pt")
"""


def _run(tmp_path: Path, world: int) -> list[dict[str, object]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    store, out = tmp_path / f"store-{world}", tmp_path / f"out-{world}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(world), str(store), str(out)],
            cwd=Path(__file__).parents[1],
            env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
    return [torch.load(f"{out}-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_make_the_steps_of_one_process(tmp_path: Path, world: int) -> None:
    (alone,) = _run(tmp_path, 1)
    ranks = _run(tmp_path, world)
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], alone["losses"], rtol=1e-5)
        assert rank["state"].keys() == alone["state"].keys()  # type: ignore[attr-defined]  # a state dict
        for name, value in alone["state"].items():  # type: ignore[attr-defined]  # a state dict
            # A batch that every rank works on whole counts as larger in the running variance.
            loose = 5e-2 if "running_var" in name else 1e-5
            torch.testing.assert_close(rank["state"][name], value, rtol=loose, atol=1e-6, msg=name)  # type: ignore[index]  # a state dict
    for name, value in ranks[0]["state"].items():  # type: ignore[attr-defined]  # a state dict
        for other in ranks[1:]:
            assert torch.equal(other["state"][name], value), name  # type: ignore[index]  # a state dict


@given(st.integers(1, 300), st.integers(1, 9))
def test_parts_are_the_batch_and_none_is_too_small(count: int, world: int) -> None:
    batch = np.arange(count)
    parts = [Share(rank, world).part(batch) for rank in range(world)]
    if count < 2 * world:
        assert all(part.tolist() == batch.tolist() for part in parts)
    else:
        assert np.concatenate(parts).tolist() == batch.tolist()
        assert min(map(len, parts)) >= 2
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_names_and_eval_results_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    model(torch.rand(5, 3, 6, 6))
    model.eval()
    images = torch.rand(2, 3, 6, 6)
    before, names = model(images), list(model.state_dict())
    share_batch_norm(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(images), before)
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())


def test_timms_batch_norm_keeps_its_activation() -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnetv2_50", num_classes=3, pretrained=False)
    efficient = timm.create_model("efficientnet_b0", num_classes=3, pretrained=False)
    for net in (model, efficient):
        net.eval()
        images = torch.rand(1, 3, 64, 64)
        before, names = net(images), list(net.state_dict())
        share_batch_norm(net)
        assert list(net.state_dict()) == names
        torch.testing.assert_close(net(images), before)


def test_an_unknown_batch_norm_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"0 of the model is a Own.*--workers 1"):
        share_batch_norm(nn.Sequential(Own(3)))
