"""The words of a report: true to the numbers, and no success where none was measured."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.report._run import Metrics
from pbe_fast.report._words import (
    Verdict,
    attack_words,
    backdoor_words,
    class_words,
    duration,
    percent,
    points,
    verdict,
)

NBSP = "\N{NO-BREAK SPACE}"
FELL = "ACC from 97.0 % to 96.0 %."
ACC_FELL = "ACC fell from 97.0 % to 96.0 %."
WEAKER, THERE = "The backdoor is weaker, not gone: ", "The backdoor is still there: "
UNKNOWN = "Whether the backdoor is gone is not known; "


def judge(infected: tuple[float | None, ...], purified: tuple[float | None, ...]) -> Verdict:
    models = {
        name: dict(zip(("acc", "asr"), pair, strict=True))
        for name, pair in (("infected", infected), ("purified", purified))
    }
    return verdict(Metrics.model_validate(models))


@pytest.mark.parametrize(
    ("infected", "purified", "kind", "headline"),
    [
        ((0.97, 1.0), (0.96, 0.001), "good", f"ASR fell from 100.0 % to 0.1 %, {FELL}"),
        (
            (0.96, 1.0),
            (0.97, 0.001),
            "good",
            "ASR fell from 100.0 % to 0.1 %, ACC rose from 96.0 % to 97.0 %.",
        ),
        (
            (0.97, 1.0),
            (0.97, 0.05),
            "good",
            "ASR fell from 100.0 % to 5.0 %, ACC stayed at 97.0 %.",
        ),
        ((None, 1.0), (None, 0.0), "good", "ASR fell from 100.0 % to 0.0 %, ACC was not measured."),
        (
            (0.966, 0.998),
            (0.84, 0.02),
            "warn",
            "ASR fell from 99.8 % to 2.0 %, ACC from 96.6 % to 84.0 %.",
        ),
        ((0.97, 1.0), (0.96, 0.3), "warn", f"{WEAKER}ASR fell from 100.0 % to 30.0 %, {FELL}"),
        ((0.97, 1.0), (0.96, 0.94), "bad", f"{THERE}ASR fell from 100.0 % to 94.0 %, {FELL}"),
        ((0.97, 1.0), (0.96, 1.0), "bad", f"{THERE}ASR stayed at 100.0 %, {ACC_FELL}"),
        ((0.97, 0.2), (0.96, 0.9), "bad", f"{THERE}ASR rose from 20.0 % to 90.0 %, {ACC_FELL}"),
        ((0.97, 0.01), (0.96, 0.002), "unknown", f"ASR fell from 1.0 % to 0.2 %, {FELL}"),
        (
            (0.97, None),
            (0.96, 0.002),
            "unknown",
            f"ASR is 0.2 % after purification; {ACC_FELL}",
        ),
        (
            (0.97, None),
            (0.96, 0.6),
            "bad",
            f"The trigger still works: ASR is 60.0 % after purification; {ACC_FELL}",
        ),
        ((0.97, 1.0), (0.96, None), "unknown", UNKNOWN + ACC_FELL),
        ((None, None), (0.9, None), "unknown", UNKNOWN + "ACC is 90.0 %."),
    ],
)
def test_headline(
    infected: tuple[float | None, ...],
    purified: tuple[float | None, ...],
    kind: str,
    headline: str,
) -> None:
    result = judge(infected, purified)
    assert (result.kind, result.headline.replace(NBSP, " ")) == (kind, headline)


MAYBE = st.none() | st.floats(0, 1)


@given(st.tuples(MAYBE, MAYBE), st.tuples(MAYBE, MAYBE))
@settings(deadline=None, max_examples=100)
def test_success_is_said_only_of_a_measured_fall(
    infected: tuple[float | None, ...], purified: tuple[float | None, ...]
) -> None:
    result = judge(infected, purified)
    if result.kind == "good":
        before, after = infected[1], purified[1]
        assert before is not None
        assert after is not None
        assert after <= 0.05 < before
        assert "fell" in result.headline


@pytest.mark.parametrize(
    ("test", "kind", "badge"),
    [
        ({"acc": 0.97, "asr": 1.0}, "warn", "Infected"),
        ({"acc": 0.97, "asr": 0.01}, "unknown", "Trigger without effect"),
        ({"acc": 0.97}, "unknown", "ASR not measured"),
        ({}, "unknown", "Not measured"),
        (None, "unknown", "Not measured"),
    ],
)
def test_training_is_never_called_a_success(
    test: dict[str, float] | None, kind: str, badge: str
) -> None:
    result = verdict(Metrics.model_validate({"kind": "train", "test": test}))
    assert (result.kind, result.badge) == (kind, badge)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00 s"),
        (0.42, "0.42 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (41220.5, "11 h 27 min"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds).replace(NBSP, " ") == shown


def test_changes_agree_with_what_is_shown() -> None:
    assert points(0.97144, 0.96451) == "−0.6"  # 97.1 to 96.5, as the columns beside it say
    assert points(0.5, 0.5004) == "0.0"
    assert points(0.1, 1.0) == "+90.0"
    assert percent(0.9714) == f"97.1{NBSP}%"


def test_nothing_measured_claims_nothing() -> None:
    result = judge((0.97, 1.0), (None, None))
    assert (result.kind, result.badge) == ("unknown", "Not measured")
    assert verdict(Metrics(kind="purify")).badge == "Not measured"
    assert verdict(Metrics()).badge == "No result"


def test_attack_on_one_line() -> None:
    assert attack_words({"name": "wanet", "k": 4, "grid": [1, 2], "seed": None}) == (
        "wanet (k 4, grid [1, 2])"
    )
    assert attack_words({}) == "unnamed"
    assert len(attack_words({"name": "x", "mask": "m" * 900})) < 80


@pytest.mark.parametrize(
    ("backdoor", "words"),
    [
        (None, None),
        ({"found": False}, "No backdoor was found"),
        ({"found": False, "judged": False}, "could not be judged"),
        ({"found": False, "odd": [16]}, "may be mislabelled or rare in class 16."),
        ({"found": False, "mislabelled": [1, 2]}, "label in 2 classes: 1, 2, have no trigger"),
        ({"found": True, "labels": [3]}, "in class 3."),
        (
            {"found": True, "labels": [3], "kept": 0.021},
            "gives 2.1\xa0% of them the label they came with.",
        ),
        ({"found": True, "labels": [3], "kept": 0.051}, "part of the backdoor may be left."),
        (
            {"found": True, "labels": [3], "unlearned": [3]},
            "has not learned class 3. Most of what seems clean there",
        ),
        ({"found": True, "labels": list(range(43))}, "in 43 classes: 0, 1, 2"),
    ],
)
def test_whether_a_backdoor_was_found(backdoor: object, words: str | None) -> None:
    said = backdoor_words(Metrics.model_validate({"backdoor": backdoor}))
    assert said == words or (words is not None and said is not None and words in said)


@pytest.mark.parametrize(
    ("label", "said"),
    [(0, "stop (0)"), (1, "1"), (2, "2"), (3, "two lines (3)"), (4, "4"), (-1, "-1")],
)
def test_a_class_is_called_by_its_name(label: int, said: str) -> None:
    assert class_words(label, ["stop", "1", " ", "two\nlines"]) == said


def test_a_long_name_is_cut() -> None:
    assert class_words(0, ["x" * 1000]) == f"{'x' * 59}… (0)"


@pytest.mark.parametrize(
    ("backdoor", "asr", "headline"),
    [
        ({"found": False}, None, f"No backdoor was found; {ACC_FELL}"),
        ({"found": False, "judged": False}, None, f"{UNKNOWN}{ACC_FELL}"),
        ({"found": True, "labels": [1]}, None, f"{UNKNOWN}{ACC_FELL}"),
        # What was measured counts for more than what was found.
        ({"found": False}, 1.0, f"{THERE}ASR stayed at 100.0 %, {ACC_FELL}"),
    ],
)
def test_where_no_backdoor_was_found_the_headline_says_so(
    backdoor: object, asr: float | None, headline: str
) -> None:
    models = {
        name: {"acc": acc, "asr": asr} for name, acc in (("infected", 0.97), ("purified", 0.96))
    }
    said = verdict(Metrics.model_validate(models | {"backdoor": backdoor}))
    assert said.headline.replace(NBSP, " ") == headline
    assert said.kind == ("bad" if asr else "unknown")


def test_classes_of_a_backdoor_have_names() -> None:
    found = {"found": True, "labels": [1], "odd": [0, 1]}
    said = backdoor_words(Metrics.model_validate({"backdoor": found}), ["left", "right"])
    assert said is not None
    assert "show something else in class right (1)." in said
    assert "2 classes: left (0), right (1)." in said
