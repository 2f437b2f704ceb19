"""``pbe-fast theory``: parses and prints; the analysis is in :mod:`pbe_fast.analysis`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbe_fast._files import write_bytes, write_text
from pbe_fast.errors import ConfigError
from pbe_fast.run_directory import versions
from pipelines._console import say

if TYPE_CHECKING:
    from pbe_fast.analysis.linear import Claim, Summary

__all__ = ["theory_command"]

_PREMISES = {True: "yes", False: "no", None: "–"}
_NARROW = 76  # columns that the table needs
_WIDE = 150  # columns of a terminal that has room for what each claim says


def theory_command(
    classes: Annotated[int, typer.Option(metavar="K", help="Classes; 0 is the target.")] = 4,
    dimension: Annotated[int, typer.Option(metavar="D", help="Of the space.")] = 64,
    subspace: Annotated[int, typer.Option(metavar="M", help="Dimensions of the data.")] = 16,
    examples: Annotated[int, typer.Option(metavar="N", help="Training examples.")] = 200,
    triggered: Annotated[int, typer.Option(metavar="L", help="Of the target class.")] = 10,
    lam: Annotated[
        float, typer.Option("--lambda", metavar="LAMBDA", help="Regularisation, as in (3).")
    ] = 0.1,
    patch: Annotated[float, typer.Option(metavar="|P|", help="Length of the patch.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Radius of the perturbation, (8).")] = 0.05,
    spread: Annotated[float, typer.Option(help="Of a class around its direction.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is random.")] = 0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Vary L, |P|, lambda and K in turn; needs --out.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write theory.json, and the sweep's figure.")
    ] = None,
) -> None:
    """Check the linear analysis of the paper's appendix A in numbers.

    Draws a training set, solves for the benign and the infected linear
    classifier, and prints both sides of every claim: as printed, with ell/n
    for ell, and as corrected in docs/theory.md. 'premises' says whether what
    a claim presupposes holds here; (no) is a failure outside its premises.

    \b
    Examples:
      pbe-fast theory
      pbe-fast theory --classes 10 --triggered 20 --lambda 0.01 --patch 2
      pbe-fast theory --sweep --out runs/theory
    """
    if sweep and out is None:
        raise ConfigError("--sweep draws a figure: say where to, with --out DIR.")
    # SciPy's optimisers take a while to import, which no other command needs.
    from pbe_fast.analysis.linear import Setting, as_json, examine, sweep_figure
    from pbe_fast.analysis.linear import sweep as sweep_settings

    console = Console()
    setting = Setting(
        classes=classes, dimension=dimension, subspace=subspace, examples=examples,
        triggered=triggered, lam=lam, patch=patch, spread=spread, seed=seed,
    )  # fmt: skip
    found = examine(setting, delta)
    if console.width < _NARROW:
        for line in _list(found.claims):
            say(console, line)
    else:
        console.print(_table(found.claims, wide=console.width >= _WIDE))
    for line in _lines(found):
        say(console, line)
    if out is None:
        return
    points = None
    if sweep:
        points = sweep_settings(setting, delta, say=lambda text: say(console, text))
        svg, png = sweep_figure(points)
        write_text(out / "sweep.svg", svg)
        write_bytes(out / "sweep.png", png)
    content = {"versions": versions()} | as_json(found, points)
    write_text(out / "theory.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    names = "theory.json, sweep.svg and sweep.png" if sweep else "theory.json"
    say(console, f"Written to {out}: {names}")


def _table(claims: "Sequence[Claim]", *, wide: bool) -> Table:
    from pbe_fast.analysis.linear import verdict

    table = Table(
        title="Appendix A",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("claim")
    table.add_column("form", no_wrap=True)
    if wide:
        table.add_column("says")
    for name in ("left", "", "right", "slack"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("premises", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    before = ""
    for claim in claims:
        cells = [
            Text("" if claim.name == before else claim.name), Text(claim.form),
            *([Text(claim.statement)] if wide else []), *(Text(x) for x in _sides(claim)),
            Text(f"{claim.slack:.2g}"), Text(_PREMISES[claim.premises]),
            Text(verdict(claim), style="red" if claim.refuted else ""),
        ]  # fmt: skip
        table.add_row(*cells)
        before = claim.name
    return table


def _list(claims: "Sequence[Claim]") -> Iterator[str]:
    """The table for a terminal that is too narrow for one."""
    from pbe_fast.analysis.linear import verdict

    before = ""
    for claim in claims:
        if claim.name != before:
            yield claim.name
        before = claim.name
        yield f"  {claim.form}: {verdict(claim)}"
        yield f"    {' '.join(_sides(claim))}, slack {claim.slack:.2g}"
        if claim.premises is not None:
            yield f"    premises: {_PREMISES[claim.premises]}"


def _sides(claim: "Claim") -> tuple[str, str, str]:
    return f"{claim.left:.3g}", claim.relation, f"{claim.right:.3g}"


def _lines(found: "Summary") -> list[str]:
    a = found.analysis
    far = max(a.benign.distance, a.infected.distance)
    printed = [c for c in found.claims if c.form == "printed" and not c.is_premise]
    lost = len({c.name for c in printed if c.refuted})
    wrong = [c.name for c in found.claims if c.form == "corrected" and c.refuted]
    verdict = f"corrected claims that fail: {', '.join(wrong)}" if wrong else "no corrected one"
    return [
        f"Both models are within {far:.1g} of the minimisers (|gradient| / lambda).",
        f"{lost} of {len(printed)} printed claims fail here; {verdict}"
        + ("." if wrong else " does."),
        f"Share of r along the trigger: {a.share:.4f} by (15), "
        f"{found.ascent.along / a.delta:.4f} by the adversary's ascent on (9).",
        f"Untargeted examples: {found.infected.share:.4f} along the trigger; "
        f"{100 * found.infected.to_target:.1f} % go to the target class, "
        f"{100 * found.benign.to_target:.1f} % with the benign model.",
    ]
