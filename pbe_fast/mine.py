"""Mining ahead of time: an adversarial example of every image of a data set, kept as shards.

Several purifications of a model can then share them (``data.mined``). They are examples of the
model as it was given, while a purification that mines by itself mines against the model that it
has come to.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pbe_fast._jobs import (
    Tester,
    clock_of,
    fingerprint,
    for_site,
    load_given,
    log_file,
    model_facts,
    require_unused,
    run_facts,
    save_clock,
    settle_device,
)
from pbe_fast._parts import Parts, joined
from pbe_fast._site import Site, open_sets
from pbe_fast._worker import Fleet, executor_on
from pbe_fast.config import MineConfig, PurifyConfig
from pbe_fast.data.loader import Quarantine
from pbe_fast.data.manifest import Manifest
from pbe_fast.device import choose_device
from pbe_fast.errors import ConfigError, RunDirectoryError, ShardError
from pbe_fast.progress import Clock, Progress, Silent
from pbe_fast.run_directory import RunDirectory, tensors_digest

__all__ = ["mine", "mined_otherwise"]

PARTS_NAME = "parts"


def mine(
    config: MineConfig,
    out: Path,
    progress: Progress | None = None,
    *,
    fleet: Fleet | None = None,
    stop: Callable[[], bool] | None = None,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Mine an untargeted adversarial example of every image, and write them as shards.

    Images are taken as they are measured: brought to one size, without augmentation. Examples keep
    keys and labels, and are PNG, since JPEG would destroy them. A file holds whole levels of 1/255,
    so rounding moves a pixel by up to half a level; in L-inf an example stays in the ball. In L2
    it may leave it by that much, and a perturbation that is spread thinner than half a level a
    pixel, as a usual one is in large images, is lost.

    Args:
        config: ``model.checkpoint`` and ``data.train`` are needed; no other set is used.
        out: the run directory, and the data set that is made: ``manifest.parquet``, and one folder
            in ``parts`` for each shard. The same call on it goes on where it stopped.
        fleet: does the arithmetic; None does it in this process.
        stop: asked now and then whether to stop; shards that are done are kept.
        accept_changes: go on with a run that was begun with another configuration or version.
            Parts that were mined with another configuration are mined again.

    Returns:
        the content of ``metrics.json``.

    Raises:
        PbeError: the configuration, the model or the data is unusable.
        StoppedError: ``stop`` said so; the same call goes on.
    """
    progress, stop = progress or Silent(), stop or (lambda: False)
    _require_sense(config)
    run = RunDirectory.open(out, config, accept_changes)
    metrics = run.finished()
    if metrics is not None:
        progress.say(f"{out} is finished already.")
        return metrics
    with run.locked(), log_file(run) as log:
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        sets = open_sets(for_site(config), quarantine)
        data = sets.some
        model = load_given(for_site(config), data).requires_grad_(False)
        inputs = fingerprint(config.model.checkpoint, data)
        clock = clock_of(run, inputs, progress, accept_changes)
        choose = choose_device if fleet is None else fleet.choose_device
        config, device = settle_device(config, run, model, choose)
        log.info("mining on %s in %s", device.torch, device.precision)
        tester = Tester(for_site(config), quarantine, model.spec.num_classes, progress)
        site = Site(for_site(config), sets, model, model, tester, device)
        parts = Parts(out / PARTS_NAME, _key(config, inputs[0]))

        def save() -> None:
            save_clock(run, inputs, clock)

        save()
        made = _mine_parts(site, run, parts, fleet, progress, stop, clock, save)
        for left_over in parts.folder.glob(".*"):  # of workers that were killed
            shutil.rmtree(left_over, ignore_errors=True)
        made.save(out)
        metrics = {
            "kind": "mine",
            "model": model_facts(model.spec),
            "weights_sha256": tensors_digest(model.state_dict()),
            "images": len(made),
            "adversary": config.adversary.model_dump(mode="json"),
            **run_facts(config, clock, quarantine),
        }
        metrics = run.finish(metrics)
        log.info("finished: %d examples", len(made))
    return metrics


def mined_otherwise(config: PurifyConfig, infected: nn.Module) -> str:
    """How the examples of ``data.mined`` differ from what the configuration says.

    Of the adversary only keys that were given count, as nothing is mined in such a purification.

    Returns:
        a warning; empty where they do not differ, and where it is not known how they were made,
        as their run's ``metrics.json`` does not lie beside them.
    """
    try:
        facts = json.loads((Path(str(config.data.mined)) / "metrics.json").read_text("utf-8"))
        weights, adversary = facts["weights_sha256"], dict(facts["adversary"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    found = []
    if weights != tensors_digest(infected.state_dict()):
        found.append("against another model")
    for key in sorted(config.adversary.model_fields_set - {"fold", "compile"}):
        ours = getattr(config.adversary, key)
        if adversary.get(key) != ours:
            found.append(f"with adversary.{key}={adversary.get(key)} instead of {ours}")
    return f"{config.data.mined} was mined {', '.join(found)}" if found else ""


def _mine_parts(
    site: Site,
    run: RunDirectory,
    parts: Parts,
    fleet: Fleet | None,
    progress: Progress,
    stop: Callable[[], bool],
    clock: Clock,
    save: Callable[[], None],
) -> Manifest:
    """Have every missing part mined; the manifest of all."""
    source = site.data.manifest
    found = {shard: parts.read(source, shard) for shard in range(len(source.shards))}
    missing = [shard for shard, part in found.items() if part is None]
    left = sum(source.shards[shard].samples for shard in missing)
    progress.phase("mine", len(source), len(source) - left)
    if missing:
        began = time.perf_counter()
        try:
            with executor_on(fleet, site, run) as executor:
                executor.mine(parts, missing, progress, stop)
        finally:  # a stop also, whose seconds and images count
            found |= {shard: parts.read(source, shard) for shard in missing}
            images = sum(len(part) for shard in missing for part in found[shard] or ())
            clock.add("mine", time.perf_counter() - began, images)
            save()
    lost = [shard for shard, part in found.items() if part is None]
    if lost:
        raise RunDirectoryError(
            f"{parts.path(lost[0])}: the examples of {source.shards[lost[0]].name} were written "
            "but cannot be read back. Every worker and the driver must see the same --out (a "
            "shared file system)."
        )
    made = [manifest for part in found.values() for manifest in part or ()]
    if not made:
        raise ShardError(f"{source.root}: none of its images can be decoded. Mend the shards.")
    return joined(run.path, made)


def _require_sense(config: MineConfig) -> None:
    """Refuse what cannot be done, and keys that would change nothing."""
    if config.model.checkpoint is None:
        raise ConfigError("no model to mine against: give its weights as model.checkpoint.")
    if config.data.train is None:
        raise ConfigError("nothing to mine from: give the shards as data.train.")
    require_unused(config, "mining")
    if config.adversary.norm == "linf" and config.adversary.eps_255 < 1:
        raise ConfigError(
            f"adversary.eps_255 = {config.adversary.eps_255:g}: shards hold whole levels of 1/255, "
            "so nothing of such a perturbation would be left. Give 1 or more."
        )


def _key(config: MineConfig, model: str) -> str:
    """Stands for all that a part depends on besides its shard."""
    content = config.model_dump(mode="json", exclude={"data", "device"})
    content["model"]["checkpoint"] = model
    text = json.dumps({**content, "image_size": config.data.image_size})
    return hashlib.sha256(text.encode()).hexdigest()
