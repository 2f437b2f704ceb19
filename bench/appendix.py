"""Everything of the paper's appendix from nothing: docs/theory.md and docs/findings.md.

    python -m bench.appendix runs/appendix --images IMAGES
    python -m bench.appendix runs/appendix --images IMAGES --only theory signs10

``IMAGES`` holds ``gtsrb32`` and ``cifar10`` as image folders. First models are trained, scanned
with what they were trained on (:mod:`bench.calibration`), and the theory is checked
(:mod:`bench.theory`); then the predictions of Figures B.1 to B.3
(:mod:`bench.appendix_predictions`) and the features of Figures 5 to 7
(:mod:`bench.appendix_features`) are measured. ``--jobs`` processes of one thread work side by side,
one for each core unless said otherwise. Everything is a run directory below the folder, and what is
finished is not done again. The results are JSON files under ``bench/results``, of which ``python -m
bench.docs`` makes the tables.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any, NamedTuple

import torch
from PIL import Image

from bench import appendix_features, appendix_predictions, calibration, theory
from bench.attacks import BENIGN
from bench.study import Case, run_case
from pbe_fast.progress import Silent

__all__ = ["Job", "measurements", "models", "pictures", "work_off"]

PICTURES = Path("docs/figures")
IMAGES = {32: 400, appendix_features.LARGE: 100}  # whose features are measured


class Job(NamedTuple):
    """A piece of work that a process does by itself.

    Attributes:
        name: part, and what of it.
        work: can be pickled.
    """

    name: str
    work: Callable[[], Any]


def models(folder: Path, images: Path) -> list[Job]:
    """The theory, and everything that trains; the longest first, so that none is left over."""
    silent = Silent()
    appendix_features.large_shards(folder)  # here, as two processes must not draw the same ones
    shards = {
        name: calibration.clean_shards(folder, images, data)
        for name, data in calibration.DATA.items()
    }
    cases = sorted(calibration.cases(), key=lambda pair: pair[1].attack == BENIGN)
    calibrated = [
        Job(
            f"calibration {data.name}/{case.name}",
            partial(calibration.run, folder, shards[data.name], data, case, silent),
        )
        for data, case in cases
    ]
    done = {folder / data.name / case.name for data, case in cases}
    of_predictions = [
        Job(
            f"model of {one.figure} {one.data}/{one.attack}",
            partial(appendix_predictions.make, one, folder, "cpu", silent),
        )
        for one in appendix_predictions.FIGURES
        if appendix_features.place(folder, one.data, one.attack) not in done
    ]
    of_features = [
        Job(
            f"model of features {one.name}",
            partial(
                run_case, folder, shards[one.data], calibration.DATA[one.data], Case(one.attack),
                "cpu", silent,
            ),
        )
        for one in appendix_features.settings(folder)
        if one.data in shards and one.case(one.attack) not in done
    ]  # fmt: skip
    return [*of_predictions, Job("theory", theory.measure), *of_features, *calibrated]


def measurements(folder: Path) -> list[Job]:
    """What is measured with the models when they are all there; each job gives a row."""
    silent = Silent()
    of_features = [
        Job(
            f"features {one.name}",
            partial(appendix_features.measure, one, IMAGES[one.size], "cpu", silent),
        )
        for one in appendix_features.settings(folder)
    ]
    of_predictions = [
        Job(
            f"predictions {one.figure} {one.data}/{one.attack}",
            partial(appendix_predictions.figure_row, one, folder, "cpu", silent),
        )
        for one in appendix_predictions.FIGURES
    ]
    return of_predictions + of_features


def pictures(folder: Path, out: Path) -> None:
    """Heat maps at eps 8/255, and a picture of the features of Figures 5 to 7, in 256 colours."""
    out.mkdir(parents=True, exist_ok=True)
    for one in appendix_predictions.FIGURES:
        case = appendix_features.place(folder, one.data, one.attack)
        heat_map = case / "scan-test" / "figures" / "heat-map-8.png"
        _copy(heat_map, out / f"heat-map-{one.data}-{one.attack}.png")
    for setting in appendix_features.settings(folder):
        if setting.figure is not None:
            maps = folder / f"features-{setting.name}" / "maps-0.png"
            _copy(maps, out / f"features-{setting.name}.png")


def _copy(picture: Path, out: Path) -> None:
    if picture.exists():
        with Image.open(picture) as image:
            image.convert("RGB").quantize(256).save(out, optimize=True)


def work_off(jobs: Sequence[Job], processes: int) -> dict[str, Any]:
    """Do jobs side by side, in processes of one thread each; their results by name.

    Raises:
        Exception: that of the first job to fail, when those that run beside it have ended; what
            has not begun is not.
    """
    begun, results = perf_counter(), dict[str, Any]()
    with ProcessPoolExecutor(
        min(processes, len(jobs)) or 1, mp_context=get_context("spawn"), initializer=_begin
    ) as pool:
        running = {pool.submit(job.work): job.name for job in jobs}
        try:
            for done in as_completed(running):
                error = done.exception()
                if error is not None:
                    error.add_note(f"in the job {running[done]!r}")
                    raise error
                results[running[done]] = done.result()
                minutes = (perf_counter() - begun) / 60
                told = f"{len(results)} of {len(jobs)}, {minutes:.0f} min: {running[done]}"
                print(told, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def _begin() -> None:
    """Of a process: one thread, and it ends when the one that started it is killed."""
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def main() -> None:
    """Parse the command line, do what is missing, and keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="with gtsrb32 and cifar10")
    parser.add_argument("--only", nargs="*", default=[""], help="jobs with this in their names")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    folder, images = options.folder.resolve(), options.images.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that begin from here on

    def chosen(jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if any(word in job.name for word in options.only)]

    work_off(chosen(models(folder, images)), options.jobs)
    rows = work_off(chosen(measurements(folder)), options.jobs)
    calibration.keep(folder, calibration.OUT)
    for part, module in (("features", appendix_features), ("predictions", appendix_predictions)):
        module.keep([row for name, row in rows.items() if name.startswith(part)], module.OUT, "cpu")
    pictures(folder, PICTURES)


if __name__ == "__main__":
    main()
