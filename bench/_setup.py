"""What the benchmarks share: trained models, interleaved timing, facts of the machine."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from pbe_fast import TrainConfig, load_config, train
from pbe_fast.data.loader import ImageData, Quarantine
from pbe_fast.data.manifest import MANIFEST_NAME
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import Classifier, ModelSpec, load_model
from pbe_fast.run_directory import versions
from pipelines._console import progress_bars

__all__ = [
    "MODELS",
    "apart",
    "draw",
    "facts",
    "interleaved",
    "keep_rows",
    "merged",
    "process_mib",
    "some",
    "trained",
    "write_json",
]

CLASSES = 10


@dataclass(frozen=True)
class Plan:
    """A model of the benchmarks, and how it is trained in a few CPU minutes.

    Attributes:
        architecture: as the command line takes it.
        size: of the images that it is measured on, in pixels.
        stages: size in pixels, training images a class, epochs, learning rate and batch size, one
            after the other: most of the training on small images, where a step costs least.
    """

    architecture: str
    size: int
    stages: tuple[tuple[int, int, int, float, int], ...]


MODELS = {
    "resnet18_32": Plan(
        f"{Path(__file__).parent / 'resnet18_32.py'}:make",
        32,
        ((32, 200, 4, 0.02, 32),),
    ),
    "resnet50_224": Plan(
        "timm:resnet50",
        224,
        ((64, 200, 3, 0.1, 32), (128, 80, 2, 0.05, 32), (224, 40, 1, 0.03, 32)),
    ),
}


def draw(folder: Path, classes: int, size: int, per_class: Mapping[str, int]) -> None:
    """Shards of drawn signs, a folder a split, where they are not there yet."""
    for split, count in per_class.items():
        if not (folder / split / MANIFEST_NAME).exists():
            drawn = signs(num_classes=classes, per_class=count, size=size, seed=0, split=split)
            write_shards(drawn, folder / split, classes=sign_names(classes))


def trained(name: str, folder: Path, device: str) -> tuple[Classifier, ImageData]:
    """A model that was trained on drawn signs, and its test images; made once and kept.

    On random weights every adversarial example succeeds at once, which flatters who stops early.
    """
    plan = MODELS[name]
    start: Path | None = None
    for size, per_class, epochs, lr, batch in plan.stages:
        data = folder / f"signs-{size}"
        draw(data, CLASSES, size, {"train": per_class, "test": 100 if size <= 64 else 20})
        values: dict[str, Any] = {
            "data.train": data / "train",
            "data.image_size": size,
            "data.augment": "none",
            "model.name": plan.architecture,
            "model.checkpoint": start,
            "epochs": epochs,
            "batch_size": batch,
            "lr": lr,
            "device": device,
            "curve_samples": 0,
        }
        run = folder / f"model-{name}-signs-{size}"
        with progress_bars(Console()) as progress:
            train(load_config(TrainConfig, values=values), run, progress)
        start = run / "model.safetensors"
    assert start is not None
    quarantine = Quarantine(folder / "quarantine.jsonl", 0.0)
    shards = folder / f"signs-{plan.size}" / "test"
    test = ImageData.open(shards, plan.size, workers=0, quarantine=quarantine, digests=False)
    # The name is given, as a checkpoint's own word for a Python file is not taken.
    spec = ModelSpec(plan.architecture, CLASSES, image_size=plan.size)
    return load_model(start, spec), test


def some(test: ImageData, count: int) -> tuple[Tensor, Tensor]:
    """Random test images, uint8, and their labels."""
    ids = np.sort(np.random.default_rng(0).permutation(len(test.manifest))[:count])
    batch = next(iter(test.read(ids.astype(np.int64), count)))
    return batch.images, batch.labels


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    images: int,
    warm_up: bool = True,
) -> dict[str, dict[str, float]]:
    """Time every contender once a round, so that a slow moment of the machine hits all alike.

    Returns:
        for each the median and quartiles of images per second, and the number of rounds.
    """

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values() if warm_up else ():  # allocations, layouts, compiled code
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            wait()
            began = perf_counter()
            call()
            wait()
            seconds[name].append(perf_counter() - began)
    result = {}
    for name, taken in seconds.items():
        rate = images / np.array(taken)
        low, median, high = (float(x) for x in np.percentile(rate, [25, 50, 75]))
        result[name] = {
            "images_per_second": median,
            "lower_quartile": low,
            "upper_quartile": high,
            "rounds": rounds,
        }
    return result


def facts(device: str) -> dict[str, Any]:
    """The command as it was given, the machine and the versions."""
    arguments = sys.argv[1:]
    folder = {text: "runs/bench" for text in arguments[:1] if not text.startswith("-")}
    words = [folder.get(text, text) for text in arguments]
    command = f"python -m {getattr(sys.modules['__main__'].__spec__, 'name', 'bench')}"
    place: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        place = {"gpu": torch.cuda.get_device_name(0)}
    return {
        "command": " ".join([command, *words]),
        "device": device,
        **place,
        "versions": versions(),
    }


def apart(module: str, *arguments: str) -> dict[str, Any]:
    """The last line that a benchmark prints in a process of its own, and prints it."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:])
        sys.exit(1)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(row, flush=True)
    return row


def process_mib(name: str) -> float:
    """Of this process: its peak (``VmHWM``), or what is mapped from files now (``RssFile``).

    ``ru_maxrss`` would begin with the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    flags = next((line for line in lines if line.startswith("flags")), "")
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return f"{model}{', AVX-512 bfloat16' if 'avx512_bf16' in flags else ''}"


def merged(
    kept: Iterable[dict[str, Any]], rows: Iterable[dict[str, Any]], *keys: str
) -> list[dict[str, Any]]:
    """Rows in the order of these keys; of two that agree in them, the new one."""
    named = {tuple(row[key] for key in keys): row for row in [*kept, *rows]}
    return [named[name] for name in sorted(named)]


def rows_in(file: Path) -> list[dict[str, Any]]:
    """The rows of a result that was kept."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return rows


def keep_rows(
    out: Path,
    part: str,
    rows: Iterable[dict[str, Any]],
    keys: Sequence[str],
    device: str,
    commands: Sequence[str],
) -> None:
    """Write rows beside the others that are under ``part`` of a file, with the modules to run."""
    kept = json.loads(out.read_text(encoding="utf-8"))[part] if out.exists() else []
    content = {**facts(device), part: merged(kept, rows, *keys)}
    content["command"] = "; ".join(f"python -m {command}" for command in commands)
    write_json(out, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Keep a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
