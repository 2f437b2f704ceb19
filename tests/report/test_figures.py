"""The pictures of a report: what they show, and that they fit any page."""

import functools
import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.report._axes import thin
from pbe_fast.report._svg import clean_text
from pbe_fast.report.figures import (
    Evaluation,
    Step,
    curves,
    epochs_by_round,
    loss_curve,
    score_histogram,
)

SVG = "{http://www.w3.org/2000/svg}"
EVALUATIONS = [
    Evaluation(0, 1, 0.90, 0.50),
    Evaluation(0, 2, 0.93, 0.20),
    Evaluation(1, 1, 0.95, 0.02),
]
STEPS = [
    Step(number, epoch, batch, 2.0 if attacked else 0.5, attacked)
    for number in (0, 1)
    for epoch in (0, 1)
    for batch in range(9, 40, 10)
    for attacked in [number == 0 or (epoch == 0 and batch < 20)]
]
RANDOM = np.random.default_rng(1)
SCORES = np.concatenate([RANDOM.normal(0.9, 0.02, 900), RANDOM.normal(0.3, 0.1, 100), [np.nan]])
TRUTH = np.concatenate([np.zeros(900, bool), np.ones(101, bool)])


@functools.cache
def draw(name: str, label: str = "a picture") -> str:
    if name == "curves":
        return curves(EVALUATIONS, label=label, before=(0.97, 1.0)).svg
    if name == "loss":
        return loss_curve(STEPS, label=label).svg
    return score_histogram(SCORES, TRUTH if name == "truth" else None, label=label).svg


PICTURES = ["curves", "loss", "truth", "no truth"]


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", PICTURES)
def test_stands_in_a_page(name: str) -> None:
    svg = draw(name)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "a picture"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == "a picture"
    assert root.get("width") == "100%"
    assert root.get("height") is None
    assert re.fullmatch(r"0 0 \d+ \d+", root.get("viewBox", ""))
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags <= {
        "svg",
        "title",
        "g",
        "defs",
        "path",
        "use",
        "text",
        "clipPath",
        "rect",
        "pattern",
    }
    assert "font-family" not in svg
    assert "font:" not in svg
    assert "<?xml" not in svg
    assert "matplotlib" not in svg


@pytest.mark.parametrize("name", PICTURES)
def test_colours_follow_the_page(name: str) -> None:
    svg = draw(name)
    assert "currentColor" in svg
    bare = re.sub(r"var\(--figure-[a-z]+,#[0-9a-f]{6}\)", "", svg)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?!-)", bare.replace('"#f', "")) == []
    assert "black" not in bare
    assert "white" not in bare


@pytest.mark.parametrize("name", PICTURES)
def test_references_resolve_and_ids_are_unique_in_a_page(name: str) -> None:
    here, other = draw(name), draw(name, "another picture")
    ids = re.findall(r'\bid="([^"]+)"', here)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', here)
    assert set(used) == set(ids)
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(re.findall(r'\bid="([^"]+)"', other))


@pytest.mark.parametrize("name", PICTURES)
def test_same_numbers_same_text_whatever_the_user_set(name: str) -> None:
    settings_before = dict(matplotlib.rcParams)
    first = draw.__wrapped__(name)
    assert dict(matplotlib.rcParams) == settings_before
    mine = {
        "svg.fonttype": "path",
        "svg.hashsalt": None,
        "font.size": 30,
        "savefig.bbox": "tight",
        "hatch.linewidth": 9.0,
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(mine):
        assert draw.__wrapped__(name) == first


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    "label",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "]]></svg>", "$\\frac{"],
)
def test_hostile_labels_are_text(name: str, label: str) -> None:
    svg = draw(name, label)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == root[0].text == label
    assert "<script" not in svg
    assert "<img" not in svg


def test_control_characters_do_not_break_the_picture() -> None:
    svg = draw("curves", "a\x00b\ud800c")
    assert ElementTree.fromstring(svg).get("aria-label") == "a\ufffdb\ufffdc"
    assert clean_text("tab\tline\nend") == "tab\tline\nend"


def test_curves_name_both_lines_with_their_last_values() -> None:
    shown = texts(draw("curves"))
    assert {"ACC 95.0 %", "ASR 2.0 %", "round 0", "round 1", "100 %", "0 %"} <= set(shown)
    lines = [
        node.get("style", "")
        for node in ElementTree.fromstring(draw("curves")).iter(f"{SVG}path")
        if "stroke-width:2.2" in node.get("style", "")
    ]
    assert ["dasharray" in line for line in lines] == [False, True]
    assert "--figure-clean" in lines[0]
    assert "--figure-poison" in lines[1]


def test_curves_place_rounds_one_after_another() -> None:
    path = re.findall(r'<path d="([^"]+)"[^>]*stroke:var\(--figure-clean', draw("curves"))
    line = max(path, key=lambda d: d.count("L"))
    x = [float(value) for value in re.findall(r"[ML] ([\d.]+) ", line)]
    steps = np.diff(x)  # the infected model, then one point an epoch, over both rounds
    assert len(x) == 4
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


def test_curves_without_asr_look_closer_at_acc() -> None:
    evaluations = [Evaluation(0, 1, 0.95, None), Evaluation(0, 2, 0.96, None)]
    shown = texts(curves(evaluations, label="x").svg)
    assert "ACC 96.0 %" in shown
    assert not any(text.startswith("ASR") for text in shown)
    assert "0 %" not in shown
    assert not any(text.startswith("round") for text in shown)


@pytest.mark.parametrize(
    ("acc", "asr"), [(0.96, 0.96), (1.0, 0.99), (0.0, 0.0), (0.5, 0.5), (None, None)]
)
def test_labels_of_equal_ends_do_not_cover_each_other(acc: float | None, asr: float | None) -> None:
    svg = curves([Evaluation(0, 1, acc, asr)], label="x").svg
    heights = [
        float(node.get("y", "nan"))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if (node.text or "").startswith(("ACC", "ASR"))
    ]
    if acc is None:
        assert heights == []
    else:
        assert abs(heights[0] - heights[1]) >= 12


def test_epochs_by_round_takes_the_longer_record() -> None:
    assert epochs_by_round([Evaluation(1, 3, 0.9, None)], [Step(0, 4, 0, 1.0, False)]) == {
        0: 5.0,
        1: 3.0,
    }


def test_loss_shades_adversarial_batches() -> None:
    svg = draw("loss")
    assert {"plain batches", "adversarial", "loss"} <= set(texts(svg))
    bands = [
        [float(x) for x in re.findall(r"[ML] ([\d.]+) ", node.get("d", ""))]
        for node in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "opacity:0.12" in node.get("style", "")
    ]
    # All of round 0 and the first half of the next epoch: 2.5 of 4 epochs, from the left edge.
    assert [(min(band), max(band)) for band in bands] == [
        (pytest.approx(50), pytest.approx(50 + 376 * 2.5 / 4))
    ]
    plain = loss_curve([Step(0, 0, b, 1.0, False) for b in range(4)], label="x").svg
    assert "--figure-poison" not in plain
    assert "adversarial" not in texts(plain)


def test_loss_over_decades_is_on_a_log_scale() -> None:
    assert "loss, log scale" in texts(
        loss_curve([Step(0, 0, b, 4.0 * 0.5**b, False) for b in range(12)], label="x").svg
    )


def test_loss_survives_what_is_not_finite() -> None:
    losses = [1.0, math.nan, math.inf, 0.5]
    svg = loss_curve([Step(0, 0, b, loss, False) for b, loss in enumerate(losses)], label="x").svg
    assert "nan" not in svg.lower()
    assert "nan" not in loss_curve([Step(0, 0, 0, math.nan, True)], label="x").svg.lower()


def test_long_records_are_thinned() -> None:
    steps = [Step(0, e, b, 1 + (b % 7), False) for e in range(20) for b in range(1000)]
    assert len(loss_curve(steps, label="x").svg) < 40_000


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=30)
def test_thinning_keeps_the_weighted_mean(losses: list[float], bucket: int) -> None:
    x, y = thin(list(enumerate(losses)), bucket)
    sizes = [len(losses[i : i + bucket]) for i in range(0, len(losses), bucket)]
    assert len(x) == len(sizes)
    assert np.average(y, weights=sizes) == pytest.approx(np.mean(losses), abs=1e-6, rel=1e-9)


def test_histogram_keeps_clean_and_poisoned_apart() -> None:
    svg = draw("truth")
    assert {"clean (900)", "poisoned (100)"} <= set(texts(svg))  # the quarantined one is left out
    assert "<pattern" in svg
    assert "<pattern" not in draw("no truth")
    assert "--figure-poison" not in draw("no truth")


def test_histogram_uses_log_counts_only_where_they_help() -> None:
    assert "images, log scale" in texts(
        score_histogram(np.r_[np.full(5000, 0.99), np.linspace(-1, 0.9, 100)], None, label="x").svg
    )
    assert "images" in texts(score_histogram(np.linspace(-1, 1, 480), None, label="x").svg)


@pytest.mark.parametrize(
    "scores", [[], [np.nan], [0.5], [1.0, 1.0, 1.0], [-1.0, 1.0], [1.0000001, -1.0000001]]
)
def test_histogram_of_few_or_equal_scores(scores: list[float]) -> None:
    values = np.array(scores, np.float32)
    for truth in (None, np.zeros(len(values), bool), np.ones(len(values), bool)):
        assert "nan" not in score_histogram(values, truth, label="x").svg.lower()
