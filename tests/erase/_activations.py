"""Activations whose truth is known."""

import numpy as np

from pbe_fast.erase._space import Space
from pbe_fast.erase.split import Split, split_classes

WIDTH = 24


def activations(
    per_class: int, poisoned: dict[tuple[int, int], int], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four classes in a space stretched at random, and images with a trigger.

    Args:
        poisoned: so many images of a class (first) that have the label of another (second).

    Returns:
        features, labels, and which are poisoned.
    """
    random = np.random.default_rng(seed)
    stretch = (
        np.exp(random.normal(0, 1.5, WIDTH)) * np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
    )
    centres, trigger = random.normal(0, 1, (4, WIDTH)), np.zeros(WIDTH)
    trigger[0] = 12  # as in an infected network, it outweighs what classes differ by
    rows, labels, truth = [], [], []

    def add(shown: int, label: int, count: int, planted: bool) -> None:
        rows.append(centres[shown] + planted * trigger + random.normal(size=(count, WIDTH)))
        labels.extend([label] * count)
        truth.extend([planted] * count)

    for k in range(4):
        add(k, k, per_class, planted=False)
    for (shown, label), count in poisoned.items():
        add(shown, label, count, planted=True)
    order = random.permutation(len(labels))
    features = (np.concatenate(rows) @ stretch).astype(np.float16)
    return features[order], np.array(labels)[order], np.array(truth)[order]


def whitened(features: np.ndarray, labels: np.ndarray, split: Split | None = None) -> Space:
    """As a split found it; its own one unless another is given."""
    split = split or split_classes(features, labels)
    return Space.of(features, labels).whitened(split.log_odds > 0)
