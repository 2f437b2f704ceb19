"""The jobs behind docs/findings.md: nothing is measured that was not trained; failures are told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from bench import appendix, appendix_features, appendix_predictions, calibration
from bench.appendix import Job, measurements, models, work_off
from bench.attacks import BENIGN
from bench.study import Case
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, write_predictions
from pbe_fast.data.manifest import Manifest
from pbe_fast.progress import Silent


def test_every_model_that_is_measured_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def run_case(folder: Path, _: Any, data: Any, case: Case, *__: Any) -> None:
        made.append(folder / data.name / case.name)

    def large_model(folder: Path, attack: str, *_: Any) -> Path:
        made.append(folder / appendix_features.LARGE_NAME / attack)
        return made[-1]

    for module in (appendix, appendix_predictions, calibration):
        monkeypatch.setattr(module, "run_case", run_case)
    monkeypatch.setattr(appendix_predictions, "large_model", large_model)
    monkeypatch.setattr(calibration, "scan_case", lambda *_: None)
    monkeypatch.setattr(calibration, "clean_shards", lambda folder, *_: folder)
    monkeypatch.setattr(appendix_features, "large_shards", lambda folder: folder)
    for job in models(tmp_path, tmp_path):
        if job.name != "theory":
            job.work()
    assert len(set(made)) == len(made)
    needed = {
        one.case(attack)
        for one in appendix_features.settings(tmp_path)
        for attack in (one.attack, BENIGN)
    }
    for one in appendix_predictions.FIGURES:
        needed.add(appendix_predictions.make(one, tmp_path, "cpu", Silent()))
    assert needed <= set(made[: len(models(tmp_path, tmp_path)) - 1])


def test_tracks_are_drawn_whole_with_every_third_image(tmp_path: Path) -> None:
    for label in range(2):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for number in range(5 * 12):
            name = f"{number // 12:05d}_{number % 12:05d}.png"
            Image.new("RGB", (8, 8), (label, number, 0)).save(
                tmp_path / "images" / str(label) / name
            )
    calibration.some_of(tmp_path / "images", tmp_path / "shards", 12, every=3)
    of_track: dict[str, list[int]] = {}
    for key in Manifest.load(tmp_path / "shards").keys.to_pylist():
        track, _, number = key.rpartition("_")
        of_track.setdefault(track, []).append(int(number))
    assert [sorted(numbers) for numbers in of_track.values()] == [[0, 3, 6, 9]] * 6
    assert sum(track.startswith("0/") for track in of_track) == 3


def test_jobs_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "clean_shards", lambda folder, *_: folder)
    monkeypatch.setattr(appendix_features, "large_shards", lambda folder: folder)
    names = [job.name for job in [*models(tmp_path, tmp_path), *measurements(tmp_path)]]
    assert len(set(names)) == len(names)


def test_results_come_by_name_from_processes_of_one_thread() -> None:
    found = work_off([Job("threads", torch.get_num_threads), Job("path", Path.cwd)], 2)
    assert found == {"threads": 1, "path": Path.cwd()}


def test_no_jobs_are_no_work() -> None:
    assert work_off([], 2) == {}


def test_a_job_that_fails_ends_the_work() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere") as caught:
        work_off([Job("bad", Path("nowhere").stat)], 1)
    assert "in the job 'bad'" in caught.value.__notes__


@pytest.mark.parametrize("missing", [0, 1])
def test_a_part_of_the_models_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    wanted = [tmp_path / data.name / case.name for data, case in calibration.cases()]
    for here in wanted[missing:]:
        (here / "scan").mkdir(parents=True)
        (here / "scan" / PREDICTIONS_NAME).touch()
    given: list[list[Path]] = []
    monkeypatch.setattr(calibration, "keep_reference", given.append)
    monkeypatch.setattr(calibration, "keep_verdicts", lambda cases, _: given.append(cases))
    calibration.keep(tmp_path, tmp_path / "out.json")
    assert given == ([] if missing else [wanted, wanted])


def _scanned(folder: Path, goes_to_next: bool) -> Path:
    """A case of ten classes that was trained and scanned."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "metrics.json").write_text('{"test": {"acc": 1.0}}')
    (folder / "scan").mkdir()
    labels = np.repeat(np.arange(10, dtype=np.int32), 9)
    step = np.ones(90, np.int32) if goes_to_next else 1 + np.arange(90, dtype=np.int32) % 9
    names = tuple("abcdefghij")
    predicted = np.stack([labels, (labels + step) % 10], 1)
    found = Predictions(names, (8.0,), labels, predicted, np.zeros((90, 2), np.float32))
    keys = pa.array([str(i) for i in range(90)])
    write_predictions(folder / "scan" / PREDICTIONS_NAME, found, keys, keys)
    return folder


def test_benign_models_are_kept_for_the_verdict_and_judged_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "files", lambda _: tmp_path)
    kept = [{"data": "d", "case": f"benign-{i}", "scores": {"pull": 0.0, "shift": i / 90}}
            for i in range(20)]  # fmt: skip
    (tmp_path / "benign.json").write_text(json.dumps({"rows": kept}))
    cases = [
        _scanned(tmp_path / "e" / name, name == "blend-all_to_all-0.1-0")
        for name in ("benign-7", "blend-all_to_all-0.1-0")
    ]
    calibration.keep_reference(cases)
    rows = json.loads((tmp_path / "benign.json").read_text())["rows"]
    assert rows[:20] == sorted(kept, key=lambda row: str(row["case"]))
    assert [(row["data"], row["case"]) for row in rows[20:]] == [("e", "benign-7")]
    assert rows[20]["scores"] == pytest.approx({"pull": 0.0, "shift": 0.0}, abs=0.2)
    for _ in range(2):  # of a row that is there already, the new one
        calibration.keep_verdicts(cases, tmp_path / "out.json")
    benign, blend = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (benign["verdict"]["models"], blend["verdict"]["models"]) == (20, 21)
    assert (benign["verdict"]["right"], benign["beyond_other_data"]) == (True, False)
    assert (blend["verdict"]["mode"], blend["verdict"]["right"]) == ("all_to_all", True)
    assert blend["beyond_other_data"]


@pytest.mark.parametrize(
    ("data", "case", "mode", "targets", "right"),
    [
        ("d", "benign-0", None, (), True),
        ("d", "benign-0", "all_to_one", (1,), False),
        ("d", "blend", "all_to_one", (1,), True),
        ("d", "blend-all_to_one-0.1-0", "all_to_one", (1, 2), False),
        ("d", "blend-all_to_one-0.1-0", "all_to_all", (), False),
        ("d", "blend-all_to_all-0.1-0", "all_to_all", (), True),
        ("d", "blend-all_to_all-0.1-0", None, (), False),
        ("gtsrb_third_rare", "blend-all_to_one-0.1-0", "all_to_one", (0,), True),
    ],
)
def test_a_verdict_is_right_with_mode_and_label(
    data: str, case: str, mode: str | None, targets: tuple[int, ...], right: bool
) -> None:
    assert calibration.right(data, case, mode, targets) == right


def test_rows_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    appendix_features.keep([{"setting": "a", "n": 1}, {"setting": "b", "n": 1}], out, "cpu")
    appendix_features.keep([{"setting": "a", "n": 2}], out, "cpu")
    assert [row["n"] for row in json.loads(out.read_text())["settings"]] == [2, 1]
    appendix_predictions.keep([{"data": "d", "case": "a"}], out2 := tmp_path / "two.json", "cpu")
    appendix_predictions.keep([{"data": "d", "case": "b"}], out2, "cpu")
    assert [row["case"] for row in json.loads(out2.read_text())["rows"]] == ["a", "b"]
