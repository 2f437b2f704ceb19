"""What the jobs train and purify share: opening data, picking the curve's images, logging."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pbe_fast._files import sha256_file
from pbe_fast.config import (
    AdversaryConfig,
    DataConfig,
    DeviceConfig,
    MineConfig,
    PurifyConfig,
    ScanConfig,
    TrainConfig,
)
from pbe_fast.data.augment import SMALL, Augment
from pbe_fast.data.loader import ImageData, Quarantine
from pbe_fast.data.storage import StorageOptions
from pbe_fast.device import Device, choose_device
from pbe_fast.errors import ConfigError, RunDirectoryError
from pbe_fast.evaluate import Accuracy, evaluate
from pbe_fast.models import Classifier, ModelSpec, check_weights, load_model
from pbe_fast.progress import Clock, Progress
from pbe_fast.randomness import permutation
from pbe_fast.report import REPORT_NAME, write_report
from pbe_fast.run_directory import RunDirectory, versions
from pbe_fast.training import Position, Step
from pbe_fast.triggers import Attack, load_attack

__all__ = [
    "UNUSED",
    "StepLogger",
    "Tester",
    "augment_for",
    "clock_of",
    "code_versions",
    "fingerprint",
    "finished_before",
    "for_site",
    "load_given",
    "log_file",
    "model_facts",
    "model_spec",
    "open_data",
    "require_same_code",
    "require_same_inputs",
    "require_unused",
    "restore_state",
    "run_facts",
    "save_clock",
    "settle_device",
]

# Of `data`, by jobs that only look at a model.
UNUSED = ("clean", "clean_fraction", "mined", "test", "attack", "truth", "augment", "flip")
LOG_EVERY = 20  # batches between two lines of metrics.jsonl

Ids = npt.NDArray[np.int64]
Job = TrainConfig | PurifyConfig
ChooseDevice = Callable[..., Device]
JobT = TypeVar("JobT", bound=DeviceConfig)


def open_data(path: Path | str, config: DataConfig, quarantine: Quarantine) -> ImageData:
    """Open shards as the configuration says."""
    return ImageData.open(
        path,
        config.image_size,
        workers=config.workers,
        quarantine=quarantine,
        digests=config.check_digests,
        storage=StorageOptions(config.cache_dir, config.cache_bytes),
    )


def finished_before(run: RunDirectory, progress: Progress) -> dict[str, Any] | None:
    """The metrics of a run that needs nothing more, its report included; None for any other."""
    metrics = run.finished()
    if metrics is not None:
        progress.say(f"{run.path} is finished already.")
        if not (run.path / REPORT_NAME).exists():
            write_report(run.path)
    return metrics


def model_spec(config: Job, num_classes: int) -> ModelSpec:
    """The architecture that the configuration names.

    Raises:
        ConfigError: the image size of a network that takes any size was left open.
    """
    model = config.model
    if model.name.startswith(("timm:", "torchvision:")) and (
        "image_size" not in config.data.model_fields_set
    ):
        raise ConfigError(
            f"{model.name} takes images of many sizes: give the side it was trained at as "
            "data.image_size (--image-size), such as 224."
        )
    return ModelSpec(
        model.name, num_classes, config.data.image_size, model.options, model.mean, model.std
    )


def load_given(config: PurifyConfig, data: ImageData) -> Classifier:
    """The model that the configuration names, if it fits the data.

    Raises:
        ConfigError: it does not.
        CheckpointError: its file cannot be used.
    """
    checkpoint, classes = config.model.checkpoint, data.manifest.num_classes
    if checkpoint is None:
        raise ConfigError("there is no model: give its weights as model.checkpoint.")
    spec = None
    if not config.model.name and (config.model.options or config.model.mean or config.model.std):
        raise ConfigError("model options are given, but no model.name that they belong to.")
    if config.model.name:
        spec = model_spec(config, classes)
    model = load_model(checkpoint, spec)
    if model.spec.num_classes != classes:
        raise ConfigError(
            f"{checkpoint} is a model of {model.spec.num_classes} classes, but "
            f"{data.manifest.root} has {classes}."
        )
    if model.spec.image_size != config.data.image_size:
        raise ConfigError(
            f"{checkpoint} is a model for images of {model.spec.image_size} pixels, but "
            f"data.image_size is {config.data.image_size}. Set it to {model.spec.image_size}."
        )
    return model


def settle_device(
    config: JobT, run: RunDirectory, model: nn.Module, choose: ChooseDevice = choose_device
) -> tuple[JobT, Device]:
    """Resolve ``auto``, as it was when the run began, and keep the configuration with the run.

    Args:
        choose: looks at the device; :func:`pbe_fast.device.choose_device`, perhaps elsewhere.
    """
    before = run.read_config()
    begun = config if before is None else _kept_config(type(config), before, run)
    device = choose(
        begun.device,
        begun.precision,
        model,
        config.data.image_size,
        layout=begun.memory_format,
        say=run.logger.info,
    )
    update = {
        "device": str(device.torch),
        "precision": device.precision,
        "memory_format": device.layout,
    }
    config = config.model_copy(update=update)
    run.write_config(config)
    return config, device


def fingerprint(checkpoint: Path | None, *data: ImageData | None) -> list[str]:
    """What a run depends on besides its configuration: SHA-256 of the model and of each set."""
    found = [] if checkpoint is None else [sha256_file(checkpoint)]
    for part in data:
        if part is not None:
            manifest = part.manifest
            digest = hashlib.sha256(manifest.labels.tobytes())
            for shard in manifest.shards:
                digest.update(f"{shard.name}\0{shard.sha256}\0".encode())
            found.append(digest.hexdigest())
    return found


def require_same_inputs(run: RunDirectory, header: Mapping[str, Any], inputs: list[str]) -> None:
    """Refuse to go on with another model or other data than ``header`` says.

    Raises:
        RunDirectoryError: they are others.
    """
    if header.get("inputs") != inputs:
        raise RunDirectoryError(
            f"{run.path}: the model or the shards have changed since this run was begun, so it "
            "cannot go on. Choose another --out."
        )


def code_versions() -> dict[str, str]:
    """The versions that decide the bytes of a result."""
    found = versions()
    return {name: found[name] for name in ("pbe-fast", "torch")}


def require_same_code(run: RunDirectory, header: Mapping[str, Any], accept_changes: bool) -> None:
    """Refuse to go on with other versions than ``header`` says, unless that is accepted.

    Raises:
        RunDirectoryError: they are others.
    """
    before = header.get("code", {})
    changed = [
        f"{name} was {before.get(name)}, now {now}"
        for name, now in code_versions().items()
        if before.get(name) != now
    ]
    if changed and not accept_changes:
        raise RunDirectoryError(
            f"{run.path}: was begun with other versions, whose results may differ: "
            f"{'; '.join(changed)}. Go on with those, choose another --out, or give "
            "--accept-changes."
        )
    if changed:
        run.logger.warning("changed versions accepted: %s", "; ".join(changed))


def for_site(config: MineConfig | ScanConfig) -> PurifyConfig:
    """The same as a site and its workers read it."""
    return PurifyConfig(
        method="pbe",
        model=config.model,
        data=config.data,
        adversary=config.adversary if isinstance(config, MineConfig) else AdversaryConfig(),
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        memory_format=config.memory_format,
        eval_batch_size=config.batch_size,
    )


def require_unused(config: MineConfig | ScanConfig, job: str) -> None:
    """Refuse keys of ``data`` that would change nothing.

    Raises:
        ConfigError: one is given.
    """
    plain = DataConfig()
    given = [f"data.{n}" for n in UNUSED if getattr(config.data, n) != getattr(plain, n)]
    if given:
        raise ConfigError(f"{job} does not use {', '.join(given)}; leave that out.")


def clock_of(
    run: RunDirectory, inputs: list[str], progress: Progress, accept_changes: bool
) -> Clock:
    """The clock of a run that keeps nothing else in its state; a new one for a new run.

    Raises:
        RunDirectoryError: the run was begun with other inputs, or with other versions.
    """
    state = run.load_state(progress.say)
    if state is None:
        return Clock()
    header = state[1]
    require_same_inputs(run, header, inputs)
    require_same_code(run, header, accept_changes)
    return Clock(header["seconds"], header["images"])


def save_clock(run: RunDirectory, inputs: list[str], clock: Clock) -> None:
    """Keep what :func:`clock_of` reads."""
    facts = {"inputs": inputs, "code": code_versions()}
    run.save_state({}, {**facts, "seconds": clock.seconds, "images": clock.images})


def restore_state(
    run: RunDirectory,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    inputs: list[str],
) -> tuple[Position, Clock]:
    """Put saved weights into the model, and say where in its stage the run stood.

    Raises:
        RunDirectoryError: the state is damaged or is about another model or other data.
    """
    require_same_inputs(run, header, inputs)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in parts:
            parts[kind][rest] = value
    reference = model.state_dict()
    wrong = check_weights(parts["model"], reference)
    wrong += [
        f"momentum of {name} does not fit"
        for name, value in parts["momentum"].items()
        if name not in reference or value.shape != reference[name].shape
    ]
    try:
        position = Position(int(header["epoch"]), int(header["batch"]), parts["momentum"])
        clock = Clock(header["seconds"], header["images"])
        if position.epoch < 0 or position.batch < 0:
            wrong.append("negative position")
    except (KeyError, TypeError, ValueError) as error:
        wrong.append(f"header: {error!r}")
    if wrong:
        raise run.damaged("; ".join(wrong[:5]))
    model.load_state_dict(parts["model"])
    return position, clock


def _kept_config(kind: type[JobT], content: dict[str, Any], run: RunDirectory) -> JobT:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise RunDirectoryError(
            f"{run.config_path}: is no configuration of this job ({error.error_count()} keys are "
            "wrong). Choose another --out."
        ) from error


def augment_for(config: DataConfig) -> Augment:
    """``auto``: the paper's crop and rotation for small images, resized crops for large."""
    if config.augment == "auto":
        return "crop_rotate" if config.image_size <= SMALL else "resized_crop"
    return config.augment


class Tester:
    """Measures ACC and ASR where test shards are at hand, whole or on the curve's sample."""

    def __init__(
        self, job: Job, quarantine: Quarantine, num_classes: int, progress: Progress
    ) -> None:
        config = job.data
        self.data = open_data(config.test, config, quarantine) if config.test else None
        self.attack: Attack | None = load_attack(config.attack) if config.attack else None
        if self.attack is not None and self.data is None:
            raise ConfigError("data.attack is given, but no data.test to plant it into.")
        if self.data is not None and self.data.manifest.num_classes != num_classes:
            raise ConfigError(
                f"{config.test} has {self.data.manifest.num_classes} classes, the model "
                f"{num_classes}. Convert both splits with the same classes (--classes-from)."
            )
        self.batch_size = job.eval_batch_size
        self.progress = progress
        self.curve: Ids | None = None
        if self.data is not None and job.curve_samples:
            count = len(self.data.manifest)
            self.curve = np.sort(permutation(count, job.seed, "curve")[: job.curve_samples])

    def whole(self, model: nn.Module, device: Device, phase: str) -> Accuracy | None:
        """All test images; None without test shards."""
        return self._measure(model, device, phase, None) if self.data else None

    def sample(self, model: nn.Module, device: Device) -> Accuracy | None:
        """The curve's images; None where no curve is wanted or possible."""
        return self._measure(model, device, "curve", self.curve) if self.curve is not None else None

    def _measure(
        self, model: nn.Module, device: Device, phase: str, ids: Ids | None
    ) -> Accuracy | None:
        if self.data is None:
            return None
        return evaluate(
            model,
            self.data,
            device,
            attack=self.attack,
            ids=ids,
            batch_size=self.batch_size,
            phase=phase,
            progress=self.progress,
        )


def model_facts(spec: ModelSpec) -> dict[str, object]:
    """What every ``metrics.json`` says of the model."""
    return {"name": spec.name, "options": dict(spec.options), "classes": spec.num_classes}


def run_facts(config: DeviceConfig, clock: Clock, quarantine: Quarantine) -> dict[str, object]:
    """What every ``metrics.json`` says of how the run was done."""
    return {
        "seconds": clock.seconds,
        "images_per_second": clock.rates(),
        "quarantined": len(quarantine.reasons),
        "device": config.device,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "seed": config.seed,
    }


class StepLogger:
    """Sums steps and writes a line to ``metrics.jsonl`` every ``LOG_EVERY`` batches."""

    def __init__(
        self, event: Callable[[Mapping[str, object]], None], stage: str, round_index: int
    ) -> None:
        self.event, self.stage, self.round = event, stage, round_index
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        """Take note of a step."""
        if self.steps and self.steps[-1].adversarial != step.adversarial:
            self.flush()
        self.steps.append(step)
        if len(self.steps) >= LOG_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is noted."""
        if not self.steps:
            return
        last, images = self.steps[-1], sum(step.images for step in self.steps)
        weights = torch.tensor([step.images / images for step in self.steps])
        losses = torch.stack([step.loss for step in self.steps]).float().cpu()
        self.event(
            {
                "event": "step",
                "phase": self.stage,
                "round": self.round,
                "epoch": last.epoch,
                "batch": last.batch,
                "loss": float((losses * weights).sum()),
                "accuracy": int(torch.stack([step.correct for step in self.steps]).sum()) / images,
                "adversarial": last.adversarial,
                "images_per_second": images / sum(step.seconds for step in self.steps),
            }
        )
        self.steps = []


@contextmanager
def log_file(run: RunDirectory) -> Iterator[logging.Logger]:
    """The run's ``log.txt``, with times; also carries what a library would print."""
    handler = logging.FileHandler(run.path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    run.logger.setLevel(logging.INFO)
    run.logger.propagate = False
    run.logger.addHandler(handler)
    if run.changes:
        run.logger.warning("changed configuration accepted: %s", "; ".join(run.changes))
    try:
        yield run.logger
    except BaseException:
        run.logger.exception("the run stopped")
        raise
    finally:
        run.logger.removeHandler(handler)
        handler.close()
