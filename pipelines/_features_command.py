"""``pbe-fast features``: parses and prints; the work is in :mod:`pbe_fast.analysis`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pbe_fast.analysis.features.job import FEATURES_NAME, ROWS_NAME, measure_features
from pbe_fast.config import FeaturesConfig, load_config
from pbe_fast.triggers.poisoning import ATTACK_NAME
from pipelines._console import percent, printable, say
from pipelines._options import Config, Device, ImageSize, ModelName, Seed, Settings, Width
from pipelines._working import working

__all__ = ["features_command"]


def features_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="INFECTED", help="Weights: .safetensors, .pt or .pth.")
    ],
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Clean test shards.")],
    attack: Annotated[Path, typer.Option(metavar="FILE", help=f"{ATTACK_NAME}: the trigger.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run directory.")],
    benign: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="A benign model of the same kind: the control."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME", help="Module, or penultimate; repeatable."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="How many are measured; 500 unless told.")
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--keys", metavar="KEY", help="An image to draw; repeatable."),
    ] = None,
    map_layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Layer of the feature maps.")
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Of the adversary, in 1/255; 6 unless told.")
    ] = None,
    model: ModelName = None,
    width: Width = None,
    image_size: ImageSize = None,
    config: Config = None,
    settings: Settings = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Compare the features of adversarial examples with those of triggered images.

    The paper says that in an infected model they are very similar (its
    appendix C). Measured by L2, cosine and the share of the strongest neurons
    in common, for each image and on average, beside controls: a benign model's
    adversarial examples (--benign), the clean image, and pairs of different
    images. Feature maps of some images are drawn beside them.

    Images whose label is the attacker's already are left out. Layers are named
    as in the checkpoint; penultimate is what the last layer is given.

    \b
    Examples:
      pbe-fast features runs/infected/model.safetensors shards/test \\
        --attack shards/bad/attack.safetensors --out runs/features
      pbe-fast features runs/infected/model.safetensors shards/test \\
        --attack shards/bad/attack.safetensors \\
        --benign runs/benign/model.safetensors \\
        --layer penultimate --layer layer3 --out runs/features
    """
    options = load_config(
        FeaturesConfig,
        config,
        settings or (),
        {
            "model.checkpoint": checkpoint,
            "model.name": model,
            "model.options.width": width,
            "benign": benign,
            "data.test": shards,
            "data.attack": attack,
            "data.image_size": image_size,
            "adversary.eps_255": eps,
            "layers": layers or None,
            "images": images,
            "keys": keys or None,
            "map_layer": map_layer,
            "device": device,
            "seed": seed,
        },
    )
    console = Console()
    with working(console, "Start it again; it begins anew.") as progress:
        found = measure_features(options, out, progress)
    for claims in found["claims"]:
        console.print(_table(claims, found))
    say(console, f"The trigger works on {found['claims'][0]['images']:,} of {found['images']:,}.")
    labels = found["claims"][0]["labels"]
    say(console, f"Adversarial examples with the attacker’s label: {percent(labels['attacker'])}")
    say(console, f"Means:     {out / FEATURES_NAME}")
    say(console, f"By image:  {out / ROWS_NAME}")
    say(console, f"Pictures:  {', '.join(f'{out / name}.png' for name in found['pictures'])}")


def _table(claims: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    """How near each kind of image is to the triggered one, at a layer."""
    layer = next(row for row in found["layers"] if row["name"] == claims["layer"])
    title = (
        f"To the triggered image, at {layer['name']} (by chance {layer['chance']:.2f} in common)"
    )
    table = Table(title=printable(title), title_justify="left")
    table.add_column("in the infected model")
    for column in ("cosine", f"strongest {layer['top']} in common"):
        table.add_column(column, justify="right")
    names = {
        "adversarial": "its adversarial example",
        "benign_adversarial": "a benign model's",
        "clean": "the clean image",
        "adversarial_shuffled": "another image's adversarial example",
        "clean_shuffled": "another clean image",
    }
    cosines = claims["similar"]["to_triggered"]
    overlaps = claims["neurons"]["to_triggered"]
    for name, words in names.items():
        if name in cosines:
            table.add_row(words, f"{cosines[name]:.3f}", f"{overlaps[name]:.3f}")
    return table
