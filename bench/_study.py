"""The tables of the study: Sieve on every model, its ablation, other rates, other defences."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

__all__ = ["BLOCKS", "NAMES", "STUDY", "rows_of"]

NAMES = {
    "badnets": "BadNets",
    "blend": "Blend",
    "sig": "SIG",
    "wanet": "WaNet",
    "input_aware": "Input-aware",
}
ABLATION = {
    "sieve": "Sieve",
    "sieve_no_split": "without the split: a random first subset",
    "sieve_no_relabel": "without new labels: suspects are left out",
    "sieve_no_adversary": "without adversarial examples in round 0",
}
DEFENCES = {
    "ft": "FT",
    "fp": "FP",
    "nad": "NAD",
    "anp": "ANP",
    "ibau": "I-BAU",
    "sau": "SAU",
    "ft_sam": "FT-SAM",
    "aft": "AFT",
    "pbe": "PBE",
    "sieve": "Sieve",
}
WITHOUT_CLEAN = ("pbe", "sieve")
MAIN_RATE = "0.1"
STUDY = {
    name: Path(__file__).parent / "results" / f"study_{name}.json" for name in ("signs", "gtsrb")
}

Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The finished cells of a data set's study, each with its case taken apart."""
    rows: list[Row] = json.loads(STUDY[name].read_text(encoding="utf-8"))["rows"]
    for row in rows:
        row["attack"], *plan, row["seed"] = row["case"].split("-")
        row["mode"], row["rate"] = plan or ("–", "–")
    return rows


def study_table(name: str) -> str:
    """Sieve on every model with the rate of the study, and what the aims are about."""
    rows = [
        row for row in rows_of(name) if row["method"] == "sieve" and row["rate"] in (MAIN_RATE, "–")
    ]
    heads = ["infected ACC", "infected ASR", "ACC", "ASR", "AUROC"]
    lines = [
        f"| attack | mode | seed | {' | '.join(heads)} | backdoor found | seconds |",
        f"| --- | --- | ---: |{' ---: |' * len(heads)} --- | ---: |",
    ]
    for row in rows:
        plan = [NAMES.get(row["attack"], row["attack"]), row["mode"].replace("_", "-"), row["seed"]]
        cells = [*plan, *_figures(row), "yes" if row["found"] else "no", f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    infected = [row for row in rows if "asr" in row["purified"]]
    if len(infected) < 2:
        return "\n".join(lines)
    asr, gain, areas = _asr(infected), _gain(infected), [row["auroc"] for row in infected]
    lines.append("")
    lines.append(
        f"Over the {len(infected)} infected models with 10 %: ASR {fmean(asr):.2f} on average, "
        f"{max(asr):.2f} at worst; ACC {fmean(gain):+.2f} on average, {min(gain):+.2f} at worst; "
        f"AUROC {fmean(areas):.4f} on average, {min(areas):.4f} at worst."
    )
    return "\n".join(lines)


def rates_table(name: str) -> str:
    """Sieve where more or fewer images are poisoned."""
    found = [row for row in rows_of(name) if row["method"] == "sieve" and row["rate"] != "–"]
    of = {(row["attack"], row["mode"], row["seed"]) for row in found if row["rate"] != MAIN_RATE}
    rows = [row for row in found if (row["attack"], row["mode"], row["seed"]) in of]
    rows.sort(key=lambda row: (list(NAMES).index(row["attack"]), row["seed"], float(row["rate"])))
    heads = ["infected ACC", "infected ASR", "ACC", "ASR", "AUROC"]
    lines = [
        f"| attack | poisoned | seed | {' | '.join(heads)} | backdoor found |",
        f"| --- | ---: | ---: |{' ---: |' * len(heads)} --- |",
    ]
    for row in rows:
        plan = [NAMES[row["attack"]], f"{100 * float(row['rate']):g} %", row["seed"]]
        cells = [*plan, *_figures(row), "yes" if row["found"] else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ablation_table(name: str) -> str:
    """Each ingredient of Sieve switched off, on the models that have every cell."""
    by_method = _by_method(name, ABLATION)
    shared = sorted(set.intersection(*(set(rows) for rows in by_method.values())))
    lines = [
        "| | models | ASR mean | ASR worst | ACC change, mean | worst | AUROC mean | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, title in ABLATION.items():
        rows = [by_method[method][case] for case in shared]
        if rows:
            asr, gain, areas = _asr(rows), _gain(rows), [row["auroc"] for row in rows]
            lines.append(
                f"| {title} | {len(rows)} | {fmean(asr):.2f} | {max(asr):.2f} | "
                f"{fmean(gain):+.2f} | {min(gain):+.2f} | {fmean(areas):.4f} | {min(areas):.4f} |"
            )
    return "\n".join(lines)


def defences_table(name: str, mode: str, seed: str) -> str:
    """Every method on the same infected models: ACC and ASR, DER and seconds."""
    by_method = _by_method(name, DEFENCES)
    attacks = {attack: f"{attack}-{mode}-{MAIN_RATE}-{seed}" for attack in NAMES}
    lines = [
        f"| | clean images | {' | '.join(NAMES.values())} | DER mean | worst | seconds |",
        f"| --- | --- |{' ---: |' * (len(NAMES) + 3)}",
    ]
    infected: dict[str, Mapping[str, float]] = {}
    told = []
    for method, title in DEFENCES.items():
        rows = {
            case: by_method[method][case] for case in attacks.values() if case in by_method[method]
        }
        if not rows:
            continue
        infected |= {case: row["infected"] for case, row in rows.items()}
        sides = [
            _side(rows[case]["purified"] if case in rows else None) for case in attacks.values()
        ]
        ders = [100 * row["der"] for row in rows.values()]
        clean = "none" if method in WITHOUT_CLEAN else "5 %"
        summary = f"{fmean(ders):.1f} | {min(ders):.1f}" if len(rows) == len(NAMES) else "– | –"
        seconds = fmean(row["seconds"] for row in rows.values())
        told.append(f"| {title} | {clean} | {' | '.join(sides)} | {summary} | {seconds:.0f} |")
    sides = [_side(infected.get(case)) for case in attacks.values()]
    return "\n".join([*lines, f"| (infected) | | {' | '.join(sides)} | | | |", *told])


def _by_method(name: str, methods: Mapping[str, str]) -> dict[str, dict[str, Row]]:
    """Of the infected models with the rate of the study, by method and case."""
    found: dict[str, dict[str, Row]] = {method: {} for method in methods}
    for row in rows_of(name):
        if row["method"] in methods and row["rate"] == MAIN_RATE:
            found[row["method"]][row["case"]] = row
    return found


def _side(figures: Mapping[str, float] | None) -> str:
    return "–" if figures is None else f"{100 * figures['acc']:.1f} / {100 * figures['asr']:.1f}"


def _figures(row: Row) -> list[str]:
    before, after = row["infected"], row["purified"]
    shares = [side.get(key) for side in (before, after) for key in ("acc", "asr")]
    percent = ["–" if share is None else f"{100 * share:.2f}" for share in shares]
    return [*percent, f"{row['auroc']:.4f}" if "auroc" in row else "–"]


def _asr(rows: Sequence[Row]) -> list[float]:
    return [100 * row["purified"]["asr"] for row in rows]


def _gain(rows: Sequence[Row]) -> list[float]:
    """Of ACC, in points."""
    return [100 * (row["purified"]["acc"] - row["infected"]["acc"]) for row in rows]


BLOCKS: dict[str, Callable[[], str]] = {
    **{f"study-{name}": partial(study_table, name) for name in STUDY},
    "study-rates": partial(rates_table, "signs"),
    "study-ablation": partial(ablation_table, "signs"),
    "study-defences": partial(defences_table, "gtsrb", "all_to_one", "0"),
}
