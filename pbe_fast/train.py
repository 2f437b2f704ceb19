"""Train a classifier from shards: an infected one from poisoned shards, else a benign one."""

from pathlib import Path
from typing import Any

import torch

from pbe_fast._jobs import (
    StepLogger,
    Tester,
    augment_for,
    fingerprint,
    finished_before,
    log_file,
    model_facts,
    model_spec,
    open_data,
    restore_state,
    run_facts,
    settle_device,
)
from pbe_fast.config import TrainConfig
from pbe_fast.data.loader import Quarantine
from pbe_fast.errors import ConfigError
from pbe_fast.models import create_model, load_model, save_model
from pbe_fast.progress import Clock, Progress, Silent
from pbe_fast.report import write_report
from pbe_fast.run_directory import RunDirectory
from pbe_fast.training import Position, Stage, fit

__all__ = ["MODEL_NAME", "train"]

MODEL_NAME = "model.safetensors"


def train(config: TrainConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train a model with SGD, a cosine schedule and augmentation.

    Args:
        config: what to train on what; ``data.train`` is needed.
        out: the run directory; the same call on it goes on where it stopped.

    Returns:
        the content of ``metrics.json``. The weights are in ``out/model.safetensors``.

    Raises:
        PbeError: the configuration or the data is unusable.
    """
    progress = progress or Silent()
    if config.data.train is None:
        raise ConfigError("nothing to train on: give the training shards as data.train.")
    run = RunDirectory.open(out, config)
    done = finished_before(run, progress)
    if done is not None:
        return done
    with log_file(run) as log:
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        data = open_data(config.data.train, config.data, quarantine)
        classes = data.manifest.num_classes
        spec = model_spec(config, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = (
                load_model(config.model.checkpoint, spec)
                if config.model.checkpoint
                else create_model(spec)
            )
        tester = Tester(config, quarantine, classes, progress)
        state = run.load_state()
        inputs = fingerprint(config.model.checkpoint, data)
        config, device = settle_device(config, run, model)
        log.info("training %s on %s in %s", spec.name, device.torch, device.precision)
        start, clock = Position(), Clock()
        if state is not None:
            tensors, header = state
            start, clock = restore_state(run, model, tensors, header, inputs)
            log.info("going on at epoch %d, batch %d", start.epoch, start.batch)
        device.place(model)
        stage = Stage.of(
            config,
            name="train",
            schedule="cosine",
            augment=augment_for(config.data),
            flip=config.data.flip,
        )
        logger = StepLogger(run.event, "train", 0)

        def checkpoint(position: Position) -> None:
            logger.flush()
            tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
            tensors |= {f"momentum.{k}": v for k, v in position.momentum.items()}
            header = {
                "epoch": position.epoch,
                "batch": position.batch,
                "seconds": clock.seconds,
                "images": clock.images,
                "inputs": inputs,
            }
            run.save_state(tensors, header)

        def on_epoch(epochs: int) -> None:
            logger.flush()
            result = tester.sample(model, device)
            if result is not None:
                run.event({"event": "evaluation", "round": 0, "epoch": epochs, **result.as_dict()})
            progress.phase("train", config.epochs * len(data.ids), epochs * len(data.ids))

        fit(
            model,
            data,
            data.ids,
            stage,
            device,
            pgd=None,
            seed=config.seed,
            start=start,
            progress=progress,
            clock=clock,
            on_step=logger,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
            checkpoint_seconds=config.checkpoint_seconds,
        )
        save_model(model, out / MODEL_NAME)
        result = tester.whole(model, device, "test")
        attack = tester.attack
        metrics: dict[str, Any] = {
            "kind": "train",
            "model": model_facts(spec),
            **({"test": result.as_dict()} if result else {}),
            **({"attack": {"name": attack.trigger.name, "mode": attack.mode}} if attack else {}),
            **run_facts(config, clock, quarantine),
        }
        metrics = run.finish(metrics)
        log.info("finished: %s", metrics.get("test"))
    write_report(out)
    return metrics
