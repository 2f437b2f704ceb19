"""What the study's tables do not say: of the class that an attack wants, and of wrong labels.

    python -m bench.study_details runs/study/signs_resnet18/badnets-all_to_one-0.1-0 \\
        runs/study/signs_hard/blend-all_to_one-0.1-0 \\
        runs/study/gtsrb_third_rare/*-all_to_one-0.1-0 runs/study/gtsrb_third_noise/benign-0

ACC hides what becomes of one class of many. Of all-to-one cases it is measured how many images of
the target the models know, and how many triggered training images the purified one takes for it;
of data sets with wrong labels, how many of the suspects have one.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from bench._setup import keep_rows
from bench.study import DATA, MODES, SIZE
from pbe_fast.config import PurifyConfig, load_config
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.models import load_model
from pbe_fast.purify import PURIFIED_NAME
from pbe_fast.suspects import SUSPECTS_NAME, judged_metrics, suspect_metrics
from pbe_fast.train import MODEL_NAME
from pbe_fast.triggers.poisoning import TRUTH_NAME, load_truth

__all__ = ["OUT", "of_target", "of_wrong_labels"]

OUT = Path("bench/results/study_details.json")


def of_target(case: Path) -> dict[str, Any]:
    """Of an all-to-one case, whose run directory is ``sieve``: how its models see the target."""
    target = DATA[case.parent.name].target
    config = load_config(PurifyConfig, case / "sieve" / "config.yaml")
    assert config.data.test is not None
    test = ImageData.open(config.data.test, SIZE, workers=0)
    train = ImageData.open(case / "poisoned", SIZE, workers=0)
    truth = load_truth(case / "poisoned" / TRUTH_NAME, train.manifest)
    infected = load_model(case / "model" / MODEL_NAME)
    purified = load_model(case / "sieve" / PURIFIED_NAME)
    here = test.ids[test.manifest.labels == target]
    own = train.ids[(train.manifest.labels == target) & ~truth]
    return {
        "target": target,
        "test_images": len(here),
        "infected_knows": _taken(infected, test, here, target),
        "purified_knows": _taken(purified, test, here, target),
        "own_training_images": len(own),
        "purified_knows_own": _taken(purified, train, own, target),
        "triggered": int(truth.sum()),
        "purified_takes_for_target": _taken(purified, train, train.ids[truth], target),
    }


@torch.inference_mode()
def _taken(model: torch.nn.Module, data: ImageData, ids: npt.NDArray[np.int64], label: int) -> int:
    """How many of these images a model takes for a class."""
    model.eval()
    return sum(
        int((model(batch.images / 255).argmax(1) == label).sum()) for batch in data.read(ids, 512)
    )


def of_wrong_labels(case: Path) -> dict[str, Any]:
    """Of a data set with wrong labels: how many images that are called suspect have one."""
    folder, name = case.parent.parent, case.parent.name
    clean = Manifest.load(folder / f"{name}-clean" / "train")
    true = dict(zip(clean.keys.to_pylist(), clean.labels.tolist(), strict=True))
    table = pq.read_table(case / "sieve" / SUSPECTS_NAME)  # the most suspicious first
    keys, labels = table["key"].to_pylist(), table["label"].to_pylist()
    wrong = np.array([true[key] != label for key, label in zip(keys, labels, strict=True)])
    scores = table["score"].to_numpy()
    measured = {**suspect_metrics(scores, wrong), **judged_metrics(scores, wrong)}
    return {"wrong": measured.pop("poisoned"), **measured}


def main() -> None:
    """Parse the command line, measure, and keep what is said."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, nargs="+", help="folders of the study")
    options = parser.parse_args()
    for case in options.cases:
        if case.parent.name not in DATA or not (case / "sieve" / SUSPECTS_NAME).exists():
            parser.error(f"{case} is not a case of the study that Sieve has purified.")
        if not DATA[case.parent.name].wrong and MODES[0] not in case.name:
            parser.error(f"{case} has no label that all of its trigger leads to.")
    torch.set_num_threads(1)
    rows = []
    for case in options.cases:
        data = DATA[case.parent.name]
        measured = of_wrong_labels(case) if data.wrong else of_target(case)
        rows.append({"data": data.name, "case": case.name, **measured})
        print(rows[-1], flush=True)
    command = " ".join(["bench.study_details", *sys.argv[1:]])
    keep_rows(OUT, "rows", rows, ("data", "case"), "cpu", [command])


if __name__ == "__main__":
    main()
