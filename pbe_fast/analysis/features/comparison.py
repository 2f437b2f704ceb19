"""Appendix C: are the features of adversarial examples those of triggered images?

The paper's claim is about an infected model: the features of its adversarial examples x~' are very
similar to those of triggered images x^t (appendix A). Figures 5 to 7 set a benign model's examples
x~ beside them, in feature maps; that those are less similar is how we read it. The appendix does
not say which network the features of x~ come from. Neurons of two networks that were trained apart
do not correspond, so here features are compared inside one network alone:

- ``infected``: every image goes through the infected model, x~ included. That is the comparison
  that the paper's claim needs.
- ``benign``: clean images, triggered ones and x~ go through the benign model, for which the trigger
  means nothing.

Each pair of images has numbers of its own (:data:`PAIRS`):

- ``adversarial-triggered``: x~' with x^t, what the claim is about;
- ``benign_adversarial-triggered``: x~ with x^t, the paper's contrast;
- ``clean-triggered``: x with x^t. x~' has to be nearer to x^t than x itself is, or it is only the
  same picture;
- ``adversarial-clean``, ``benign_adversarial-clean``: how far the adversary has moved an image;
- ``adversarial-benign_adversarial``: x~' with x~.

The first three also come *shuffled*, x~' of one image with x^t of another: what is left there is
not the picture. Besides L2, cosine and the overlap of the strongest neurons there is the ``shift``,
the cosine between (x~' - x) and (x^t - x) in features: whether the adversary and the trigger push
an image the same way. It is nothing where one of the two is the clean image.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.adversary import Miner
from pbe_fast.analysis.features.layers import Layers
from pbe_fast.analysis.features.similarity import cosine, l2, top_count, top_overlap
from pbe_fast.data.loader import Batch, ImageData
from pbe_fast.device import Device
from pbe_fast.triggers.base import Attack, planted_input

__all__ = [
    "MEASURES",
    "PAIRS",
    "Comparison",
    "Features",
    "Pair",
    "Study",
    "compare",
    "eligible",
]

Ids = npt.NDArray[np.int64]
MEASURES = ("l2", "cosine", "overlap", "shift")
CLEAN, TRIGGERED = "clean", "triggered"
ADVERSARIAL, BENIGN_ADVERSARIAL = "adversarial", "benign_adversarial"
INFECTED, BENIGN = "infected", "benign"


class Pair(NamedTuple):
    """Two kinds of an image, in one of the two models; shuffled: the second of another image."""

    model: str
    first: str
    second: str
    shuffled: bool = False

    @property
    def name(self) -> str:
        """Of the two kinds."""
        return f"{self.first}-{self.second}"


PAIRS = (
    Pair(INFECTED, ADVERSARIAL, TRIGGERED),
    Pair(INFECTED, BENIGN_ADVERSARIAL, TRIGGERED),
    Pair(INFECTED, CLEAN, TRIGGERED),
    Pair(INFECTED, ADVERSARIAL, CLEAN),
    Pair(INFECTED, BENIGN_ADVERSARIAL, CLEAN),
    Pair(INFECTED, ADVERSARIAL, BENIGN_ADVERSARIAL),
    Pair(INFECTED, ADVERSARIAL, TRIGGERED, shuffled=True),
    Pair(INFECTED, BENIGN_ADVERSARIAL, TRIGGERED, shuffled=True),
    Pair(INFECTED, CLEAN, TRIGGERED, shuffled=True),
    Pair(BENIGN, BENIGN_ADVERSARIAL, TRIGGERED),
    Pair(BENIGN, CLEAN, TRIGGERED),
    Pair(BENIGN, BENIGN_ADVERSARIAL, CLEAN),
    Pair(BENIGN, BENIGN_ADVERSARIAL, TRIGGERED, shuffled=True),
)


@dataclass(frozen=True, eq=False)
class Study:
    """What is compared.

    Attributes:
        layers: of the infected model and, where one is given, of the benign model, by name.
        miners: the adversary against each of the same models.
        attack: its trigger is planted.
        top_share: which share of a layer's neurons counts as the strongest.
    """

    layers: Mapping[str, Layers]
    miners: Mapping[str, Miner]
    attack: Attack
    device: Device
    top_share: float = 0.1

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Those that the models allow: without a benign one there is no x~."""
        if BENIGN in self.layers:
            return PAIRS
        return tuple(
            pair
            for pair in PAIRS
            if pair.model == INFECTED and BENIGN_ADVERSARIAL not in (pair.first, pair.second)
        )

    def kinds(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """An image's kinds, ``(N, 3, H, W)`` float32 in [0, 1] each, on the device.

        Args:
            images: ``(N, 3, H, W)`` uint8.
            labels: the true ones, ``(N,)`` int64.
        """
        place = self.device.torch
        images, labels = images.to(place), labels.to(place)
        content = self.attack.trigger.content(place)
        found = {
            CLEAN: self.device.images(images),
            TRIGGERED: planted_input(content, images),
            ADVERSARIAL: self.miners[INFECTED](images, labels),
        }
        if BENIGN in self.miners:
            found[BENIGN_ADVERSARIAL] = self.miners[BENIGN](images, labels)
        return {
            kind: value.contiguous(memory_format=self.device.memory_format)
            for kind, value in found.items()
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """One pair at one layer.

    Attributes:
        first, second: rows of :class:`Features` that were paired, ``(M,)`` int64.
        values: ``(M, 4)`` float32, :data:`MEASURES`; the shift is NaN where it means nothing.
    """

    pair: Pair
    layer: str
    first: Ids
    second: Ids
    values: npt.NDArray[np.float32]

    def measure(self, name: str) -> npt.NDArray[np.float32]:
        """One of :data:`MEASURES`."""
        return self.values[:, MEASURES.index(name)]


@dataclass(frozen=True, eq=False)
class Features:
    """What was measured of N images.

    Attributes:
        ids: rows of the manifest, ``(N,)``; without images that could not be decoded.
        labels, wanted: the true label and the attacker's, ``(N,)`` int64.
        predicted: what a model takes a kind of image for, ``(N,)`` int64, by (model, kind).
        comparisons: every pair at every layer.
        widths: neurons of each layer of the infected model.
    """

    ids: Ids
    labels: Ids
    wanted: Ids
    predicted: Mapping[tuple[str, str], Ids]
    comparisons: tuple[Comparison, ...]
    widths: Mapping[str, int]

    @property
    def reached(self) -> npt.NDArray[np.bool_]:
        """Whose adversarial example the infected model gives the attacker's label, ``(N,)``."""
        hit: npt.NDArray[np.bool_] = self.predicted[INFECTED, ADVERSARIAL] == self.wanted
        return hit

    @property
    def works(self) -> npt.NDArray[np.bool_]:
        """On whom the trigger works: the infected model gives the attacker's label, ``(N,)``."""
        hit: npt.NDArray[np.bool_] = self.predicted[INFECTED, TRIGGERED] == self.wanted
        return hit

    def of(self, pair: Pair, layer: str) -> Comparison | None:
        """One comparison, where it was made."""
        return next((c for c in self.comparisons if c.pair == pair and c.layer == layer), None)


def eligible(data: ImageData, attack: Attack) -> Ids:
    """Images on which the trigger has something to do: their label is not the attacker's already.

    Returns:
        sample ids, ascending.
    """
    labels = torch.from_numpy(data.manifest.labels.astype(np.int64))
    found: Ids = data.ids[(attack.labels(labels) != labels).numpy()]
    return found


def compare(
    study: Study,
    data: ImageData,
    order: Ids,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> Features:
    """Compare the features of some images, batch by batch.

    A batch's features are forgotten with it, but for those of its last image: in a shuffled pair
    the second image is the one before in ``order`` (the last one for the first), whatever the
    batches are. So ``order`` should be a random one.

    Args:
        order: sample ids.
        advance: told how many more images are done.

    Raises:
        QuarantineError: too many images cannot be decoded.
    """
    parts: dict[tuple[Pair, str], list[Tensor]] = {}
    ids, labels = [], []
    predicted: dict[tuple[str, str], list[Tensor]] = {}
    first: _Seen | None = None
    before: _Seen | None = None
    for batch in data.read(order, batch_size):
        if not len(batch.ids):  # all undecodable; some models cannot take an empty batch
            continue
        seen, found = _look(study, batch)
        for key, value in found.items():
            predicted.setdefault(key, []).append(value)
        previous = before.joined(seen.cut(slice(0, -1))) if before else seen.cut(slice(0, -1))
        for pair, layer in _each(study):
            if not pair.shuffled:
                rows = _measured(study, pair, layer, seen, seen)
            elif len(current := seen if before else seen.cut(slice(1, None))):
                rows = _measured(study, pair, layer, current, previous)
            else:  # the very first image alone
                continue
            parts.setdefault((pair, layer), []).append(rows)
        first, before = first or seen.cut(slice(0, 1)), seen.cut(slice(-1, None))
        ids.append(batch.ids)
        labels.append(batch.labels)
        advance(len(batch.ids))
    everyone = torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64)
    truth = torch.cat(labels) if labels else everyone
    count = len(everyone)
    comparisons = []
    for pair, layer in _each(study):
        if (pair, layer) not in parts:  # fewer images than a pair needs
            continue
        if pair.shuffled and first is not None and before is not None:
            parts[pair, layer].insert(0, _measured(study, pair, layer, first, before))
        index = np.arange(count)
        other = np.roll(index, 1) if pair.shuffled else index
        values = torch.cat(parts[pair, layer]).numpy()
        comparisons.append(Comparison(pair, layer, index, other, values))
    return Features(
        ids=everyone.numpy(),
        labels=truth.numpy(),
        wanted=study.attack.labels(truth).numpy(),
        predicted={key: torch.cat(values).numpy() for key, values in predicted.items()},
        comparisons=tuple(comparisons),
        widths=study.layers[INFECTED].widths,
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """Features of some images, ``(N, C)``, by (model, kind, layer)."""

    rows: Mapping[tuple[str, str, str], Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def cut(self, part: slice) -> "_Seen":
        """Some of the images."""
        return _Seen({key: value[part] for key, value in self.rows.items()})

    def joined(self, other: "_Seen") -> "_Seen":
        """These images and then the others."""
        return _Seen({k: torch.cat([v, other.rows[k]]) for k, v in self.rows.items()})


def _look(study: Study, batch: Batch) -> tuple[_Seen, dict[tuple[str, str], Tensor]]:
    """Features of a batch's images in all their kinds, and what they are taken for."""
    rows, predicted = {}, {}
    for kind, images in study.kinds(batch.images, batch.labels).items():
        for model, layers in study.layers.items():
            if model == BENIGN and kind == ADVERSARIAL:
                continue  # x~' in the benign model is nobody's question
            logits, found = layers(images)
            predicted[model, kind] = logits.argmax(1).cpu()
            for layer, value in found.items():
                rows[model, kind, layer] = value
    return _Seen(rows), predicted


def _measured(study: Study, pair: Pair, layer: str, mine: _Seen, other: _Seen) -> Tensor:
    """:data:`MEASURES` of a pair, ``(N, 4)`` float32 on the CPU."""
    model, first, second, _ = pair
    a, b = mine.rows[model, first, layer], other.rows[model, second, layer]
    if CLEAN in (first, second):
        shift = torch.full((len(a),), float("nan"), device=a.device)
    else:
        shift = cosine(a - mine.rows[model, CLEAN, layer], b - other.rows[model, CLEAN, layer])
    overlap = top_overlap(a, b, top_count(a.shape[1], study.top_share))
    return torch.stack([l2(a, b), cosine(a, b), overlap, shift], 1).cpu()


def _each(study: Study) -> Iterator[tuple[Pair, str]]:
    for pair in study.pairs:
        for layer in study.layers[pair.model].names:
            yield pair, layer
