"""Feature maps of chosen images, side by side with the images: the data of Figures 5 to 7."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pbe_fast.analysis.features.comparison import CLEAN, INFECTED, TRIGGERED, Ids, Study
from pbe_fast.analysis.features.layers import Layers, as_maps, as_rows
from pbe_fast.analysis.features.similarity import cosine
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device
from pbe_fast.errors import ConfigError
from pbe_fast.models.hooks import watched

__all__ = ["MapRow", "Maps", "choose_layer", "feature_maps", "named_ids"]

_LEAST_SIDE = 7  # of a map that shows where something is
Picture = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MapRow:
    """One kind of an image.

    Attributes:
        image: ``(H, W, 3)`` in [0, 1].
        perturbation: ``(H, W, 3)``, the image less the clean one.
        maps: ``(M, h, w)`` of the chosen channels, in the infected model.
        label: what the infected model takes it for.
        cosine: of the whole layer's features, averaged over positions, to the triggered image's.
    """

    kind: str
    image: Picture
    perturbation: Picture
    maps: Picture
    label: int
    cosine: float


@dataclass(frozen=True, eq=False)
class Maps:
    """One image in all its kinds.

    Attributes:
        label, wanted: the true label and the attacker's.
        channels: which are shown, the strongest first.
    """

    key: str
    label: int
    wanted: int
    layer: str
    channels: tuple[int, ...]
    rows: tuple[MapRow, ...]


def choose_layer(layers: Layers, size: int) -> str:
    """The deepest block whose maps are at least 7 pixels wide, or else the deepest that has maps.

    A block is a module of modules; where no block returns maps, any module counts.

    Raises:
        ConfigError: nothing in the network returns maps.
    """
    net, device = layers.net, layers.device
    blank = device.images(torch.full((2, 3, size, size), 127, dtype=torch.uint8))
    with (
        torch.inference_mode(),
        device.autocast(),
        watched(net, None, lambda _, output: _side(output)) as seen,
    ):
        layers.model(blank)
    blocks = {name for name, module in net.named_modules() if any(True for _ in module.children())}
    for least in (_LEAST_SIDE, 2):
        for candidates in ([x for x in seen if x[0] in blocks], seen):
            wide = [name for name, side in candidates if side >= least]
            if wide:
                return wide[-1]
    raise ConfigError("no layer of the network returns maps, so there is nothing to draw.")


def named_ids(data: ImageData, keys: Sequence[str]) -> Ids:
    """Sample ids of keys, in their order.

    Raises:
        ConfigError: the data set has no such key.
    """
    known: Mapping[str, int] = {k: i for i, k in enumerate(data.manifest.keys.to_pylist())}
    missing = [key for key in keys if key not in known]
    if missing:
        raise ConfigError(f"{data.manifest.root} has no image with the key {missing[0]!r}.")
    return np.array([known[key] for key in dict.fromkeys(keys)], np.int64)


def feature_maps(
    study: Study, data: ImageData, ids: Ids, layer: str, channels: int, device: Device
) -> list[Maps]:
    """Maps of some images, in the infected model.

    The channels are those that are strongest in the triggered image, by the mean magnitude over
    all positions, and the same in all rows.

    Args:
        layer: one that returns ``(B, C, H, W)`` or ``(B, T, C)``.
        channels: how many are shown, or fewer where the layer has fewer.
    """
    model = study.layers[INFECTED].model
    layers = Layers(model, [layer], device, data.size)
    found = []
    for batch in data.read(ids, 1):
        if not len(batch.ids):
            continue
        kinds = study.kinds(batch.images, batch.labels)
        looks = {kind: layers.raw(images) for kind, images in kinds.items()}
        maps = {kind: as_maps(outputs[layer])[0] for kind, (_, outputs) in looks.items()}
        rows = {kind: as_rows(outputs[layer], layer) for kind, (_, outputs) in looks.items()}
        strength = maps[TRIGGERED].abs().mean((1, 2))
        chosen = strength.sort(descending=True, stable=True).indices[:channels]
        found.append(
            Maps(
                key=data.manifest.keys[int(batch.ids[0])].as_py(),
                label=int(batch.labels[0]),
                wanted=int(study.attack.labels(batch.labels)[0]),
                layer=layer,
                channels=tuple(chosen.tolist()),
                rows=tuple(
                    MapRow(
                        kind=kind,
                        image=_picture(images[0]),
                        perturbation=_picture(images[0] - kinds[CLEAN][0]),
                        maps=maps[kind][chosen].cpu().numpy(),
                        label=int(looks[kind][0].argmax(1)),
                        cosine=float(cosine(rows[kind], rows[TRIGGERED])),
                    )
                    for kind, images in kinds.items()
                ),
            )
        )
    return found


def _side(output: object) -> int | None:
    """Of the maps that a module returns, where it returns square ones."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return None
    height, width = as_maps(output).shape[2:]
    return int(width) if height == width else None


def _picture(image: Tensor) -> Picture:
    picture: Picture = image.detach().float().permute(1, 2, 0).cpu().numpy()
    return picture
