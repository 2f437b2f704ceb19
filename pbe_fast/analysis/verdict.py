"""Is a model infected, and to which label: a verdict from where its adversarial examples go.

Three things are measured, in units in which the highest of benign models are about as high.

*Pull* (appendix B of Mu et al., CVPR 2023). With a trigger for one label, untargeted adversarial
examples of every class fall to it, where likeness draws those of a few. So of each other class the
share that is given the label, beside an even spread; as the mean of logarithms, to which one class
that looks like the label adds little, and as a part of the most that it can be, the logarithm of
the number of other classes: in benign models, too, it grows with their number.

*Shift.* The same for the label that lies so many places after an image's own, which is what an
all-to-all backdoor gives.

*Gap*, of the training images of one label. A trigger on some of them makes them two kinds to the
model (:mod:`pbe_fast.erase.split`), and so do photographs of one thing; but triggered images are
also much harder to perturb than the others of their label, or much easier. So of each label that
falls apart, the nats by which two kinds explain its activations better than one, times the distance
of the two kinds' margins, as they are or under the smallest perturbation, in standard deviations;
as log(1 + that). This sees backdoors, BadNets' above all, whose trigger is too strong for a small
perturbation to make or to break, so that no adversarial example falls to its label. A kind of fewer
than 20 images does not count: a few photographs of one thing are such a kind.

That many labels are two kinds of images says nothing: of benign models that were trained on
photographs of a few physical things, nearly half of the labels are.

The verdict is a conformal test (Vovk et al. 2005): a model is called infected where the largest of
the three exceeds that of benign models, of which as few as one in twenty may exceed it. There is
none for fewer classes than they had: a mean over few classes is large by chance, and one class is a
large share of all.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
import numpy.typing as npt

from pbe_fast.analysis.predictions import Predictions

__all__ = [
    "BENIGN_EPS_255",
    "FEWEST_CLASSES",
    "LEVEL",
    "Evidence",
    "Verdict",
    "benign_scores",
    "evidence",
    "judge",
]

Floats = npt.NDArray[np.float64]
Kind = Literal["pull", "shift", "gap"]

LEVEL = 0.05  # share of benign models that may be called infected
BENIGN_EPS_255 = (2.0, 8.0, 16.0)  # sizes at which they were scanned
FEWEST_CLASSES = 10  # with images; no benign model had fewer
_SMOOTH = 0.5  # images added to every cell
_FEWEST = 8  # images of a cluster whose margins are compared
_TELLING = 20  # images of a cluster, among all of its class
_TINY = 1e-9
# So that the three are alike in benign models: the highest of 23 were 0.33, 0.31 and 0.34.
_UNITS: Mapping[Kind, float] = {"pull": 1.0, "shift": 2.0, "gap": 2 / 7}
_MANY = 1 / 2  # of the classes that stand out by their gaps speak of a trigger for all


@dataclass(frozen=True)
class Evidence:
    """One thing that was measured.

    Attributes:
        kind: see the module.
        score: the same, in its units.
        label: that the attacker would want, or for *shift* how many places it lies after an image's
            own.
        eps_255: the size of the perturbations that showed it; None where none did.
        times: how much more often than evenly, the geometric mean over the classes; None for *gap*.
    """

    kind: Kind
    score: float
    label: int
    eps_255: float | None = None
    times: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a scan says.

    Attributes:
        infected: whether ``p_value`` is at most :data:`LEVEL`; never where ``enough`` is not.
        mode: ``all_to_one``, ``all_to_all``; None where no backdoor was found.
        targets: labels that the attacker wants, all-to-one.
        p_value: share of benign models of which as much would be seen, at least 1 / (models + 1).
        models: how many benign models that was measured on.
        clusters: whether *gap* was looked at.
        enough: whether there are at least :data:`FEWEST_CLASSES`; else there is no verdict.
        comparable: whether the benign models were scanned at the same sizes; else ``p_value`` is
            no more than a hint.
        evidence: all that was measured, the strongest first.
    """

    infected: bool
    mode: Literal["all_to_one", "all_to_all"] | None
    targets: tuple[int, ...]
    p_value: float
    models: int
    clusters: bool
    enough: bool
    comparable: bool
    evidence: tuple[Evidence, ...]

    @property
    def strongest(self) -> tuple[Evidence, ...]:
        """The evidence of each kind that is strongest, in that order."""
        first: dict[str, Evidence] = {}
        for one in self.evidence:
            first.setdefault(one.kind, one)
        return tuple(first.values())


@cache
def benign_scores() -> tuple[Mapping[Kind, float], ...]:
    """The strongest evidence of each kind in benign models, from ``bench.calibration``."""
    text = resources.files("pbe_fast.analysis").joinpath("benign.json").read_text("utf-8")
    return tuple(row["scores"] for row in json.loads(text)["rows"])


def judge(found: Predictions, benign: Sequence[Mapping[Kind, float]] | None = None) -> Verdict:
    """The verdict on a scan; one without clusters goes by *pull* and *shift* alone.

    Args:
        benign: the strongest evidence of each kind in benign models; None: :func:`benign_scores`.
    """
    benign = benign_scores() if benign is None else benign
    clusters = found.second is not None
    kinds: tuple[Kind, ...] = ("pull", "shift", "gap") if clusters else ("pull", "shift")
    reference = [max(scores[kind] for kind in kinds if kind in scores) for scores in benign]
    seen = evidence(found)
    p_value = _chance(seen[0].score, reference) if seen else 1.0
    classes = int((found.images > 0).sum())
    enough = classes >= FEWEST_CLASSES
    infected = enough and p_value <= LEVEL
    above = [one for one in seen if infected and _chance(one.score, reference) <= LEVEL]
    mode: Literal["all_to_one", "all_to_all"] | None = None
    targets: tuple[int, ...] = ()
    if infected:
        times = {one.kind: one.times or 0.0 for one in reversed(seen)}  # of the strongest
        shift = max((one.score for one in seen if one.kind == "shift"), default=-np.inf)
        # With a trigger for every label single ones stand out by their gap, too, often more than
        # the shift does; but no benign model has as much of a shift.
        shifted = (
            times.get("shift", 0.0) > times.get("pull", 0.0)
            and _chance(shift, [scores["shift"] for scores in benign]) <= LEVEL
        )
        many = sum(one.kind == "gap" for one in above) > _MANY * classes
        mode = "all_to_all" if shifted or many else "all_to_one"
    if mode == "all_to_one":
        targets = tuple(dict.fromkeys(one.label for one in above if one.kind != "shift"))
    comparable = found.eps_255 == BENIGN_EPS_255
    return Verdict(
        infected, mode, targets, p_value, len(benign), clusters, enough, comparable, seen
    )


def _chance(score: float, benign: Sequence[float]) -> float:
    """The share of models like the benign ones with such a score or more, this one among them."""
    return (1 + sum(other >= score for other in benign)) / (1 + len(benign))


def evidence(found: Predictions) -> tuple[Evidence, ...]:
    """All that is measured of a model, the strongest first.

    Of *pull*, *shift* and *gap* the strongest one for each label.
    """
    relative = _relative(found)
    seen = [*_pulls(found, relative), *_shifts(found, relative)]
    if found.second is not None:
        seen += _gaps(found)
    return tuple(sorted(seen, key=lambda one: (-one.score, one.kind, one.label)))


def _most(found: Predictions) -> float:
    """What *pull* and *shift* are parts of: the logarithm for a label that is always given."""
    return math.log(max(2, len(found.classes) - 1))


def _relative(found: Predictions) -> Floats:
    """``(E, K, K)``: log of the share of a row's images given the column's label, by an even one.

    NaN for an image's own label, and in rows of classes without images.
    """
    k, images = len(found.classes), found.images[:, None].astype(np.float64)
    share = (found.counts + _SMOOTH) / (images + _SMOOTH * k)
    relative: Floats = np.log(share * max(1, k - 1))
    relative[:, np.arange(k), np.arange(k)] = np.nan
    relative[:, found.images == 0] = np.nan
    return relative


def _pulls(found: Predictions, relative: Floats) -> list[Evidence]:
    return _strongest("pull", _means(relative, 1), found)


def _shifts(found: Predictions, relative: Floats) -> list[Evidence]:
    k = len(found.classes)
    rows = np.arange(k)
    places = np.stack([relative[:, rows, (rows + s) % k] for s in range(1, k)], 1)  # (E, K - 1, K)
    return _strongest("shift", _means(places, 2), found, first=1)


def _strongest(kind: Kind, scores: Floats, found: Predictions, first: int = 0) -> list[Evidence]:
    """Of ``(E, labels)`` the size with the largest score, for each label that has one."""
    seen = []
    for i in np.flatnonzero(np.isfinite(scores).all(0)).tolist():
        size = int(scores[:, i].argmax())
        log = float(scores[size, i])
        score = _UNITS[kind] * log / _most(found)
        seen.append(Evidence(kind, score, first + i, found.eps_255[size], math.exp(log)))
    return seen


def _gaps(found: Predictions) -> list[Evidence]:
    """Of each label that is two kinds of images: how different they are."""
    assert found.second is not None
    seen = []
    for split in found.split:
        here = found.labels == split.label
        kinds = [found.margins[here & part].astype(np.float64)
                 for part in (found.second, ~found.second)]  # fmt: skip
        if min(map(len, kinds)) < _FEWEST or split.share * split.images < _TELLING - 0.5:
            continue
        first, other = kinds  # (n, 1 + E)
        squares = sum(((kind - kind.mean(0)) ** 2).sum(0) for kind in kinds)
        deviation = np.sqrt(squares / (len(first) + len(other))) + _TINY
        distance = np.abs(first.mean(0) - other.mean(0)) / deviation
        # Larger perturbations part photographs of one thing from the others, too.
        size = int(distance[:2].argmax())
        score = _UNITS["gap"] * float(np.log1p(split.gain * distance[size]))
        seen.append(Evidence("gap", score, split.label, (None, *found.eps_255)[size]))
    return seen


def _means(values: Floats, axis: int) -> Floats:
    """Without NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(axis), known.sum(axis)
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means
