"""The HTML page of a run: one file that needs no network, no script and no other file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pbe_fast.report._drawing import Drawing
from pbe_fast.report._extras import Extras, read_extras
from pbe_fast.report._gallery import Gallery, load_gallery
from pbe_fast.report._history import History
from pbe_fast.report._run import Accuracies, Metrics, read_config_text
from pbe_fast.report._suspects import Suspects
from pbe_fast.report._svg import clean_text
from pbe_fast.report._words import (
    attack_words,
    backdoor_words,
    class_words,
    duration,
    method_words,
    model_words,
    percent,
    points,
    verdict,
)
from pbe_fast.report.figures import (
    Evaluation,
    curves,
    epochs_by_round,
    loss_curve,
    score_histogram,
)

__all__ = ["Page", "render"]
_WORST = 50
_Pair = tuple[float | None, float | None]  # ACC and ASR of one model
_FILTERS: dict[str, Callable[[Any], str]] = {
    "percent": percent,
    "duration": duration,
    "count": lambda value: f"{value:,}",
    "decimals": lambda value: f"{value:.3f}".replace("-", "\N{MINUS SIGN}"),
    "rate": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}",
    "seconds": lambda value: f"{value:,.1f}",
}


@dataclass(frozen=True)
class _Picture:
    """A picture, the name of its files, and its caption."""

    name: str
    drawing: Drawing
    caption: str

    @property
    def svg(self) -> Markup:
        """Text that may stand in the page as it is."""
        return Markup(self.drawing.svg)


@dataclass(frozen=True)
class Page:
    """The page, and its pictures by the names of their files, without a suffix."""

    html: str
    drawings: Mapping[str, Drawing]


@dataclass(frozen=True)
class _Change:
    """One row of the table of results; the texts are None where nothing was measured."""

    name: str
    meaning: str
    values: tuple[str | None, ...]
    change: str | None = None


@dataclass(frozen=True)
class _Phase:
    """How long one phase took and how fast it was."""

    name: str
    seconds: float | None
    images_per_second: float | None


def render(run_dir: Path, extras: Extras | None = None) -> Page:
    """The page of a run directory; see :func:`pbe_fast.report.write_report`.

    Args:
        extras: what it shows of other runs; by default what the directory has kept.
    """
    metrics = Metrics.load(run_dir)
    history = History.load(run_dir)
    suspects = Suspects.load(run_dir, worst=_WORST)
    classes = suspects.classes if suspects else ()
    gallery = load_gallery(run_dir, suspects.worst) if suspects else Gallery()
    pictures = _pictures(metrics, history)
    histogram = _histogram(suspects, metrics)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: _unless_none(show) for name, show in _FILTERS.items()})
    environment.filters["class_words"] = lambda label: class_words(label, classes)
    source = resources.files("pbe_fast.report").joinpath("template.html").read_text("utf-8")
    extras = read_extras(run_dir) if extras is None else extras
    page = environment.from_string(source).render(
        run_name=run_dir.resolve().name,
        method=method_words(metrics),
        verdict=verdict(metrics),
        backdoor=backdoor_words(metrics, classes),
        metrics=metrics,
        columns=_columns(metrics),
        results=_results(metrics),
        pictures=pictures,
        histogram=histogram,
        unreadable=history.unreadable,
        suspects=suspects,
        gallery=gallery,
        score=_score_words(metrics),
        extras=extras,
        listed=len(suspects.scores) if suspects else None,
        phases=_phases(metrics),
        model=model_words(metrics.model) if metrics.model else None,
        attack=attack_words(metrics.attack) if metrics.attack else None,
        config=read_config_text(run_dir),
    )
    named = [*pictures, *([histogram] if histogram else [])]
    drawings = {picture.name: picture.drawing for picture in named}
    return Page(clean_text(page), {**drawings, **extras.drawings})


def _score_words(metrics: Metrics) -> str:
    if metrics.method == "sieve":
        return f"by the loss of an image’s label in the purified model; {_cuts(metrics)}"
    return "cosine between the logits of the infected and the purified model"


def _cuts(metrics: Metrics) -> str:
    """Where Sieve's suspects are; earlier versions had no undecided images."""
    if metrics.suspects is None or metrics.suspects.undecided is None:
        return "suspects below −0.5"
    return "suspects up to −0.5, undecided images up to −0.25"


def _unless_none(show: Callable[[Any], str]) -> Callable[[Any], str | None]:
    """A filter that leaves None alone, for the template to say "not known"."""
    return lambda value: None if value is None else show(value)


def _columns(metrics: Metrics) -> tuple[str, ...]:
    if metrics.purified is not None:
        return ("Infected", "Purified")
    if metrics.test is not None:
        return ("Test",)
    return ("Infected",) if metrics.infected is not None else ()


def _results(metrics: Metrics) -> list[_Change]:
    """The rows ACC and ASR, with the change in percentage points where both ends are known."""
    if metrics.purified is not None:
        models = [metrics.infected, metrics.purified]
    else:
        models = [metrics.test or metrics.infected]
    rows = []
    for name, meaning in (
        ("ACC", "accuracy on clean images"),
        ("ASR", "success of the trigger"),
    ):
        values = [getattr(model, name.lower()) if model is not None else None for model in models]
        first, last = values[0], values[-1]
        change = None
        if len(values) == 2 and first is not None and last is not None:
            change = points(first, last)
        rows.append(
            _Change(
                name,
                meaning,
                tuple(percent(value) if value is not None else None for value in values),
                change,
            )
        )
    return rows


def _pictures(metrics: Metrics, history: History) -> list[_Picture]:
    """The curves and the loss, as far as the run recorded them."""
    pictures = []
    lengths = epochs_by_round(history.evaluations, history.steps)
    before: _Pair = (None, None)
    if metrics.infected is not None and metrics.purified is not None:
        before = (metrics.infected.acc, metrics.infected.asr)
    if any(e.acc is not None or e.asr is not None for e in history.evaluations):
        drawing = curves(
            history.evaluations,
            label=_spoken(before, history.evaluations, "epochs"),
            before=before,
            rounds=lengths,
        )
        pictures.append(
            _Picture(
                "curves",
                drawing,
                _curve_caption(before, history.evaluations, "epoch", len(lengths))
                + _sample_note(metrics.purified or metrics.test, history.evaluations),
            )
        )
    elif metrics.rounds and any(r.acc is not None or r.asr is not None for r in metrics.rounds):
        # No record of epochs: a point at the end of each round, each round one unit wide.
        ends = [Evaluation(r.round, 1, r.acc, r.asr) for r in metrics.rounds]
        drawing = curves(
            ends, label=_spoken(before, ends, "rounds"), before=before, unit="rounds finished"
        )
        pictures.append(
            _Picture("curves", drawing, _curve_caption(before, ends, "round", len(ends)))
        )
    if history.steps:
        losses = [step.loss for step in history.steps if np.isfinite(step.loss)]
        words = f"from {losses[0]:.3g} to {losses[-1]:.3g}" if losses else "never finite"
        drawing = loss_curve(
            history.steps, label=f"Training loss by epoch, {words}.", rounds=lengths
        )
        caption = "Training loss."
        if any(step.adversarial for step in history.steps):
            caption += " Shaded and dashed: batches of adversarial examples."
        pictures.append(_Picture("loss", drawing, caption))
    return pictures


def _curve_caption(
    before: _Pair, evaluations: Sequence[Evaluation], unit: str, number_of_rounds: int
) -> str:
    names = [
        name
        for name, known in (
            ("ACC", any(item.acc is not None for item in evaluations)),
            ("ASR", any(item.asr is not None for item in evaluations)),
        )
        if known
    ]
    caption = f"{' and '.join(names)} after each evaluated {unit}"
    if before != (None, None):
        caption += "; at 0, the infected model"
    if number_of_rounds > 1 and unit == "epoch":
        caption += ". Dotted lines: where a round begins"
    return caption + "."


def _sample_note(final: Accuracies | None, evaluations: Sequence[Evaluation]) -> str:
    """Why the last point of the curve is not the result in the table, if it is not."""
    last = max(evaluations, key=lambda item: (item.round, item.epoch))
    if final is None or all(
        here is None or there is None or percent(here) == percent(there)
        for here, there in ((last.acc, final.acc), (last.asr, final.asr))
    ):
        return ""
    return " The points are measured on a sample of the test images, the result above on all."


def _spoken(before: _Pair, evaluations: Sequence[Evaluation], unit: str) -> str:
    """The curves for those who cannot see them: where each begins and ends."""
    ordered = sorted(evaluations, key=lambda item: (item.round, item.epoch))
    parts = []
    for name, first, values in (
        ("ACC", before[0], [item.acc for item in ordered]),
        ("ASR", before[1], [item.asr for item in ordered]),
    ):
        known = [value for value in (first, *values) if value is not None]
        if known:
            parts.append(f"{name} from {percent(known[0])} to {percent(known[-1])}")
    return f"Line chart over {unit}: {', '.join(parts)}."


def _histogram(suspects: Suspects | None, metrics: Metrics) -> _Picture | None:
    if suspects is None or not np.isfinite(suspects.scores).any():
        return None
    known = np.isfinite(suspects.scores)
    label = f"Histogram of the scores of {known.sum():,} images"
    caption = "Scores of all training images. Low means suspicious."
    if suspects.poisoned is not None:
        middle = [
            f"{name} {np.median(suspects.scores[group]):.3f}"
            for name, group in (
                ("clean", known & ~suspects.poisoned),
                ("poisoned", known & suspects.poisoned),
            )
            if group.any()
        ]
        label += f"; median {', '.join(middle)}"
        caption += " Hatched: images known to be poisoned."
    axis = {"axis": f"score: {_cuts(metrics)}"} if metrics.method == "sieve" else {}
    drawing = score_histogram(suspects.scores, suspects.poisoned, label=label + ".", **axis)
    return _Picture("scores", drawing, caption)


def _phases(metrics: Metrics) -> list[_Phase]:
    """Every phase that has a time or a rate, in the order of the file."""
    names = dict.fromkeys([*metrics.seconds, *metrics.images_per_second])
    return [
        _Phase(name, metrics.seconds.get(name), metrics.images_per_second.get(name))
        for name in names
    ]
