"""A poisoned copy of a data set, with the truth about it beside it.

The copy has the samples of the original in the same order under the same keys. Clean samples
keep their bytes. Poisoned and noise samples are decoded, brought to the attack's image size,
changed, and stored as PNG, so that the trigger survives to the pixel. ``attack.safetensors``
holds the trigger and ``truth.parquet`` says what was done to which sample; neither is read when
a model is purified, except to measure.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from pbe_fast._files import atomic_path
from pbe_fast.config import PoisonConfig
from pbe_fast.data._folder import check_target
from pbe_fast.data.augment import View
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import ImageData
from pbe_fast.data.manifest import Manifest
from pbe_fast.data.shards import Sample, ShardReader, write_shards
from pbe_fast.device import choose_device
from pbe_fast.errors import ImageError, ShardError, TriggerError
from pbe_fast.models import ModelSpec, create_model
from pbe_fast.progress import Progress, Silent
from pbe_fast.randomness import numpy_generator, permutation
from pbe_fast.triggers.badnets import BadNets
from pbe_fast.triggers.base import Attack, Trigger, plant
from pbe_fast.triggers.blend import Blend
from pbe_fast.triggers.input_aware import InputAware, InputAwareTraining, train_input_aware
from pbe_fast.triggers.pictures import PICTURES, picture
from pbe_fast.triggers.sig import SIG
from pbe_fast.triggers.store import save_attack
from pbe_fast.triggers.wanet import WaNet

__all__ = [
    "ATTACK_NAME",
    "TRUTH_NAME",
    "Plan",
    "load_truth",
    "make_attack",
    "plan",
    "poison",
    "write_truth",
]

ATTACK_NAME = "attack.safetensors"
TRUTH_NAME = "truth.parquet"

Ids = npt.NDArray[np.int64]
_CHUNK = 256  # images changed at once; bounds memory


@dataclass(frozen=True)
class Plan:
    """Which samples carry the trigger and which the attack's noise; sorted ids."""

    poisoned: Ids
    noise: Ids


def plan(labels: npt.NDArray[np.int32], attack: Attack, rate: float, seed: int) -> Plan:
    """Choose the samples to poison.

    Args:
        labels: ``(N,)`` true labels.
        rate: share of the whole set that is poisoned, drawn from the samples whose label the
            attack changes; for a clean-label attack, share of the target class.

    Raises:
        TriggerError: there are not enough samples to poison.
    """
    count = len(labels)
    if attack.clean_label:
        candidates = np.flatnonzero(labels == attack.target)
        wanted = round(rate * len(candidates))
    else:
        attacked = attack.labels(torch.from_numpy(labels.astype(np.int64))).numpy()
        candidates = np.flatnonzero(attacked != labels)
        wanted = round(rate * count)
    if not 0 < wanted <= len(candidates):
        raise TriggerError(
            f"poison rate {rate}: {wanted} samples are to be poisoned and {len(candidates)} can "
            "be. Choose another rate or target."
        )
    order = permutation(len(candidates), seed, "poison")
    poisoned = candidates[order[:wanted]]
    rest = np.setdiff1d(np.arange(count), poisoned)
    extra = min(len(rest), round(attack.trigger.noise_ratio * wanted))
    noise = rest[permutation(len(rest), seed, "noise")[:extra]]
    return Plan(np.sort(poisoned).astype(np.int64), np.sort(noise).astype(np.int64))


def make_attack(config: PoisonConfig, data: ImageData, progress: Progress | None = None) -> Attack:
    """The attack of a configuration; trains the generators where the attack has some.

    Raises:
        TriggerError: the configuration is impossible for the data.
    """
    classes = data.manifest.num_classes

    def attack(trigger: Trigger) -> Attack:
        return Attack(
            trigger, config.mode, config.target, classes, config.image_size, config.clean_label
        )

    if config.clean_label and config.attack != "sig":
        raise TriggerError("clean_label is a form of the SIG attack; use --attack sig.")
    if config.attack == "badnets":
        return attack(BadNets(config.image_size, config.patch_size))
    if config.attack == "blend":
        return attack(Blend(_picture(config.picture, config.image_size), config.alpha))
    if config.attack == "sig":
        return attack(SIG(config.image_size, config.amplitude_255, config.frequency))
    if config.attack == "wanet":
        return attack(
            WaNet.random(config.image_size, k=config.k, strength=config.strength, seed=config.seed)
        )
    labels_of = attack(SIG(config.image_size)).labels  # the labels do not depend on the trigger
    return attack(_train_generators(config, data, labels_of, progress or Silent()))


def poison(
    source: Path,
    out: Path,
    config: PoisonConfig,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a poisoned copy of shards.

    Args:
        source: the folder of the clean shards.
        out: the folder to write: shards, manifest, ``attack.safetensors``, ``truth.parquet``.
        overwrite: replace a folder that holds these files and nothing else.

    Returns:
        the manifest of the copy.

    Raises:
        ShardError, ImageError, TriggerError: the input cannot be poisoned as asked.
    """
    progress = progress or Silent()
    check_target(out, overwrite, (ATTACK_NAME, TRUTH_NAME))  # before any long work
    data = ImageData.open(source, config.image_size)
    attack = make_attack(config, data, progress)
    chosen = plan(data.manifest.labels, attack, config.rate, config.seed)
    progress.phase("write poisoned shards", len(data.manifest))
    return write_shards(
        _samples(data, attack, chosen, config.seed),
        out,
        classes=data.manifest.classes,
        prefix="poisoned",
        shard_bytes=config.shard_bytes,
        overwrite=overwrite,
        on_sample=lambda _count: progress.advance(1),
        beside={
            ATTACK_NAME: lambda path, _manifest: save_attack(attack, path),
            TRUTH_NAME: lambda path, made: write_truth(path, made, data.manifest.labels, chosen),
        },
    )


def load_truth(path: Path, manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Which samples of a manifest are poisoned, ``(N,)``, by their keys.

    Raises:
        ShardError: the table is missing, damaged, or not about these samples.
    """
    try:
        table = pq.read_table(path, columns=["key", "poisoned"])
        if table.schema.field("poisoned").type != pa.bool_():
            raise ShardError(f"{path}: not a truth table of pbe-fast ('poisoned' is not boolean).")
        known = dict(zip(table["key"].to_pylist(), table["poisoned"].to_pylist(), strict=True))
        return np.array([bool(known[key]) for key in manifest.keys.to_pylist()], np.bool_)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path}: not a truth table of pbe-fast ({error}).") from error
    except KeyError as error:
        raise ShardError(
            f"{path}: has no row for sample {error}; it is about other data."
        ) from error


def _samples(data: ImageData, attack: Attack, chosen: Plan, seed: int) -> Iterator[Sample]:
    """All samples of the copy, in the order of the original."""
    reader = ShardReader(data.manifest)
    manifest = data.manifest
    changed = np.sort(np.concatenate((chosen.poisoned, chosen.noise)))
    is_poisoned = np.zeros(len(manifest), np.bool_)
    is_poisoned[chosen.poisoned] = True
    view = View(attack.image_size)
    position = 0
    ready: dict[int, bytes] = {}
    for sample_id in range(len(manifest)):
        key, label = manifest.keys[sample_id].as_py(), int(manifest.labels[sample_id])
        if position < len(changed) and sample_id == changed[position] and not ready:
            chunk = changed[position : position + _CHUNK]
            ready = _changed_images(reader, manifest, view, attack, chunk, is_poisoned, seed)
        if sample_id in ready:
            position += 1
            if is_poisoned[sample_id]:
                # For a clean-label attack this is the label that the sample has already.
                label = int(attack.labels(torch.tensor([label]))[0])
            yield Sample(key, ready.pop(sample_id), "png", label)
        else:
            yield Sample.copied(key, reader.read(sample_id), label)


def _changed_images(
    reader: ShardReader,
    manifest: Manifest,
    view: View,
    attack: Attack,
    chunk: Ids,
    is_poisoned: npt.NDArray[np.bool_],
    seed: int,
) -> dict[int, bytes]:
    """PNG bytes of a chunk of samples, triggered or with noise."""
    pixels = []
    for sample_id in chunk.tolist():
        try:
            pixels.append(view.image(decode_rgb(reader.read(sample_id)), sample_id))
        except ImageError as error:
            raise ImageError(f"{manifest.describe(sample_id)}: {error}") from error
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (n, 3, H, W)
    poisoned = torch.from_numpy(is_poisoned[chunk])
    for which, content in (
        (poisoned, attack.trigger.content(images.device)),
        (~poisoned, attack.trigger.noise(chunk[~is_poisoned[chunk]], seed)),
    ):
        if content is not None:
            images[which] = plant(content, images[which])
    return {int(i): _png(image) for i, image in zip(chunk, images, strict=True)}


def _png(image: Tensor) -> bytes:
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", compress_level=6)
    return file.getvalue()


def write_truth(
    path: Path, manifest: Manifest, original_labels: npt.NDArray[np.integer], chosen: Plan
) -> None:
    """Write what was done to which sample of a poisoned set.

    Args:
        manifest: of the poisoned set, N samples.
        original_labels: ``(N,)``, before it was poisoned.
    """
    poisoned, noise = np.zeros((2, len(manifest)), np.bool_)
    poisoned[chosen.poisoned] = True
    noise[chosen.noise] = True
    shards = pa.array([shard.name for shard in manifest.shards], pa.string())
    table = pa.table(
        {
            "key": manifest.keys,
            "shard": pa.DictionaryArray.from_arrays(pa.array(manifest.shard_index), shards),
            "poisoned": poisoned,
            "noise": noise,
            "label": manifest.labels,
            "original_label": original_labels.astype(np.int32),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _picture(name: str, size: int) -> Tensor:
    """A built-in picture or an image file, uint8 ``(3, size, size)``."""
    if name in PICTURES:
        return picture(name, (size, size))
    try:
        pixels = decode_rgb(Path(name).read_bytes())
    except (OSError, ImageError) as error:
        raise TriggerError(
            f"blend: {name!r} is neither one of {', '.join(PICTURES)} nor a JPEG or PNG file "
            f"({error})."
        ) from error
    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def _train_generators(
    config: PoisonConfig,
    data: ImageData,
    attacker_labels: Callable[[Tensor], Tensor],
    progress: Progress,
) -> InputAware:
    """Input-aware's generators, trained on a random part of the data."""
    count = min(config.generator_images, len(data.manifest))
    generator = numpy_generator(config.seed, "generator images")
    ids = np.sort(generator.choice(len(data.manifest), count, replace=False))
    batches = list(data.read(ids, 512))
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    spec = ModelSpec(
        "builtin:preact_resnet18", data.manifest.num_classes, config.image_size, {"width": 16}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        partner = create_model(spec)
    device = choose_device(config.device, "auto", partner, config.image_size)
    training = InputAwareTraining(steps=config.generator_steps)
    progress.phase("train trigger generators", training.steps * training.batch_size)
    return train_input_aware(
        partner,
        images,
        labels,
        attacker_labels,
        device,
        seed=config.seed,
        plan=training,
        on_step=lambda _done, _loss: progress.advance(training.batch_size),
    )
