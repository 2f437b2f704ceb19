"""How many images a worker has worked on, among Ray's own metrics (Prometheus)."""

from functools import cache
from typing import Any

from ray.util.metrics import Counter

__all__ = ["count_images"]


@cache
def _counter() -> Any:
    return Counter("pbe_fast_images", "Images that workers have done.", tag_keys=("phase",))


def count_images(phase: str, images: int) -> None:
    """Add to the counter ``ray_pbe_fast_images``, which has the phase as a tag."""
    if images > 0:
        _counter().inc(images, {"phase": phase})
