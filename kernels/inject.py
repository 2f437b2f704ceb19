"""Planting a trigger's pattern into images.

    mix:  x' = x + m * (p - x)        patch (m is 0 or 1), blend (m is alpha), per-image patterns
    add:  x' = clip(x + p, 0, 1)      additive signals

``p`` and ``m`` may be one for the batch or one per image.
"""

from torch import Tensor

__all__ = ["add_pattern", "mix_pattern"]


def mix_pattern(images: Tensor, pattern: Tensor, mask: Tensor | float) -> Tensor:
    """Mix a pattern into images.

    Args:
        images: ``(N, 3, H, W)`` float in [0, 1].
        pattern: ``(3, H, W)`` or ``(N, 3, H, W)`` float in [0, 1].
        mask: share of the pattern in [0, 1]: a number, ``(1, H, W)`` or ``(N, 1, H, W)``.

    Returns:
        ``(N, 3, H, W)``, in [0, 1] because it is a convex mix.
    """
    return images + mask * (pattern - images)


def add_pattern(images: Tensor, pattern: Tensor) -> Tensor:
    """Add a signed pattern, ``(3, H, W)`` or ``(N, 3, H, W)``, and clamp to [0, 1]."""
    return (images + pattern).clamp(0.0, 1.0)
