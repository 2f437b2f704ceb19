"""A setting examined: every claim, the two perturbations, and all of it as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pbe_fast.analysis.linear.ascent import Ascent, Untargeted, ascend, untargeted
from pbe_fast.analysis.linear.claims import FORMS, Claim
from pbe_fast.analysis.linear.lemma import lemma_claims
from pbe_fast.analysis.linear.perturbation import perturbation_claims
from pbe_fast.analysis.linear.quantities import Analysis, analyse
from pbe_fast.analysis.linear.setting import Setting, draw
from pbe_fast.analysis.linear.sweeps import Point
from pbe_fast.errors import ConfigError

__all__ = ["Summary", "as_json", "claims_of", "examine"]


@dataclass(frozen=True)
class Summary:
    """What was found in one setting.

    Attributes:
        claims: grouped by name, in the appendix's order; forms in the order of :data:`FORMS`.
        infected, benign: untargeted examples against each of the models.
    """

    setting: Setting
    analysis: Analysis
    claims: tuple[Claim, ...]
    ascent: Ascent
    infected: Untargeted
    benign: Untargeted


def claims_of(a: Analysis, measured: float | None = None) -> tuple[Claim, ...]:
    """All claims, those of one name together; ``measured`` as in :func:`perturbation_claims`."""
    found = [*lemma_claims(a), *perturbation_claims(a, measured)]
    names = {name: place for place, name in enumerate(dict.fromkeys(c.name for c in found))}
    return tuple(sorted(found, key=lambda c: (names[c.name], FORMS.index(c.form))))


def examine(setting: Setting, delta: float) -> Summary:
    """Draw a setting, solve both problems, perturb, and check every claim.

    Args:
        delta: the radius of (8), and of the untargeted examples.

    Raises:
        ConfigError: the numbers do not fit each other.
    """
    if not (math.isfinite(delta) and delta > 0):
        raise ConfigError(f"delta is {delta:g}: it has to be positive.")
    task = draw(setting)
    a = analyse(task, delta)
    ascent = ascend(a)
    return Summary(
        setting, a, claims_of(a, ascent.along), ascent,
        untargeted(task, a.infected.weights, delta), untargeted(task, a.benign.weights, delta),
    )  # fmt: skip


def as_json(found: Summary, sweeps: Mapping[str, Sequence[Point]] | None = None) -> dict[str, Any]:
    """Numbers for a file; no arrays, nothing that is not finite."""
    a = found.analysis
    content: dict[str, Any] = {
        "setting": asdict(found.setting) | {"delta": a.delta},
        "solutions": {
            name: {
                "objective": solution.objective,
                "gradient_norm": solution.gradient_norm,
                "rounding": solution.rounding,
                "distance": solution.distance,
            }
            for name, solution in (("benign", a.benign), ("infected", a.infected))
        },
        "quantities": {
            "tau": a.tau, "g": a.g, "kappa": a.kappa, "eta": a.eta, "u": a.u.tolist(),
            "alpha": a.alpha, "share": a.share,
        },
        "ascent": {
            "share": found.ascent.along / a.delta,
            "gain": found.ascent.gain,
            "furthest_pixel_from_grey": found.ascent.outside,
        },
        "untargeted": {"infected": asdict(found.infected), "benign": asdict(found.benign)},
        "claims": [claim.as_dict() for claim in found.claims],
    }  # fmt: skip
    if sweeps is not None:
        content["sweep"] = {name: [asdict(p) for p in points] for name, points in sweeps.items()}
    return content
