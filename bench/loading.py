"""Shards to ready batches on one core: this project, its peers, and the bare decoder as the limit.

    PBE_DATA=... python -m bench.loading runs/bench

Two kinds of real images: 32x32 signs (``PBE_DATA/gtsrb32``), and photographs of about 500x375
pixels to 224x224 (``PBE_DATA/imagenet_samples``). All in one process and one thread, without
worker processes; files and shards are in the page cache after the warm-up. Every contender ends in
uint8 batches ``(N, 3, size, size)``, but for two limits that have their bytes in memory and make no
batches. The bare decoder is simplejpeg at the images' own size and with nothing after it. "Decode
and resize" is this project's check of the header, decoding and resizing.

``microseconds_per_image`` divides this project's time: simplejpeg, the check of the header, cutting
and resizing, reading the bytes from shards, and the rest (making batches and handing them on).
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from bench._setup import facts, interleaved, write_json
from pbe_fast.data.augment import View
from pbe_fast.data.converters import read_image_folder
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import ImageData, image_memory
from pbe_fast.data.manifest import MANIFEST_NAME
from pbe_fast.data.order import batches
from pbe_fast.data.shards import ShardReader, write_shards

BATCH = 128
LIMIT = 4000  # images of the small kind
RESIZE = "decode and resize, in memory"


def to_size(image: Image.Image, size: int) -> Tensor:
    """What the peers do after decoding, with PIL: the usual evaluation view."""
    image = image.convert("RGB")
    if size > 64:
        short = min(image.size) * 0.875
        left, top = (image.width - short) / 2, (image.height - short) / 2
        box = (left, top, left + short, top + short)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def steps(data: ImageData) -> dict[str, Callable[[], object]]:
    """What this project does for a batch, one thing more each, and reading alone."""
    reader, view = ShardReader(data.manifest), View(data.size)
    files = reader.read_all(data.ids.tolist())
    # As in a batch, images that have the size are decoded in place.
    row = image_memory(data.size, data.size, 3)
    # Not to fresh memory, as decoding 32x32 pixels to that is fast or slow by its address.
    largest = image_memory(max(decode_rgb(content).size for content in files))

    def bare() -> None:
        for content in files:
            simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=largest)

    def decode() -> None:
        for content in files:
            decode_rgb(content, out=row)

    def resize() -> None:
        for content in files:
            view.image(decode_rgb(content, out=row), 0)

    def read() -> None:
        for ids in batches(data.ids, BATCH):
            reader.read_all(ids.tolist())

    return {"bare decoder": bare, "decode": decode, RESIZE: resize, "read": read}


def breakdown(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Microseconds an image, which add up to ours.

    From the upper quartiles of the rates: differences of medians show the machine's other work.
    The rest may be a little below zero, as bytes that were just read are still in the cache.
    """
    cost = {name: 1e6 / row["upper_quartile"] for name, row in rates.items()}
    return {
        "simplejpeg": cost["bare decoder"],
        "header": cost["decode"] - cost["bare decoder"],
        "resize": cost[RESIZE] - cost["decode"],
        "read": cost["read"],
        "rest": cost["ours"] - cost[RESIZE] - cost["read"],
    }


def peers(data: ImageData, folder: Path, shards: Path) -> dict[str, Callable[[], object]]:
    """Everyone's way through the whole set."""
    size = data.size
    urls = [str(shards / shard.name) for shard in data.manifest.shards]

    def ours() -> None:
        for _ in data.read(data.ids, BATCH):
            pass

    def wds() -> None:
        stream = (
            webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None)
            .decode("pil")
            .to_tuple("jpg;jpeg", "cls")
            .map_tuple(lambda image: to_size(image, size), lambda label: label)
            .batched(BATCH)
        )
        for _ in stream:
            pass

    def image_folder() -> None:
        tree = ImageFolder(str(folder), transform=lambda image: to_size(image, size))
        for _ in DataLoader(tree, batch_size=BATCH, num_workers=0):
            pass

    return {
        "ours": ours,
        "webdataset, PIL": wds,
        "DataLoader, image folder": image_folder,
    }


def _small(source: Path, folder: Path) -> Path:
    """The first images of each class of a large tree, by links."""
    if folder.exists():
        return folder
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for label in classes:
        (folder / label.name).mkdir(parents=True)
        for path in sorted(label.iterdir())[: LIMIT // len(classes)]:
            os.link(path, folder / label.name / path.name)
    return folder


def _one_class(source: Path, folder: Path) -> Path:
    """A flat folder of photographs as an image folder of two classes."""
    if folder.exists():
        return folder
    for index, path in enumerate(sorted(source.iterdir())):
        target = folder / str(index % 2) / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return folder


def kinds(images: Path, folder: Path) -> Iterator[tuple[str, Path, int]]:
    """Name, image folder and size in pixels."""
    yield "32", _small(images / "gtsrb32" / "train", folder / "images-32"), 32
    yield "224", _one_class(images / "imagenet_samples", folder / "images-224"), 224


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results/loading.json"))
    options = parser.parse_args()
    if "PBE_DATA" not in os.environ:
        parser.error("set PBE_DATA to the folder with gtsrb32 and imagenet_samples.")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, tree, size in kinds(Path(os.environ["PBE_DATA"]), options.folder):
        shards = options.folder / f"shards-{name}"
        if not (shards / MANIFEST_NAME).exists():
            classes, samples = read_image_folder(tree)
            write_shards(samples, shards, classes=classes)
        count = sum(1 for path in tree.glob("*/*") if path.is_file())
        data = ImageData.open(shards, size, workers=0, digests=False)
        rates = interleaved(steps(data) | peers(data, tree, shards), options.rounds, count)
        results[name] = {
            "images": count,
            "contenders": {k: row for k, row in rates.items() if k not in ("decode", "read")},
            "microseconds_per_image": breakdown(rates),
        }
    content = {**facts("cpu"), "kinds": results}
    write_json(options.out, content)


if __name__ == "__main__":
    main()
