"""What the page of a run shows of other runs: kept, checked, and nothing of it executed."""

import base64
import io
import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, write_predictions
from pbe_fast.errors import RunDirectoryError
from pbe_fast.report import write_report
from pbe_fast.report._extras import MAX_SIDE, MOST_BYTES, as_bytes, parse_extras
from pbe_fast.report._svg import clean_text
from pbe_fast.thumbnails import png_bytes
from tests.report.test_gallery import NAMES, PREFIX, encoded, images, shown
from tests.report.test_page import Page, assert_harmless, read

HOSTILE = " ".join(NAMES)


def make_scan(
    run: Path,
    target: int,
    shares: dict[float, float],
    *,
    checkpoint: str | None = None,
    names: tuple[str, ...] = ("0", "bumps", "2", "3"),
) -> Path:
    """At each size, this share of the examples of every other label gets ``target``."""
    run.mkdir(parents=True)
    k, each = len(names), 20
    labels = np.repeat(np.arange(k, dtype=np.int32), each)
    columns = [labels]
    for share in shares.values():
        drawn = (np.arange(len(labels)) % each) < round(share * each)
        columns.append(np.where(drawn, target, labels).astype(np.int32))
    predicted = np.stack(columns, 1)
    margins = np.zeros(predicted.shape, np.float32)
    words = pa.array(["x"] * len(labels), pa.string())
    found = Predictions(names, tuple(shares), labels, predicted, margins)
    write_predictions(run / PREDICTIONS_NAME, found, words, words)
    (run / "metrics.json").write_text(json.dumps({"kind": "scan", "seed": 7}))
    if checkpoint is not None:
        config = json.dumps({"model": {"checkpoint": checkpoint}})  # which is YAML too
        (run / "config.yaml").write_text(config)
    return run


def picture(shade: int, width: int = 160, height: int = 90) -> np.ndarray:
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, : width // 2] = (shade, 10, 200)
    return pixels


def make_features(run: Path, names: list[str], **more: Any) -> Path:
    run.mkdir(parents=True)
    for index, name in enumerate(names):
        Image.fromarray(picture(index)).save(run / f"{name}.png")
    claims = {
        "layer": "penultimate",
        "images": 480,
        "similar": {"to_triggered": {"adversarial": 0.9312, "clean": 0.402}},
    }
    content = {
        "pictures": names,
        "picture_labels": {name: f"words about {name}" for name in names},
        "claims": [claims],
    }
    (run / "features.json").write_text(json.dumps(content | more))
    return run


def kept_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "extras.json").read_text())
    return content


def svgs(page: Page) -> list[str]:
    found = [a["aria-label"] or "" for tag, a in page.elements if tag == "svg"]
    return [label for label in found if "Heat map" in label]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A purification of which nothing else is known; it has no plots, which take their time."""
    folder = tmp_path / "pure"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"kind": "purify", "method": "aft"}))
    return folder


@pytest.fixture
def others(tmp_path: Path, run: Path) -> tuple[Path, Path, Path]:
    """Scans of the infected and the purified model of ``run``, and a features run."""
    (run / "config.yaml").write_text("model:\n  checkpoint: models/bad.safetensors\n")
    purified = str(run / "purified.safetensors")
    return (
        make_scan(
            tmp_path / "scan-bad", 1, {2: 0.1, 8: 0.6, 16: 0.5}, checkpoint="models/bad.safetensors"
        ),
        make_scan(tmp_path / "scan-pure", 3, {2: 0.0, 8: 0.05, 12: 0.9}, checkpoint=purified),
        make_features(tmp_path / "looks", ["maps-0", "similarity", "maps-1"]),
    )


# what is shown


def test_scans_side_by_side_and_pictures(run: Path, others: tuple[Path, Path, Path]) -> None:
    infected, purified, features = others
    path = write_report(run, scans=[infected, purified], features=features)
    page = Page(path.read_text("utf-8"))
    assert_harmless(page)
    text = plain(page.text)
    headings = page.texts("bdi")
    assert headings.index("Infected model") < headings.index("Purified model")
    # Of one size, that of the largest share which both have: 12/255 would be the purified's own.
    assert [plain(label) for label in svgs(page)] == [
        "Infected model. Heat map at eps 8/255, 4 true labels against predicted ones. "
        "Label 1 (bumps) gets most, 60.0 %.",
        "Purified model. Heat map at eps 8/255, 4 true labels against predicted ones. "
        "Label 3 gets most, 5.0 %.",
    ]
    assert (
        "Label 1 (bumps) gets the most: 60.0 % of the other labels’ adversarial examples at eps "
        "8/255, where an even spread would give it 20.0 %. 80 images, from the scan scan-bad ."
    ) in text
    assert text.count("Each row: where the adversarial examples of a class go.") == 1
    assert "label 0, predicted 1 bumps: 12 of 20" in page.texts("title")

    pictures = images(page)[-3:]
    assert [one["alt"] for one in pictures] == [
        "words about similarity", "words about maps-0", "words about maps-1",
    ]  # fmt: skip
    assert [int(shown(one)[0, 0, 0]) for one in pictures] == [1, 0, 2]
    assert (shown(pictures[0]) == picture(1)).all()
    assert (pictures[0]["width"], pictures[0]["height"]) == ("80", "45")
    captions = page.texts("figcaption")
    assert (
        "How alike features are at layer penultimate. Mean cosine to the triggered image, over 480 "
        "images on which the trigger works: 0.931 for the adversarial example, 0.402 for the clean "
        "image."
    ) in captions
    assert sum(caption.startswith("Rows: one image") for caption in captions) == 1


def test_the_plain_report_shows_them_later_without_the_runs(
    run: Path, others: tuple[Path, Path, Path]
) -> None:
    without = write_report(run).read_bytes()
    infected, purified, features = others
    first = write_report(run, scans=[infected, purified], features=features).read_bytes()
    for other in others:
        other.rename(other.with_name(f"{other.name}-away"))
    assert write_report(run).read_bytes() == first
    content = (run / "extras.json").read_bytes()
    assert as_bytes(parse_extras(content).kept) == content
    (run / "extras.json").unlink()
    assert write_report(run).read_bytes() == without


def test_an_option_replaces_its_own_kind_alone(run: Path, others: tuple[Path, Path, Path]) -> None:
    infected, purified, features = others
    write_report(run, scans=[infected, purified])
    assert {path.name for path in (run / "figures").glob("scan-*")} == {
        "scan-1.png", "scan-1.svg", "scan-2.png", "scan-2.svg",
    }  # fmt: skip
    assert "Heat map at eps" in (run / "figures" / "scan-2.svg").read_text("utf-8")
    write_report(run, features=features)
    assert [scan["model"] for scan in kept_of(run)["scans"]] == [
        "Infected model", "Purified model",
    ]  # fmt: skip
    write_report(run, scans=[purified])
    kept = kept_of(run)
    assert [scan["map"]["eps_255"] for scan in kept["scans"]] == [12]  # alone, at its own size
    assert sorted(path.name for path in (run / "figures").glob("scan-*")) == [
        "scan-1.png", "scan-1.svg",  # and not the second one of before
    ]  # fmt: skip
    assert [one["name"] for one in kept["features"]["pictures"]] == [
        "similarity", "maps-0", "maps-1",
    ]  # fmt: skip


def test_scans_without_a_size_in_common_have_each_its_own(run: Path, tmp_path: Path) -> None:
    scans = [
        make_scan(tmp_path / "a", 1, {2: 0.1, 4: 0.2}),
        make_scan(tmp_path / "b", 1, {8: 0.3, 16: 0.2}),
    ]
    page = Page(write_report(run, scans=scans).read_text("utf-8"))
    assert [label.split(",")[0] for label in svgs(page)] == [
        "Model not known. Heat map at eps 4/255", "Model not known. Heat map at eps 8/255",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("model: {checkpoint: /a/b/c.safetensors}", "Model b/c.safetensors"),
        ("model: {checkpoint: c.pth}", "Model c.pth"),
        ("model: {checkpoint: 'a/<script>.pth'}", "Model a/<script>.pth"),
        ('model: {checkpoint: "a\\0b"}', "Model not known"),
        ('model: {checkpoint: "a\\uD800b"}', "Model not known"),
        ("model: {checkpoint: [3]}", "Model not known"),
        ("model: 3", "Model not known"),
        ("[", "Model not known"),
        ("a: &a {checkpoint: x}\nmodel: {<<: *a}", "Model not known"),
        ("[" * 5000, "Model not known"),
    ],
)
def test_a_model_is_named_by_its_file(run: Path, tmp_path: Path, config: str, words: str) -> None:
    scan = make_scan(tmp_path / "scan", 1, {8: 0.2})
    (scan / "config.yaml").write_text(config)
    page = Page(write_report(run, scans=[scan]).read_text("utf-8"))
    assert_harmless(page)
    assert words in page.texts("bdi")


def test_a_training_has_its_trained_model(train_run: Path, tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "s", 1, {8: 0.2}, checkpoint=str(train_run / "model.safetensors"))
    page = Page(write_report(train_run, scans=[scan]).read_text("utf-8"))
    assert "Trained model" in page.texts("bdi")


def test_more_classes_than_can_be_told_apart(run: Path, tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(100))
    write_report(run, scans=[make_scan(tmp_path / "s", 70, {8: 0.5}, names=names)])
    page = read(run)
    assert "for the 60 labels with the largest share" in page.text
    kept = kept_of(run)["scans"][0]["map"]
    assert (len(kept["names"]), len(kept["counts"]), kept["classes"]) == (60, 60, 100)
    assert "70 class 70" in kept["names"]


def test_of_many_classes_the_same_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(100))
    scans = [
        make_scan(tmp_path / name, label, {8: 0.5}, names=names)
        for name, label in (("a", 70), ("b", 90))
    ]
    write_report(run, scans=scans)
    first, second = (kept["map"] for kept in kept_of(run)["scans"])
    assert first["names"] == second["names"]
    assert {"70 class 70", "90 class 90"} < set(first["names"])


def test_models_of_other_classes_have_a_map_each(run: Path, tmp_path: Path) -> None:
    scans = [
        make_scan(tmp_path / str(count), 1, {8: 0.5}, names=tuple(map(str, range(count))))
        for count in (5, 100)
    ]
    write_report(run, scans=scans)
    assert [len(kept["map"]["names"]) for kept in kept_of(run)["scans"]] == [5, 60]


def test_older_features_runs_have_no_words(run: Path, tmp_path: Path) -> None:
    features = make_features(tmp_path / "f", ["similarity"], picture_labels={}, claims=[])
    page = Page(write_report(run, features=features).read_text("utf-8"))
    (image,) = images(page)
    assert image["alt"] == "How alike the features of adversarial examples and of triggered " \
        "images are."  # fmt: skip


def test_a_page_has_a_bounded_number_of_pictures(run: Path, tmp_path: Path) -> None:
    features = make_features(tmp_path / "f", [f"maps-{i}" for i in range(15)])
    page = Page(write_report(run, features=features).read_text("utf-8"))
    assert len(images(page)) == 12
    assert "3 more pictures there" in page.text


def test_large_pictures_are_made_smaller(run: Path, tmp_path: Path) -> None:
    features = make_features(tmp_path / "f", ["maps-0"])
    Image.fromarray(picture(3, 3000, 200)).save(features / "maps-0.png")
    page = Page(write_report(run, features=features).read_text("utf-8"))
    (image,) = images(page)
    assert shown(image).shape == (147, MAX_SIDE, 3)
    assert image["width"] == str(MAX_SIDE // 2)
    assert write_report(run).read_bytes() == (run / "report.html").read_bytes()


def test_the_page_stays_accessible(pbe_run: Path, others: tuple[Path, Path, Path]) -> None:
    infected, purified, features = others
    page = Page(
        write_report(pbe_run, scans=[infected, purified], features=features).read_text("utf-8")
    )
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if attributes.get("class") == "scroll":
            assert (attributes["tabindex"], attributes["role"]) == ("0", "region")
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
        if tag == "img":
            assert attributes["alt"]
    headings = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


# what is refused when it is given


def test_a_run_that_is_missing_or_another_kind_is_named(run: Path, tmp_path: Path) -> None:
    before = write_report(run).read_bytes()
    scan = make_scan(tmp_path / "scan", 1, {8: 0.2})
    features = make_features(tmp_path / "features", ["maps-0"])
    for runs, message in [
        ({"scans": [tmp_path / "none"]}, "none: there is no such run directory"),
        ({"scans": [run]}, "is no run of 'pbe-fast scan' but of 'purify'"),
        ({"scans": [features]}, "metrics.json: there is no such file"),
        ({"scans": [scan] * 7}, "at most 6"),
        ({"features": tmp_path / "none"}, "none: there is no such run directory"),
        ({"features": scan}, "features.json: there is no such file"),
    ]:
        with pytest.raises(RunDirectoryError, match=message):
            write_report(run, **runs)  # type: ignore[arg-type]
    with pytest.raises(RunDirectoryError, match="is a scan, whose page shows no other runs"):
        write_report(scan, features=features)
    (scan / PREDICTIONS_NAME).write_bytes(b"PAR1 not really")
    with pytest.raises(RunDirectoryError, match="holds no predictions"):
        write_report(run, scans=[scan], features=features)
    assert not (run / "extras.json").exists()
    assert (run / "report.html").read_bytes() == before


def bomb(side: int) -> bytes:
    """A PNG of some kilobytes that is ``side`` pixels square, in black and white."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    lines = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg onload=alert(1)>",
        base64.b64decode(encoded(picture(1)))[:-9],
        pytest.param(bomb(5_000), id="bomb"),
    ],
)
def test_a_damaged_picture_is_refused_when_it_is_given(
    run: Path, tmp_path: Path, content: bytes
) -> None:
    assert len(content) < 100_000
    features = make_features(tmp_path / "f", ["similarity", "maps-0"])
    (features / "maps-0.png").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"maps-0.png: is no picture of a features run"):
        write_report(run, features=features)
    (features / "maps-0.png").unlink()
    with pytest.raises(RunDirectoryError, match=r"maps-0.png: .*No such file"):
        write_report(run, features=features)
    assert not (run / "extras.json").exists()


@pytest.mark.parametrize(
    "name",
    ["../looks", "/etc/passwd", "maps-0/../../x", "similarity-0-a/b", "", "other", "maps-0\0"],
)
def test_a_name_that_leads_elsewhere_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    features = make_features(tmp_path / "f", [])
    Image.fromarray(picture(1)).save(tmp_path / "looks.png")
    (features / "features.json").write_text(json.dumps({"pictures": [name]}))
    with pytest.raises(RunDirectoryError, match="names a picture"):
        write_report(run, features=features)


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"\xff", b"[]", b'{"pictures": 3}', b"[" * 100_000, b" " * (16 * 2**20 + 1),
        b'{"pictures": [], "claims": [{"layer": "x", "images": 3, "similar":'
        b' {"to_triggered": {"clean": 1e300}}}]}',
    ],
    ids=range(7),
)  # fmt: skip
def test_damaged_features_are_refused(run: Path, tmp_path: Path, content: bytes) -> None:
    features = make_features(tmp_path / "f", [])
    (features / "features.json").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"features.json: is not what a features run"):
        write_report(run, features=features)


# what a hostile file can do: nothing


def test_hostile_runs_are_shown_as_text(run: Path, tmp_path: Path) -> None:
    scan = make_scan(
        tmp_path / '"><script>alert(8)<&', 1, {8: 0.3}, names=tuple(NAMES), checkpoint=NAMES[0]
    )
    features = make_features(
        tmp_path / "<img src=x onerror=alert(9)>",
        ["similarity-0-x", "maps-0"],
        picture_labels={"similarity-0-x": HOSTILE, "maps-0": NAMES[2]},
        claims=[{"layer": HOSTILE, "images": 1, "similar": {"to_triggered": {"clean": 0.5}}}],
    )
    page = Page(write_report(run, scans=[scan], features=features).read_text("utf-8"))
    assert_harmless(page)
    assert clean_text(HOSTILE) in [image["alt"] for image in images(page)]
    assert f"How alike features are at layer {clean_text(HOSTILE)}." in "".join(
        page.texts("figcaption")
    )
    assert '"><script>alert(8)<&' in page.texts("bdi")
    assert "<img src=x onerror=alert(9)>" in page.texts("bdi")
    assert f"Label 1 ({NAMES[1]}) gets most" in svgs(page)[0]


def tampered(run: Path, **updates: Any) -> None:
    """An ``extras.json`` in which every text is hostile."""
    scan = {
        "run": HOSTILE,
        "model": HOSTILE,
        "map": {
            "eps_255": 8, "classes": 2, "images": 9, "names": [HOSTILE, NAMES[0]],
            "counts": [[1, 2], [3, 4]],
            "most": {"label": HOSTILE, "share": 0.5, "expected": 0.25},
        },
    }  # fmt: skip
    one = {"name": HOSTILE, "alt": HOSTILE, "caption": HOSTILE, "png": encoded(picture(1))}
    features = {"run": HOSTILE, "model": HOSTILE, "pictures": [one]}
    content = {"scans": [scan], "features": features} | updates
    (run / "extras.json").write_text(json.dumps(content))


def test_a_hostile_file_is_shown_as_text(run: Path) -> None:
    tampered(run)
    page = read(run)
    assert_harmless(page)
    cleaned = clean_text(HOSTILE)
    (image,) = images(page)
    assert image["alt"] == cleaned
    assert cleaned in page.texts("figcaption")
    assert page.texts("bdi").count(cleaned) == 4
    (label,) = svgs(page)
    assert label.startswith(f"{cleaned}. Heat map at eps 8/255")
    source = (run / "report.html").read_text("utf-8")
    assert not set(source) & set("\x00\x1b\u202e\u2066")


@given(text=st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=40))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_shown_and_nothing_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    one = {"name": text, "alt": text, "caption": text, "png": encoded(picture(1, 8, 8))}
    tampered(tmp_path, features={"run": text, "model": text, "pictures": [one]}, scans=[])
    write_report(tmp_path)
    page = Page((tmp_path / "report.html").read_bytes().decode())
    assert_harmless(page)
    (image,) = images(page)
    assert image["alt"] == clean_text(text)


def test_a_picture_that_is_kept_is_decoded_and_encoded_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    base = base64.b64decode(encoded(picture(5)))
    words = b"tEXtComment\0<script>alert(1)</script>"
    chunk = struct.pack(">I", len(words) - 4) + words + struct.pack(">I", zlib.crc32(words))
    jpeg = io.BytesIO()
    Image.fromarray(picture(5)).save(jpeg, "JPEG")
    contents = [base[:33] + chunk + base[33:], base + b"<script>alert(1)</script>",
                jpeg.getvalue()]  # fmt: skip
    tampered(tmp_path, scans=[], features={"run": "r", "model": "m", "pictures": [
        {"name": "n", "alt": "a", "caption": "c", "png": base64.b64encode(content).decode()}
        for content in contents
    ]})  # fmt: skip
    page = read(tmp_path)
    assert_harmless(page)
    assert len(images(page)) >= 2
    for image in images(page):
        content = base64.b64decode((image["src"] or "").removeprefix(PREFIX))
        assert content == png_bytes(shown(image), MAX_SIDE)
        assert b"script" not in content


@pytest.mark.parametrize(
    "png",
    [
        "no base64!",
        "",
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        base64.b64encode(bomb(5_000)).decode(),
        encoded(picture(1, MAX_SIDE + 1, 4)),
    ],
    ids=range(5),
)
def test_a_damaged_picture_is_a_word(tmp_path: Path, png: str) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    one = {"name": "maps-0", "alt": "a", "caption": "c"}
    both = [one | {"png": png}, one | {"png": encoded(picture(1))}]
    tampered(tmp_path, features={"run": "r", "model": "m", "pictures": both})
    page = read(tmp_path)
    assert_harmless(page)
    assert len(images(page)) == 1
    assert page.texts("div").count("No picture: damaged in extras.json") == 1
    assert len(svgs(page)) == 1


def _map(**updates: Any) -> bytes:
    content = {
        "eps_255": 8, "classes": 2, "images": 9, "names": ["0", "1"], "counts": [[1, 2], [3, 4]],
    } | updates  # fmt: skip
    return json.dumps({"scans": [{"run": "r", "model": "m", "map": content}]}).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is damaged"),
        (b"", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[]", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b'{"scans": [{}]}', "is damaged"),
        (b'{"features": {"run": 3}}', "is damaged"),
        (_map(counts=[[1, 2]]), "is damaged"),
        (_map(counts=[[1, 2], [3]]), "is damaged"),
        (_map(counts=[[1, 2], [3, -4]]), "is damaged"),
        (_map(counts=[[1, 2], [3, 10**30]]), "is damaged"),
        (_map(names=[], counts=[]), "is damaged"),
        (_map(names=["x"] * 61, counts=[[0] * 61] * 61), "is damaged"),
        (_map(eps_255=float("nan")), "is damaged"),
        (_map(eps_255=-1), "is damaged"),
        (_map(most={"label": "x", "share": 2, "expected": 0}), "is damaged"),
        (b" " * (MOST_BYTES + 1), f"is larger than {MOST_BYTES:,} bytes"),
    ],
    ids=range(17),
)
def test_a_damaged_file_is_said_and_the_page_is_made(
    run: Path, others: tuple[Path, Path, Path], content: bytes, said: str
) -> None:
    (run / "extras.json").write_bytes(content)
    page = read(run)
    assert_harmless(page)
    assert f"No heat maps and no pictures of features: extras.json {said}." in page.text
    assert svgs(page) == []
    write_report(run, scans=[others[0]])  # writes it anew
    page = read(run)
    assert len(svgs(page)) == 1
    assert "extras.json" not in page.text


def test_an_empty_map_is_whole(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "extras.json").write_bytes(_map(counts=[[0, 0], [0, 0]]))
    page = read(tmp_path)
    assert len(svgs(page)) == 1
    assert "There is nothing to compare" in page.text


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "extras.json").write_bytes(_map(names=["\ud800", "1"]))
    assert "label \ufffd, predicted 1: 2 of 3" in read(tmp_path).texts("title")


def test_what_would_be_too_large_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pbe_fast.report import _collect

    monkeypatch.setattr(_collect, "MOST_BYTES", 500)
    features = make_features(tmp_path / "f", ["maps-0"])
    with pytest.raises(RunDirectoryError, match="at most 500 are kept"):
        write_report(run, features=features)
    assert not (run / "extras.json").exists()
