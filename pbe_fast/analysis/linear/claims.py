"""Every claim of appendix A beside its numbers: as printed, and as corrected.

A claim has a left and a right side, and a slack that is negative where it fails. Forms:

    printed    as the appendix has it, with the F of its equation (3)
    with 1/n   the appendix's bound with ell / n for ell, as (3) has its sum divided by n
    corrected  what docs/theory.md proves

Vectors have their Euclidean norm, matrices that of Frobenius.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["FORMS", "Claim", "Form", "claim", "verdict"]

Form = Literal["printed", "with 1/n", "corrected"]
FORMS: tuple[Form, ...] = ("printed", "with 1/n", "corrected")

_ROUNDING = 1e-9  # of the larger side
_SMALLEST = 1e-13  # of sums of numbers about 1


@dataclass(frozen=True)
class Claim:
    """One claim in one form, with its numbers.

    Attributes:
        name: what the appendix calls it, or where it stands.
        form: see the module.
        statement: the two sides in words.
        left, relation, right: the sides; ``=`` has the size of the difference at the left.
        tolerance: by how much rounding and the solver can move the sides.
        premises: whether what it presupposes holds; None where it presupposes nothing.
        is_premise: the claim is itself a premise, (10) or (11): it may be false of a setting.
    """

    name: str
    form: Form
    statement: str
    left: float
    relation: Literal["<=", ">="]
    right: float
    tolerance: float
    premises: bool | None = None
    is_premise: bool = False

    @property
    def slack(self) -> float:
        """By how much the claim holds; negative if it does not."""
        return self.right - self.left if self.relation == "<=" else self.left - self.right

    @property
    def holds(self) -> bool:
        """Whether the two sides are in order, premises or not."""
        return self.slack >= -self.tolerance

    @property
    def refuted(self) -> bool:
        """Whether the numbers contradict the claim: its premises hold and it does not."""
        return not (self.holds or self.is_premise) and self.premises is not False

    def as_dict(self) -> Mapping[str, Any]:
        """For JSON."""
        return asdict(self) | {"slack": self.slack, "holds": self.holds, "refuted": self.refuted}


def claim(
    name: str,
    form: Form,
    statement: str,
    left: float,
    relation: Literal["<=", ">="],
    right: float,
    *,
    error: float,
    premises: bool | None = None,
    is_premise: bool = False,
) -> Claim:
    """A claim whose sides are off by about ``error``, and by rounding."""
    tolerance = _ROUNDING * max(abs(left), abs(right)) + _SMALLEST + 10 * error
    return Claim(
        name, form, statement, float(left), relation, float(right), float(tolerance),
        None if premises is None else bool(premises), is_premise,
    )  # fmt: skip


def verdict(found: Claim) -> str:
    """In a word: yes, no, or (no) for what fails outside its premises."""
    return "yes" if found.holds else "no" if found.refuted or found.is_premise else "(no)"
