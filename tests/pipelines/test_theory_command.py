"""``pbe-fast theory``, as a user meets it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from pbe_fast.analysis.linear import Point, sweep_figure, sweeps
from tests._command import Run

SMALL = ("--dimension", 8, "--subspace", 3, "--examples", 24, "--triggered", 3, "--classes", 3)


def test_the_table_has_both_sides_of_every_claim(run: Run) -> None:
    code, out, err = run("theory", *SMALL)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    (printed,) = [row for row in rows if row[:3] == ["Lemma", "1,", "u_l"]]
    assert printed[3] == "printed"
    assert printed[5] == ">="
    assert printed[8:] == ["–", "no"]
    assert float(printed[4]) - float(printed[6]) == pytest.approx(float(printed[7]), rel=0.1)
    assert "…" not in out
    assert max(map(len, out.splitlines()[:60])) <= 80
    assert "no corrected one does" in out


def test_a_narrow_terminal_gets_a_list_without_cut_numbers(run: Run) -> None:
    code, out, _ = run("theory", *SMALL, columns=40)
    assert code == 0
    lines = out.splitlines()
    place = lines.index("Theorem 1")
    assert lines[place + 1].startswith("  printed: ")
    assert ">=" in lines[place + 2]
    assert "slack" in lines[place + 2]
    assert lines[place + 3].startswith("    premises: ")
    assert "…" not in out


def test_a_wide_terminal_says_what_each_claim_says(run: Run) -> None:
    assert "(sqrt2 - 1) ell/n |P|^2" in run("theory", *SMALL, columns=170)[1]
    assert "(sqrt2 - 1) ell/n |P|^2" not in run("theory", *SMALL, columns=80)[1]


def test_out_gets_the_numbers_and_the_sweep_a_figure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "_POINTS", 3)
    code, out, err = run(
        "theory", *SMALL, "--lambda", 0.5, "--delta", 0.02, "--sweep", "--out", tmp_path
    )
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "theory.json").read_text())
    assert content["setting"]["lam"] == 0.5
    assert content["setting"]["delta"] == 0.02
    assert content["solutions"]["infected"]["distance"] < 1e-10
    names = {claim["name"] for claim in content["claims"]}
    assert {"(5)", "(12)", "(15)", "Theorem 1"} <= names
    assert set(content["sweep"]) == {"triggered", "patch", "lam", "classes"}
    for points in content["sweep"].values():
        assert len(points) == 3
        for point in points:
            assert not point["corrected_premises"] or point["share"] >= point["corrected"]
    assert [p["value"] for p in content["sweep"]["triggered"]] == [1, 3, 8]
    assert ElementTree.parse(tmp_path / "sweep.svg").getroot().tag.endswith("svg")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (774, 576)
    assert "sweep.svg" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--triggered", 99), "the target class has 50"),
        (("--classes", 1), "at least 2"),
        (("--subspace", 64), "left for the patch"),
        (("--lambda", 0), "lambda 0"),
        (("--patch", -1), "positive"),
        (("--delta", 0), "delta is 0"),
        (("--delta", "nan"), "delta is nan"),
        (("--sweep",), "--out DIR"),
        (("--classes", 80, "--examples", 800, "--dimension", 99, "--subspace", 90), "fewer"),
    ],
)
def test_impossible_settings_are_refused_in_a_line(
    run: Run, arguments: tuple[object, ...], words: str
) -> None:
    code, out, err = run("theory", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_help_has_examples(run: Run) -> None:
    code, out, _ = run("theory", "--help")
    assert code == 0
    assert "pbe-fast theory --sweep --out runs/theory" in out


def test_the_figure_is_the_same_for_the_same_points_and_shows_what_applies() -> None:
    def points(applies: bool) -> dict[str, list[Point]]:
        row = [
            Point(v, 0.3, 0.3, 0.4, 0.1, 0.2, False, False, applies) for v in (1.0, 2.0, 10.0)
        ]  # fmt: skip
        return dict.fromkeys(("triggered", "patch", "lam", "classes"), row)

    figure = sweep_figure(points(True))
    assert sweep_figure(points(True)) == figure
    assert sweep_figure(points(False)) != figure
