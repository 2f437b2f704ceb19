"""The main job: an infected classifier in, a purified classifier and a list of suspects out."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from pbe_fast._jobs import (
    Tester,
    augment_for,
    finished_before,
    load_given,
    log_file,
    model_facts,
    run_facts,
    settle_device,
)
from pbe_fast._site import Site, open_sets
from pbe_fast._tensorboard import scalars
from pbe_fast._worker import SCORES_NAME, Fleet, RunWorker, executor_on
from pbe_fast.config import PurifyConfig
from pbe_fast.data.loader import Quarantine
from pbe_fast.device import choose_device
from pbe_fast.erase import (
    Place,
    Round,
    Sieve,
    Split,
    aft_stage,
    pbe_rounds,
    run_rounds,
    split_classes,
)
from pbe_fast.erase.ranking import backdoor_found, rank_images
from pbe_fast.errors import ConfigError
from pbe_fast.mine import mined_otherwise
from pbe_fast.models import save_model
from pbe_fast.progress import Progress, Silent
from pbe_fast.report import write_report
from pbe_fast.run_directory import RunDirectory
from pbe_fast.suspects import SUSPECTS_NAME, judged_metrics, suspect_metrics, write_suspects
from pbe_fast.thumbnails import THUMBNAILS_NAME, write_thumbnails

__all__ = ["PURIFIED_NAME", "SUSPECTS_NAME", "Fleet", "purify"]

PURIFIED_NAME = "purified.safetensors"


def purify(
    config: PurifyConfig,
    out: Path,
    progress: Progress | None = None,
    *,
    fleet: Fleet | None = None,
    stop: Callable[[], bool] | None = None,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Erase a backdoor, by AFT with a clean set, by Sieve or PBE without one.

    With ``data.mined`` adversarial batches are read instead of mined: examples of the infected
    model, which :func:`pbe_fast.mine` made once, of each image as it is, without augmentation. The
    method mines against the current model in every batch, so this is an approximation that gives
    up some faithfulness for speed; all else is the same.

    Args:
        config: ``model.checkpoint`` is needed, and ``data.clean`` (AFT) or ``data.train`` (Sieve,
            PBE).
        out: the run directory; the same call on it goes on where it stopped.
        fleet: does the arithmetic; None does it in this process.
        stop: asked now and then whether to keep the state and stop.
        accept_changes: go on with a run that was begun with another configuration or version.

    Returns:
        the content of ``metrics.json``. Beside it lie ``purified.safetensors``, the report and,
        where there is a training set, ``suspects.parquet``.

    Raises:
        PbeError: the configuration, the model or the data is unusable.
        StoppedError: ``stop`` said so; the same call goes on.
    """
    progress, stop = progress or Silent(), stop or (lambda: False)
    config = _resolve_method(config)
    run = RunDirectory.open(out, config, accept_changes)
    done = finished_before(run, progress)
    if done is not None:
        return done
    with run.locked(), log_file(run) as log:
        run.mirror = scalars(out / "tensorboard")
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        sets = open_sets(config, quarantine)
        infected = load_given(config, sets.some)
        model = deepcopy(infected)
        infected.requires_grad_(False)
        tester = Tester(config, quarantine, infected.spec.num_classes, progress)
        state = run.load_state(progress.say)
        choose = choose_device if fleet is None else fleet.choose_device
        config, device = settle_device(config, run, infected, choose)
        log.info("%s on %s in %s", config.method, device.torch, device.precision)
        if sets.mined is not None and sets.mined.missing:
            log.warning("%d images have no mined example, and are left out", sets.mined.missing)
        otherwise = mined_otherwise(config, infected) if sets.mined is not None else ""
        if otherwise:
            log.warning("%s", otherwise)
            progress.say(f"WARNING: {otherwise}.")
        site = Site(config, sets, infected, model, tester, device)
        with executor_on(fleet, site, run) as executor:
            worker = RunWorker(site, run, executor, progress, stop, accept_changes)
            if state is None:
                first = worker.whole_test(False, "infected: ACC, ASR")
                worker.infected_result = first.as_dict() if first else None
            sieve = _sieve(config, worker) if config.method == "sieve" else None
            rounds = _rounds(config, sieve)
            if state is None:
                place = Place(0, "finetune", sieve.first() if sieve else worker.first_ids())
                worker.save(place)
            else:
                place = worker.restore(*state, len(rounds))
                log.info("going on in round %d, %s", place.round, place.part)
            scores, place = run_rounds(rounds, worker, place, worker.save)
            save_model(model, out / PURIFIED_NAME)
            purified = worker.whole_test(True, "purified: ACC, ASR")
        metrics: dict[str, Any] = {
            "kind": "purify",
            "method": config.method,
            "model": model_facts(infected.spec),
            **({"infected": worker.infected_result} if worker.infected_result else {}),
            **({"purified": purified.as_dict()} if purified else {}),
            "rounds": worker.rounds,
        }
        if sieve is not None and scores is not None:
            judged = next(facts for facts in reversed(worker.rounds) if "odd" in facts)
            relabel = config.sieve.relabel
            ranking = rank_images(sieve.classes, judged, scores, place, relabel=relabel)
            metrics["backdoor"] = backdoor_found(sieve.classes, judged, scores, place, ranking)
            scores = ranking
        if scores is not None and sets.train is not None:
            write_suspects(out / SUSPECTS_NAME, sets.train.manifest, scores, sets.truth)
            write_thumbnails(out / THUMBNAILS_NAME, sets.train, scores)
            metrics["suspects"] = suspect_metrics(scores, sets.truth)
            if sieve is not None:
                metrics["suspects"] |= judged_metrics(scores, sets.truth)
        if tester.attack is not None:
            metrics["attack"] = {"name": tester.attack.trigger.name, "mode": tester.attack.mode}
        metrics |= run_facts(config, worker.clock, quarantine)
        metrics = run.finish(metrics)
        shutil.rmtree(out / SCORES_NAME, ignore_errors=True)
        write_report(out)
        log.info(
            "finished: infected %s, purified %s", metrics.get("infected"), metrics.get("purified")
        )
    return metrics


def _resolve_method(config: PurifyConfig) -> PurifyConfig:
    """``auto`` becomes AFT or Sieve; what the method needs must be there."""
    if config.model.checkpoint is None:
        raise ConfigError("no model to purify: give its weights, as MODEL or model.checkpoint.")
    method = config.method
    if method == "auto":
        method = "aft" if config.data.clean else "sieve"
    if method == "aft" and config.data.clean is None:
        raise ConfigError("method aft needs clean images with correct labels: give data.clean.")
    if method in ("pbe", "sieve") and config.data.train is None:
        raise ConfigError(f"method {method} needs the training set: give data.train.")
    if config.data.truth is not None and config.data.train is None:
        raise ConfigError("data.truth is about the training set: give data.train too.")
    return config.model_copy(update={"method": method})


def _sieve(config: PurifyConfig, worker: RunWorker) -> Sieve:
    manifest = worker.data.manifest
    labels = manifest.labels
    split = Split.of_nothing(len(labels))
    if config.sieve.split:
        activations = worker.activations()
        with worker.clock.time("split", len(labels)):
            split = split_classes(activations, labels)
    return Sieve(labels, manifest.num_classes, split, worker.activations, config.sieve, config.seed)


def _rounds(config: PurifyConfig, sieve: Sieve | None) -> list[Round]:
    augment, flip = augment_for(config.data), config.data.flip
    if sieve is not None:
        return sieve.rounds(augment, flip)
    if config.method == "aft":
        return [Round(aft_stage(config.aft, augment, flip), "agreement", None)]
    return pbe_rounds(config.pbe, augment, flip)
