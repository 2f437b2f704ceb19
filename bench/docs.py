"""The generated parts of the documents: result tables from JSON, keys from the configuration.

    python -m bench.docs

rewrites what stands between ``<!-- begin NAME -->`` and ``<!-- end -->`` in README.md and docs/.
A test checks that nothing there is out of date.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from bench import _findings, _performance, _study, _theory
from bench._setup import rows_in
from bench._study import NAMES
from bench._tables import table
from pbe_fast import FeaturesConfig, MineConfig, PoisonConfig, PurifyConfig, ScanConfig, TrainConfig
from pbe_fast._jobs import UNUSED

__all__ = ["DOCUMENTS", "refreshed"]

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "docs/results.md",
    "docs/configuration.md",
    "docs/performance.md",
    "docs/theory.md",
    "docs/findings.md",
)
SETTINGS = ROOT / "bench" / "results" / "signs_aft_settings.json"
PLOTS = {
    ROOT / "docs" / "performance.png": _performance.plot,
    ROOT / "docs" / "results.png": _study.plot,
}
RESULTS = ROOT / "bench" / "results" / "gtsrb_attacks.json"
FIRST = ROOT / "bench" / "results" / "study_gtsrb_first.json"
_REFUSED = {f"data.{name}" for name in UNUSED}  # by scans and by mining
_BLOCK = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """A document with its generated blocks made anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m['name']]()}\n{m[3]}", text)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _area(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cells() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return dict(content["cells"])


def results_table() -> str:
    """ACC and ASR before and after, for each attack."""
    heads = ["infected ACC", "infected ASR", "AFT ACC", "AFT ASR"]
    for title in ("PBE", "Sieve"):
        heads += [f"{title} ACC", f"{title} ASR", f"{title} AUROC"]
    lines = []
    sieved = {row["case"]: row for row in rows_in(FIRST)}  # of the same models
    for name, title in NAMES.items():
        row = _cells().get(name, {})
        aft, pbe = (row.get(method, {}) for method in ("aft", "pbe"))
        sieve = sieved.get(f"{name}-all_to_one-0.1-0", {})
        sides = [row.get("model", {}).get("test", {}), *(x.get("purified", {}) for x in (aft, pbe))]
        areas = pbe.get("suspects", {}).get("auroc"), sieve.get("auroc")
        cells = [_percent(side.get(key)) for side in sides for key in ("acc", "asr")]
        cells.append(_area(areas[0]))
        cells += [_percent(sieve.get("purified", {}).get(key)) for key in ("acc", "asr")]
        lines.append([title, *cells, _area(areas[1])])
    benign = _cells().get("benign", {}).get("model", {}).get("test", {})
    made = table(["attack", *(f">{head}" for head in heads)], lines)
    return f"{made}\n\nThe benign model of the same recipe has ACC {_percent(benign.get('acc'))}."


_MODES = ("aft", "aft_retire")
OTHERS = {
    "aft_batch32": "0.1 cosine, batch 32",
    "aft_constant": "0.05, batch 128",
    "aft_published": "0.001, batch 128 (published)",
}


def other_settings_table() -> str:
    """AFT on GTSRB with other settings, where they were run."""
    lines = []
    for name, title in NAMES.items():
        for part, setting in OTHERS.items():
            run = _cells().get(name, {}).get(part)
            if run is not None:
                values = (_percent(run["purified"].get(key)) for key in ("acc", "asr"))
                lines.append([title, setting, *values])
    return table(["attack", "setting", ">ACC", ">ASR"], lines)


def retire_table() -> str:
    """AFT with mode retire beside mode exact: means over the seeds that have both."""
    heads = ["attack", ">seeds", ">exact ACC", ">retire ACC", ">difference"]
    heads += [">exact ASR", ">retire ASR", ">difference"]
    lines = []
    every: list[list[list[float]]] = []  # by attack, seed: exact and retire ACC, exact, retire ASR
    for name in NAMES:
        row = _cells().get(name, {})
        seeds = [row, *row.get("seeds", {}).values()]
        runs = [[r[part]["purified"] for part in _MODES] for r in seeds if {*_MODES} <= {*r}]
        every.append([[run[key] for key in ("acc", "asr") for run in both] for both in runs])
    titled = [*zip(NAMES.values(), every, strict=True), ("all", [r for rs in every for r in rs])]
    for title, found in titled:
        if not found:
            continue
        exact, retired, exact_asr, retired_asr = zip(*found, strict=True)
        cells = [
            *(f"{100 * fmean(values):.2f}" for values in (exact, retired)),
            _difference(exact, retired),
            *(f"{100 * fmean(values):.2f}" for values in (exact_asr, retired_asr)),
            _difference(exact_asr, retired_asr),
        ]
        lines.append([title, len(found), *cells])
    return table(heads, lines)


def _difference(exact: Sequence[float], retired: Sequence[float]) -> str:
    """Retire less exact, seed by seed: the mean in points, and its standard error."""
    points = [100 * (b - a) for a, b in zip(exact, retired, strict=True)]
    error = f" ± {stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
    return f"{fmean(points):+.2f}{error}"


def signs_settings_table() -> str:
    """AFT on drawn signs with each setting that was tried."""
    content: dict[str, Any] = json.loads(SETTINGS.read_text(encoding="utf-8"))
    runs = content["runs"]
    names = list(dict.fromkeys(name for part in runs.values() for name in part))
    heads = [f">{NAMES[attack]} {measure}" for attack in runs for measure in ("ACC", "ASR")]

    def line(title: str, sides: Iterable[Mapping[str, float]]) -> list[str]:
        return [title, *(_percent(side.get(key)) for side in sides for key in ("acc", "asr"))]

    lines = [
        line(name, [part.get(name, {}).get("purified", {}) for part in runs.values()])
        for name in names
    ]
    before = [next(iter(part.values()))["infected"] for part in runs.values()]
    return table(["setting", *heads], [*lines, line("(infected)", before)])


def missing_line() -> str:
    """Which cells of the table have not been run."""
    cells = _cells()
    gone = [
        f"{title} with {part.upper()}"
        for name, title in NAMES.items()
        for part in ("aft", "pbe")
        if part not in cells.get(name, {})
    ]
    return f"Not measured yet (–): {', '.join(gone)}." if gone else "Every cell was measured."


def rounds_table() -> str:
    """PBE round by round: what was trained on, and what came of it."""
    lines = []
    for name, title in NAMES.items():
        for r in _cells().get(name, {}).get("pbe", {}).get("rounds", []):
            sizes = [f"{r[key]:,}" for key in ("subset", "subset_poisoned")]
            shares = [_percent(r.get(key)) for key in ("acc", "asr")]
            lines.append([title, r["round"], *sizes, *shares, f"{r['auroc']:.3f}"])
    heads = ["attack", ">round", ">subset", ">poisoned in it", ">ACC", ">ASR", ">AUROC"]
    return table(heads, lines)


def time_table() -> str:
    """Seconds and images per second of each phase."""
    lines = []
    for name, title in NAMES.items():
        row = _cells().get(name, {})
        seconds = [
            f"{sum(row[part]['seconds'].values()):,.0f}" if part in row else "–"
            for part in ("model", "aft", "pbe")
        ]
        rate = row.get("pbe", {}).get("images_per_second", {}).get("score")
        lines.append([title, *seconds, "–" if rate is None else f"{rate:,.0f}"])
    return table(["attack", ">training s", ">AFT s", ">PBE s", ">PBE score images/s"], lines)


def _keys(kind: type[BaseModel], refused: Collection[str] = ()) -> Callable[[], str]:
    return lambda: table(["key", "default", "meaning"], _key_rows(kind, "", refused))


def _key_rows(kind: type[BaseModel], prefix: str, refused: Collection[str]) -> list[list[str]]:
    rows = []
    for name, info in kind.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += _key_rows(annotation, f"{prefix}{name}.", refused)
            continue
        if f"{prefix}{name}" in refused:
            continue
        default = json.dumps(info.get_default(call_default_factory=True), default=str)
        values = get_args(annotation) if get_origin(annotation) is Literal else ()
        meaning = info.description or ""
        if not all(value in meaning for value in values):
            meaning = "; ".join(filter(None, [", ".join(values), meaning]))
        rows.append([f"`{prefix}{name}`", f"`{default}`", meaning])
    return rows


BLOCKS: dict[str, Callable[[], str]] = {
    "results": results_table,
    "missing": missing_line,
    "other-settings": other_settings_table,
    "retire": retire_table,
    "signs-settings": signs_settings_table,
    "rounds": rounds_table,
    "times": time_table,
    "poison-keys": _keys(PoisonConfig),
    "train-keys": _keys(TrainConfig),
    "purify-keys": _keys(PurifyConfig),
    "mine-keys": _keys(MineConfig, _REFUSED),
    "features-keys": _keys(FeaturesConfig, {"adversary.random_start"}),
    "scan-keys": _keys(ScanConfig, _REFUSED),
    **_performance.BLOCKS,
    **_theory.BLOCKS,
    **_findings.BLOCKS,
    **_study.BLOCKS,
}


def main() -> None:
    """Rewrite the documents."""
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
    for path, plot in PLOTS.items():
        plot(path)


if __name__ == "__main__":
    main()
