"""What is wrong with a configuration, for people: every fault, with the key that was meant."""

import difflib
import reprlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pbe_fast._location import redacted

__all__ = ["explain", "short"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 2
# What other programs call it.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "eps": "eps_255",
    "epsilon": "eps_255",
    "step_size": "step_255",
    "alpha": "step_255",
    "num_steps": "steps",
    "num_epochs": "epochs",
    "bs": "batch_size",
    "wd": "weight_decay",
}


def short(value: object) -> str:
    """A value for a message; an alias in YAML may stand for one of any size."""
    return redacted(_SHORT.repr(redacted(value) if isinstance(value, str) else value))


def explain(kind: type[BaseModel], error: ValidationError, file: Path | None) -> str:
    """All faults of a configuration in one line.

    Args:
        kind: what it should have been.
        error: what pydantic found.
        file: where it was read from, if from a file.
    """
    lines: dict[str, str] = {}
    known = _known_keys(kind)
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        where = ".".join(parts)
        if problem["type"] == "extra_forbidden":
            near = _nearest(where, known)
            lines[where] = f"unknown key {where}{f'; did you mean {near}?' if near else ''}"
        elif parts[:2] == ["model", "options"] and len(parts) > 2:
            where = ".".join(parts[:3])  # one problem for each type that it could be
            what = short(problem["input"])
            lines[where] = f"{where} = {what}: give a finite number, a text, true or false"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines[where] = f"{where or 'it'} = {short(problem['input'])}: {message}"
    place = f"{file}: " if file else ""
    text = f"{place}configuration: " + "; ".join(lines.values())
    return text if text.endswith("?") else text + "."


def _nearest(where: str, known: Sequence[str]) -> str:
    """The known key, or keys, that an unknown one probably means; empty if none comes near."""
    group, _, last = where.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
    for name in (last, _OTHER_NAMES.get(last, last)):
        if name in siblings:
            return siblings[name]
        elsewhere = [key for key in known if key.rpartition(".")[2] == name]
        if elsewhere:
            return " or ".join(elsewhere)
    near = difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)
    if near:
        return siblings[near[0]]
    return "".join(difflib.get_close_matches(where, known, n=1, cutoff=0.5))


def _known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in kind.model_fields.items():
        keys.append(prefix + name)
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _known_keys(annotation, f"{prefix}{name}.")
    return keys
