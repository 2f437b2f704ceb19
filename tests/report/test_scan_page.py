"""The page of a scan: what it says, and that nothing of what it shows is executed."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, write_predictions
from pbe_fast.errors import RunDirectoryError
from pbe_fast.report import write_report
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
    assert page.count("<table") == 3
    assert "Label 1 gets the most" in page
    assert ("60 labels with the largest share" in page) == (classes > 60)
    assert "3.0\u00a0s" in page
    assert "http" not in re.sub(r'xmlns="[^"]*"|http-equiv', "", page)


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
