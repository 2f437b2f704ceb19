"""The verdict of a scan in words."""

from collections.abc import Sequence

from pbe_fast.analysis.verdict import BENIGN_EPS_255, FEWEST_CLASSES, Evidence, Verdict
from pbe_fast.report._words import Verdict as Words
from pbe_fast.report._words import class_words

__all__ = ["evidence_words", "verdict_words"]

_LISTED = 5  # labels


def verdict_words(verdict: Verdict, classes: Sequence[str] = ()) -> Words:
    """A badge, a headline and how to read it.

    Args:
        classes: names, by label.
    """
    if not verdict.enough:
        return Words(
            "unknown",
            "No verdict",
            "There is no verdict on a model of so few classes.",
            f"The benign models that a verdict goes by had {FEWEST_CLASSES} classes or more. The "
            "heat map and the table below are what was measured.",
        )
    strongest = verdict.evidence[0] if verdict.evidence else None
    models = verdict.models
    as_much = round(verdict.p_value * (models + 1)) - 1
    seen = "none" if not as_much else f"{as_much:,}"
    remark = f"Of {models} benign models that were measured, {seen} showed as much"
    remark += f" (p = {verdict.p_value:.2g})."
    if not verdict.comparable:
        sizes = ", ".join(f"{eps:g}" for eps in BENIGN_EPS_255)
        remark += f" They were scanned at eps {sizes} of 255, and this one was not: that is a hint."
    if not verdict.clusters:
        remark += (
            " Only adversarial examples were looked at. They do not show a trigger that is too "
            "strong for a small perturbation to make, such as BadNets’: scan the training set."
        )
    if not verdict.infected or strongest is None:
        remark += " That is no proof that there is none."
        return Words("unknown", "No backdoor found", "No backdoor was found.", remark)
    if verdict.mode == "all_to_all":
        headline = "The model is infected, with a trigger for every label"
    else:
        listed = ", ".join(class_words(label, classes) for label in verdict.targets[:_LISTED])
        more = ", …" if len(verdict.targets) > _LISTED else ""
        plural = "s" if len(verdict.targets) > 1 else ""
        headline = f"The model is infected: a trigger leads to label{plural} {listed}{more}"
    if strongest.kind == "gap":
        remark += " Photographs in series of the same few objects can look like that, too."
    elif strongest.kind == "pull":
        remark += " In a benign model, a class that is much larger than the others looks so, too."
    remark = f"{evidence_words(strongest, classes)} {remark}"
    return Words("bad", "Infected", f"{headline}.", remark)


def evidence_words(one: Evidence, classes: Sequence[str] = ()) -> str:
    """What was seen, as a sentence."""
    times = "" if one.times is None else f"{one.times:.1f} times"
    label = class_words(one.label, classes)
    size = "" if one.eps_255 is None else f" at eps {one.eps_255:g}/255"
    match one.kind:
        case "pull":
            return (
                f"Adversarial examples of the other classes{size} are given label {label} {times} "
                "as often as if they were spread evenly, on average over the classes."
            )
        case "shift":
            places = "the next label" if one.label == 1 else f"the label {one.label} places on"
            return (
                f"Adversarial examples{size} are given {places} {times} as often as if they were "
                "spread evenly, on average over the classes."
            )
        case "gap":
            how = f"how hard they are to perturb{size}" if size else "how sure it is of them"
            return (
                f"The images of label {label} are two kinds to the model, by its activations and "
                f"by {how}."
            )
