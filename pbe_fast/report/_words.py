"""The numbers of a run in words, never claiming more than was measured."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbe_fast.erase.ranking import KEPT
from pbe_fast.report._run import Accuracies, Metrics, ModelMetrics

__all__ = [
    "Verdict",
    "attack_words",
    "backdoor_words",
    "class_words",
    "duration",
    "method_words",
    "model_words",
    "percent",
    "points",
    "verdict",
]

ASR_GONE = 0.05  # at or below this the trigger is called ineffective
ACC_COST = 0.05  # a loss above this is named beside the success
_SPACE = "\N{NO-BREAK SPACE}"
_METHODS = {
    "pbe": "Progressive Backdoor Erasing (PBE)",
    "aft": "Adversarial fine-tuning (AFT)",
    "sieve": "Sieve (progressive erasing after a split of the classes)",
    "train": "Training",
}


@dataclass(frozen=True)
class Verdict:
    """What the run achieved.

    Attributes:
        kind: ``good``, ``warn``, ``bad`` or ``unknown``; chooses mark and colour.
        badge: two or three words.
        headline: one sentence with the numbers.
        remark: one or two sentences on how to read it.
    """

    kind: str
    badge: str
    headline: str
    remark: str


def percent(value: float) -> str:
    """A fraction as ``96.4 %``."""
    return f"{value * 100:.1f}{_SPACE}%"


def points(before: float, after: float) -> str:
    """The change between two fractions in percentage points, with a real minus: ``−0.7``."""
    change = round(after * 100, 1) - round(before * 100, 1)
    text = f"{abs(change):.1f}"
    if float(text) == 0:
        return "0.0"
    return ("+" if change > 0 else "\N{MINUS SIGN}") + text


def duration(seconds: float) -> str:
    """Seconds for people: ``0.42 s``, ``12.3 s``, ``21 min 24 s``, ``11 h 27 min``."""
    if seconds < 1:
        return f"{seconds:.2f}{_SPACE}s"
    if seconds < 59.95:
        return f"{seconds:.1f}{_SPACE}s"
    whole = math.floor(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60}{_SPACE}min {whole % 60:02d}{_SPACE}s"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes // 60:,}{_SPACE}h {minutes % 60:02d}{_SPACE}min"


def method_words(metrics: Metrics) -> str:
    """The method's full name."""
    if metrics.method:
        return _METHODS.get(metrics.method.lower(), metrics.method)
    return _METHODS["train"] if metrics.is_training else "Run"


def class_words(label: int, classes: Sequence[str] = ()) -> str:
    """A class as ``stop (14)``, or ``14`` where it has no name, or no other."""
    name = " ".join(classes[label].split()) if 0 <= label < len(classes) else ""
    if name in ("", str(label)):
        return str(label)
    return f"{name if len(name) <= 60 else name[:59] + '…'} ({label})"


def backdoor_words(metrics: Metrics, classes: Sequence[str] = ()) -> str | None:
    """Whether a backdoor was found in the training set; None where the method does not say.

    Args:
        classes: names, by label.
    """
    if metrics.backdoor is None:
        return None
    found = metrics.backdoor
    said = "No backdoor was found in the training set."
    if not found.judged:
        said = (
            "Whether there is a backdoor could not be judged: that takes three classes, and one of "
            "20 images."
        )
    if found.found:
        where = _classes(found.labels, classes)
        said = f"A backdoor was found: images that show something else in {where}."
    if found.kept is not None:
        said += f" The purified model gives {percent(found.kept)} of them the label they came with"
        said += ": part of the backdoor may be left." if found.kept > KEPT else "."
    if found.unlearned:
        where = _classes(found.unlearned, classes)
        said += (
            f" The purified model has not learned {where}. Most of what seems clean there it takes "
            "for something else: fine-tune it on clean images."
        )
    if found.mislabelled:
        where = _classes(found.mislabelled, classes)
        said += (
            f" Images that show something else than their label in {where}, have no trigger in "
            "common: these labels may be wrong."
        )
    if found.odd:
        said += f" Some images may be mislabelled or rare in {_classes(found.odd, classes)}."
    return said


def _classes(labels: Sequence[int], classes: Sequence[str]) -> str:
    listed = ", ".join(class_words(label, classes) for label in labels[:20])
    listed += ", …" if len(labels) > 20 else ""
    return f"class {listed}" if len(labels) == 1 else f"{len(labels):,} classes: {listed}"


def attack_words(attack: Mapping[str, Any]) -> str:
    """An attack on one line: ``badnets (rate 0.1, target 1)``."""
    name = str(attack.get("name", "unnamed"))
    return _with_facts(name, {key: value for key, value in attack.items() if key != "name"})


def model_words(model: ModelMetrics) -> str:
    """A model on one line: ``builtin:preact_resnet18 (width 16, 43 classes)``."""
    classes = [] if model.classes is None else [f"{model.classes:,} classes"]
    return _with_facts(model.name, model.options, *classes)


def _with_facts(name: str, facts: Mapping[str, Any], *more: str) -> str:
    rest = []
    for key, value in facts.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rest.append(f"{key} {text if len(text) <= 60 else text[:59] + '…'}")
    rest.extend(more)
    return f"{name} ({', '.join(rest)})" if rest else name


def verdict(metrics: Metrics) -> Verdict:
    """Judge a run by its ACC and ASR, and without an ASR by whether a backdoor was found."""
    if metrics.is_purification:
        infected, purified = metrics.infected or Accuracies(), metrics.purified or Accuracies()
        found = metrics.backdoor
        clean = found is not None and found.judged and not found.found
        return _purification(infected, purified, clean)
    if metrics.is_training:
        return _training(metrics.test or Accuracies())
    return Verdict(
        "unknown",
        "No result",
        "This run has no result yet.",
        "metrics.json names neither a purified nor a trained model.",
    )


def _moved(name: str, before: float, after: float) -> tuple[str, str]:
    """A verb and the two numbers, judged as they are shown."""
    first, last = percent(before), percent(after)
    if first == last:
        return "stayed", f"{name} stayed at {last}"
    verb = "fell" if after < before else "rose"
    return verb, f"{name} {verb} from {first} to {last}"


def _acc_words(infected: Accuracies, purified: Accuracies) -> tuple[str, str]:
    if purified.acc is None:
        return "", "ACC was not measured"
    if infected.acc is None:
        return "", f"ACC is {percent(purified.acc)}"
    return _moved("ACC", infected.acc, purified.acc)


def _purification(infected: Accuracies, purified: Accuracies, clean: bool) -> Verdict:
    acc_verb, acc_text = _acc_words(infected, purified)
    cost = 0.0
    if infected.acc is not None and purified.acc is not None:
        cost = infected.acc - purified.acc
    if purified.asr is None and purified.acc is None:
        return Verdict(
            "unknown",
            "Not measured",
            "A purified model was written, but it was not tested.",
            "No test set was given, so neither its accuracy nor whether a trigger still works is "
            "known.",
        )
    if purified.asr is None and clean:
        return Verdict(
            "unknown",
            "No backdoor found",
            f"No backdoor was found; {acc_text}.",
            "No trigger was tested, and one that these images do not show cannot be found in them.",
        )
    if purified.asr is None:
        return Verdict(
            "unknown",
            "ASR not known",
            f"Whether the backdoor is gone is not known; {acc_text}.",
            "ASR was not measured after purification. ACC alone does not show whether a trigger "
            "still works.",
        )
    works = (
        f"The trigger still leads {percent(purified.asr)} of the triggered test images to the "
        "attacker’s label."
    )
    if infected.asr is None:
        headline = f"ASR is {percent(purified.asr)} after purification; {acc_text}."
        if purified.asr > ASR_GONE:
            headline = f"The trigger still works: {headline}"
            return Verdict("bad", "Trigger still works", headline, works)
        return Verdict(
            "unknown",
            "No ASR before",
            headline,
            "The tested trigger does not work on the purified model. ASR of the infected model "
            "was not measured, so this run does not show that there was a backdoor to remove.",
        )

    asr_verb, asr_text = _moved("ASR", infected.asr, purified.asr)
    if asr_verb == acc_verb and asr_verb != "stayed":
        acc_text = acc_text.replace(f" {acc_verb} from", " from", 1)
    headline = f"{asr_text}, {acc_text}."
    if infected.asr <= ASR_GONE and purified.asr <= ASR_GONE:
        return Verdict(
            "unknown",
            "Nothing to remove",
            headline,
            "The tested trigger hardly worked on the infected model either, so this run does not "
            "show that a backdoor was removed.",
        )
    if purified.asr <= ASR_GONE:
        if cost > ACC_COST:
            return Verdict(
                "warn",
                "Removed at a cost",
                headline,
                f"The tested trigger no longer works, but ACC lost {cost * 100:.1f} percentage "
                "points. Look for classes that the model has forgotten before using it.",
            )
        return Verdict(
            "good",
            "Trigger removed",
            headline,
            "The tested trigger no longer works on the purified model. Other triggers were not "
            "tested.",
        )
    if purified.asr <= infected.asr / 2:
        headline = f"The backdoor is weaker, not gone: {headline}"
        return Verdict("warn", "Weakened, not removed", headline, works)
    headline = f"The backdoor is still there: {headline}"
    return Verdict("bad", "Backdoor still there", headline, works)


def _training(test: Accuracies) -> Verdict:
    parts = [
        f"{name} {percent(value)}"
        for name, value in (("ACC", test.acc), ("ASR", test.asr))
        if value is not None
    ]
    if not parts:
        return Verdict(
            "unknown",
            "Not measured",
            "The model was trained but not tested.",
            "No test set was given.",
        )
    headline = f"The trained model has {' and '.join(parts)} on the test set."
    if test.asr is None:
        return Verdict(
            "unknown",
            "ASR not measured",
            headline,
            "No trigger was tested, so whether the model carries a backdoor is not known.",
        )
    if test.asr > ASR_GONE:
        return Verdict(
            "warn",
            "Infected",
            headline,
            f"The tested trigger leads {percent(test.asr)} of the triggered test images to the "
            "attacker’s label.",
        )
    return Verdict(
        "unknown",
        "Trigger without effect",
        headline,
        "The tested trigger does not work on this model.",
    )
