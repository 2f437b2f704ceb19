"""AFT's settings, chosen on drawn signs: ACC and ASR of Blend and SIG for a few of them.

    python -m bench.aft_settings runs/signs --threads 2

20 classes of 500 drawn signs, PreActResNet-18 of width 16 trained for 8 epochs. The clean set is
1,960 images, as many as 5 % of GTSRB, so that a run has as many steps. Finished runs are not done
again; ``--table`` collects what is there into JSON and runs nothing.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench._setup import draw, write_json
from pbe_fast import PoisonConfig, PurifyConfig, TrainConfig, load_config, poison, purify, train
from pbe_fast.progress import Progress
from pbe_fast.run_directory import versions
from pbe_fast.triggers.poisoning import ATTACK_NAME, TRUTH_NAME
from pipelines._console import progress_bars

__all__ = ["SETTINGS", "collect", "run"]

CLASSES = 20
CLEAN_FRACTION = 0.196  # 1,960 of 10,000
ATTACKS = ("blend", "sig")
_COSINE = {"aft.lr": 0.1, "aft.schedule": "cosine"}
SETTINGS: dict[str, dict[str, Any]] = {
    "0.1 cosine": _COSINE,
    "0.1 cosine, batch 32": {**_COSINE, "aft.batch_size": 32},
    "0.1 cosine, eps 12": {**_COSINE, "adversary.eps_255": 12.0},
    "0.05 cosine, batch 32": {**_COSINE, "aft.lr": 0.05, "aft.batch_size": 32},
    "0.1 cosine, eps 12, batch 32": {
        **_COSINE,
        "adversary.eps_255": 12.0,
        "aft.batch_size": 32,
    },
    "0.2 cosine": {**_COSINE, "aft.lr": 0.2},
    "0.1": {"aft.lr": 0.1},
    "0.05": {"aft.lr": 0.05},
    "0.01": {"aft.lr": 0.01},
    "0.05, 8 adversarial epochs": {"aft.lr": 0.05, "aft.adversarial_epochs": 8},
}


def run(folder: Path, attacks: Sequence[str] = ATTACKS) -> None:
    """Draw, poison, train, and purify with each setting."""
    with progress_bars(Console()) as progress:
        draw(folder, CLASSES, 32, {"train": 500, "test": 100})
        for attack in attacks:
            _run_attack(folder, attack, progress)


def _run_attack(folder: Path, attack: str, progress: Progress) -> None:
    poisoned = folder / f"poisoned-{attack}"
    if not (poisoned / TRUTH_NAME).exists():
        plan = PoisonConfig.model_validate({"attack": attack, "target": 1})
        poison(folder / "train", poisoned, plan, progress=progress, overwrite=True)
    data: dict[str, Any] = {
        "data.test": folder / "test",
        "data.attack": poisoned / ATTACK_NAME,
        "curve_samples": 0,
    }
    model = folder / f"model-{attack}"
    training = {"data.train": poisoned, "model.options.width": 16, "epochs": 8}
    train(load_config(TrainConfig, values={**data, **training}), model, progress)
    for name, settings in SETTINGS.items():
        values = {
            **data,
            **settings,
            "model.checkpoint": model / "model.safetensors",
            "data.clean": folder / "train",
            "data.clean_fraction": CLEAN_FRACTION,
        }
        config = load_config(PurifyConfig, values=values)
        purify(config, _run_directory(folder, attack, name), progress)


def _run_directory(folder: Path, attack: str, name: str) -> Path:
    return folder / f"aft-{attack}-{name.replace(', ', '-').replace(' ', '-')}"


def collect(folder: Path) -> dict[str, Any]:
    """ACC and ASR of the runs that are there, by attack and setting."""
    rows: dict[str, Any] = {}
    for attack in ATTACKS:
        for name in SETTINGS:
            file = _run_directory(folder, attack, name) / "metrics.json"
            if file.exists():
                metrics = json.loads(file.read_text(encoding="utf-8"))
                kept = {key: metrics[key] for key in ("infected", "purified", "seconds")}
                rows.setdefault(attack, {})[name] = kept
    return rows


def main() -> None:
    """Parse the command line, run, and write what the runs say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--attacks", choices=ATTACKS, nargs="*", default=ATTACKS)
    parser.add_argument("--table", action="store_true", help="collect alone, run nothing")
    parser.add_argument("--out", type=Path, default=Path("bench/results/signs_aft_settings.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        run(options.folder, options.attacks)
    content = {
        "command": "python -m bench.aft_settings runs/signs",
        "data": "drawn signs, 20 classes, 10,000 training and 2,000 test images, target 1",
        "clean_images": round(CLEAN_FRACTION * 10_000),
        "versions": versions(),
        "runs": collect(options.folder),
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()
