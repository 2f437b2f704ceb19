"""``pbe-fast shards``: make shards, index existing ones, check them, and look into them."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from operator import length_hint
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pbe_fast._location import join
from pbe_fast.data.converters import Samples, read_cifar10, read_gtsrb, read_image_folder
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest
from pbe_fast.data.shards import index_shards, verify_shards, write_shards
from pbe_fast.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(
    name="shards",
    help="Make, index, check and describe shards: tar files with a manifest.",
    no_args_is_help=True,
)

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_PROGRESS_STEP = 64  # samples between two updates of the bar


class Format(StrEnum):
    """What ``convert`` reads."""

    image_folder = "image-folder"
    cifar10 = "cifar10"
    gtsrb = "gtsrb"


class Split(StrEnum):
    """The official parts of CIFAR-10 and GTSRB."""

    train = "train"
    test = "test"


@app.command()
def convert(
    form: Annotated[
        Format, typer.Argument(metavar="FORMAT", help="image-folder, cifar10 or gtsrb.")
    ],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The data set: a folder, or its archive.")
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the shards and the manifest go.")
    ],
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Begin a new shard at this size: 256MB, 1GiB.")
    ] = "256MB",
    split: Annotated[
        Split | None, typer.Option(help="Which part of CIFAR-10 or GTSRB.", show_default=False)
    ] = None,
    classes_from: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Use the classes, in their order, of this set of shards.",
            show_default=False,
        ),
    ] = None,
    crop_roi: Annotated[
        bool, typer.Option("--crop-roi", help="GTSRB: keep only the box of the sign.")
    ] = False,
    prefix: Annotated[
        str | None,
        typer.Option(help="Of the shards' names; the split, or else 'shard'.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the shards that are in FOLDER.")
    ] = False,
) -> None:
    """Convert a data set into shards.

    An image folder holds one folder for each class. CIFAR-10 is the official
    binary version, GTSRB the official layout; both need --split.

    \b
    Examples:
      pbe-fast shards convert image-folder data/train train --shard-size 1GB
      pbe-fast shards convert image-folder data/val val --classes-from train
      pbe-fast shards convert cifar10 cifar-10-binary.tar.gz out --split test
      pbe-fast shards convert gtsrb GTSRB gtsrb-train --split train
    """
    shard_bytes = _bytes(shard_size)
    classes = None if classes_from is None else Manifest.load(classes_from).classes
    started = time.perf_counter()
    names, samples = _read(form, source, split, classes, crop_roi)
    with _progress("Converting", length_hint(samples)) as (bar, task):

        def on_sample(count: int) -> None:
            if count % _PROGRESS_STEP == 0:
                bar.update(task, completed=count)

        manifest = write_shards(
            samples,
            folder,
            classes=names,
            prefix=prefix or (split.value if split is not None else "shard"),
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            on_sample=on_sample,
        )
    seconds = time.perf_counter() - started
    table = _summary(manifest)
    table.add_row("seconds", f"{seconds:.1f}")
    table.add_row("images/s", f"{len(manifest) / seconds:,.0f}")
    Console().print(table)


@app.command()
def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of tar files, one tar file, a glob, or a range in braces; also "
            "http(s):// and s3://.",
        ),
    ],
    num_classes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many classes there are; without it the largest label counts.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the manifest goes, if not to the shards; needed for http(s):// and s3://.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the manifest of an existing WebDataset. Its tar files are not changed.

    \b
    Examples:
      pbe-fast shards index data/imagenet/train --num-classes 1000
      pbe-fast shards index 'data/train-{000000..000146}.tar'
      pbe-fast shards index 's3://bucket/train-{000000..000146}.tar' --out train
    """
    with _progress("Indexing", 0) as (bar, task):
        manifest = index_shards(
            source,
            num_classes=num_classes,
            manifest_folder=out,
            on_shard=lambda _: bar.advance(task),
        )
    Console().print(_summary(manifest))


@app.command()
def verify(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The shards' folder, or their manifest.")
    ],
    digests: Annotated[
        bool,
        typer.Option(help="Read every byte and compare SHA-256; without, headers and labels only."),
    ] = True,
) -> None:
    """Check shards against their manifest; exit code 1 and a list if anything differs.

    \b
    Example:
      pbe-fast shards verify shards/train
    """
    manifest = Manifest.load(folder)
    with _progress("Verifying", len(manifest.shards)) as (bar, task):
        problems = verify_shards(manifest, digests=digests, on_shard=lambda _: bar.advance(task))
    if problems:
        for problem in problems:
            typer.echo(_printable(problem))
        typer.echo(f"{manifest.root}: damaged, {_count(len(problems), 'problem')}.")
        raise typer.Exit(1)
    what = "intact" if digests else "whole by headers and labels (contents were not read)"
    typer.echo(
        f"{manifest.root}: {_count(len(manifest.shards), 'shard')} with "
        f"{_count(len(manifest), 'sample')}, {what}."
    )


@app.command()
def info(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The shards' folder, or their manifest.")
    ],
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show so many classes; 0 shows all.")
    ] = 50,
) -> None:
    """Say what is in a set of shards: samples, classes with their counts, shards, bytes.

    \b
    Example:
      pbe-fast shards info shards/train
    """
    manifest = Manifest.load(folder)
    console = Console()
    console.print(_summary(manifest))
    counts = np.bincount(manifest.labels, minlength=manifest.num_classes)
    shown = manifest.num_classes if limit == 0 else min(limit, manifest.num_classes)
    table = Table("label", "class", "samples", "share")
    table.columns[0].justify = table.columns[2].justify = table.columns[3].justify = "right"
    for label, name in enumerate(manifest.classes[:shown]):
        share = counts[label] / max(1, len(manifest))
        table.add_row(
            str(label), Text(_printable(name)), f"{counts[label]:,}", f"{100 * share:.1f} %"
        )
    console.print(table)
    if shown < manifest.num_classes:
        rest = manifest.num_classes - shown
        noun = "class" if rest == 1 else "classes"
        typer.echo(f"... and {rest} more {noun}; --limit 0 shows all.")


def _read(
    form: Format, source: Path, split: Split | None, classes: Sequence[str] | None, crop_roi: bool
) -> tuple[list[str], Samples]:
    """Open the source; refuse options that mean nothing for it."""
    if crop_roi and form is not Format.gtsrb:
        raise ConfigError(f"--crop-roi is for gtsrb; {form.value} has no boxes.")
    if form is Format.image_folder:
        if split is not None:
            raise ConfigError(
                "--split is for cifar10 and gtsrb. For an image folder name the folder of the "
                f"split, such as {source / split.value}."
            )
        return read_image_folder(source, classes=classes)
    if split is None:
        raise ConfigError(f"{form.value} needs --split train or --split test.")
    part: Literal["train", "test"] = "train" if split is Split.train else "test"
    if form is Format.cifar10:
        names, samples = read_cifar10(source, part)
    else:
        names, samples = read_gtsrb(source, part, crop_roi=crop_roi)
    if classes is not None and list(classes) != names:
        raise ConfigError(
            f"--classes-from names other classes than {form.value} has, whose order is fixed. "
            "Leave the option out."
        )
    return names, samples


def _bytes(text: str) -> int:
    """``256MB`` to a number of bytes."""
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS or int(match[1]) == 0:
        raise ConfigError(
            f"--shard-size {text!r}: give a whole number above 0 and a unit, such as 256MB "
            "(millions of bytes) or 256MiB (of 1,048,576)."
        )
    return int(match[1]) * _UNITS[match[2].lower()]


@contextmanager
def _progress(title: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on the error stream, where it is a terminal; a total of 0 means unknown."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar, bar.add_task(title, total=total or None)


def _summary(manifest: Manifest) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("manifest", Text(_printable(str(join(manifest.root, MANIFEST_NAME)))))
    table.add_row("samples", f"{len(manifest):,}")
    table.add_row("classes", f"{manifest.num_classes:,}")
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("bytes", f"{sum(shard.bytes for shard in manifest.shards):,}")
    return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _printable(text: str) -> str:
    """Without the control codes that a file name could smuggle into a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
