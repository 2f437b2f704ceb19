"""The command line. It parses and prints; the method is in :mod:`pbe_fast`.

Exit codes: 0 done; 1 failed, stopped, or damage found; 2 bad input, with a message that says
what is wrong and what to do.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbe_fast import evaluate as evaluation
from pbe_fast.backdoorbench import TRIGGERED_NAME, import_attack_result, write_defense_result
from pbe_fast.config import MineConfig, PoisonConfig, PurifyConfig, TrainConfig, load_config
from pbe_fast.data import ImageData, Manifest
from pbe_fast.device import choose_device
from pbe_fast.errors import ConfigError, PbeError
from pbe_fast.mine import mine
from pbe_fast.models import ModelSpec, load_model
from pbe_fast.purify import PURIFIED_NAME, SUSPECTS_NAME, purify
from pbe_fast.report import write_report
from pbe_fast.run_directory import CONVERTED_NAME, versions
from pbe_fast.train import MODEL_NAME, train
from pbe_fast.triggers import load_attack
from pbe_fast.triggers.poisoning import ATTACK_NAME, TRUTH_NAME, poison
from pipelines import shards
from pipelines._console import (
    percent,
    printable,
    result_table,
    say,
)
from pipelines._features_command import features_command
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
from pipelines._scan_command import scan_command
from pipelines._submit_command import submit_command
from pipelines._theory_command import theory_command
from pipelines._working import EndedError, told_to_stop, working
from pipelines.demo import run_demo

__all__ = ["app", "main"]

app = typer.Typer(
    name="pbe-fast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(shards.app, name="shards")
app.command(name="submit", context_settings={"allow_interspersed_args": False})(submit_command)
app.command(name="theory")(theory_command)
app.command(name="features")(features_command)
app.command(name="scan")(scan_command)

_GOES_ON = "The same command goes on from the last saved state."


def _print_versions(wanted: bool) -> None:
    if wanted:
        found = versions()
        typer.echo(f"pbe-fast {found.pop('pbe-fast')}")
        typer.echo(", ".join(f"{name} {number}" for name, number in found.items()))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_versions, help="Show versions and exit."
        ),
    ] = False,
) -> None:
    """Erase backdoors from image classifiers, and list the poisoned training images.

    \b
    Examples:
      pbe-fast demo
      pbe-fast purify model.safetensors --data shards/train --out runs/pure
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
) -> None:
    """Draw traffic signs, poison them, infect a model, and purify it twice.

    Needs no data and no network; a few minutes on two cores.

    \b
    Example:
      pbe-fast demo --out runs/demo
    """
    console = Console()
    with working(console, _GOES_ON) as progress:
        metrics = run_demo(out, device=device or "auto", seed=seed, progress=progress)
    rows: dict[str, dict[str, Any]] = {"infected": metrics["infected"]}
    for method, name in (("aft", "purified, clean 5 % (AFT)"), ("sieve", "purified, none (Sieve)")):
        rows[name] = metrics[method]["purified"] | metrics[method]["suspects"]
    console.print(result_table(f"Drawn signs, {metrics['attack']} attack", rows))
    say(console, f"Run directory: {out}")
    say(console, f"Look at: {out}/aft/report.html and {out}/sieve/report.html")


@app.command(name="poison")
def poison_command(
    source: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder of clean shards.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    attack: Annotated[
        str | None, typer.Option(help="badnets, blend, sig, wanet or input_aware.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="all_to_one or all_to_all.")] = None,
    target: Annotated[int | None, typer.Option(help="Target label of all_to_one.")] = None,
    rate: Annotated[float | None, typer.Option(help="Share that is poisoned, such as 0.1.")] = None,
    clean_label: Annotated[
        bool, typer.Option("--clean-label", help="SIG: poison the target class, keep labels.")
    ] = False,
    image_size: ImageSize = None,
    config: Config = None,
    settings: Settings = None,
    device: Device = None,
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write a poisoned copy of shards, the attack, and the truth about it.

    \b
    Examples:
      pbe-fast poison shards/train shards/bad --attack badnets --target 1
      pbe-fast poison shards/train shards/bad --attack wanet --set strength=2
      pbe-fast poison shards/train shards/bad --attack blend --set picture=dog
    """
    options = load_config(
        PoisonConfig,
        config,
        settings or (),
        {
            "attack": attack,
            "mode": mode,
            "target": target,
            "rate": rate,
            "seed": seed,
            "image_size": image_size,
            "device": device,
            "clean_label": clean_label or None,
        },
    )
    console = Console()
    with working(console, "Start it again; no part of it is kept.") as progress:
        manifest = poison(source, out, options, progress=progress, overwrite=overwrite)
    say(console, f"{len(manifest):,} samples in {out}, with {ATTACK_NAME} and {TRUTH_NAME}.")


@app.command(name="train")
def train_command(
    out: Annotated[Path, typer.Option("--out", help="Run directory; the same one goes on.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="SHARDS", help="Training shards.")
    ] = None,
    test: Annotated[Path | None, typer.Option(metavar="SHARDS", help="Clean test shards.")] = None,
    attack: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"{ATTACK_NAME}, for the ASR.")
    ] = None,
    model: ModelName = None,
    width: Width = None,
    image_size: ImageSize = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    config: Config = None,
    settings: Settings = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Train a classifier: an infected one from poisoned shards, else a benign one.

    \b
    Example:
      pbe-fast train --data shards/bad --test shards/test \\
        --attack shards/bad/attack.safetensors --width 16 --out runs/infected
    """
    options = load_config(
        TrainConfig,
        config,
        settings or (),
        {
            "data.train": data,
            "data.test": test,
            "data.attack": attack,
            "epochs": epochs,
            "model.name": model,
            "model.options.width": width,
            "data.image_size": image_size,
            "device": device,
            "seed": seed,
        },
    )
    console = Console()
    with working(console, _GOES_ON) as progress:
        metrics = train(options, out, progress)
    if "test" in metrics:
        console.print(result_table("Test images", {"trained": metrics["test"]}))
    say(console, f"Weights: {out / MODEL_NAME}")


@app.command(name="purify")
def purify_command(
    out: Annotated[Path, typer.Option("--out", help="Run directory; the same one goes on.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="Weights: .safetensors, .pt or .pth.", show_default=False
        ),
    ] = None,
    backdoorbench: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A BackdoorBench result, in place of MODEL; see below."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="SHARDS", help="Training shards, perhaps poisoned."),
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(metavar="SHARDS", help="Clean shards; makes the method AFT.")
    ] = None,
    mined: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARDS", help="Examples of 'pbe-fast mine', in place of mining; see below."
        ),
    ] = None,
    test: Annotated[Path | None, typer.Option(metavar="SHARDS", help="Clean test shards.")] = None,
    attack: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"{ATTACK_NAME}, to measure the ASR.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"{TRUTH_NAME}, to measure the suspects.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="aft (clean images), sieve or pbe (none), or auto.")
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
    """Erase a backdoor: a purified model, and the training images under suspicion.

    The model's architecture is read from a file that 'pbe-fast train' wrote;
    for any other file give --model. With --clean the method is AFT, without
    it Sieve, which also says whether it found a backdoor; '--method pbe' is
    PBE as published, which needs no clean images either.

    With --ray the work is spread over the workers of a cluster; every machine
    of it must see the shards and --out under the same paths. On SIGTERM the
    state is kept, as on Ctrl-C; the same command goes on.

    --mined takes what 'pbe-fast mine' made of the set that is fine-tuned on:
    that of --clean, or without it that of --data. These are examples of the
    infected model, without augmentation, while the method mines in every
    batch against the model that it has come to: faster, and less faithful.

    --backdoorbench takes the model from DIR/attack_result.pt, and --data is
    then the *clean* training set: the images that the attack changed are put
    in their places, under --out. defense_result.pt is written besides. The
    file is read without running anything in it.

    \b
    Examples:
      pbe-fast purify runs/infected/model.safetensors --data shards/bad \\
        --out runs/pure
      pbe-fast purify --backdoorbench record/badnet_0_1 \\
        --data shards/cifar10-train --out runs/pure
      pbe-fast purify resnet50.pth --model torchvision:resnet50 \\
        --image-size 224 --clean shards/clean --data shards/train \\
        --test shards/val --out runs/pure
      pbe-fast purify resnet50.pth --model torchvision:resnet50 \\
        --image-size 224 --data shards/train --out runs/pure \\
        --ray auto --workers 8
    """
    values: dict[str, Any] = {
        "model.checkpoint": checkpoint,
        "model.name": model,
        "model.options.width": width,
        "data.train": data,
        "data.clean": clean,
        "data.mined": mined,
        "data.test": test,
        "data.attack": attack,
        "data.truth": truth,
        "data.image_size": image_size,
        "method": method,
        "device": device,
        "seed": seed,
    }
    options = load_config(PurifyConfig, config, settings or (), values)
    console = Console()
    if backdoorbench is not None:
        values |= _import_backdoorbench(console, backdoorbench, out, values)
        options = load_config(PurifyConfig, config, settings or (), values)
    where = (ray, workers, gpus_per_worker, cpus_per_worker, worker_timeout, insecure)
    with (
        working(console, _GOES_ON) as progress,
        fleet_of(*where, options.device, progress.say) as fleet,
        told_to_stop() as stop,
    ):
        metrics = purify(
            options, out, progress, fleet=fleet, stop=stop, accept_changes=accept_changes
        )
    if "purified" in metrics:
        rows = {
            "infected": metrics["infected"],
            "purified": metrics["purified"] | metrics.get("suspects", {}),
        }
        console.print(result_table(f"{metrics['method'].upper()}", rows))
    say(console, f"Purified model: {out / PURIFIED_NAME}")
    if "suspects" in metrics:
        say(console, f"Suspects:       {out / SUSPECTS_NAME}")
    if backdoorbench is not None:
        written = write_defense_result(out, out / PURIFIED_NAME)
        say(console, f"BackdoorBench:  {written}")
        triggered = out / CONVERTED_NAME / TRIGGERED_NAME
        if triggered.exists():  # with the attacker's labels, so the ACC on them is the ASR
            told = shlex.join(["pbe-fast", "evaluate", str(out / PURIFIED_NAME), str(triggered)])
            say(console, f"Its ASR:        {told}")
    say(console, f"Report:         {out / 'report.html'}")


@app.command(name="mine")
def mine_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Weights: .safetensors, .pt or .pth.")
    ],
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="What is mined from.")],
    out: Annotated[Path, typer.Option("--out", help="Shards to write; the same one goes on.")],
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
    """Mine adversarial examples ahead, for several purifications to share.

    Writes an untargeted adversarial example of every image as shards, PNG
    with the same keys and labels; 'pbe-fast purify --mined' takes them.
    Rounding to whole grey levels moves a pixel by up to half a level; it
    stays in the ball of L-inf.

    Each shard is mined for itself. What is finished is kept when the job is
    stopped, and the same command goes on; --ray, --model and --image-size as
    in purify.

    \b
    Examples:
      pbe-fast mine runs/infected/model.safetensors shards/train \\
        --out shards/mined
      pbe-fast purify runs/infected/model.safetensors \\
        --clean shards/train --mined shards/mined --out runs/pure
      pbe-fast mine resnet50.pth shards/clean --model torchvision:resnet50 \\
        --image-size 224 --out shards/mined --ray auto --workers 8
    """
    options = load_config(
        MineConfig,
        config,
        settings or (),
        {
            "model.checkpoint": checkpoint,
            "model.name": model,
            "model.options.width": width,
            "data.train": shards,
            "data.image_size": image_size,
            "device": device,
            "seed": seed,
        },
    )
    where = (ray, workers, gpus_per_worker, cpus_per_worker, worker_timeout, insecure)
    console = Console()
    with (
        working(console, "Finished shards are kept; the same command goes on.") as progress,
        fleet_of(*where, options.device, progress.say) as fleet,
        told_to_stop() as stop,
    ):
        metrics = mine(
            options, out, progress, fleet=fleet, stop=stop, accept_changes=accept_changes
        )
    say(console, f"{metrics['images']:,} adversarial examples in {out}")


@app.command(name="evaluate")
def evaluate_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Weights: .safetensors, .pt or .pth.")
    ],
    test: Annotated[Path, typer.Argument(metavar="SHARDS", help="Clean test shards.")],
    attack: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"{ATTACK_NAME}, for the ASR.")
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="As in purify.")] = "",
    width: Width = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Side in pixels; else the model's own, or 32."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure ACC, and with an attack ASR, of a model on clean test shards.

    \b
    Example:
      pbe-fast evaluate runs/pure/purified.safetensors shards/test \\
        --attack shards/bad/attack.safetensors
    """
    if width is not None and not model:
        raise ConfigError("--width is given, but no --model that it belongs to.")
    if model.startswith(("timm:", "torchvision:")) and image_size is None:
        raise ConfigError(f"{model} takes images of many sizes: give --image-size, such as 224.")
    classes = Manifest.load(test).num_classes
    options = {} if width is None else {"width": width}
    spec = ModelSpec(model, classes, image_size or 32, options) if model else None
    network = load_model(checkpoint, spec)
    if network.spec.num_classes != classes:
        raise ConfigError(
            f"{checkpoint} is a model of {network.spec.num_classes} classes, but {test} has "
            f"{classes}. Convert the test images with the same classes (--classes-from)."
        )
    size = image_size or network.spec.image_size
    data = ImageData.open(test, size)
    place = choose_device(device, "auto", network, size)
    console = Console(stderr=as_json)
    with working(console, "") as progress:
        result = evaluation.evaluate(
            network,
            data,
            place,
            attack=load_attack(attack) if attack else None,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(result.as_dict() | {"images": result.images}))
        return
    table = Table("ACC", "ASR", "test images")
    table.add_row(percent(result.acc), percent(result.asr), f"{result.images:,}")
    console.print(table)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory.")],
    scans: Annotated[
        list[Path] | None,
        typer.Option(
            "--scan", metavar="RUN", help="A scan, for its heat map; repeatable, side by side."
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of features, for its pictures.")
    ] = None,
) -> None:
    """Write report.html and figures/ of a run again; needs no data.

    The page can also show other runs: where the adversarial examples of a
    model go (pbe-fast scan), best of the infected and of the purified model,
    and how alike features are (pbe-fast features). What it shows of them is
    kept in extras.json of RUN, so later reports need neither the options nor
    those runs. Given again, an option replaces what was kept of its kind;
    without extras.json the page shows RUN alone.

    \b
    Examples:
      pbe-fast report runs/pure
      pbe-fast report runs/pure --scan runs/scan-infected \\
        --scan runs/scan-purified --features runs/features
    """
    say(Console(), f"Report: {write_report(run, scans=scans or (), features=features)}")


def _import_backdoorbench(
    console: Console, folder: Path, out: Path, values: dict[str, Any]
) -> dict[str, Any]:
    """What a BackdoorBench result adds to the configuration; refuses options that contradict it."""
    taken = {
        "model.checkpoint": "MODEL",
        "model.name": "--model",
        "model.options.width": "--width",
        "data.image_size": "--image-size",
        "data.truth": "--truth",
    }
    if given := [name for key, name in taken.items() if values[key] is not None]:
        raise ConfigError(f"{', '.join(given)}: --backdoorbench tells that; leave it out.")
    if values["data.train"] is None and values["data.clean"] is None:
        raise ConfigError(
            "--backdoorbench needs images: give shards of the original training set as --data, "
            "which the poisoned images are put into, or clean shards as --clean."
        )
    with working(console, "The same command begins the conversion again.") as progress:
        return import_attack_result(folder, out, values["data.train"], progress)


def _fail(text: str, code: int) -> NoReturn:
    Console(stderr=True).print(Text(printable(text), style="red"), soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Run the command line; mistakes and failures of the machine get a message, bugs a trace."""
    try:
        app(prog_name="pbe-fast")
    except PbeError as error:
        _fail(f"error: {error}", 2)
    except EndedError as error:
        _fail(str(error), 1)
    except torch.OutOfMemoryError as error:
        _fail(
            f"error: the GPU has not enough memory ({str(error).partition('.')[0]}). Make batches "
            "smaller: --set aft.batch_size, pbe.batch_size or batch_size, and eval_batch_size.",
            1,
        )
    except OSError as error:  # a full disk, a missing right
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"error: {where}{error.strerror or error}.", 1)


if __name__ == "__main__":
    main()
