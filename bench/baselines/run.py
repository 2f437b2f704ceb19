"""One baseline as a job, with the run directory that ``purify`` has."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from bench.baselines import BASELINES
from pbe_fast._jobs import (
    Tester,
    finished_before,
    load_given,
    log_file,
    model_facts,
    run_facts,
    settle_device,
)
from pbe_fast._site import open_sets
from pbe_fast.config import PurifyConfig
from pbe_fast.data.loader import ImageData, Quarantine
from pbe_fast.device import Device
from pbe_fast.erase import Agreement, first_subset, score_shards
from pbe_fast.erase.identify import Scores
from pbe_fast.errors import ConfigError, DivergenceError, RunDirectoryError
from pbe_fast.models import Classifier, save_model
from pbe_fast.progress import Clock, Progress, Silent
from pbe_fast.purify import PURIFIED_NAME
from pbe_fast.report import write_report
from pbe_fast.run_directory import RunDirectory
from pbe_fast.suspects import SUSPECTS_NAME, suspect_metrics, write_suspects
from pbe_fast.thumbnails import THUMBNAILS_NAME, write_thumbnails
from pbe_fast.training import not_finite

__all__ = ["erase"]


def erase(
    config: PurifyConfig, name: str, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Purify by a baseline, on the clean images that AFT has with the same configuration.

    A finished run is not done again; a stopped one begins anew, as it takes minutes.

    Args:
        config: ``model.checkpoint`` and ``data.clean`` are needed. The settings of AFT, PBE and the
            adversary are not used: a baseline has its own. With ``data.train`` its images are
            scored, as ``purify`` does it.
        name: a key of :data:`bench.baselines.BASELINES`.
        out: the run directory.

    Returns:
        the content of ``metrics.json``, with the keys that ``purify`` writes.

    Raises:
        PbeError: the configuration, the model or the data is unusable.
    """
    progress = progress or Silent()
    _require_possible(config, name)
    run = RunDirectory.open(out, config)
    done = finished_before(run, progress)
    if done is not None:
        if done.get("method") != name:
            raise RunDirectoryError(f"{out}: holds a run of {done.get('method')}, not of {name}.")
        return done
    with run.locked(), log_file(run) as log:
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        sets = open_sets(config, quarantine)
        clean = sets.clean or sets.some
        infected = load_given(config, clean)
        model = deepcopy(infected)
        infected.requires_grad_(False)
        tester = Tester(config, quarantine, infected.spec.num_classes, progress)
        config, device = settle_device(config, run, infected)
        log.info("%s on %s in %s", name, device.torch, device.precision)
        device.place(infected)
        device.place(model)
        clock = Clock()
        before = tester.whole(infected, device, "infected: ACC, ASR")
        ids = first_subset(len(clean.manifest), config.data.clean_fraction, config.seed)
        with clock.time("erase", 0):  # a baseline sees its images more than once
            BASELINES[name](model, clean, ids, device, config.seed, progress)
        broken = not_finite(model)
        if broken is not None:
            raise DivergenceError(f"{name}: diverged ({broken} is not finite).")
        save_model(model, out / PURIFIED_NAME)
        after = tester.whole(model, device, "purified: ACC, ASR")
        round_facts: dict[str, Any] = {"round": 0, "subset": len(ids)}
        metrics: dict[str, Any] = {
            "kind": "purify",
            "method": name,
            "model": model_facts(infected.spec),
            **({"infected": before.as_dict()} if before else {}),
            **({"purified": after.as_dict()} if after else {}),
            "rounds": [round_facts],
        }
        if sets.train is not None:
            scores = _scores(config, sets.train, infected, model, device, clock, progress)
            write_suspects(out / SUSPECTS_NAME, sets.train.manifest, scores, sets.truth)
            write_thumbnails(out / THUMBNAILS_NAME, sets.train, scores)
            metrics["suspects"] = suspect_metrics(scores, sets.truth)
            if "auroc" in metrics["suspects"]:
                round_facts["auroc"] = metrics["suspects"]["auroc"]
        if tester.attack is not None:
            metrics["attack"] = {"name": tester.attack.trigger.name, "mode": tester.attack.mode}
        metrics |= run_facts(config, clock, quarantine)
        metrics = run.finish(metrics)
        write_report(out)
        log.info(
            "finished: infected %s, purified %s", metrics.get("infected"), metrics.get("purified")
        )
    return metrics


def _require_possible(config: PurifyConfig, name: str) -> None:
    """Refuse what a baseline would leave aside without a word."""
    if name not in BASELINES:
        raise ConfigError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}.")
    if config.data.clean is None:
        raise ConfigError(f"{name} needs clean images with correct labels: give data.clean.")
    if config.method not in ("auto", "aft"):
        raise ConfigError(f"{name} is another method than {config.method}: leave method out.")
    if config.data.mined is not None:
        raise ConfigError(f"{name} has no use for mined examples: leave data.mined out.")
    if config.data.augment != "auto" or config.data.flip:
        raise ConfigError(f"{name} augments as auto does: leave data.augment and data.flip out.")
    if config.data.truth is not None and config.data.train is None:
        raise ConfigError("data.truth is about the training set: give data.train too.")


def _scores(
    config: PurifyConfig,
    train: ImageData,
    infected: Classifier,
    model: Classifier,
    device: Device,
    clock: Clock,
    progress: Progress,
) -> Scores:
    """The agreement of both models on every training image."""
    manifest = train.manifest
    progress.phase("score", len(manifest))
    with clock.time("score", len(manifest)):
        parts = [
            scores
            for _, scores in score_shards(
                Agreement(infected.eval(), model.eval()),
                train,
                device,
                range(len(manifest.shards)),
                batch_size=config.eval_batch_size,
                advance=progress.advance,
            )
        ]
    return np.concatenate(parts)
