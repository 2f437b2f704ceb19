"""Which classes hold two kinds of images: a split of what the infected model sees in each class.

A trigger is a strong feature that many images of a class share and the others lack, so within the
class the infected model's activations fall into two clusters (activation clustering, Chen et al.
2018). They come apart best where the spread that classes have anyway is divided out (SCAn, Tang et
al. 2021; SPECTRE, Hayase et al. 2021). Here: a mixture of two Gaussians along the first principal
component of each class' whitened activations, where a class that falls apart counts as two, so that
its trigger does not whiten itself away.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ClassSplit", "Split", "split_classes"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LEAST = 20  # images of a class that can be split
_GAIN = 0.15  # nats by image
_SEPARATION = 3.0  # of the means, in standard deviations; two Gaussians show two humps from 2 on
_RIDGE = 1e-2  # of the mean variance
_PASSES = 3
_SMOOTH = 0.05  # least standard deviation of a cluster, of the whole class' one
_MOST = 50.0  # nats of log odds


@dataclass(frozen=True)
class ClassSplit:
    """A class that falls apart.

    Attributes:
        label: the class.
        share: of its images that are in the smaller cluster.
        gain: nats by image that two Gaussians explain better than one.
        separation: Ashman's D of the two clusters.
    """

    label: int
    share: float
    gain: float
    separation: float


@dataclass(frozen=True)
class Split:
    """What was found.

    Attributes:
        log_odds: ``(N,)`` float32 in [-50, 50], of the smaller cluster of the image's class against
            the larger one; -50 where a class is whole, NaN where features are.
        classes: those that fall apart.
    """

    log_odds: npt.NDArray[np.float32]
    classes: tuple[ClassSplit, ...]


def split_classes(features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> Split:
    """Find the classes whose images fall into two clusters.

    Args:
        features: ``(N, D)`` activations of the infected model. A row that is not finite belongs
            to an image that could not be read.
        labels: ``(N,)``, as the training set has them.
    """
    log_odds = np.full(len(labels), np.nan, np.float32)
    known = np.isfinite(features).all(1)
    if not known.any():
        return Split(log_odds, ())
    x = features[known].astype(np.float64)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    y = labels[known].astype(np.int64)
    members = {int(label): np.flatnonzero(y == label) for label in np.unique(y)}
    second = np.zeros(len(y), bool)  # in the smaller cluster of its class
    found: dict[int, _Mixture] = {}
    for _ in range(_PASSES):
        whitener = _whitener(_residuals(x, y, second), y)
        found, second = {}, np.zeros(len(y), bool)
        for label, ids in members.items():
            mixture = _first_component(x[ids] @ whitener) if len(ids) >= _LEAST else None
            if mixture and mixture.gain > _GAIN and mixture.separation > _SEPARATION:
                found[label] = mixture
                second[ids] = mixture.odds > 0
    odds = np.full(len(y), -_MOST)
    classes = []
    for label, mixture in found.items():
        ids = members[label]
        odds[ids] = np.clip(mixture.odds, -_MOST, _MOST)
        share = float((mixture.odds > 0).mean())
        classes.append(ClassSplit(label, share, mixture.gain, mixture.separation))
    log_odds[known] = odds
    return Split(log_odds, tuple(classes))


def _residuals(x: Floats, y: Labels, second: Mask) -> Floats:
    """What is left when each cluster's mean is taken away."""
    _, cluster = np.unique(2 * y + second, return_inverse=True)
    order = np.argsort(cluster, kind="stable")
    sizes = np.bincount(cluster)
    means = np.add.reduceat(x[order], np.cumsum(sizes) - sizes) / sizes[:, None]
    residuals: Floats = x - means[cluster]
    return residuals


def _whitener(residuals: Floats, y: Labels) -> Floats:
    """``(D, D)``; makes the covariance of residuals the identity, all classes counting alike."""
    weights = 1 / np.sqrt(np.bincount(y).clip(1))[y]
    scaled = residuals * weights[:, None]
    covariance = scaled.T @ scaled / len(np.unique(y))
    covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whitener: Floats = vectors / np.sqrt(values)
    return whitener


@dataclass(frozen=True)
class _Mixture:
    """Two Gaussians along a line; ``odds`` are the log odds of the smaller one."""

    odds: Floats
    gain: float
    separation: float


def _first_component(z: Floats) -> _Mixture | None:
    centred = z - z.mean(0)
    # Of the smaller one of the two products, which has the same values.
    if len(z) < z.shape[1]:
        _, vectors = np.linalg.eigh(centred @ centred.T)
        along = vectors[:, -1]
    else:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        along = centred @ vectors[:, -1]
    return _two_gaussians(along)


def _two_gaussians(values: Floats, steps: int = 100) -> _Mixture | None:
    """Expectation maximisation from several cuts; the best one that does not shrink to nothing."""
    u = (values - values.mean()) / values.std()
    best: _Mixture | None = None
    for cut in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        share = (u > np.quantile(u, cut)).astype(float)
        for _ in range(steps):
            if not 3 <= share.sum() <= len(u) - 3:
                break
            logs, means, variances = [], [], []
            for part in (1 - share, share):
                means.append((part * u).sum() / part.sum())
                spread = (part * (u - means[-1]) ** 2).sum() / part.sum()
                variances.append(max(spread, _SMOOTH**2))
                distance = (u - means[-1]) ** 2 / variances[-1]
                logs.append(np.log(part.mean()) - 0.5 * (np.log(variances[-1]) + distance))
            before, share = share, 1 / (1 + np.exp(np.clip(logs[0] - logs[1], -50, 50)))
            if np.abs(share - before).max() < 1e-4:
                break
        if not 3 <= share.sum() <= len(u) - 3:
            continue
        gain = float(np.logaddexp(*logs).mean()) + 0.5  # one Gaussian has -0.5, constants aside
        if best is None or gain > best.gain:
            odds = logs[1] - logs[0] if share.mean() <= 0.5 else logs[0] - logs[1]
            separation = abs(means[1] - means[0]) / np.sqrt(np.mean(variances))
            best = _Mixture(odds, gain, float(separation))
    return best
