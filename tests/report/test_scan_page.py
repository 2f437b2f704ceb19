"""The page of a scan: what it says, and that nothing of what it shows is executed."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pbe_fast.analysis.predictions import (
    PREDICTIONS_NAME,
    Predictions,
    read_predictions,
    write_predictions,
)
from pbe_fast.analysis.verdict import Evidence, Verdict
from pbe_fast.errors import RunDirectoryError
from pbe_fast.report import write_report
from pbe_fast.report._scan_words import evidence_words, verdict_words
from pbe_fast.report.heatmap import heat_map

HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e"


def _make(run: Path, classes: int, names: tuple[str, ...] | None = None) -> Path:
    """A run in which label 1 gets ever more examples."""
    run.mkdir()
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes, dtype=np.int32), 10)
    predicted = np.stack(
        [
            np.where(
                random.random(len(labels)) < share, 1, random.integers(0, classes, len(labels))
            )
            for share in (0.0, 0.1, 0.8)
        ],
        1,
    ).astype(np.int32)
    predicted[:, 0] = labels
    margins = random.normal(0, 3, predicted.shape).astype(np.float32)
    names = names or tuple(str(i) for i in range(classes))
    found = Predictions(names, (2.0, 8.0), labels, predicted, margins)
    words = pa.array(["x"] * len(labels), pa.string())
    write_predictions(run / PREDICTIONS_NAME, found, words, words)
    metrics = {"kind": "scan", "seconds": {"scan": 3.0}, "device": "cpu", "seed": 7}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.mark.parametrize("classes", [2, 10, 43, 100])
def test_a_page_has_a_picture_and_a_table_for_each_size(tmp_path: Path, classes: int) -> None:
    page = write_report(_make(tmp_path / "run", classes)).read_text("utf-8")
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert "Heat map at eps " in (root.get("aria-label") or "")
    assert page.count("<table") == 4
    assert "The strongest evidence of each kind, beside" in page
    assert "Label 1 gets the most" in page
    assert ("60 labels with the largest share" in page) == (classes > 60)
    assert "3.0\u00a0s" in page
    assert "http" not in re.sub(r'xmlns="[^"]*"|http-equiv', "", page)


def test_evidence_in_words() -> None:
    names = ("zero", "one", "two")
    said = evidence_words(Evidence("shift", 0.3, 2, 8.0, 2.0), names)
    assert "the label 2 places on 2.0 times" in said
    assert "the next label" in evidence_words(Evidence("shift", 0.0, 1, 8.0, 1.0), names)
    assert "label two (2) 4.0 times" in evidence_words(Evidence("pull", 0.6, 2, 8.0, 4.0), names)
    assert "sure" in evidence_words(Evidence("gap", 1.0, 0), names)
    assert "perturb at eps 2/255" in evidence_words(Evidence("gap", 1.0, 0, 2.0), names)


@pytest.mark.parametrize(
    ("mode", "targets", "words"),
    [
        ("all_to_one", (2,), "a trigger leads to label two (2)."),
        ("all_to_one", (2, 0), "a trigger leads to labels two (2), zero (0)."),
        ("all_to_all", (), "with a trigger for every label."),
        (None, (), "No backdoor was found."),
    ],
)
def test_verdicts_in_words(mode: Any, targets: tuple[int, ...], words: str) -> None:
    seen = (Evidence("pull", 0.5, 2, 8.0, 3.0),)
    infected = mode is not None
    p_value = 1 / 21 if infected else 3 / 21
    for clusters, comparable in product((True, False), repeat=2):
        verdict = Verdict(infected, mode, targets, p_value, 20, clusters, True, comparable, seen)
        said = verdict_words(verdict, ("zero", "one", "two"))
        assert ("at eps 2, 8, 16 of 255" in said.remark) == (not comparable)
        assert said.headline.endswith(words)
        assert said.kind == ("bad" if infected else "unknown")
        assert ("none showed as much" if infected else "2 showed as much") in said.remark
        assert ("scan the training set" in said.remark) == (not clusters)
        assert ("no proof" in said.remark) == (not infected)


def test_a_verdict_says_what_else_looks_so() -> None:
    warnings = {
        "gap": "in series of the same few objects",
        "pull": "a class that is much larger than the others",
    }
    for kind in ("gap", "pull", "shift"):
        seen = (Evidence(kind, 1.0, 2, 8.0, 3.0),)  # type: ignore[arg-type]  # of a loop
        said = verdict_words(Verdict(True, "all_to_one", (2,), 1 / 21, 20, True, True, True, seen))
        for one, words in warnings.items():
            assert (words in said.remark) == (one == kind)


def test_few_classes_have_no_verdict() -> None:
    seen = (Evidence("pull", 1.0, 2, 8.0, 9.0),)
    said = verdict_words(Verdict(False, None, (), 1 / 21, 20, True, False, True, seen))
    assert (said.kind, said.badge) == ("unknown", "No verdict")
    assert "had 10 classes or more" in said.remark
    assert "No backdoor" not in said.headline + said.remark


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    page = write_report(_make(tmp_path / "run", 3, (HOSTILE, HOSTILE, "2"))).read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x00" not in page
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert not [name for name in tags.attributes if name.startswith("on")]


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = _make(tmp_path / "run", 5)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize("classes", [3, 43])
def test_heat_maps_are_files_too(tmp_path: Path, classes: int) -> None:
    names = (HOSTILE, *(str(i) for i in range(1, classes)))
    page = write_report(_make(tmp_path / "run", classes, names)).read_text("utf-8")
    assert "figures/" in page
    folder = tmp_path / "run" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        "heat-map-2.png", "heat-map-2.svg", "heat-map-8.png", "heat-map-8.svg",
    ]  # fmt: skip
    label = re.findall(r'aria-label="(Heat map at eps 8/255[^"]*)"', page)[0]
    text = (folder / "heat-map-8.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == label
    assert "var(" not in text
    assert not re.search(r"<script|<style|https?://(?!www\.w3\.org/2000/svg)|[\x00\u202e]", text)
    assert {"predicted label →", "↓ true", "0"} <= {node.text for node in root.iter()}
    with Image.open(folder / "heat-map-8.png") as image:
        shades = np.asarray(image.convert("RGB")).astype(int)
        assert image.info["Description"] == label.encode("ascii", "replace").decode()
    # The words are above, and the column of label 1 is the one with most blue.
    assert shades[20:60].min() < 60
    assert shades[-30:].min() > 60
    blue = (shades[..., 2] - shades[..., 0])[100:-40, 120:-40].mean(0)
    cell = len(blue) / classes
    assert cell * 0.9 < int(np.argmax(blue)) < cell * 2.1


def test_sizes_have_names_of_their_own(tmp_path: Path) -> None:
    run = _make(tmp_path / "run", 3)
    found = read_predictions(run / PREDICTIONS_NAME)
    words = pa.array(["x"] * len(found.labels), pa.string())
    changed = dataclasses.replace(found, eps_255=(0.5, 0.5000001))
    write_predictions(run / PREDICTIONS_NAME, changed, words, words)
    write_report(run)
    names = {path.stem for path in (run / "figures").iterdir()}
    assert names == {"heat-map-0.5", "heat-map-0.5000001"}


def test_a_plot_that_no_longer_belongs_to_the_run_is_deleted_and_nothing_else(
    tmp_path: Path,
) -> None:
    run = _make(tmp_path / "run", 3)
    folder = run / "figures"
    (folder / "loss.svg").mkdir(parents=True)
    stale = ["heat-map-4.png", "heat-map-0.25.svg", "heat-map-1e-05.png", "curves.svg"]
    theirs = [
        "heat-map-4.txt", "heat-map-notes.png", "my-heat-map-4.png", "curves.svg.bak",
        "curves.pdf", "holiday.png", "heat-map-.png",
    ]  # fmt: skip
    for name in stale + theirs:
        (folder / name).write_text("x")
    (folder / "scores.png").symlink_to(folder / "holiday.png")
    write_report(run)
    left = {path.name for path in folder.iterdir()}
    assert left == {
        *theirs, "loss.svg", "scores.png",
        "heat-map-2.png", "heat-map-2.svg", "heat-map-8.png", "heat-map-8.svg",
    }  # fmt: skip
    assert (folder / "holiday.png").read_text() == "x"


def test_nothing_is_deleted_behind_a_link(tmp_path: Path) -> None:
    run = _make(tmp_path / "run", 3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "loss.png").write_text("x")
    (run / "figures").symlink_to(tmp_path / "elsewhere")
    write_report(run)
    assert (tmp_path / "elsewhere" / "loss.png").exists()


@pytest.mark.parametrize("eps", [(8.0, 2.0), (-2.0, 8.0), (2.0, 2.0), (float("nan"), 8.0)])
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, eps: tuple[float, ...]) -> None:
    run = _make(tmp_path / "run", 3)
    kept = pq.read_table(run / PREDICTIONS_NAME)
    names = ["key", "shard", "label", *(f"{kind}{part}" for kind in ("predicted", "margin")
             for part in ("", *(f"_eps_{size:.15g}" for size in eps)))]  # fmt: skip
    header = json.dumps({"classes": ["0", "1", "2"], "eps_255": eps})
    columns = kept.columns
    table = pa.table(columns, names=names)
    pq.write_table(
        table.replace_schema_metadata({b"pbe_fast_scan": header}), run / PREDICTIONS_NAME
    )
    with pytest.raises(RunDirectoryError, match="holds no predictions"):
        write_report(run)


def test_a_missing_table_is_a_message_and_leaves_the_page(tmp_path: Path) -> None:
    run = _make(tmp_path / "run", 3)
    first = write_report(run).read_bytes()
    (run / PREDICTIONS_NAME).unlink()
    with pytest.raises(RunDirectoryError, match="pbe-fast scan"):
        write_report(run)
    assert (run / "report.html").read_bytes() == first


# the heat map


def test_cells_say_what_they_stand_for() -> None:
    counts = np.array([[1, 3, 0], [0, 4, 0], [0, 0, 0]])
    root = ElementTree.fromstring(heat_map(counts, ["0 a", "1 b", "2 c"], label="words"))
    svg = "{http://www.w3.org/2000/svg}"
    cells = [
        (node.findtext(f"{svg}title"), float(node.get("fill-opacity", "nan")))
        for node in root.iter(f"{svg}rect")
        if node.find(f"{svg}title") is not None
    ]
    assert [words for words, _ in cells] == [
        "label 0 a, predicted 0 a: 1 of 4",
        "label 0 a, predicted 1 b: 3 of 4",
        "label 1 b, predicted 1 b: 4 of 4",
    ]
    assert cells[0][1] < cells[1][1] < cells[2][1] <= 1
    numbers = [node.text for node in root.iter(f"{svg}text")]
    assert {"25", "75", "100", "0", "1", "2"} <= set(numbers)
    assert root.get("aria-label") == "words"


def test_many_classes_have_fewer_words_and_stay_inside() -> None:
    counts = np.ones((43, 43), np.int64)
    root = ElementTree.fromstring(heat_map(counts, [str(i) for i in range(43)], label="x"))
    width, height = (float(v) for v in (root.get("viewBox") or "").split()[2:])
    texts = [node for node in root.iter() if node.tag.endswith("text")]
    assert len(texts) == 2 * 9 + 2
    for node in root.iter():
        if node.tag.endswith("rect"):
            assert float(node.get("x", 0)) + float(node.get("width", 0)) <= width
            assert float(node.get("y", 0)) + float(node.get("height", 0)) <= height
