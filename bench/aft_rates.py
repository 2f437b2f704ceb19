"""AFT's learning rate, chosen on drawn signs: ACC and ASR for a few rates and schedules.

    python -m bench.aft_rates runs/signs --threads 2

20 classes of 500 drawn signs, Blend, PreActResNet-18 of width 16 trained for 8 epochs. The clean
set is 1,960 images, as many as 5 % of GTSRB, so that a run has as many steps. Finished runs are
not done again; ``--table`` collects what is there into JSON and runs nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pbe_fast import PoisonConfig, PurifyConfig, TrainConfig, load_config, poison, purify, train
from pbe_fast.data.manifest import MANIFEST_NAME
from pbe_fast.data.shards import write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.run_directory import versions
from pbe_fast.triggers.poisoning import ATTACK_NAME, TRUTH_NAME
from pipelines._console import progress_bars

__all__ = ["RATES", "collect", "run"]

CLASSES = 20
CLEAN_FRACTION = 0.196  # 1,960 of 10,000
RATES: dict[str, dict[str, Any]] = {
    "0.01": {"aft.lr": 0.01},
    "0.05": {"aft.lr": 0.05},
    "0.1": {"aft.lr": 0.1},
    "0.05-adversarial-8": {"aft.lr": 0.05, "aft.adversarial_epochs": 8},
    "0.1-cosine": {"aft.lr": 0.1, "aft.schedule": "cosine"},
    "0.2-cosine": {"aft.lr": 0.2, "aft.schedule": "cosine"},
}


def run(folder: Path) -> None:
    """Draw, poison, train, and purify at each rate."""
    with progress_bars(Console()) as progress:
        for split, per_class in (("train", 500), ("test", 100)):
            if not (folder / split / MANIFEST_NAME).exists():
                drawn = signs(
                    num_classes=CLASSES, per_class=per_class, size=32, seed=0, split=split
                )
                write_shards(drawn, folder / split, classes=sign_names(CLASSES))
        poisoned = folder / "poisoned-blend"
        if not (poisoned / TRUTH_NAME).exists():
            plan = PoisonConfig(attack="blend", target=1)
            poison(folder / "train", poisoned, plan, progress=progress, overwrite=True)
        data = {"data.test": folder / "test", "data.attack": poisoned / ATTACK_NAME}
        model = folder / "model-blend"
        training = {"data.train": poisoned, "model.options.width": 16, "epochs": 8}
        train(load_config(TrainConfig, values={**data, **training}), model, progress)
        for name, rate in RATES.items():
            values = {
                **data,
                **rate,
                "model.checkpoint": model / "model.safetensors",
                "data.clean": folder / "train",
                "data.clean_fraction": CLEAN_FRACTION,
            }
            purify(load_config(PurifyConfig, values=values), folder / f"aft-{name}", progress)


def collect(folder: Path) -> dict[str, Any]:
    """ACC and ASR of the runs that are there."""
    rows: dict[str, Any] = {}
    for name in RATES:
        file = folder / f"aft-{name}" / "metrics.json"
        if file.exists():
            metrics = json.loads(file.read_text(encoding="utf-8"))
            rows[name] = {key: metrics[key] for key in ("infected", "purified", "seconds")}
    return rows


def main() -> None:
    """Parse the command line, run, and write what the runs say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="collect alone, run nothing")
    parser.add_argument("--out", type=Path, default=Path("bench/results/signs_aft_rates.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        run(options.folder)
    content = {
        "command": "python -m bench.aft_rates runs/signs",
        "data": "drawn signs, 20 classes, 10,000 training and 2,000 test images, Blend, target 1",
        "clean_images": round(CLEAN_FRACTION * 10_000),
        "versions": versions(),
        "runs": collect(options.folder),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
