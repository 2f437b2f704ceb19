"""The generated tables of docs/theory.md, from the kept JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    lines = [
        f"{survey['settings']:,} settings; the models are within {survey['furthest']:.0e} of the "
        "minimisers.",
        "",
        "| claim | as printed | with 1/n | corrected | what is checked |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["name"] for row in survey["claims"]):
        forms = {form: rows[name, form] for form in _FORMS if (name, form) in rows}
        last = forms.get("corrected") or forms["printed"]
        if last["premise"]:
            continue
        cells = [_status(forms.get(form), (name, form) in witnessed) for form in _FORMS]
        lines.append(f"| {_code(name)} | {' | '.join(cells)} | {_code(last['statement'])} |")
    return "\n".join(lines)


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
    lines = ["| premise | form | says | holds |", "| --- | --- | --- | ---: |"]
    for row in survey["claims"]:
        if row["premise"]:
            lines.append(
                f"| {row['name']} | {row['form']} | {_code(row['statement'])} | "
                f"{row['holds']:,} of {row['settings']:,} |"
            )
    return "\n".join(lines)


def witnesses_table() -> str:
    """The first setting that was found against each claim."""
    lines = [
        "| claim | form | says | left | right | setting |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    rows = _content()["witnesses"]
    order = {name: i for i, name in enumerate(r["name"] for r in _content()["survey"]["claims"])}
    bar = "\\|"
    for row in sorted(rows, key=lambda r: (order[r["name"]], _FORMS.index(r["form"]))):
        lines.append(
            f"| {_code(row['name'])} | {row['form']} | {_code(row['statement'])} | "
            f"{row['left']:.3g} | {row['right']:.3g} | "
            f"{row['witness'].replace('|', bar)}, delta {row['delta']:g} |"
        )
    return "\n".join(lines)


def untargeted_table() -> str:
    """Where untargeted examples lead, in both models."""
    lines = [
        "| ell | delta | share of the r of (8) | share, untargeted | wrong | to the target | "
        "to the target, benign model |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in _content()["untargeted"]:
        infected, benign = row["infected"], row["benign"]
        lines.append(
            f"| {row['triggered']} | {row['delta']:g} | {row['aimed']:.3f} | "
            f"{infected['share']:.3f} | {100 * infected['fooled']:.1f} % | "
            f"{100 * infected['to_target']:.1f} % | {100 * benign['to_target']:.1f} % |"
        )
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "theory-claims": claims_table,
    "theory-premises": premises_table,
    "theory-witnesses": witnesses_table,
    "theory-untargeted": untargeted_table,
}
