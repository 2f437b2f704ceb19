"""The tables of docs/findings.md: what the paper claims, beside what was measured here."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from bench._setup import rows_in
from bench._study import NAMES
from bench._tables import table
from bench.attacks import BENIGN

__all__ = ["BLOCKS"]

FEATURES = Path(__file__).parent / "results" / "appendix_features.json"
PREDICTIONS = Path(__file__).parent / "results" / "appendix_predictions.json"
CALIBRATION = Path(__file__).parent / "results" / "scan_calibration.json"
CHECKS = Path(__file__).parent / "results" / "scan_checks.json"
ATTACKS = {"badnets": "BadNets", "blend": "Blend", "wanet": "WaNet"}
DATA = {
    "signs": "drawn signs",
    "signs10": "drawn signs (smaller model)",
    "signs-224": "drawn signs",
    "cifar10": "CIFAR-10",
    "gtsrb": "GTSRB",
    "gtsrb_third": "GTSRB (a third)",
}
KINDS = {
    "adversarial": "x̃′",
    "benign_adversarial": "x̃",
    "clean": "x",
    "adversarial_shuffled": "x̃′ of another",
    "clean_shuffled": "x of another",
}


def _settings() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FEATURES.read_text(encoding="utf-8"))["settings"]
    return sorted(found, key=lambda row: (row["figure"] or "9", row["data"], row["size"]))


def _name(row: Mapping[str, Any]) -> tuple[str, str]:
    figure = f"Figure {row['figure']}" if row["figure"] else "–"
    size = row["size"]
    return figure, f"{ATTACKS[row['attack']]}, {DATA[row['data']]}, {size}x{size}"


def _similarity(claim: str, *, chance: bool) -> Callable[[], str]:
    """How near each kind of image is to the triggered one, where the trigger works."""

    def made() -> str:
        rows = _settings()
        heads = ["setting of", "measured on", ">images", *(f">{kind}" for kind in KINDS.values())]
        heads += [">x̃′ nearer than x̃", ">x̃′ nearer than x", *([">by chance"] if chance else [])]
        lines = []
        for row in rows:
            told = row["claims"][0]
            near, nearer = told[claim]["to_triggered"], told[claim]["nearer_than"]
            cells = [f"{near[kind]:.3f}" for kind in KINDS]
            cells += [f"{100 * nearer[kind]:.0f} %" for kind in ("benign_adversarial", "clean")]
            cells += [f"{row['layers'][0]['chance']:.3f}"] if chance else []
            lines.append([*_name(row), told["images"], *cells])
        return f"The paper says: {rows[0]['claims'][0][claim]['paper']}.\n\n{table(heads, lines)}"

    return made


def labels_table() -> str:
    """Where adversarial examples go, and what that has to do with their features."""
    rows = _settings()
    heads = ["setting of", "measured on", ">images", ">trigger works", ">x̃′ gets the target label"]
    heads += [">x̃ does, from the benign model", ">cosine of x̃′ that does", ">of x̃′ that does not"]
    lines = []
    for row in rows:
        told = row["claims"][0]["labels"]
        pair = _pair(row, "adversarial")
        works = row["labels"]["infected"]["triggered"]["attacker"]
        shares = (works, told["attacker"], told["by_a_benign_model"])
        cells = [f"{100 * share:.1f} %" for share in shares]
        cells += ["–" if (c := pair[p]["cosine"]) is None else f"{c:.3f}" for p in SIDES]
        lines.append([*_name(row), row["images"], *cells])
    return f"The paper says: {rows[0]['claims'][0]['labels']['paper']}.\n\n{table(heads, lines)}"


def direction_table() -> str:
    """Whether the adversary and the trigger push features the same way."""
    heads = ["setting of", "measured on", ">images", ">x̃′", ">x̃"]
    heads += [">x̃′ that gets the target label", ">x̃′ that does not"]
    lines = []
    for row in _settings():
        ours, theirs = _pair(row, "adversarial"), _pair(row, "benign_adversarial")
        means = [part["shift"] for part in (ours, theirs, *(ours[side] for side in SIDES))]
        cells = ["–" if mean is None else f"{mean:.3f}" for mean in means]
        lines.append([*_name(row), row["images"], *cells])
    return table(heads, lines)


def _predictions() -> tuple[list[dict[str, Any]], list[str]]:
    """All rows, and a head for each size of their perturbations."""
    rows = rows_in(PREDICTIONS)
    return rows, [f">{size['eps_255']:g}/255" for size in rows[0]["sizes"]]


def _shares(row: Mapping[str, Any], place: str) -> list[str]:
    return [
        f"{100 * size[place]['share']:.1f} ({100 * size[place]['expected']:.1f})"
        for size in row["sizes"]
    ]


def predictions_table() -> str:
    """What falls to the attacker's label in the study's models, beside an even spread."""
    rows, eps = _predictions()
    heads = ["models of", "attack", "attacker wants", ">poisoned", ">seed", ">images", *eps]
    lines = []
    for row in rows:
        if "figure" in row:
            continue
        attack, *plan, seed = row["case"].split("-")
        mode, rate = plan or ("", "")
        places = {"all_to_one": ["target"], "all_to_all": ["next"]}.get(mode, ["target", "next"])
        for place in places:
            wants = "label 1" if place == "target" else "the next label"
            poisoned = f"{100 * float(rate):g} %" if rate else "–"
            told = [DATA[row["data"]], NAMES.get(attack, attack), wants, poisoned, seed]
            lines.append([*told, f"{row['images']:,}", *_shares(row, place)])
    return table(heads, lines)


MEASURED = {
    "gtsrb43": "GTSRB, 43 classes, 32x32",
    "signs-224": "drawn signs, 224x224",
    "signs-224-more": "drawn signs, 224x224, 3,000",
    "cifar10": "CIFAR-10, 32x32",
    "cifar10dog": "CIFAR-10, 32x32, the second picture",
}


def figures_table() -> str:
    """The settings of Figures B.1 to B.3: what falls to label 1, beside an even spread."""
    rows, eps = _predictions()
    claim = (
        "The paper says: adversarial examples of an infected model are highly likely to be "
        "classified as the target label, regardless of the size of the images (Figure 2) and of "
        "the trigger’s picture (Figure 3)."
    )
    lines = []
    shown = [row for row in rows if "figure" in row]
    for row in sorted(shown, key=lambda row: (row["figure"], row["data"], row["case"])):
        attack = row["case"].split("-")[0]
        test = [f"{100 * row['test'][key]:.1f}" if key in row["test"] else "–"
                for key in ("acc", "asr")]  # fmt: skip
        told = [row["figure"], MEASURED[row["data"]], NAMES.get(attack, attack), *test]
        lines.append([*told, row["images"], *_shares(row, "target")])
    heads = ["figure", "measured on", "attack", ">ACC", ">ASR", ">images", *eps]
    return f"{claim}\n\n{table(heads, lines)}"


CALIBRATED = {
    "signs10": "drawn signs, 10 classes",
    "signs20": "drawn signs, 20 classes",
    "gtsrb43": "GTSRB, 43 classes",
    "cifar10": "CIFAR-10",
    "gtsrb_third": "GTSRB, a third of it",
}
CHECKED = {
    **CALIBRATED,
    "gtsrb_third_rare": "GTSRB, a third, rare target",
    "gtsrb_third_large": "GTSRB, a third, a large class",
    "signs": "drawn signs, 10 classes, width 16",
    "gtsrb": "GTSRB, width 16",
}
KINDS_OF_EVIDENCE = ("pull", "shift", "gap")
KINDS_HEADS = [f">{kind}" for kind in KINDS_OF_EVIDENCE]


def _evidence(row: Mapping[str, Any]) -> dict[str, float]:
    """The strongest score of each kind."""
    return {one["kind"]: one["score"] for one in row["verdict"]["evidence"]}


def benign_table() -> str:
    """What a scan sees of benign models, and how many exceed all those of the other data sets.

    A model judged by the other ones of its own data set as well would tell nothing: of 20 models it
    is always the highest that exceeds the rest.
    """
    lines = []
    every = [row for row in rows_in(CALIBRATION) if row["case"].startswith("benign")]
    for name, title in [*CALIBRATED.items(), ("", "all")]:
        rows = [row for row in every if name in ("", row["data"])]
        cells = [str(len(rows)), f"{100 * fmean(row['acc'] for row in rows):.1f}"]
        for kind in KINDS_OF_EVIDENCE:
            scores = [_evidence(row)[kind] for row in rows if kind in _evidence(row)]
            cells.append(f"{min(scores):.2f} to {max(scores):.2f}" if scores else "–")
        cells.append(str(sum(row["beyond_other_data"] for row in rows)))
        lines.append([title, *cells])
    return table(["benign models of", ">models", ">ACC", *KINDS_HEADS, ">beyond other data"], lines)


def _verdicts(file: Path) -> Callable[[], str]:
    """What the verdict says of infected models, and of benign ones that it was not made with."""

    def made() -> str:
        heads = ["model of", "attack", "mode", ">ASR", *KINDS_HEADS, ">p", "verdict", "by"]
        lines = []
        for row in rows_in(file):
            attack, *plan = row["case"].split("-")
            if attack == BENIGN and file == CALIBRATION:
                continue
            scores = _evidence(row)
            mode = "–" if attack == BENIGN else plan[0].replace("_", "-")
            asr = f"{100 * row['asr']:.1f}" if "asr" in row else "–"
            cells = [CHECKED[row["data"]], NAMES.get(attack, attack), mode, asr]
            cells += [f"{scores[k]:.2f}" if k in scores else "–" for k in KINDS_OF_EVIDENCE]
            told = row["verdict"]
            cells += [f"{told['p_value']:.3f}", _told(told)]
            cells.append(told["evidence"][0]["kind"] if told["infected"] else "–")
            lines.append([*cells, _told(row["flows_alone"])])
        return table([*heads, "by pull and shift alone"], lines)

    return made


def _told(verdict: Mapping[str, Any]) -> str:
    wrong = "" if verdict["right"] else " (wrong)"
    if not verdict["infected"]:
        return f"not found{wrong}"
    mode = verdict["mode"].replace("_", "-")
    targets = ", ".join(map(str, verdict["targets"]))
    return f"{mode}{f' to {targets}' if targets else ''}{wrong}"


def _pair(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Means of a kind with the triggered image, at the first layer of the infected model."""
    found: dict[str, Any] = next(
        pair
        for pair in row["pairs"]
        if pair["model"] == "infected"
        and pair["pair"] == f"{kind}-triggered"
        and not pair["shuffled"]
        and pair["layer"] == row["layers"][0]["name"]
    )
    return found


SIDES = ("reached", "missed")
BLOCKS: dict[str, Callable[[], str]] = {
    "features-similar": _similarity("similar", chance=False),
    "features-neurons": _similarity("neurons", chance=True),
    "features-labels": labels_table,
    "features-direction": direction_table,
    "predictions": predictions_table,
    "predictions-figures": figures_table,
    "verdict-benign": benign_table,
    "verdict-infected": _verdicts(CALIBRATION),
    "verdict-checks": _verdicts(CHECKS),
}
