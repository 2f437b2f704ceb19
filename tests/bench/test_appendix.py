"""The jobs behind docs/findings.md: nothing is measured that was not trained; failures are told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench import appendix, appendix_features, appendix_predictions, calibration
from bench.appendix import Job, measurements, models, work_off
from bench.attacks import BENIGN
from bench.study import Case
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
    monkeypatch.setattr(calibration, "scan", lambda *_: None)
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
    for data, case in list(calibration.cases())[missing:]:
        file = tmp_path / data.name / case.name / "scan" / "predictions.parquet"
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setattr(calibration, "reference", lambda _: [{"case": "a"}])
    monkeypatch.setattr(calibration, "collect", lambda *_: [{"case": "b"}])
    monkeypatch.setattr(calibration, "files", lambda _: tmp_path)
    kept = {tmp_path / "benign.json": "a", tmp_path / "out.json": "b"}
    for file in kept:
        file.write_text("as before")
    calibration.keep(tmp_path, tmp_path / "out.json")
    for file, name in kept.items():
        if missing:
            assert file.read_text() == "as before"
        else:
            assert json.loads(file.read_text())["rows"] == [{"case": name}]


def test_rows_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    appendix_features.keep([{"setting": "a", "n": 1}, {"setting": "b", "n": 1}], out, "cpu")
    appendix_features.keep([{"setting": "a", "n": 2}], out, "cpu")
    assert [row["n"] for row in json.loads(out.read_text())["settings"]] == [2, 1]
    appendix_predictions.keep([{"data": "d", "case": "a"}], out2 := tmp_path / "two.json", "cpu")
    appendix_predictions.keep([{"data": "d", "case": "b"}], out2, "cpu")
    assert [row["case"] for row in json.loads(out2.read_text())["rows"]] == ["a", "b"]
