"""Small pictures of the worst suspects, kept with the run.

The shards are at hand when a run ends, and perhaps not where its page is made again or looked at.
So a few images are decoded then, as every image is, brought to a small size, and kept as PNGs that
were written here; the bytes of a shard, which may be anybody's, go nowhere.

``thumbnails.json`` holds ``{"thumbnails": [...]}``, the worst suspect first, each with ``shard``,
``key``, and either ``png`` (base64) or ``reason`` (why there is no picture).
"""

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pbe_fast._files import write_text
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.loader import ImageData
from pbe_fast.data.shards import ShardReader
from pbe_fast.data.storage import Patience
from pbe_fast.erase.identify import Scores
from pbe_fast.errors import ImageError, ShardError
from pbe_fast.suspects import suspicion_order

__all__ = ["MAX_SIDE", "SHOWN", "THUMBNAILS_NAME", "png_bytes", "write_thumbnails"]

THUMBNAILS_NAME = "thumbnails.json"
SHOWN = 24  # images
MAX_SIDE = 96  # pixels; smaller images are kept as they are
# Pictures are an extra: a server that fails is not waited for as a run waits for it.
_PATIENCE = Patience(connect_seconds=5.0, stall_seconds=5.0, tries=2)
_GIVE_UP = 2  # images that cannot be read, before the rest is not tried


def write_thumbnails(path: Path, data: ImageData, scores: Scores) -> None:
    """Keep pictures of the most suspicious images; what cannot be read is kept as a word why.

    Args:
        path: the file, written whole or not at all.
        data: the training set.
        scores: ``(N,)``, low is suspicious; NaN (not decodable) is never shown.
    """
    worst = suspicion_order(scores)[:SHOWN]
    worst = worst[np.isfinite(scores[worst])]
    storage = dataclasses.replace(data.storage, patience=_PATIENCE)
    reader = ShardReader(data.manifest, storage=storage)
    found: dict[int, dict[str, str]] = {}
    unread = 0
    for sample in sorted(worst.tolist()):  # where a server sends whole shards only, each once
        try:
            if unread >= _GIVE_UP:
                found[sample] = {"reason": "not read"}
                continue
            png = png_bytes(decode_rgb(reader.read(sample)))
            found[sample] = {"png": base64.b64encode(png).decode()}
        except ShardError:
            unread += 1
            found[sample] = {"reason": "could not be read"}
        except ImageError:
            found[sample] = {"reason": "could not be decoded"}
    manifest = data.manifest
    kept = [
        {
            "shard": manifest.shards[int(manifest.shard_index[sample])].name,
            "key": manifest.keys[sample].as_py(),
            **found[sample],
        }
        for sample in worst.tolist()
    ]
    write_text(path, json.dumps({"thumbnails": kept}, indent=1) + "\n")


def png_bytes(pixels: npt.NDArray[np.uint8], side: int = MAX_SIDE) -> bytes:
    """An image ``(H, W, 3)`` uint8 as a PNG whose longer side is at most ``side`` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
