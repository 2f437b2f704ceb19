"""Two clusters along a line."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh

from pbe_fast.erase._space import TINY, Floats, Ids, Mask

__all__ = [
    "FOLDS",
    "MOST",
    "Mixture",
    "along_directions",
    "cluster_ahead",
    "cluster_around",
    "first_component",
    "two_gaussians",
]

FOLDS = 5
_GAIN = 0.15  # nats by image
_SEPARATION = 3.0  # of the means, in mean standard deviations; two humps show from 2 on
# On drawn signs classes without poison gained up to 0.05 by a second look, the others from 0.17 on.
_GAIN_HINTED = 0.1
_SEPARATION_HINTED = 2.0
MOST = 50.0  # nats of log odds
_SMOOTH = 0.05  # least standard deviation of a cluster, of the whole class' one


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians along a line.

    Attributes:
        odds: ``(n,)``, log odds of the smaller one.
        gain: nats by image that two Gaussians explain better than one.
        separation: of their means, in mean standard deviations or as :func:`two_gaussians` was
            asked to.
    """

    odds: Floats
    gain: float
    separation: float

    @property
    def falls_apart(self) -> bool:
        """Whether that is more than chance."""
        return self.gain > _GAIN and self.separation > _SEPARATION and self._two

    @property
    def falls_apart_on_a_hint(self) -> bool:
        """Whether that is enough where something else points to it, or to the direction."""
        return self.gain > _GAIN_HINTED and self.separation > _SEPARATION_HINTED and self._two

    @property
    def _two(self) -> bool:
        return 0 < int((self.odds > 0).sum()) < len(self.odds)


def first_component(z: Floats) -> Floats:
    """``(n,)``: where each row lies along the direction in which they differ most."""
    centred = z - z.mean(0)
    # Of the smaller one of the two products, which has the same values.
    few = len(z) < z.shape[1]
    product = centred @ centred.T if few else centred.T @ centred
    last = len(product) - 1
    # Only the largest one: all of them take three times as long.
    vector: Floats = eigh(product, subset_by_index=[last, last])[1][:, 0]
    return vector if few else centred @ vector


def along_directions(z: Floats, fold: Ids, towards: Callable[[int], Floats]) -> Floats:
    """``(n,)``: where each row lies along a direction, in units of the space.

    Args:
        z: ``(n, D)``.
        fold: ``(n,)``, of each row, below :data:`FOLDS`.
        towards: the direction of a fold, ``(D,)`` of any length. It is to be made from the rows of
            the other folds, as a row would pull it towards itself.
    """
    along = np.empty(len(z))
    for index in range(FOLDS):
        here, direction = fold == index, towards(index)
        along[here] = z[here] @ direction / (np.linalg.norm(direction) + TINY)
    return along


def _towards(z: Floats, some: Mask) -> Floats:
    """``(n,)``: where each row lies along the direction from the other rows to some.

    Where the class lies as a whole must not count, as it does in the direction of another fold.
    """
    z = z - z.mean(0)
    fold = np.empty(len(z), int)
    for part in (some, ~some):
        fold[part] = np.arange(part.sum()) % FOLDS

    def direction(index: int) -> Floats:
        rest = fold != index
        found: Floats = z[rest & some].mean(0) - z[rest & ~some].mean(0)
        return found

    return along_directions(z, fold, direction)


def cluster_around(z: Floats, some: Mask, steps: int = 1) -> Mixture | None:
    """The smaller cluster of a class along the direction to some of its rows.

    None if it is not ahead of the larger one, on that side of it where these rows are.

    Args:
        z: ``(n, D)``.
        some: ``(n,)``; few of them need be in the cluster.
        steps: with more than one, next along the direction to the cluster that was found.
    """
    found: Mixture | None = None
    for _ in range(steps):
        if min(some.sum(), (~some).sum()) < FOLDS:
            break
        mixture = cluster_ahead(_towards(z, some))
        if mixture is None:
            break
        found, before, some = mixture, some, mixture.odds > 0
        if (some == before).all():
            break
    return found


def cluster_ahead(along: Floats) -> Mixture | None:
    """The smaller of two clusters along a line, if it is further along than the larger one.

    What lies behind the middle of the larger one is in that, as the wider of two reaches to both
    sides.
    """
    mixture = two_gaussians(along)
    if not mixture or not mixture.falls_apart_on_a_hint:
        return None
    smaller = mixture.odds > 0
    middle = along[~smaller].mean()
    if along[smaller].mean() <= middle:
        return None
    return replace(mixture, odds=np.where(along > middle, mixture.odds, -MOST))


def two_gaussians(values: Floats, steps: int = 100, *, ashman: bool = False) -> Mixture | None:
    """Expectation maximisation from several cuts; the best one that does not shrink to nothing.

    Args:
        ashman: measure their separation in the root of the mean variance (Ashman's D), and not in
            mean standard deviations. A tight cluster beside a wide one, as poisoned images beside
            own ones are to a large network, then hardly counts as apart.
    """
    u = (values - values.mean()) / (values.std() + TINY)
    best: Mixture | None = None
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
            spread = np.sqrt(np.mean(variances)) if ashman else np.mean(np.sqrt(variances))
            best = Mixture(odds, gain, float(abs(means[1] - means[0]) / spread))
    return best
