"""The HTML page of a scan; as :mod:`.page`, it needs no network, script or other file."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, read_predictions
from pbe_fast.report._run import Metrics, read_config_text
from pbe_fast.report._svg import clean_text
from pbe_fast.report._words import duration, model_words, percent
from pbe_fast.report.heatmap import heat_map
from pbe_fast.report.page import Page

__all__ = ["render_scan"]

_LISTED = 10  # labels in the table of each size
_DRAWN = 60  # classes in a heat map; more cannot be told apart


@dataclass(frozen=True)
class _Label:
    """A row of the table of labels."""

    name: str
    share: str
    expected: str
    times: str


@dataclass(frozen=True)
class _Size:
    """One size of the perturbations."""

    eps: str
    success: str
    picture: Markup
    caption: str
    labels: list[_Label]


@dataclass(frozen=True)
class _Class:
    """A row of the table of margins."""

    name: str
    images: int
    clean: str
    attacked: str


def render_scan(run_dir: Path, metrics: Metrics) -> Page:
    """The page of a scan's run directory; see :func:`pbe_fast.report.write_report`.

    Raises:
        RunDirectoryError: ``predictions.parquet`` is missing or damaged.
    """
    found = read_predictions(run_dir / PREDICTIONS_NAME)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = resources.files("pbe_fast.report")
    # All pages look alike: the style is the one of the other page.
    style = folder.joinpath("template.html").read_text("utf-8").partition("<style>")[2]
    page = environment.from_string(folder.joinpath("scan.html").read_text("utf-8")).render(
        style=Markup(style.partition("</style>")[0]),
        run_name=run_dir.resolve().name,
        headline=_headline(found),
        images=f"{len(found.labels):,}",
        accuracy=percent(found.accuracy) if len(found.labels) else "not known",
        sizes=[_size(found, index) for index in range(len(found.eps_255))],
        smallest=f"{found.eps_255[0]:g}/255",
        classes=_classes(found),
        metrics=metrics,
        seconds=duration(sum(value or 0.0 for value in metrics.seconds.values())),
        model=model_words(metrics.model) if metrics.model else None,
        config=read_config_text(run_dir),
    )
    return Page(clean_text(page), {})


def _name(found: Predictions, label: int) -> str:
    """Of a class; empty where it is the number alone."""
    name = found.classes[label]
    return "" if name == str(label) else name


def _named(found: Predictions, label: int) -> str:
    """``7 (bumps)``, or the number alone."""
    name = _name(found, label)
    return f"{label} ({name})" if name else str(label)


def _headline(found: Predictions) -> str:
    share = found.share
    if np.isnan(share).all():
        return "There is nothing to compare: all images have one label."
    size, label = (int(i) for i in np.unravel_index(np.nanargmax(share), share.shape))
    return (
        f"Label {_named(found, label)} gets the most: {percent(share[size, label])} of the other "
        f"labels’ adversarial examples at eps {found.eps_255[size]:g}/255, where an even spread "
        f"would give it {percent(found.expected[size, label])}."
    )


def _size(found: Predictions, size: int) -> _Size:
    eps = f"{found.eps_255[size]:g}/255"
    share, expected = found.share[size], found.expected[size]
    order = found.largest(size, len(found.classes))
    drawn = np.arange(len(found.classes))
    caption = "Each row: where the adversarial examples of a class go"
    if len(drawn) > _DRAWN:
        drawn = np.sort(np.array(order[:_DRAWN], np.int64))
        caption += f", for the {_DRAWN} labels with the largest share"
    caption += ". Stronger: a larger part of the row. Outlined: those that keep their label."
    counts = found.counts[size][np.ix_(drawn, drawn)]
    names = [f"{label} {_name(found, label)}".strip() for label in drawn.tolist()]
    spoken = f"Heat map at eps {eps}, {len(drawn)} true labels against predicted ones."
    if order:
        spoken += f" Label {_named(found, order[0])} gets most, {percent(share[order[0]])}."
    return _Size(
        eps,
        percent(found.success[size]) if len(found.labels) else "–",
        Markup(heat_map(counts, names, label=spoken)),
        caption,
        [
            _Label(
                _named(found, label),
                percent(share[label]),
                percent(expected[label]),
                f"{share[label] / expected[label]:.1f}" if expected[label] > 0 else "–",
            )
            for label in order[:_LISTED]
        ],
    )


def _classes(found: Predictions) -> list[_Class]:
    margins, images = found.mean_margins, found.images
    return [
        _Class(_named(found, label), int(images[label]), *(_signed(v) for v in margins[label]))
        for label in np.flatnonzero(images).tolist()
    ]


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
