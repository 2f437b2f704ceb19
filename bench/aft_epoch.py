"""One adversarial epoch of AFT, end to end from shards: this project against a plain loop.

    python -m bench.aft_epoch runs/bench --threads 2

Both read the same shards in the same order with the same augmentation, mine PGD-7 examples and make
one SGD step a batch, on the same trained model. The plain loop is written as the public PBE code
has it: float32, parameter gradients at every PGD step.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench._setup import MODELS, facts, interleaved, trained, write_json
from bench.pgd import plain, rule
from pbe_fast.data.augment import View
from pbe_fast.data.loader import ImageData
from pbe_fast.data.order import epoch_order
from pbe_fast.device import choose_device
from pbe_fast.progress import Clock, Silent
from pbe_fast.training import Stage, fit

MODEL = "resnet18_32"
BATCH = 64
LR = 1e-3


def plain_epoch(
    model: nn.Module, data: ImageData, ids: np.ndarray[tuple[int], np.dtype[np.int64]],
    place: torch.device,
) -> None:  # fmt: skip
    """Adversarial examples, then a step, batch by batch."""
    attack = plain(model, place)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    stream = ("round", 0, "epoch", 0)
    order = epoch_order(ids, data.manifest.shard_index, 0, *stream)
    for batch in data.read(order, BATCH, View(data.size, "crop_rotate", False, 0, stream)):
        images, labels = (batch.images.float() / 255).contiguous().to(place), batch.labels.to(place)
        adversarial = attack(images, labels)
        model.train()
        loss = functional.cross_entropy(model(adversarial), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = torch.device(options.device)
    model, test = trained(MODEL, options.folder, options.device)
    images = 96 if place.type == "cpu" else 2000
    ids = np.arange(min(images, len(test.manifest)), dtype=np.int64)
    device = choose_device(options.device, "auto", model, MODELS[MODEL].size)
    start = deepcopy(model.state_dict())

    def ours(mode: str) -> Callable[[], None]:
        stage = Stage(
            name="aft", epochs=1, batch_size=BATCH, lr=LR, momentum=0.9, weight_decay=5e-4,
            augment="crop_rotate", adversarial_epochs=1,
        )  # fmt: skip

        def run() -> None:
            model.load_state_dict(start)
            fit(
                device.place(model), test, ids, stage, device, pgd=rule(mode), seed=0,
                progress=Silent(), clock=Clock(), on_step=lambda _: None,
                on_epoch=lambda _: None, checkpoint=lambda _: None, checkpoint_seconds=1e9,
            )  # fmt: skip

        return run

    other = deepcopy(model).to(place, memory_format=torch.contiguous_format)

    def by_plain_loop() -> None:
        other.load_state_dict(start)
        plain_epoch(other, test, ids, place)

    calls = {"ours, exact": ours("exact"), "ours, retire": ours("retire"), "plain": by_plain_loop}
    content = {
        **facts(options.device),
        "images": len(ids),
        "batch": BATCH,
        "contenders": interleaved(calls, options.rounds, len(ids)),
    }
    write_json(options.out or Path(f"bench/results/aft_epoch_{place.type}.json"), content)


if __name__ == "__main__":
    main()
