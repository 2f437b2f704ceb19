"""The tables of the study: Sieve on every model, its ablation, other rates, other defences."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from bench._setup import rows_in
from bench._tables import table
from bench.study import DATA, MODES, Case

__all__ = ["BLOCKS", "NAMES", "STUDY", "plot", "rows_of"]

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
    "sieve_no_second_look": "without the second look at classes that seemed whole",
    "sieve_no_witnesses": "without witnesses of single images",
    "sieve_no_more_rounds": "without more than two rounds after the first",
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
SUMMARY = (">ASR mean", ">worst", ">ACC change, mean", ">worst", ">AUROC mean", ">worst")
FIGURES = (">infected ACC", ">infected ASR", ">ACC", ">ASR", ">AUROC")
MAIN_RATE = "0.1"
STUDY = {
    name: Path(__file__).parent / "results" / f"study_{name}.json"
    for name in (
        "signs",
        "signs_resnet18",
        "signs_hard",
        "gtsrb",
        "gtsrb_third",
        "gtsrb_third_rare",
        "gtsrb_third_large",
        "gtsrb_third_noise",
        "cifar10_third",
    )
}
# The sets of models that the aims are about.
AIMED = {
    "gtsrb": "the whole of GTSRB",
    "gtsrb_third": "a third of GTSRB",
    "signs": "drawn signs",
    "cifar10_third": "a third of CIFAR-10",
}
_COLOURS = ("#1f6f8b", "#c8553d", "#8a6fb0", "#5b8c3a", "#c9962c")  # of attacks

Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The finished cells of a data set's study, each with its case taken apart."""
    rows = rows_in(STUDY[name])
    for row in rows:
        row["attack"], *plan, row["seed"] = row["case"].split("-")
        row["mode"], row["rate"] = plan or ("–", "–")
    return rows


def study_table(name: str) -> str:
    """Sieve on every model with the rate of the study."""
    rows = [
        row for row in rows_of(name) if row["method"] == "sieve" and row["rate"] in (MAIN_RATE, "–")
    ]
    lines = []
    for row in rows:
        plan = [NAMES.get(row["attack"], row["attack"]), row["mode"].replace("_", "-"), row["seed"]]
        told = [f"{100 * row[key]:.1f}" if key in row else "–" for key in ("precision", "recall")]
        found = "yes" if row["found"] else "no"
        lines.append([*plan, *_figures(row), *told, found, f"{row['seconds']:.0f}"])
    heads = ["attack", "mode", ">seed", *FIGURES, ">precision", ">recall"]
    heads += ["backdoor found", ">seconds"]
    return table(heads, lines)


def aims_table() -> str:
    """What the aims are about, over the infected models of each data set, beside the aims."""
    aims = ["1", "5", "-1", "-2.5", "0.99", "0.95", "", "", "", ""]
    lines: list[list[object]] = [["(the aims)", "", *aims]]
    for name, title in AIMED.items():
        rows = [row for row in rows_of(name) if _counts(row)]
        if rows:
            lines.append([title, len(rows), *_summary(rows), *_told(rows)])
    return table(
        ["", ">models", *SUMMARY, ">precision mean", ">worst", ">recall mean", ">worst"], lines
    )


def _counts(row: Row) -> bool:
    """Whether it is Sieve's of an infected model with the rate of the study."""
    return bool(row["method"] == "sieve" and row["rate"] == MAIN_RATE)


def _summary(rows: Sequence[Row]) -> list[str]:
    """Average and worst of ASR, of the change of ACC in points, and of the AUROC."""
    asr, gain, areas = _asr(rows), _gain(rows), [row["auroc"] for row in rows]
    return [
        *(f"{value:.2f}" for value in (fmean(asr), max(asr))),
        *(f"{value:+.2f}" for value in (fmean(gain), min(gain))),
        *(f"{value:.4f}" for value in (fmean(areas), min(areas))),
    ]


def _told(rows: Sequence[Row]) -> list[str]:
    """Average and worst of the suspects' precision and recall, where they were measured."""
    told = []
    for key in ("precision", "recall"):
        shares = [100 * row[key] for row in rows if key in row]
        told += [f"{share:.1f}" for share in (fmean(shares), min(shares))] if shares else ["–"] * 2
    return told


def rates_table(name: str) -> str:
    """Sieve where more or fewer images are poisoned."""
    found = [row for row in rows_of(name) if row["method"] == "sieve" and row["rate"] != "–"]
    of = {(row["attack"], row["mode"], row["seed"]) for row in found if row["rate"] != MAIN_RATE}
    rows = [row for row in found if (row["attack"], row["mode"], row["seed"]) in of]
    rows.sort(key=lambda row: (list(NAMES).index(row["attack"]), row["seed"], float(row["rate"])))
    lines = []
    for row in rows:
        plan = [NAMES[row["attack"]], f"{100 * float(row['rate']):g} %", row["seed"]]
        lines.append([*plan, *_figures(row), "yes" if row["found"] else "no"])
    return table(["attack", ">poisoned", ">seed", *FIGURES, "backdoor found"], lines)


def ablation_table(name: str, mode: str) -> str:
    """Each ingredient of Sieve switched off, on the models that have every cell that there is."""
    by_method = {
        method: here
        for method, rows in _by_method(name, ABLATION).items()
        if (here := {case: row for case, row in rows.items() if row["mode"] == mode})
    }
    shared = sorted(set.intersection(*(set(rows) for rows in by_method.values())))
    lines = []
    for method, found in by_method.items():
        rows = [found[case] for case in shared]
        lines.append([ABLATION[method], len(rows), *_summary(rows)])
    return table(["", ">models", *SUMMARY], lines)


def defences_table(name: str, mode: str, seed: int) -> str:
    """Every method on the same infected models: ACC and ASR, DER and seconds."""
    by_method = _by_method(name, DEFENCES)
    attacks = _cases(mode, seed)
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
        clean = "none" if method in WITHOUT_CLEAN else f"{100 * DATA[name].clean_fraction:g} %"
        every = len(rows) == len(NAMES)
        summary = [f"{share:.1f}" if every else "–" for share in (fmean(ders), min(ders))]
        seconds = fmean(row["seconds"] for row in rows.values())
        told.append([title, clean, *sides, *summary, f"{seconds:.0f}"])
    sides = [_side(infected.get(case)) for case in attacks.values()]
    heads = ["", "clean images", *(f">{name}" for name in NAMES.values()), ">DER mean", ">worst"]
    return table([*heads, ">seconds"], [["(infected)", "", *sides, "", "", ""], *told])


def _cases(mode: str, seed: int) -> dict[str, str]:
    """The infected model of each attack with the rate of the study."""
    return {attack: Case(attack, mode, seed=seed).name for attack in NAMES}


def _by_method(name: str, methods: Mapping[str, str]) -> dict[str, dict[str, Row]]:
    """Of the infected models with the rate of the study, by method and case."""
    found: dict[str, dict[str, Row]] = {method: {} for method in methods}
    for row in rows_of(name):
        if row["method"] in methods and row["rate"] == MAIN_RATE:
            found[row["method"]][row["case"]] = row
    return found


def plot(path: Path, models: str = "gtsrb", methods: str = "gtsrb_third") -> None:
    """ASR before and after Sieve of every model, and after every method of a few others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    def dots(axis: Axes, titles: Sequence[str]) -> None:
        axis.set_yticks(range(len(titles)), titles)
        axis.invert_yaxis()
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        axis.set_xlim(-2, 102)
        axis.set_xlabel("ASR, %")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    order = [(attack, mode) for mode in MODES for attack in NAMES]
    rows = [row for row in rows_of(models) if _counts(row)]
    for side, face, edge in (("infected", "none", "#777777"), ("purified", "#1f6f8b", "none")):
        left.scatter(
            [100 * row[side]["asr"] for row in rows],
            [order.index((row["attack"], row["mode"])) for row in rows],
            s=36, facecolors=face, edgecolors=edge, label=side, clip_on=False,
        )  # fmt: skip
    dots(left, [f"{NAMES[attack]}, {mode.replace('_', '-')}" for attack, mode in order])
    left.set_title(f"Sieve on {AIMED.get(models, models)}", loc="left")

    by_method = _by_method(methods, DEFENCES)
    cases = _cases("all_to_one", 0)
    told = [method for method in DEFENCES if by_method[method].keys() & {*cases.values()}]
    for index, (attack, case) in enumerate(cases.items()):
        found = [row for method in told if (row := by_method[method].get(case))]
        if not found:
            continue
        shares = [row["purified"]["asr"] for row in found] + [found[0]["infected"]["asr"]]
        lines = [told.index(row["method"]) + 1 for row in found] + [0]
        right.scatter(
            [100 * share for share in shares],
            [line + 0.13 * (index - 2) for line in lines],  # so that none hides another
            s=30, color=_COLOURS[index], label=NAMES[attack], clip_on=False,
        )  # fmt: skip
    dots(right, ["(infected)", *(DEFENCES[method] for method in told)])
    right.set_title(f"Every method on {AIMED.get(methods, methods)}, all-to-one", loc="left")
    for axis in (left, right):
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, frameon=False,
            columnspacing=1, handletextpad=0.1,
        )  # fmt: skip
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


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
    "study-aims": aims_table,
    "study-rates": partial(rates_table, "signs"),
    **{f"study-ablation-{mode}": partial(ablation_table, "gtsrb_third", mode) for mode in MODES},
    "study-defences": partial(defences_table, "gtsrb_third", "all_to_one", 0),
}
