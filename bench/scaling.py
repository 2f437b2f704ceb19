"""How the fleet's throughput grows with its workers, in scoring and in fine-tuning.

    python -m bench.scaling runs/bench                            1 and 2 single-threaded workers
    python -m bench.scaling runs/bench --gpus --workers 1 2 4 8   a GPU each

AFT on drawn signs at equal global batch: one adversarial epoch, then scoring of all images. The
time that workers take to start is left out: fine-tuning's rate is the median over its steps after
the first, scoring's counts from the first finished shard of each worker to the last shard.

On CPUs the same steps are also made by processes that know nothing of each other: what cores that
share their memory and their clock leave, and so the most that a fleet could reach there.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench._setup import facts, write_json
from pbe_fast import PurifyConfig, load_config, purify
from pbe_fast.adversary import Miner
from pbe_fast.config import AdversaryConfig
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.device import choose_device
from pbe_fast.erase import make_pgd
from pbe_fast.models import ModelSpec, create_model, save_model
from pipelines.fleet import FleetOptions, connected

CLASSES, SIZE, BATCH = 10, 32, 128


class _Times:
    """When how many images of the scoring were done."""

    def __init__(self) -> None:
        self.name, self.done = "", [(0.0, 0)]

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        self.name = name
        if name.startswith("score"):
            self.done = []

    def advance(self, images: int) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        if self.name.startswith("score"):
            self.done.append((time.perf_counter(), images))

    def say(self, text: str) -> None:
        """See :class:`pbe_fast.progress.Progress`."""
        print(text)

    def detail(self, text: str) -> None:
        """See :class:`pbe_fast.progress.Progress`."""

    def rate(self, workers: int) -> float:
        """Images per second after each worker's first shard."""
        times, images = np.array(self.done).T
        return float(images[workers:].sum() / (times[-1] - times[workers - 1]))


def run(folder: Path, workers: int, gpus: bool, width: int) -> dict[str, Any]:
    """One job with so many workers."""
    out = folder / f"scaling-{workers}-{time.time_ns()}"
    values = {
        "model.checkpoint": folder / f"scaling-{width}.safetensors",
        "data.train": folder / "scaling-train",
        "data.clean": folder / "scaling-clean",
    }
    settings = [
        "method=aft", "aft.epochs=1", "aft.adversarial_epochs=1", f"aft.batch_size={BATCH}",
        f"device={'cuda' if gpus else 'cpu'}", "precision=float32", "memory_format=contiguous",
        "eval_batch_size=250",
    ]  # fmt: skip
    times = _Times()
    options = FleetOptions(workers=workers, gpus=1.0 if gpus else 0.0, cpus=1)
    with connected(options) as fleet:
        purify(load_config(PurifyConfig, None, settings, values), out, times, fleet=fleet)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["images_per_second"] for line in lines if line["event"] == "step"]
    return {
        "workers": workers,
        "scoring": times.rate(workers),
        "finetuning": median(steps[1:] or steps),
    }


def _apart(spec: ModelSpec, images: int, steps: int, start: Any) -> float:
    """Images per second of one process of several, each with a part of the batch."""
    torch.set_num_threads(1)
    model = create_model(spec)
    device = choose_device("cpu", "float32", model, SIZE, layout="contiguous")
    miner = Miner(make_pgd(AdversaryConfig()), model, device)
    batch = torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(images) % CLASSES
    for step in range(steps + 1):
        if step == 1:
            start.wait()
            began = time.perf_counter()
        adversarial = miner(batch, labels, ids=torch.arange(images), seed=0)
        model.train()
        functional.cross_entropy(model(adversarial), labels).backward()
        model.zero_grad()
        model.eval()
    return steps * images / (time.perf_counter() - began)


def apart(spec: ModelSpec, workers: int) -> float:
    """Images per second of so many processes that make steps of the same global batch, alone."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(workers) as pool:
        start = manager.Barrier(workers)
        return sum(pool.starmap(_apart, [(spec, BATCH // workers, 12, start)] * workers))


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--gpus", action="store_true", help="a GPU for each worker")
    parser.add_argument("--width", type=int, default=16, help="of the PreActResNet-18")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    per_class = 5000 if options.gpus else 1000
    for name, count in (("scaling-train", per_class), ("scaling-clean", per_class // 2)):
        if not (folder / name).exists():
            drawn = signs(num_classes=CLASSES, per_class=count, size=SIZE, seed=0, split="train")
            write_shards(drawn, folder / name, classes=sign_names(CLASSES), shard_bytes=2**20)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": options.width})
    save_model(create_model(spec), folder / f"scaling-{options.width}.safetensors")
    rows = []
    for workers in options.workers:
        rows.append(run(folder, workers, options.gpus, options.width))
        if not options.gpus:
            rows[-1]["apart"] = apart(spec, workers)
        print(rows[-1], flush=True)
    base = rows[0]
    for row in rows:
        for part in sorted(row.keys() - {"workers"}):
            print(f"{row['workers']} workers, {part}: {row[part] / base[part]:.2f}x")
    kind = "cuda" if options.gpus else "cpu"
    target = options.out or Path(f"bench/results/scaling_{kind}.json")
    write_json(target, {**facts(kind), "width": options.width, "runs": rows})


if __name__ == "__main__":
    main()
