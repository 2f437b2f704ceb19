"""The main job: an infected classifier in, a purified classifier and a list of suspects out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from pbe_fast._files import atomic_path
from pbe_fast._jobs import Tester, augment_for, log_file, open_data, step_logger
from pbe_fast.adversary import PGD
from pbe_fast.config import PurifyConfig
from pbe_fast.data.loader import ImageData, Quarantine
from pbe_fast.data.manifest import Manifest
from pbe_fast.device import Device, choose_device
from pbe_fast.erase import (
    Place,
    Round,
    aft_stage,
    first_subset,
    make_pgd,
    pbe_rounds,
    run_rounds,
    score,
)
from pbe_fast.erase.identify import Scores
from pbe_fast.errors import ConfigError
from pbe_fast.evaluate import auroc, precision_at
from pbe_fast.models import Classifier, ModelSpec, load_model, save_model
from pbe_fast.progress import Clock, Progress, Silent
from pbe_fast.report import write_report
from pbe_fast.run_directory import RunDirectory, versions
from pbe_fast.training import Position, Stage, fit
from pbe_fast.triggers.poisoning import load_truth

__all__ = ["PURIFIED_NAME", "SUSPECTS_NAME", "purify"]

PURIFIED_NAME = "purified.safetensors"
SUSPECTS_NAME = "suspects.parquet"

Ids = npt.NDArray[np.int64]
Truth = npt.NDArray[np.bool_]


def purify(config: PurifyConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Erase a backdoor, by AFT with a clean set or by PBE without one.

    Args:
        config: ``model.checkpoint`` is needed, and ``data.clean`` (AFT) or ``data.train`` (PBE).
        out: the run directory; the same call on it goes on where it stopped.

    Returns:
        the content of ``metrics.json``. Beside it lie ``purified.safetensors``, the report and,
        where there is a training set, ``suspects.parquet``.

    Raises:
        PbeError: the configuration, the model or the data is unusable.
    """
    progress = progress or Silent()
    config = _resolve_method(config)
    run = RunDirectory.open(out, config)
    done = run.finished()
    if done is not None:
        progress.say(f"{out} is finished already.")
        return done
    with log_file(run) as log:
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        sets = _open_sets(config, quarantine)
        infected, model = _load_twice(config, sets)
        tester = Tester(
            config.data,
            quarantine,
            num_classes=infected.spec.num_classes,
            seed=config.seed,
            batch_size=config.eval_batch_size,
            curve_samples=config.curve_samples,
            progress=progress,
        )
        state = run.load_state()
        before = run.read_config() or {}
        device = choose_device(
            before.get("device", config.device),
            before.get("precision", config.precision),
            infected,
            config.data.image_size,
        )
        config = config.model_copy(
            update={"device": str(device.torch), "precision": device.precision}
        )
        run.write_config(config)
        log.info("%s on %s in %s", config.method, device.torch, device.precision)
        worker = _LocalWorker(config, run, sets, infected, model, tester, device, progress)
        if state is None:
            first = tester.whole(infected, device, "infected: ACC, ASR")
            worker.infected_result = first.as_dict() if first else None
            place = Place(0, "finetune", worker.first_ids())
            worker.save(place)
        else:
            place = worker.restore(*state)
            log.info("going on in round %d, %s", place.round, place.part)
        scores = run_rounds(_rounds(config), worker, place, worker.save)
        save_model(model, out / PURIFIED_NAME)
        purified = tester.whole(model, device, "purified: ACC, ASR")
        metrics: dict[str, Any] = {
            "kind": "purify",
            "method": config.method,
            "model": {
                "name": infected.spec.name,
                "options": dict(infected.spec.options),
                "classes": infected.spec.num_classes,
            },
            **({"infected": worker.infected_result} if worker.infected_result else {}),
            **({"purified": purified.as_dict()} if purified else {}),
            "rounds": worker.rounds,
        }
        if scores is not None and sets.train is not None:
            _write_suspects(out / SUSPECTS_NAME, sets.train.manifest, scores, sets.truth)
            metrics["suspects"] = _suspect_metrics(scores, sets.truth)
        if tester.attack is not None:
            metrics["attack"] = {"name": tester.attack.trigger.name, "mode": tester.attack.mode}
        metrics |= {
            "seconds": worker.clock.seconds,
            "images_per_second": worker.clock.rates(),
            "quarantined": len(quarantine.reasons),
            "device": config.device,
            "precision": config.precision,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "seed": config.seed,
        }
        run.finish(metrics)
        write_report(out)
        log.info(
            "finished: infected %s, purified %s", metrics.get("infected"), metrics.get("purified")
        )
    return metrics


@dataclass(frozen=True)
class _Sets:
    """The opened data: the set that is scored, the clean one, and which samples are poisoned."""

    train: ImageData | None
    clean: ImageData | None
    truth: Truth | None

    @property
    def some(self) -> ImageData:
        """Either of them."""
        data = self.train or self.clean
        if data is None:
            raise ConfigError("neither data.train nor data.clean is given.")
        return data


class _LocalWorker:
    """Executes the units of work in this process, and keeps what a new start needs."""

    def __init__(
        self,
        config: PurifyConfig,
        run: RunDirectory,
        sets: _Sets,
        infected: Classifier,
        model: Classifier,
        tester: Tester,
        device: Device,
        progress: Progress,
    ) -> None:
        self.config, self.run, self.sets, self.tester = config, run, sets, tester
        self.infected, self.model = infected, model
        self.device, self.progress = device, progress
        self.pgd: PGD = make_pgd(config.adversary)
        self.clock = Clock()
        self.rounds: list[dict[str, Any]] = []
        self.infected_result: dict[str, float] | None = None
        device.place(infected)
        device.place(model)

    @property
    def data(self) -> ImageData:
        """What is fine-tuned on."""
        data = self.sets.clean if self.config.method == "aft" else self.sets.train
        return data or self.sets.some

    def first_ids(self) -> Ids:
        """The first subset: of the clean set for AFT, of the training set for PBE."""
        aft = self.config.method == "aft"
        share = self.config.data.clean_fraction if aft else self.config.pbe.initial_fraction
        return first_subset(len(self.data.manifest), share, self.config.seed)

    def finetune(self, stage: Stage, place: Place) -> None:
        """See :class:`pbe_fast.erase.Worker`."""
        logger = step_logger(self.run, stage.name, stage.round)
        current = place

        def checkpoint(position: Position) -> None:
            logger.flush()
            self.save(Place(current.round, "finetune", current.subset, position))

        def on_epoch(epochs: int) -> None:
            logger.flush()
            if epochs < stage.epochs and epochs % max(1, stage.epochs // 5):
                return  # the curve needs no more than about five points a round
            result = self.tester.sample(self.model, self.device)
            if result is not None:
                line = {"event": "evaluation", "round": stage.round, "epoch": epochs}
                self.run.event({**line, **result.as_dict()})
            images = len(place.subset)
            self.progress.phase(stage.name, stage.epochs * images, epochs * images)

        fit(
            self.model,
            self.data,
            place.subset,
            stage,
            self.device,
            pgd=self.pgd,
            seed=self.config.seed,
            start=place.position,
            progress=self.progress,
            clock=self.clock,
            on_step=logger,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
            checkpoint_seconds=self.config.checkpoint_seconds,
        )

    def score(self, place: Place) -> Scores | None:
        """See :class:`pbe_fast.erase.Worker`."""
        facts: dict[str, Any] = {"round": place.round, "subset": len(place.subset)}
        result = self.tester.sample(self.model, self.device)
        facts |= result.as_dict() if result else {}
        scores = None
        if self.sets.train is not None:
            with self.clock.time("score", len(self.sets.train.manifest)):
                scores = score(
                    self.infected,
                    self.model,
                    self.sets.train,
                    self.device,
                    batch_size=self.config.eval_batch_size,
                    phase=f"score {place.round}",
                    progress=self.progress,
                )
            if self.sets.truth is not None:
                area = auroc(scores, self.sets.truth)
                facts |= {} if area is None else {"auroc": area}
                if self.config.method == "pbe":
                    facts["subset_poisoned"] = int(self.sets.truth[place.subset].sum())
        self.rounds.append(facts)
        return scores

    def save(self, place: Place) -> None:
        """Keep the place and the current weights."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"momentum.{k}": v for k, v in place.position.momentum.items()}
        tensors["subset"] = torch.from_numpy(place.subset)
        self.run.save_state(
            tensors,
            {
                "round": place.round,
                "part": place.part,
                "epoch": place.position.epoch,
                "batch": place.position.batch,
                "seconds": self.clock.seconds,
                "images": self.clock.images,
                "rounds": self.rounds,
                "infected": self.infected_result,
            },
        )

    def restore(self, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> Place:
        """Take up what :meth:`save` kept."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "momentum": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind in parts:
                parts[kind][rest] = value
        self.model.load_state_dict(parts["model"])
        self.clock = Clock(header["seconds"], header["images"])
        self.rounds = list(header["rounds"])
        self.infected_result = header["infected"]
        position = Position(int(header["epoch"]), int(header["batch"]), parts["momentum"])
        return Place(int(header["round"]), header["part"], tensors["subset"].numpy(), position)


def _resolve_method(config: PurifyConfig) -> PurifyConfig:
    """``auto`` becomes AFT or PBE; what the method needs must be there."""
    if config.model.checkpoint is None:
        raise ConfigError("no model to purify: give its weights as model.checkpoint.")
    method = config.method
    if method == "auto":
        method = "aft" if config.data.clean else "pbe"
    if method == "aft" and config.data.clean is None:
        raise ConfigError("method aft needs clean images with correct labels: give data.clean.")
    if method == "pbe" and config.data.train is None:
        raise ConfigError("method pbe needs the training set: give data.train.")
    if config.data.truth is not None and config.data.train is None:
        raise ConfigError("data.truth is about the training set: give data.train too.")
    return config.model_copy(update={"method": method})


def _rounds(config: PurifyConfig) -> list[Round]:
    augment = augment_for(config.data)
    if config.method == "aft":
        return [Round(aft_stage(config.aft, augment, config.data.flip), None)]
    return pbe_rounds(config.pbe, augment, config.data.flip)


def _open_sets(config: PurifyConfig, quarantine: Quarantine) -> _Sets:
    data = config.data
    train = open_data(data.train, data, quarantine) if data.train else None
    clean = open_data(data.clean, data, quarantine) if data.clean else None
    truth = load_truth(data.truth, train.manifest) if data.truth and train else None
    if train and clean and train.manifest.num_classes != clean.manifest.num_classes:
        raise ConfigError(
            f"{data.train} has {train.manifest.num_classes} classes, {data.clean} "
            f"{clean.manifest.num_classes}. Convert both with the same classes (--classes-from)."
        )
    return _Sets(train, clean, truth)


def _load_twice(config: PurifyConfig, sets: _Sets) -> tuple[Classifier, Classifier]:
    """The infected model to compare with, and the one that is changed."""
    checkpoint = config.model.checkpoint
    if checkpoint is None:
        raise ConfigError("no model to purify: give its weights as model.checkpoint.")
    classes = sets.some.manifest.num_classes
    spec = None
    if not config.model.name and (config.model.options or config.model.mean or config.model.std):
        raise ConfigError("model options are given, but no model.name that they belong to.")
    if config.model.name:
        spec = ModelSpec(
            config.model.name,
            classes,
            config.data.image_size,
            config.model.options,
            config.model.mean,
            config.model.std,
        )
    infected = load_model(checkpoint, spec)
    if infected.spec.num_classes != classes:
        raise ConfigError(
            f"{checkpoint} is a model of {infected.spec.num_classes} classes, but "
            f"{sets.some.manifest.root} has {classes}."
        )
    _freeze(infected)
    return infected, load_model(checkpoint, spec or infected.spec)


def _freeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _write_suspects(path: Path, manifest: Manifest, scores: Scores, truth: Truth | None) -> None:
    """All training images, the most suspicious first."""
    # An undecodable image has no score; it goes last, and stands in quarantine.jsonl.
    order = np.argsort(np.where(np.isnan(scores), np.inf, scores), kind="stable")
    names = np.array([shard.name for shard in manifest.shards], dtype=object)
    columns: dict[str, Any] = {
        "key": manifest.keys.take(pa.array(order)),
        "shard": pa.array(names[manifest.shard_index[order]], pa.string()),
        "label": manifest.labels[order],
        "score": scores[order],
        "rank": np.arange(len(order), dtype=np.int64),
    }
    if truth is not None:
        columns["poisoned"] = truth[order]
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def _suspect_metrics(scores: Scores, truth: Truth | None) -> dict[str, float | int]:
    facts: dict[str, float | int] = {"count": len(scores)}
    if truth is not None:
        area, precision = auroc(scores, truth), precision_at(scores, truth)
        facts["poisoned"] = int(truth.sum())
        facts |= {} if area is None else {"auroc": area}
        facts |= {} if precision is None else {"precision_at_truth": precision}
    return facts
