"""The tables of the study, from a few rows whose figures are known."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from bench import _study
from bench.study import DataSet


def row(case: str, method: str, acc: float, asr: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case,
        "method": method,
        "infected": {"acc": 0.9, "asr": 1.0},
        "purified": {"acc": acc, "asr": asr},
        "der": (1.0 - asr - max(0.0, 0.9 - acc) + 1) / 2,
        "auroc": 0.99,
        "seconds": 10.0,
        "found": True,
        **more,
    }


BLEND, SIG = "blend-all_to_one-0.1-0", "sig-all_to_one-0.1-0"
ROWS = [
    row(BLEND, "sieve", 0.91, 0.01, precision=0.9, recall=0.999),
    row(SIG, "sieve", 0.88, 0.03, auroc=0.95, precision=0.7, recall=0.5),
    row("blend-all_to_one-0.01-0", "sieve", 0.9, 0.5, found=False),
    row("blend-all_to_all-0.1-0", "sieve_no_split", 0.9, 0.07),  # of the other mode
    row(BLEND, "sieve_no_split", 0.5, 0.8),
    row(BLEND, "sieve_no_relabel", 0.6, 0.1),
    row(BLEND, "sieve_no_adversary", 0.7, 0.2),
    row(SIG, "sieve_no_split", 0.5, 0.9),  # without the other two: not in the ablation
    row(BLEND, "ft", 0.8, 0.6),
    {
        "case": "benign-0",
        "method": "sieve",
        "infected": {"acc": 0.97},
        "purified": {"acc": 0.96},
        "seconds": 5.0,
        "found": False,
    },
]


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"rows": ROWS}), encoding="utf-8")
    monkeypatch.setattr(_study, "STUDY", {"few": file})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_main_table_has_one_rate() -> None:
    lines = _study.study_table("few").splitlines()
    assert [cells(line)[0] for line in lines[2:5]] == ["Blend", "SIG", "benign"]
    assert cells(lines[2])[3:] == [
        "90.00", "100.00", "91.00", "1.00", "0.9900", "90.0", "99.9", "yes", "10",
    ]  # fmt: skip
    assert cells(lines[4])[1:4] == ["–", "0", "97.00"]


def test_the_aims_stand_beside_average_and_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_study, "AIMED", {"few": "a few"})
    aims, few = (cells(line) for line in _study.aims_table().splitlines()[2:])
    assert aims[2:8] == ["1", "5", "-1", "-2.5", "0.99", "0.95"]
    assert few[:8] == ["a few", "2", "2.00", "3.00", "-0.50", "-2.00", "0.9700", "0.9500"]
    assert aims[8:] == [""] * 4  # of the list of suspects none was set
    assert few[8:] == ["80.0", "70.0", "75.0", "50.0"]


def test_a_dot_for_each_model_and_each_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, others = tmp_path / "others.json", [row(BLEND, "sieve", 0.91, 0.01), ROWS[8]]
    file.write_text(json.dumps({"rows": others}), encoding="utf-8")
    monkeypatch.setitem(_study.STUDY, "others", file)
    with monkeypatch.context() as open_still:
        open_still.setattr(pyplot, "close", lambda figure: None)
        _study.plot(tmp_path / "few.png", "few", "others")
    left, right = pyplot.gcf().axes
    pyplot.close()
    before, after = (dots.get_offsets().tolist() for dots in left.collections)
    assert before == [[100.0, 1.0], [100.0, 2.0]]  # below BadNets, which has none
    assert after == [[1.0, 1.0], [3.0, 2.0]]
    blend = right.collections[0].get_offsets().tolist()
    assert [share for share, _ in blend] == [60.0, 1.0, 100.0]
    assert len(right.collections) == 1  # SIG is not among the others
    assert [label.get_text() for label in right.get_yticklabels()] == ["(infected)", "FT", "Sieve"]


def test_other_rates_stand_beside_that_of_the_study() -> None:
    lines = [cells(line) for line in _study.rates_table("few").splitlines()[2:]]
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        ("Blend", "1 %", "no"),
        ("Blend", "10 %", "yes"),
    ]


def test_the_ablation_compares_the_same_models() -> None:
    table = _study.ablation_table("few", "all_to_one")
    lines = [cells(line) for line in table.splitlines()[2:]]
    assert [line[1] for line in lines] == ["1"] * 4
    assert [line[2] for line in lines] == ["1.00", "80.00", "10.00", "20.00"]
    assert [line[4] for line in lines] == ["+1.00", "-40.00", "-30.00", "-20.00"]
    [all_to_all] = _study.ablation_table("few", "all_to_all").splitlines()[2:]
    assert cells(all_to_all)[1:3] == ["1", "7.00"]


def test_a_defence_with_cells_to_come_has_no_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_study.DATA, "few", DataSet("few", 3, clean_fraction=0.05))
    lines = [cells(line) for line in _study.defences_table("few", "all_to_one", 0).splitlines()]
    told = {line[0]: line[1:] for line in lines[2:]}
    assert told["(infected)"][1:4] == ["–", "90.0 / 100.0", "90.0 / 100.0"]
    assert told["FT"] == ["5 %", "–", "80.0 / 60.0", "–", "–", "–", "–", "–", "10"]
    assert told["Sieve"][0] == "none"
    assert "NAD" not in told
