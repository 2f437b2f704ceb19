"""What the driver costs by itself: the whole job on up to ten million samples, without arithmetic.

    python -m bench.bookkeeping runs/bench

The real driver, run directory and scheduler run PBE's four rounds over a manifest of N samples in
shards of 1,000; the shards are empty files of the right size. In place of the models' arithmetic
the workers of a local Ray cluster write random scores, and fine-tuning comes back at once, so all
that is left is bookkeeping. Each size runs in a process of its own, whose peak memory is counted.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench._setup import apart, facts, process_mib, write_json
from pbe_fast import PurifyConfig, load_config, purify
from pbe_fast._site import Hooks, Site
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest, Shard
from pbe_fast.data.order import batches, epoch_order
from pbe_fast.device import Device
from pbe_fast.erase import Place, ScoreFiles
from pbe_fast.models import ModelSpec, create_model, save_model
from pbe_fast.progress import Clock, Progress
from pbe_fast.randomness import uniform
from pbe_fast.run_directory import RunDirectory
from pbe_fast.training import Stage
from pipelines._blueprint import Blueprint
from pipelines.fleet import Fleet, FleetExecutor, FleetOptions, connected

SIZES = [10_000, 100_000, 1_281_167, 10_000_000]
PER_SHARD = 1_000
IMAGE_BYTES = 110_000  # about an ImageNet photograph
CLASSES = 1_000


class _Scorer:
    """A worker that writes random scores."""

    def __init__(self, blueprint: Blueprint) -> None:
        assert blueprint.config.data.train is not None
        self.manifest = Manifest.load(blueprint.config.data.train)

    def ready(self) -> bool:
        """At once."""
        return True

    def score(
        self, files: ScoreFiles, shard: int, version: int, weights: Sequence[Any]
    ) -> tuple[int, Mapping[Any, str]]:
        """Random scores, which are different in each round."""
        count = self.manifest.shards[shard].samples
        ids = np.arange(count, dtype=np.int64) + shard * PER_SHARD
        scores = uniform(ids, 1, version)[:, 0].astype(np.float32)
        files.write(self.manifest, shard, scores)
        return count, {}


class _Executor(FleetExecutor):
    """Fine-tuning that sends what a real one would send, and comes back."""

    def finetune(
        self, stage: Stage, place: Place, hooks: Hooks, progress: Progress, clock: Clock
    ) -> None:
        import ray

        ray.get(ray.put(place))
        clock.add("finetune", 0.0, stage.epochs * len(place.subset))


class _Fleet(Fleet):
    """Workers that do no arithmetic."""

    def choose_device(self, *args: Any, **more: Any) -> Device:
        """A CPU, without a measurement."""
        import torch

        return Device(torch.device("cpu"), "float32", "contiguous")

    @contextmanager
    def executor(self, site: Site, run: RunDirectory) -> Iterator[FleetExecutor]:
        """See :class:`pbe_fast.purify.Fleet`."""
        executor = _Executor(site, run, self.options, _Scorer)
        try:
            yield executor
        finally:
            executor.close()


def make_set(folder: Path, samples: int) -> None:
    """A manifest, and shards that are empty but have their size."""
    if (folder / MANIFEST_NAME).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    member = IMAGE_BYTES + 2 * 512 + 1024
    ids = np.arange(samples)
    shard_of, place = ids // PER_SHARD, ids % PER_SHARD
    counts = np.bincount(shard_of)
    shards = []
    for index, count in enumerate(counts.tolist()):
        name = f"train-{index:06}.tar"
        with (folder / name).open("wb") as file:
            file.truncate(count * member)
        shards.append(Shard(name, f"{index:064x}", count * member, count))
    Manifest(
        root=folder,
        shards=tuple(shards),
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        shard_index=shard_of.astype(np.int32),
        keys=pa.array([f"n{i % CLASSES:08}_{i}" for i in range(samples)], pa.string()),
        offsets=(place * member + 512).astype(np.int64),
        sizes=np.full(samples, IMAGE_BYTES, np.int64),
        labels=(ids % CLASSES).astype(np.int32),
    ).save(folder)


def run_one(folder: Path, samples: int, workers: int) -> dict[str, Any]:
    """One job; in a process of its own."""
    data, out = folder / f"empty-{samples}", folder / f"bookkeeping-{samples}-{time.time_ns()}"
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, 32, {"width": 4})
    checkpoint = folder / "bookkeeping.safetensors"
    save_model(create_model(spec), checkpoint)
    config = load_config(
        PurifyConfig,
        None,
        ["method=pbe", "data.check_digests=false", "device=cpu"],
        {"model.checkpoint": checkpoint, "data.train": data},
    )
    with connected(FleetOptions(workers=workers)) as fleet:
        before, mib_before = resource.getrusage(resource.RUSAGE_SELF), process_mib("VmHWM")
        began = time.perf_counter()
        metrics = purify(config, out, fleet=_Fleet(fleet.options))
        seconds = time.perf_counter() - began
        after, mib, of_files = (
            resource.getrusage(resource.RUSAGE_SELF),
            process_mib("VmHWM"),
            process_mib("RssFile"),
        )
    manifest = Manifest.load(data)
    subset = np.arange(int(0.7 * samples), dtype=np.int64)
    began = time.perf_counter()
    batches(epoch_order(subset, manifest.shard_index, 0, "epoch", 0), 1024)
    return {
        "samples": samples,
        "shards": len(manifest.shards),
        "workers": workers,
        "seconds": seconds,
        "of_scoring": metrics["seconds"]["score"],
        "driver_cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "driver_mib_before": mib_before,
        "driver_mib": mib,
        "driver_mib_of_files": of_files,
        "order_seconds_per_epoch": time.perf_counter() - began,
    }


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench/results/bookkeeping.json"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(run_one(options.folder.resolve(), options.one, options.workers)))
        return
    rows = []
    for size in options.sizes:
        make_set(options.folder / f"empty-{size}", size)  # here, as it takes memory
        arguments = [str(options.folder), "--one", str(size), "--workers", str(options.workers)]
        rows.append(apart("bench.bookkeeping", *arguments))
    write_json(options.out, {**facts("cpu"), "runs": rows})


if __name__ == "__main__":
    main()
