"""The generated tables of docs/theory.md, from the kept JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench._tables import table

__all__ = ["BLOCKS"]

RESULT = Path(__file__).parent / "results" / "theory.json"
_FORMS = ("printed", "with 1/n", "corrected")


def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return content


def _code(text: str) -> str:
    """Formulas in a table: a bar would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def claims_table() -> str:
    """Each claim in each form: in how many settings it applies, and in how many it fails."""
    content = _content()
    survey, witnessed = content["survey"], {(w["name"], w["form"]) for w in content["witnesses"]}
    rows = {(row["name"], row["form"]): row for row in survey["claims"]}
    lines = []
    for name in dict.fromkeys(row["name"] for row in survey["claims"]):
        forms = {form: rows[name, form] for form in _FORMS if (name, form) in rows}
        last = forms.get("corrected") or forms["printed"]
        if last["premise"]:
            continue
        cells = [_status(forms.get(form), (name, form) in witnessed) for form in _FORMS]
        lines.append([_code(name), *cells, _code(last["statement"])])
    about = (
        f"{survey['settings']:,} settings; the models are within {survey['furthest']:.0e} of the"
    )
    heads = ["claim", "as printed", "with 1/n", "corrected", "what is checked"]
    return f"{about} minimisers.\n\n{table(heads, lines)}"


def _status(row: dict[str, Any] | None, witnessed: bool) -> str:
    if row is None:
        return "–"
    applies = f"{row['applies']:,}"
    if row["refuted"]:
        return f"**fails** in {row['refuted']:,} of {applies}"
    if witnessed:
        return f"**fails** (below); 0 of {applies} here"
    return f"no failure in {applies}"


def premises_table() -> str:
    """How often (10) and (11) hold."""
    survey = _content()["survey"]
    lines = []
    for row in survey["claims"]:
        if row["premise"]:
            held = f"{row['holds']:,} of {row['settings']:,}"
            lines.append([row["name"], row["form"], _code(row["statement"]), held])
    return table(["premise", "form", "says", ">holds"], lines)


def witnesses_table() -> str:
    """The first setting that was found against each claim."""
    lines = []
    rows = _content()["witnesses"]
    order = {name: i for i, name in enumerate(r["name"] for r in _content()["survey"]["claims"])}
    bar = "\\|"
    for row in sorted(rows, key=lambda r: (order[r["name"]], _FORMS.index(r["form"]))):
        sides = [f"{row[side]:.3g}" for side in ("left", "right")]
        setting = f"{row['witness'].replace('|', bar)}, delta {row['delta']:g}"
        lines.append([_code(row["name"]), row["form"], _code(row["statement"]), *sides, setting])
    return table(["claim", "form", "says", ">left", ">right", "setting"], lines)


def untargeted_table() -> str:
    """Where untargeted examples lead, in both models."""
    heads = [">ell", ">delta", ">share of the r of (8)", ">share, untargeted", ">wrong"]
    heads += [">to the target", ">to the target, benign model"]
    lines = []
    for row in _content()["untargeted"]:
        infected, benign = row["infected"], row["benign"]
        shares = [f"{share:.3f}" for share in (row["aimed"], infected["share"])]
        ends = (infected["fooled"], infected["to_target"], benign["to_target"])
        percent = [f"{100 * share:.1f} %" for share in ends]
        lines.append([row["triggered"], f"{row['delta']:g}", *shares, *percent])
    return table(heads, lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "theory-claims": claims_table,
    "theory-premises": premises_table,
    "theory-witnesses": witnesses_table,
    "theory-untargeted": untargeted_table,
}
