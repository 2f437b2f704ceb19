"""``pbe-fast scan``: parses and prints; the work is in :mod:`pbe_fast.scan`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbe_fast.analysis.predictions import PREDICTIONS_NAME, read_predictions
from pbe_fast.analysis.verdict import judge
from pbe_fast.config import ScanConfig, load_config
from pbe_fast.errors import ConfigError
from pbe_fast.report import REPORT_NAME, verdict_words
from pbe_fast.scan import scan
from pipelines._console import percent, printable, say
from pipelines._options import (
    AcceptChanges,
    Config,
    CpusPerWorker,
    Device,
    GpusPerWorker,
    ImageSize,
    Insecure,
    ModelName,
    Ray,
    Seed,
    Settings,
    Width,
    Workers,
    WorkerTimeout,
    fleet_of,
)
from pipelines._working import told_to_stop, working

__all__ = ["scan_command"]

_SHOWN = 5  # labels at each size


def scan_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Weights: .safetensors, .pt or .pth.")
    ],
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Images, perhaps poisoned.")],
    out: Annotated[Path, typer.Option("--out", help="Run directory; the same one goes on.")],
    eps: Annotated[
        list[float] | None,
        typer.Option(
            "--eps", help="Size of the perturbations, in 1/255; repeatable. [default: 2, 8, 16]"
        ),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(help="Random images of each class. [default: 50]")
    ] = None,
    all_images: Annotated[
        bool, typer.Option("--all", help="All images, in place of some of each class.")
    ] = False,
    split: Annotated[
        bool | None,
        typer.Option(
            "--split/--no-split",
            help="Look for labels that are two kinds of images. [default: split]",
        ),
    ] = None,
    model: ModelName = None,
    width: Width = None,
    image_size: ImageSize = None,
    config: Config = None,
    settings: Settings = None,
    device: Device = None,
    seed: Seed = None,
    ray: Ray = None,
    workers: Workers = 1,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    worker_timeout: WorkerTimeout = 600.0,
    insecure: Insecure = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Say whether a model is infected, and to which label.

    The paper says that adversarial examples of an infected model often get the
    attacker's label (its appendix B). Some images of each class are perturbed
    until the model gives them another label, at several sizes, and it is
    counted which. All images are looked at once more, for labels whose images
    are two kinds to the model, as a trigger makes them. A model is called
    infected where that exceeds what was measured on benign models, of which
    one in twenty may be called so by mistake.

    The images should be the training set itself, poisoned or not. Clean ones
    do, too, but do not show a trigger that is too strong for a small
    perturbation to make, such as BadNets'; --no-split then saves a look. What
    is finished is kept when the job is stopped, and the same command goes on;
    --ray, --model and --image-size as in purify.

    \b
    Examples:
      pbe-fast scan runs/infected/model.safetensors shards/bad --out runs/scan
      pbe-fast scan resnet50.pth shards/train --model torchvision:resnet50 \\
        --image-size 224 --eps 2 --eps 8 --all --out runs/scan \\
        --ray auto --workers 8
    """
    values: dict[str, Any] = {
        "model.checkpoint": checkpoint,
        "model.name": model,
        "model.options.width": width,
        "data.train": shards,
        "data.image_size": image_size,
        "scan.eps_255": eps or None,
        "scan.per_class": per_class,
        "split": split,
        "device": device,
        "seed": seed,
    }
    if all_images:
        if per_class is not None:
            raise ConfigError("--all and --per-class contradict each other; give one of them.")
        settings = [*(settings or ()), "scan.per_class=null"]
    options = load_config(ScanConfig, config, settings or (), values)
    where = (ray, workers, gpus_per_worker, cpus_per_worker, worker_timeout, insecure)
    console = Console()
    with (
        working(console, "Finished shards are kept; the same command goes on.") as progress,
        fleet_of(*where, options.device, progress.say) as fleet,
        told_to_stop() as stop,
    ):
        metrics = scan(
            options, out, progress, fleet=fleet, stop=stop, accept_changes=accept_changes
        )
    found = read_predictions(out / PREDICTIONS_NAME)
    for size in metrics["scan"]:
        console.print(_table(size, found.classes))
    words = verdict_words(judge(found), found.classes)
    say(console, words.headline)
    say(console, words.remark)
    say(console, f"{metrics['images']:,} images, ACC {percent(metrics['accuracy'])}")
    say(console, f"By image: {out / PREDICTIONS_NAME}")
    say(console, f"Report:   {out / REPORT_NAME}")


def _table(found: Mapping[str, Any], classes: Sequence[str]) -> Table:
    """The labels that most adversarial examples of a size fall to."""
    table = Table(
        title=f"eps {found['eps_255']:g}/255: {percent(found['success'])} lose their label",
        title_justify="left",
    )
    table.add_column("they get label")
    for column in ("share", "spread evenly"):
        table.add_column(column, justify="right")
    for row in found["labels"][:_SHOWN]:
        name = classes[row["label"]]
        words = f"{row['label']}" if name == str(row["label"]) else f"{row['label']} {name}"
        table.add_row(Text(printable(words)), percent(row["share"]), percent(row["expected"]))
    return table
