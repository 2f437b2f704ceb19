"""The plots of a page as files of their own."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pbe_fast.report import write_report
from pbe_fast.report._drawing import write_drawing
from pbe_fast.report.figures import Evaluation, curves

SVG = "{http://www.w3.org/2000/svg}"
FILES = {
    "run-pbe": {"curves", "loss", "scores"},
    "run-aft": {"curves", "loss", "scores"},
    "run-train": {"curves", "loss"},
}


def test_a_run_has_its_plots_as_files(any_run: Path) -> None:
    page = write_report(any_run).read_text("utf-8")
    folder = any_run / "figures"
    wanted = {f"{name}.{kind}" for name in FILES[any_run.name] for kind in ("svg", "png")}
    assert {path.name for path in folder.iterdir()} == wanted
    assert 'href="figures' not in page
    assert 'src="figures' not in page
    before = {path: path.read_bytes() for path in folder.iterdir()}
    write_report(any_run)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_svg_stands_alone(pbe_run: Path) -> None:
    write_report(pbe_run)
    for path in (pbe_run / "figures").glob("*.svg"):
        text = path.read_text("utf-8")
        root = ElementTree.fromstring(text)
        assert root[0].tag == f"{SVG}title"
        assert root.get("aria-label") == root[0].text
        assert (root[1].tag, root[1].get("fill")) == (f"{SVG}rect", "#fff")
        box = [root[1].get(name) for name in ("x", "y", "width", "height")]
        assert " ".join(name or "" for name in box) == root.get("viewBox")
        assert (root.get("width"), root.get("height")) == (box[2], box[3])
        assert "var(" not in text
        assert "currentColor" not in text
        assert "font-family:DejaVu Sans" in (root.get("style") or "")
        assert not re.search(r"<script|<style|https?://(?!www\.w3\.org/2000/svg)", text)


def test_a_png_is_dark_on_white_and_says_what_it_shows(tmp_path: Path) -> None:
    drawing = curves([Evaluation(0, 1, 0.9, 0.5)], label="Line “chart” of a\u202e run")
    in_page = drawing.svg
    write_drawing(drawing, tmp_path / "figures" / "curves")
    assert drawing.svg == in_page
    with Image.open(tmp_path / "figures" / "curves.png") as image:
        image.load()
        assert image.mode == "RGB"
        assert image.size == (920, 600)
        assert image.info["Description"] == "Line ?chart? of a? run"
        shades = np.asarray(image.convert("L"))
    edges = [shades[0], shades[-1], shades[:, 0], shades[:, -1]]
    assert all((edge == 255).all() for edge in edges)
    assert shades.min() < 60
    assert (shades == 255).mean() > 0.7


def test_a_figure_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = curves([Evaluation(0, 1, 0.9, 0.5)], label="x")
    write_drawing(drawing, tmp_path / "a")
    before = (tmp_path / "a.png").read_bytes()

    save = Image.Image.save

    def torn(self: Image.Image, path: object, **more: Any) -> None:
        if not isinstance(path, Path):
            return save(self, path, **more)
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="no space"):
        write_drawing(drawing, tmp_path / "a")
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]
