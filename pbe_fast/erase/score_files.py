"""Scores on disk: one small file a shard, so that work that was done is never done again.

A file is written whole or not at all, and says what it is the result of. Writing it twice gives
the same bytes, so it does not matter who wrote it, how often, or whether anybody heard of it.
"""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pbe_fast._files import write_bytes
from pbe_fast.data.manifest import Manifest

__all__ = ["ScoreFiles"]

Scores = npt.NDArray[Any]  # floating

_KEY = "pbe_fast_scores_of"
_DIGEST = "pbe_fast_sha256"
_FORMAT = 3  # rises with what is told of an image, so that a run of before asks anew


@dataclass(frozen=True)
class ScoreFiles:
    """The score files of one round.

    Attributes:
        folder: where they lie; with several machines all of them must see it.
        key: stands for everything that scores depend on besides the shard: both models and how
            they are run.
        look: what is told of the images; its text is part of the key.
    """

    folder: Path
    key: str
    look: Hashable = "agreement"

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard:06}.safetensors"

    def write(self, manifest: Manifest, shard: int, scores: Scores) -> None:
        """Keep a shard's scores, ``(samples, ...)``."""
        content = {"scores": torch.from_numpy(scores)}
        metadata = {_KEY: self._key(manifest, shard), _DIGEST: _digest(scores)}
        write_bytes(self.path(shard), save(content, metadata=metadata), shared=True)

    def read(self, manifest: Manifest, shard: int) -> Scores | None:
        """A shard's scores; None where they are missing, damaged or of something else."""
        try:
            with safe_open(self.path(shard), framework="pt") as file:
                metadata = file.metadata() or {}
                scores: Scores = file.get_tensor("scores").numpy()
        except (SafetensorError, OSError, ValueError):
            return None
        whole = metadata.get(_DIGEST) == _digest(scores)
        return scores if whole and metadata.get(_KEY) == self._key(manifest, shard) else None

    def _key(self, manifest: Manifest, shard: int) -> str:
        return f"{_FORMAT} {self.look} {self.key} {manifest.shards[shard].sha256}"


def _digest(scores: Scores) -> str:
    return hashlib.sha256(scores.tobytes()).hexdigest()
