"""``metrics.json`` and ``config.yaml`` of a run, read and checked for the report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pbe_fast.errors import RunDirectoryError

__all__ = [
    "Accuracies",
    "Count",
    "Fraction",
    "MaybeFraction",
    "Metrics",
    "ModelMetrics",
    "Record",
    "read_config_text",
]

_CONFIG_CHARACTERS = 200_000


def _known(value: object) -> object:
    """A number that is not finite (0 of 0 images, no time at all) is no known value."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MaybeFraction = Annotated[Fraction | None, BeforeValidator(_known)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_MaybeAmount = Annotated[_Amount | None, BeforeValidator(_known)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Accuracies(Record):
    """ACC and ASR of one model, as fractions; None where not measured."""

    acc: MaybeFraction = None
    asr: MaybeFraction = None


class SuspectMetrics(Record):
    """How good the list of suspects is.

    ``suspect`` and ``undecided`` only of a method that says so of single images; ``precision`` and
    ``recall`` are of the former. All shares only where the truth is known.
    """

    count: Count | None = None
    suspect: Count | None = None
    undecided: Count | None = None
    poisoned: Count | None = None
    auroc: MaybeFraction = None
    precision_at_truth: MaybeFraction = None
    precision: MaybeFraction = None
    recall: MaybeFraction = None


class RoundMetrics(Record):
    """One round of the progressive loop."""

    round: Count
    subset: Count | None = None
    subset_poisoned: Count | None = None
    acc: MaybeFraction = None
    asr: MaybeFraction = None
    auroc: MaybeFraction = None


class ModelMetrics(Record):
    """What was purified or trained."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)
    classes: Count | None = None


class BackdoorMetrics(Record):
    """Whether the training set's images gave a backdoor away, and in which classes.

    ``kept`` is the share of suspects that the purified model gives the label they came with, and
    ``odd`` are classes in which some images may be mislabelled, ``mislabelled`` those of label
    noise, ``unlearned`` poisoned ones of which the purified model takes most of what seems clean
    for something else. ``judged`` is false where there were too few classes or images to find a
    backdoor.
    """

    found: bool
    labels: tuple[Count, ...] = ()
    kept: MaybeFraction = None
    odd: tuple[Count, ...] = ()
    mislabelled: tuple[Count, ...] = ()
    unlearned: tuple[Count, ...] = ()
    judged: bool = True


class Metrics(Record):
    """``metrics.json``: a purification has ``infected`` and ``purified``, a training ``test``."""

    kind: str | None = None
    method: str | None = None
    model: ModelMetrics | None = None
    infected: Accuracies | None = None
    purified: Accuracies | None = None
    test: Accuracies | None = None
    suspects: SuspectMetrics | None = None
    backdoor: BackdoorMetrics | None = None
    rounds: tuple[RoundMetrics, ...] = ()
    seconds: Mapping[str, _MaybeAmount] = Field(default_factory=dict)
    images_per_second: Mapping[str, _MaybeAmount] = Field(default_factory=dict)
    device: str | None = None
    precision: str | None = None
    versions: Mapping[str, str | None] = Field(default_factory=dict)
    seed: int | None = None
    attack: Mapping[str, Any] | None = None
    quarantined: Count = 0

    @property
    def is_purification(self) -> bool:
        """Whether a model was purified, even if nothing could be measured on it."""
        return (
            self.purified is not None
            or self.kind == "purify"
            or self.method in ("aft", "pbe", "sieve")
        )

    @property
    def is_training(self) -> bool:
        """Whether a model was trained, even if it was not tested."""
        return not self.is_purification and (self.test is not None or self.kind == "train")

    @classmethod
    def load(cls, run_dir: Path) -> "Metrics":
        """Read and check ``metrics.json``.

        Raises:
            RunDirectoryError: there is no such folder or file, or it is not what a run writes.
        """
        path = run_dir / "metrics.json"
        if not run_dir.is_dir():
            raise RunDirectoryError(
                f"{run_dir}: there is no such run directory. Give the folder that the run wrote "
                "to (its --out)."
            )
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RunDirectoryError(
                f"{path}: there is no such file, so the run has not finished or this is no run "
                "directory. Start the same command on it again to finish the run."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirectoryError(
                f"{path}: cannot be read as JSON ({error}). Start the run again on the same "
                "directory to write it anew, or restore the file."
            ) from None
        if not isinstance(content, dict):
            raise RunDirectoryError(
                f"{path}: holds a {type(content).__name__} where an object with the run's "
                "numbers is expected. Start the run again on the same directory to write it anew."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            what = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()[:5]
            )
            raise RunDirectoryError(
                f"{path}: is not what a run writes: {what}. Correct the file (ACC and ASR are "
                "fractions from 0 to 1) or start the run again on the same directory."
            ) from None


def read_config_text(run_dir: Path) -> str | None:
    """``config.yaml`` as it stands, cut after 200,000 characters; None if there is none."""
    try:
        text = (run_dir / "config.yaml").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    if len(text) > _CONFIG_CHARACTERS:
        return text[:_CONFIG_CHARACTERS] + "\n[cut here: the rest is in config.yaml]\n"
    return text
