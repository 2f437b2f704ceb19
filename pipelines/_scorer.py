"""What runs on the workers of a pool.

Apart from :mod:`pipelines.fleet`, so that a worker does not wait for Ray Train to be imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

from pbe_fast._parts import Parts
from pbe_fast.device import Device, choose_device
from pbe_fast.erase import ScoreFiles
from pbe_fast.evaluate import Counts
from pbe_fast.models import ModelSpec
from pipelines._blueprint import Blueprint, Damage, noted, rebuilt
from pipelines._counter import count_images

__all__ = ["Scorer", "look"]

Ids = npt.NDArray[np.int64]


def look(
    threads: int, spec: ModelSpec, weights: Mapping[str, Tensor], name: str, precision: Any,
    rest: Sequence[Any], more: Mapping[str, Any],
) -> tuple[Device, list[str]]:  # fmt: skip
    """Choose the device on a worker, and what there is to say about it."""
    torch.set_num_threads(threads)
    lines: list[str] = []
    model = rebuilt(spec, weights)
    return choose_device(name, precision, model, *rest, say=lines.append, **more), lines


class Scorer:
    """An actor that holds both models, and scores, measures and mines."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.site = blueprint.build()
        self.version = -1

    def ready(self) -> bool:
        return True

    def score(
        self, files: ScoreFiles, shard: int, version: int, weights: Sequence[Any]
    ) -> tuple[int, Damage]:
        self._take(version, weights)
        manifest = self.site.sets.some.manifest
        images: list[int] = []  # a scan looks at some of a shard's
        for index, scores in self.site.score(files.look, [shard], images.append):
            files.write(manifest, index, scores)
        count_images("score", sum(images))
        return sum(images), noted(self.site)

    def count(
        self, current: bool, ids: Ids, version: int, weights: Sequence[Any]
    ) -> tuple[Counts, Damage]:
        self._take(version, weights)
        count_images("evaluate", len(ids))
        return self.site.count(current, ids, lambda _: None), noted(self.site)

    def mine(self, parts: Parts, shard: int) -> tuple[int, Damage]:
        manifest = self.site.data.manifest
        parts.write(manifest, shard, self.site.mine(shard, lambda _: None))
        count_images("mine", manifest.shards[shard].samples)
        return manifest.shards[shard].samples, noted(self.site)

    def _take(self, version: int, weights: Sequence[Any]) -> None:
        if version != self.version:
            self.site.model.load_state_dict(ray.get(weights[0]))
            self.version = version
