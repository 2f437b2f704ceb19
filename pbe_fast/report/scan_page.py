"""The HTML page of a scan; as :mod:`.page`, it needs no network, script or other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, read_predictions
from pbe_fast.analysis.verdict import Evidence, benign_scores, judge
from pbe_fast.report._run import Metrics, read_config_text
from pbe_fast.report._scan_map import ScanMap, named, scan_map, strongest
from pbe_fast.report._scan_words import evidence_words, verdict_words
from pbe_fast.report._svg import clean_text
from pbe_fast.report._words import duration, model_words, percent
from pbe_fast.report.page import Page

__all__ = ["render_scan"]

_LISTED = 10  # labels in the table of each size


@dataclass(frozen=True)
class _Evidence:
    """A row of the table of evidence."""

    words: str
    score: str
    half: str
    most: str


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
    said = judge(found)
    maps = [scan_map(found, size) for size in range(len(found.eps_255))]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = resources.files("pbe_fast.report")
    # All pages look alike: the style is the one of the other page.
    style = folder.joinpath("template.html").read_text("utf-8").partition("<style>")[2]
    page = environment.from_string(folder.joinpath("scan.html").read_text("utf-8")).render(
        style=Markup(style.partition("</style>")[0]),
        run_name=run_dir.resolve().name,
        verdict=verdict_words(said, found.classes),
        evidence=[_evidence(one, found.classes) for one in said.strongest],
        models=said.models,
        headline=maps[strongest([found])[0]].finding,
        images=f"{len(found.labels):,}",
        accuracy=percent(found.accuracy) if len(found.labels) else "not known",
        sizes=[_size(found, size, drawn) for size, drawn in enumerate(maps)],
        smallest=f"{found.eps_255[0]:g}/255",
        classes=_classes(found),
        metrics=metrics,
        seconds=duration(sum(value or 0.0 for value in metrics.seconds.values())),
        model=model_words(metrics.model) if metrics.model else None,
        config=read_config_text(run_dir),
    )
    drawings = {
        f"heat-map-{eps:.15g}": drawn.drawing
        for eps, drawn in zip(found.eps_255, maps, strict=True)
    }
    return Page(clean_text(page), drawings)


def _evidence(one: Evidence, classes: Sequence[str]) -> _Evidence:
    # A benign model whose labels are all of one kind has no gap, which is less than any.
    benign = sorted(scores.get(one.kind, -np.inf) for scores in benign_scores())
    half, most = (benign[len(benign) // 2], benign[-1]) if benign else (-np.inf, -np.inf)
    return _Evidence(
        evidence_words(one, classes),
        *(_signed(score) if np.isfinite(score) else "none" for score in (one.score, half, most)),
    )


def _size(found: Predictions, size: int, drawn: ScanMap) -> _Size:
    share, expected = found.share[size], found.expected[size]
    return _Size(
        drawn.eps,
        percent(found.success[size]) if len(found.labels) else "–",
        Markup(drawn.svg()),
        drawn.reading,
        [
            _Label(
                named(found, label),
                percent(share[label]),
                percent(expected[label]),
                f"{share[label] / expected[label]:.1f}" if expected[label] > 0 else "–",
            )
            for label in found.largest(size, _LISTED)
        ],
    )


def _classes(found: Predictions) -> list[_Class]:
    margins, images = found.mean_margins, found.images
    return [
        _Class(named(found, label), int(images[label]), *(_signed(v) for v in margins[label]))
        for label in np.flatnonzero(images).tolist()
    ]


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
