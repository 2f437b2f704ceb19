"""What a batch costs: the speed of one step of PGD and peak memory for batches of 16 to 4096.

    python -m bench.sizes runs/bench --threads 2
    python -m bench.sizes runs/bench --device cuda

Mode ``exact`` on the trained ResNet-18 at 32x32; one step is a seventh of PGD-7, and needs the same
memory. On a CPU the peak is the resident set of the process (it never falls, so sizes go up); on
CUDA what torch allocated. A size that is expected to need more than the free memory is not tried,
and said to be so.
"""

import argparse
import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench._setup import MODELS, facts, some, trained, write_json
from bench.pgd import rule
from pbe_fast.adversary import Miner
from pbe_fast.device import choose_device

MODEL = "resnet18_32"
SIZES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def peak(place: torch.device) -> int:
    """Bytes at the highest so far."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def available(place: torch.device) -> int:
    """Bytes that may still be taken."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = torch.device(options.device)
    model, test = trained(MODEL, options.folder, options.device)
    device = choose_device(options.device, "auto", model, MODELS[MODEL].size)
    # Compiling and capturing for each size would take longer than the measurement.
    miner = Miner(replace(rule("exact"), steps=1, compile=False), model, device)
    pixels, labels = some(test, len(test.manifest))
    pixels, labels = pixels.to(place), labels.to(place)
    miner(pixels[:16], labels[:16])
    base, rows = peak(place), {}
    each = 0.0
    for size in [size for size in SIZES if size <= options.largest]:
        if each * size > 0.8 * available(place) + (peak(place) - base):
            rows[str(size)] = {"not_tried": "would not fit in the free memory"}
            continue
        rounds = -(-size // len(pixels))
        batch, truth = pixels.repeat(rounds, 1, 1, 1)[:size], labels.repeat(rounds)[:size]
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        taken = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            float(miner(batch, truth).sum())  # waits for the device
            taken.append(time.perf_counter() - began)
        row: dict[str, Any] = {
            "images_per_second": size / sorted(taken)[len(taken) // 2],
            "peak_bytes": peak(place),
        }
        rows[str(size)] = row
        each = max(each, (peak(place) - base) / size)
        rate, mib = row["images_per_second"], row["peak_bytes"] / 2**20
        print(f"{size:5}: {rate:9.1f} images/s, {mib:,.0f} MiB")
    content = {
        **facts(options.device),
        "precision": device.precision,
        "layout": device.layout,
        "batches": rows,
    }
    write_json(options.out or Path(f"bench/results/sizes_{place.type}.json"), content)


if __name__ == "__main__":
    main()
