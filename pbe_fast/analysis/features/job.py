"""``pbe-fast features``: similarity of features, measured and drawn, in a run directory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pbe_fast._files import atomic_path, write_text
from pbe_fast._jobs import (
    fingerprint,
    load_given,
    log_file,
    model_facts,
    open_data,
    run_facts,
    settle_device,
)
from pbe_fast.adversary import Miner
from pbe_fast.analysis.features.comparison import (
    BENIGN,
    CLEAN,
    INFECTED,
    TRIGGERED,
    Features,
    Ids,
    Study,
    compare,
    eligible,
)
from pbe_fast.analysis.features.layers import Layers
from pbe_fast.analysis.features.maps import Maps, choose_layer, feature_maps, named_ids
from pbe_fast.analysis.features.tables import as_table, summary
from pbe_fast.config import FeaturesConfig, ModelConfig, PurifyConfig
from pbe_fast.data.loader import ImageData, Quarantine
from pbe_fast.device import Device
from pbe_fast.erase.finetune import make_pgd
from pbe_fast.errors import ConfigError, TriggerError
from pbe_fast.models import Classifier
from pbe_fast.progress import Clock, Progress, Silent
from pbe_fast.randomness import permutation
from pbe_fast.run_directory import RunDirectory
from pbe_fast.triggers import Attack, load_attack

__all__ = ["FEATURES_NAME", "ROWS_NAME", "measure_features"]

FEATURES_NAME = "features.json"
ROWS_NAME = "features.parquet"


def measure_features(
    config: FeaturesConfig, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure appendix C on a model: how alike adversarial examples and triggered images are.

    Writes ``features.json`` (means and the paper's claims; :mod:`.comparison` says what is
    compared; and what each picture shows, in words), ``features.parquet`` (a row for each image,
    pair and layer), ``similarity-LAYER`` and ``maps-N`` as PNG and SVG, and ``metrics.json`` (how
    the run was done).

    Args:
        config: ``model.checkpoint``, ``data.test`` and ``data.attack`` are needed. Images are as
            large as the attack's, where ``data.image_size`` is not given.
        out: the run directory; a finished one is not done again, an unfinished one from the start.

    Returns:
        the content of ``features.json``.

    Raises:
        PbeError: the configuration, a model, the attack or the data is unusable.
    """
    progress = progress or Silent()
    config, attack = _settled(config)
    run = RunDirectory.open(out, config)
    if run.finished() is not None:
        progress.say(f"{out} is finished already.")
        found: dict[str, Any] = json.loads((out / FEATURES_NAME).read_text(encoding="utf-8"))
        return found
    with run.locked(), log_file(run) as log:
        (out / "quarantine.jsonl").unlink(missing_ok=True)
        quarantine = Quarantine(out / "quarantine.jsonl", config.data.quarantine_budget)
        assert config.data.test is not None  # as _settled has seen to
        data = open_data(config.data.test, config.data, quarantine)
        _require_fit(attack, data)
        models = _models(config, data)
        config, device = settle_device(config, run, models[INFECTED])
        study = _study(config, models, attack, device)
        layer = config.map_layer or (choose_layer(study.layers[INFECTED], data.size))
        Layers(models[INFECTED], [layer], device, data.size)  # a wrong name at once
        chosen = named_ids(data, config.keys)
        usable = eligible(data, attack)
        order = usable[permutation(len(usable), config.seed, "features")][: config.images]
        if len(order) < 2:
            raise ConfigError(
                f"{data.manifest.root} has {len(order)} images whose label is not the attacker's "
                "already; at least 2 are needed."
            )
        clock = Clock()
        progress.phase("features", len(order))
        with clock.time("features", len(order)):
            measured = compare(
                study, data, order, batch_size=config.batch_size, advance=progress.advance
            )
        with atomic_path(out / ROWS_NAME) as temporary:
            pq.write_table(as_table(measured, data.manifest), temporary, compression="zstd")
        if not len(chosen):
            chosen = _typical(measured)[: config.pictures]
        progress.phase("pictures", len(chosen))
        maps = feature_maps(study, data, chosen, layer, config.channels, device)
        pictures = _draw(config, measured, maps, data.manifest.classes, out)
        progress.advance(len(chosen))
        content = {
            "model": model_facts(models[INFECTED].spec),
            "attack": {
                "name": attack.trigger.name,
                "mode": attack.mode,
                "target": attack.target if attack.mode == "all_to_one" else None,
            },
            "adversary": config.adversary.model_dump(mode="json"),
            "top_share": config.top_share,
            **summary(measured, config.top_share),
            "pictures": list(pictures),
            "picture_labels": pictures,
        }
        write_text(out / FEATURES_NAME, json.dumps(content, indent=1) + "\n")
        inputs = fingerprint(config.model.checkpoint, data)
        run.finish({"kind": "features", "inputs": inputs, **run_facts(config, clock, quarantine)})
        log.info("finished: %d images", len(measured.ids))
    return content


def _settled(config: FeaturesConfig) -> tuple[FeaturesConfig, Attack]:
    """With the image size of the attack; refuses what cannot be done."""
    if config.model.checkpoint is None:
        raise ConfigError("no model to look into: give its weights as model.checkpoint.")
    if config.data.test is None:
        raise ConfigError("no images: give clean shards as data.test.")
    if config.data.attack is None:
        raise ConfigError("no trigger: give attack.safetensors as data.attack (--attack).")
    if config.adversary.random_start:
        raise ConfigError("adversary.random_start is not used here; leave it out.")
    attack = load_attack(config.data.attack)
    if "image_size" not in config.data.model_fields_set:
        data = config.data.model_copy(update={"image_size": attack.image_size})
        data.model_fields_set.add("image_size")
        config = config.model_copy(update={"data": data})
    return config, attack


def _require_fit(attack: Attack, data: ImageData) -> None:
    if attack.image_size != data.size:
        raise TriggerError(
            f"the attack was made for images of {attack.image_size} pixels, but the data is read "
            f"at {data.size}. Set data.image_size={attack.image_size}."
        )
    if attack.num_classes != data.manifest.num_classes:
        raise TriggerError(
            f"the attack was made for {attack.num_classes} classes, but {data.manifest.root} has "
            f"{data.manifest.num_classes}."
        )


def _models(config: FeaturesConfig, data: ImageData) -> dict[str, Classifier]:
    """The infected model, and the benign one where it is given."""

    def load(model: ModelConfig) -> Classifier:
        job = PurifyConfig(model=model, data=config.data, device=config.device)
        return load_given(job, data).requires_grad_(False)

    models = {INFECTED: load(config.model)}
    if config.benign is not None:
        models[BENIGN] = load(config.model.model_copy(update={"checkpoint": config.benign}))
    return models


def _study(
    config: FeaturesConfig, models: dict[str, Classifier], attack: Attack, device: Device
) -> Study:
    pgd = make_pgd(config.adversary)
    for model in models.values():
        device.place(model.eval())
    return Study(
        layers={
            name: Layers(model, config.layers, device, attack.image_size)
            for name, model in models.items()
        },
        miners={name: Miner(pgd, model, device) for name, model in models.items()},
        attack=attack,
        device=device,
        top_share=config.top_share,
    )


def _typical(measured: Features) -> Ids:
    """Images to draw: first those that the model knows and on which the trigger works.

    Of these in turn one whose adversarial example gets the attacker's label, and one where it does
    not, so that the pictures do not show the claim's best side alone.
    """
    known = measured.predicted[INFECTED, CLEAN] == measured.labels
    works = measured.predicted[INFECTED, TRIGGERED] == measured.wanted
    good = known & works
    turn = np.zeros(len(measured.ids), np.int64)
    for side in (good & measured.reached, good & ~measured.reached):
        turn[side] = np.arange(side.sum())
    chosen: Ids = measured.ids[np.lexsort((~measured.reached, turn, ~good))]
    return chosen


def _draw(
    config: FeaturesConfig,
    measured: Features,
    maps: list[Maps],
    classes: tuple[str, ...],
    out: Path,
) -> dict[str, str]:
    """The names of the pictures, without suffix, and what each shows in words."""
    # Loaded here, as matplotlib takes half a second.
    from pbe_fast.analysis.features.figures import draw_maps, draw_similarity, write_drawing
    from pbe_fast.report._svg import clean_text

    drawings = {}
    for index, layer in enumerate(measured.widths):
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in layer)
        name = f"similarity-{index}-{safe}" if len(measured.widths) > 1 else "similarity"
        drawings[name] = draw_similarity(measured, layer, config.top_share)
    for index, one in enumerate(maps):
        drawings[f"maps-{index}"] = draw_maps(one, classes)
    for name, drawing in drawings.items():
        write_drawing(drawing, out / name)
    return {name: clean_text(drawing.label) for name, drawing in drawings.items()}
