"""Pictures and names in the page of a run, from files that may be anybody's."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pbe_fast.data.decode import decode_rgb
from pbe_fast.errors import RunDirectoryError
from pbe_fast.report import write_report
from pbe_fast.report._svg import clean_text
from pbe_fast.thumbnails import SHOWN, png_bytes
from tests.report.test_page import PAYLOADS, Page, assert_harmless, read

NAMES = [*PAYLOADS, "</title><script>alert(6)</script>", "a\u202egpj.exe", "b\u2066c", "d\x00e\x1b"]
PREFIX = "data:image/png;base64,"


def picture(shade: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), shade, np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def write_run(run: Path, names: list[str], *, classes: Any = (), truth: bool = True) -> Path:
    """A run whose suspects, shards and classes have these names; image i has the shade i."""
    (run / "metrics.json").write_text(json.dumps({"test": {"acc": 0.5}, "backdoor": {
        "found": True, "labels": list(range(len(names)))}}))  # fmt: skip
    table = pa.table(
        {
            "key": names,
            "shard": [f"{name}.tar" for name in names],
            "label": pa.array(range(len(names)), pa.int32()),
            "score": pa.array(np.linspace(0, 1, len(names)), pa.float32()),
            "rank": list(range(len(names))),
            **({"poisoned": [i % 2 == 0 for i in range(len(names))]} if truth else {}),
        }
    )
    header = {b"pbe_fast": json.dumps({"classes": classes})}
    pq.write_table(table.replace_schema_metadata(header), run / "suspects.parquet")
    write_thumbnails(
        run,
        [
            {"shard": f"{name}.tar", "key": name, "png": encoded(picture(i))}
            for i, name in enumerate(names)
        ],
    )
    return run


def write_thumbnails(run: Path, thumbnails: list[dict[str, Any]]) -> None:
    (run / "thumbnails.json").write_text(json.dumps({"thumbnails": thumbnails}))


def images(page: Page) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in page.elements if tag == "img"]


def shown(image: dict[str, str | None]) -> np.ndarray:
    source = image["src"] or ""
    assert source.startswith(PREFIX)
    return decode_rgb(base64.b64decode(source.removeprefix(PREFIX)))


def test_the_worst_are_shown_with_what_is_known(tmp_path: Path) -> None:
    names = [f"k{i:02}" for i in range(30)]
    page = read(write_run(tmp_path, names, classes=[f"class {i}" for i in range(30)]))
    assert_harmless(page)
    found = images(page)
    assert [int(shown(one)[0, 0, 0]) for one in found] == list(range(SHOWN))
    assert found[7]["alt"] == "Training image k07, labelled class 7 (7)"
    assert (found[7]["width"], found[7]["height"], found[7]["class"]) == ("32", "32", "pixels")
    spans = page.texts("span")
    assert spans.count("poisoned") == SHOWN // 2
    assert spans.count("clean") == SHOWN // 2
    assert "score 0.241" in spans
    assert "class 7 (7)" in page.texts("td")
    assert "What they look like" in page.texts("h3")
    assert "images that show something else in 30 classes: class 0 (0), class 1 (1)" in page.text


def test_without_truth_nothing_is_called_poisoned_or_clean(tmp_path: Path) -> None:
    page = read(write_run(tmp_path, ["a", "b"], truth=False))
    assert len(images(page)) == 2
    assert not {"poisoned", "clean"} & set(page.texts("span"))


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = read(write_run(tmp_path, NAMES, classes=NAMES))
    assert_harmless(page)
    assert len(images(page)) == len(NAMES)
    assert len(page.texts("title")) == 1 + 1  # of the page, and of the histogram
    for label, name in enumerate(NAMES):
        cleaned = clean_text(name)
        assert cleaned in page.texts("th")
        assert f"{cleaned}.tar" in page.texts("td")
        assert f"{cleaned} ({label})" in page.texts("td")
        assert f"Training image {cleaned}, labelled {cleaned} ({label})" in [
            image["alt"] for image in images(page)
        ]
    source = (tmp_path / "report.html").read_text("utf-8")
    assert not set(source) & set("\x00\x1b\u202e\u2066")


@given(text=st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=40))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_is_shown_and_nothing_else(tmp_path: Path, text: str) -> None:
    write_report(write_run(tmp_path, [text], classes=[text]))
    page = Page((tmp_path / "report.html").read_bytes().decode())
    assert_harmless(page)
    (image,) = images(page)
    assert (image["alt"] or "").startswith(f"Training image {clean_text(text)}, labelled ")


def test_a_file_of_another_kind_never_reaches_the_page(tmp_path: Path) -> None:
    """A JPEG, a PNG with text in it, one with a tail: the pixels are shown, not the bytes."""
    run = write_run(tmp_path, ["jpeg", "words", "tail"])
    plain = base64.b64decode(encoded(picture(9)))
    text = b"tEXtComment\0<script>alert(1)</script>"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    files = {
        "jpeg": base64.b64decode(encoded(picture(9), "JPEG")),
        "words": plain[:33] + chunk + plain[33:],
        "tail": plain + b"<script>alert(1)</script>",
    }
    write_thumbnails(run, [
        {"shard": f"{name}.tar", "key": name, "png": base64.b64encode(content).decode()}
        for name, content in files.items()
    ])  # fmt: skip
    page = read(run)
    assert_harmless(page)
    for image in images(page):
        content = base64.b64decode((image["src"] or "").removeprefix(PREFIX))
        assert content == png_bytes(shown(image))
        assert b"script" not in content
    assert len(images(page)) >= 2


@pytest.mark.parametrize(
    "png",
    [
        "no base64!",
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        base64.b64encode(base64.b64decode(encoded(picture(1)))[:-9]).decode(),
        encoded(picture(1, 97)),  # larger than a thumbnail is
    ],
)
def test_a_damaged_picture_is_a_word(tmp_path: Path, png: str) -> None:
    run = write_run(tmp_path, ["a", "b"])
    thumbnails = json.loads((run / "thumbnails.json").read_text())["thumbnails"]
    thumbnails[0]["png"] = png
    write_thumbnails(run, thumbnails)
    page = read(run)
    assert_harmless(page)
    assert len(images(page)) == 1
    assert page.texts("div").count("No picture: damaged in thumbnails.json") == 1


def test_what_could_not_be_read_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["a", "b", "c"])
    hostile = "<script>alert(1)</script>" * 9
    write_thumbnails(run, [
        {"shard": "a.tar", "key": "a", "reason": "could not be decoded"},
        {"shard": "b.tar", "key": "b", "reason": hostile},
        {"shard": "of another run.tar", "key": "c", "png": encoded(picture(1))},
    ])  # fmt: skip
    page = read(run)
    assert_harmless(page)
    assert images(page) == []
    words = [text for text in page.texts("div") if text.startswith("No picture")]
    assert words == [
        "No picture: could not be decoded",
        f"No picture: {hostile[:60]}",
        "No picture: not kept",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"thumbnails": [{"key": 3}]}', "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b" " * (4 * 2**20 + 1), "is larger than 4,194,304 bytes"),
    ],
)
def test_a_damaged_file_is_said_and_the_page_is_made(
    tmp_path: Path, content: bytes, said: str
) -> None:
    run = write_run(tmp_path, ["a"])
    (run / "thumbnails.json").write_bytes(content)
    page = read(run)
    assert f"No pictures of suspects: thumbnails.json {said}." in page.text
    assert images(page) == []
    (run / "thumbnails.json").unlink()
    page = read(run)
    assert "No pictures of suspects" not in page.text


@pytest.mark.parametrize("classes", [3, {"a": 1}, [1, 2], "text"])
def test_damaged_names_of_classes_are_refused(tmp_path: Path, classes: Any) -> None:
    with pytest.raises(RunDirectoryError, match="the names of its classes"):
        write_report(write_run(tmp_path, ["a"], classes=classes))


def test_a_label_beyond_the_names_is_a_number(tmp_path: Path) -> None:
    page = read(write_run(tmp_path, ["a", "b", "c"], classes=["zero", "1"]))
    cells = page.texts("td")
    assert [name in cells for name in ("zero (0)", "1", "2")] == [True] * 3
