"""The job scan: where a model's adversarial examples go (appendix B), and a verdict."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pbe_fast._jobs import (
    Tester,
    clock_of,
    fingerprint,
    finished_before,
    for_site,
    load_given,
    log_file,
    model_facts,
    require_unused,
    run_facts,
    save_clock,
    settle_device,
)
from pbe_fast._site import Site, open_sets
from pbe_fast._worker import SCORES_NAME, Fleet, executor_on, gathered
from pbe_fast.analysis.answers import Answers, chosen
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, Predictions, write_predictions
from pbe_fast.analysis.verdict import Verdict, judge
from pbe_fast.config import ScanConfig
from pbe_fast.data.loader import Quarantine
from pbe_fast.data.manifest import Manifest
from pbe_fast.erase import ScoreFiles
from pbe_fast.erase.split import Split, split_classes
from pbe_fast.errors import ConfigError, ShardError
from pbe_fast.progress import Progress, Silent
from pbe_fast.report import write_report
from pbe_fast.run_directory import RunDirectory

__all__ = ["scan"]

_LISTED = 10  # labels in metrics.json, at each size


def scan(
    config: ScanConfig,
    out: Path,
    progress: Progress | None = None,
    *,
    fleet: Fleet | None = None,
    stop: Callable[[], bool] | None = None,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Make adversarial examples of images, keep what the model takes them for, and judge.

    Writes ``predictions.parquet``, a row for each image, ``metrics.json``, which sums it up, and
    ``report.html``. :class:`pbe_fast.analysis.predictions.Predictions` says what the numbers are,
    and :mod:`pbe_fast.analysis.verdict` how they are judged.

    Args:
        config: ``model.checkpoint`` and ``data.train`` are needed; no other set is used.
        out: the run directory. The same call on it goes on where it stopped.
        fleet: does the arithmetic; None does it in this process.
        stop: asked now and then whether to stop; shards that are done are kept.
        accept_changes: go on with a run that was begun with another configuration or version.
            What was done with another configuration is done again.

    Returns:
        the content of ``metrics.json``.

    Raises:
        PbeError: the configuration, the model or the data is unusable.
        StoppedError: ``stop`` said so; the same call goes on.
    """
    progress, stop = progress or Silent(), stop or (lambda: False)
    _require_sense(config)
    run = RunDirectory.open(out, config, accept_changes)
    metrics = finished_before(run, progress)
    if metrics is not None:
        return metrics
    with run.locked(), log_file(run) as log:
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        sets = open_sets(for_site(config), quarantine)
        data, manifest = sets.some, sets.some.manifest
        model = load_given(for_site(config), data).requires_grad_(False)
        if manifest.num_classes < 2:
            raise ConfigError(f"{manifest.root} has one class; a scan needs at least two.")
        inputs = fingerprint(config.model.checkpoint, data)
        clock = clock_of(run, inputs, progress, accept_changes)
        choose = {} if fleet is None else {"choose": fleet.choose_device}
        config, device = settle_device(config, run, model, **choose)
        log.info("scanning on %s in %s", device.torch, device.precision)
        tester = Tester(for_site(config), quarantine, model.spec.num_classes, progress)
        site = Site(for_site(config), sets, model, model, tester, device)
        ids = chosen(manifest.labels, config.scan.per_class, config.seed)
        images = np.bincount(manifest.shard_index[ids], minlength=len(manifest.shards)).tolist()
        key = " ".join(
            [*inputs, device.precision, device.layout, str(config.data.image_size),
             str(config.batch_size), str(config.seed)]
        )  # fmt: skip
        save_clock(run, inputs, clock)
        split = None
        try:
            with executor_on(fleet, site, run) as executor:
                rest: dict[str, Any] = {"progress": progress, "stop": stop, "clock": clock}
                files = ScoreFiles(out / SCORES_NAME / "scan", key, config.scan)
                answers = gathered(files, manifest, images, executor, phase="scan", **rest)
                if config.split:
                    counts = [shard.samples for shard in manifest.shards]
                    files = ScoreFiles(out / SCORES_NAME / "activations", key, "activations")
                    activations = gathered(
                        files, manifest, counts, executor, phase="activations", **rest
                    )
                    # As the benign models were that its verdict goes by.
                    split = split_classes(activations, manifest.labels, ashman=True)
        finally:  # a stop also
            save_clock(run, inputs, clock)
        found = _kept(config, manifest, answers, split, out)
        metrics = {
            "kind": "scan",
            "model": model_facts(model.spec),
            "verdict": _told(judge(found)),
            **_summary(found),
            **run_facts(config, clock, quarantine),
        }
        metrics = run.finish(metrics)
        write_report(out)
        log.info("finished: %d images", len(found.labels))
    return metrics


def _kept(
    config: ScanConfig, manifest: Manifest, answers: Answers, split: Split | None, out: Path
) -> Predictions:
    """Write the table; images that were not looked at, or could not be read, are left out."""
    ids = np.flatnonzero(np.isfinite(answers).all((1, 2))) if len(answers) else np.empty(0, int)
    if not len(ids):
        raise ShardError(f"{manifest.root}: none of its images can be decoded. Mend the shards.")
    found = Predictions(
        manifest.classes,
        config.scan.eps_255,
        manifest.labels[ids],
        answers[ids, :, 0].astype(np.int32),
        answers[ids, :, 1],
        None if split is None else split.log_odds[ids] > 0,
        () if split is None else split.classes,
    )
    names = pa.array([shard.name for shard in manifest.shards], pa.string())
    write_predictions(
        out / PREDICTIONS_NAME,
        found,
        manifest.keys.take(pa.array(ids)),
        names.take(pa.array(manifest.shard_index[ids])),
    )
    return found


def _told(verdict: Verdict) -> dict[str, Any]:
    """With the strongest evidence of each kind."""
    return asdict(replace(verdict, evidence=verdict.strongest))


def _summary(found: Predictions) -> dict[str, Any]:
    share, expected, success = found.share, found.expected, found.success
    return {
        "images": len(found.labels),
        "accuracy": found.accuracy,
        "scan": [
            {
                "eps_255": eps,
                "success": float(success[size]),
                "labels": [
                    {
                        "label": label,
                        "share": float(share[size, label]),
                        "expected": float(expected[size, label]),
                    }
                    for label in found.largest(size, _LISTED)
                ],
            }
            for size, eps in enumerate(found.eps_255)
        ],
    }


def _require_sense(config: ScanConfig) -> None:
    """Refuse what cannot be done, and keys that would change nothing."""
    if config.model.checkpoint is None:
        raise ConfigError("no model to scan: give its weights as model.checkpoint.")
    if config.data.train is None:
        raise ConfigError("no images to scan with: give shards as data.train.")
    require_unused(config, "a scan")
