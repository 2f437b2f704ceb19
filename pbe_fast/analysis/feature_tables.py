"""What :func:`pbe_fast.analysis.compare` measured, as rows of a table and as means with claims."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pbe_fast.analysis.features import (
    ADVERSARIAL,
    BENIGN,
    BENIGN_ADVERSARIAL,
    CLEAN,
    INFECTED,
    MEASURES,
    TRIGGERED,
    Comparison,
    Features,
    Pair,
)
from pbe_fast.analysis.similarity import top_count
from pbe_fast.data.manifest import Manifest

__all__ = ["CLAIMS", "as_table", "summary"]

# Mu et al., appendix A (its first sentence) and C; the neurons are from the main text.
CLAIMS = {
    "similar": "the features of an infected model's adversarial examples are very similar to "
    "those of triggered images, other than a benign model's",
    "neurons": "an infected model's adversarial examples and triggered images activate the same "
    "subset of neurons",
    "labels": "an infected model's adversarial examples are highly likely classified as the "
    "target label",
}


def as_table(features: Features, manifest: Manifest) -> pa.Table:
    """A row for each image, pair and layer, in the order of the pairs, then of the images.

    Columns: ``key`` and ``other`` (the images; the same but for shuffled pairs), ``model``,
    ``pair``, ``shuffled``, ``layer``, ``l2``, ``cosine``, ``overlap``, ``shift`` (null where it
    means nothing), ``label`` of the first image and ``reached``: whether its adversarial example
    gets the attacker's label from the infected model.
    """
    keys = manifest.keys.take(features.ids)
    reached = features.reached
    parts = []
    for found in features.comparisons:
        count = len(found.first)
        words = {
            "model": found.pair.model,
            "pair": found.pair.name,
            "layer": found.layer,
        }
        columns: dict[str, Any] = {
            "key": keys.take(found.first),
            "other": keys.take(found.second),
            **{
                name: pa.array([word] * count, pa.string()).dictionary_encode()
                for name, word in words.items()
            },
            "shuffled": pa.array(np.full(count, found.pair.shuffled)),
            **{name: pa.array(found.measure(name), from_pandas=True) for name in MEASURES},
            "label": pa.array(features.labels[found.first].astype(np.int32)),
            "reached": pa.array(reached[found.first]),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).unify_dictionaries() if parts else pa.table({})


def summary(features: Features, top_share: float) -> dict[str, Any]:
    """Means of everything, and the paper's claims beside what was measured.

    Means over images are plain; ``reached`` has them again over the images whose adversarial
    example got the attacker's label, and ``missed`` over the others.
    """
    reached = features.reached
    pairs = []
    for found in features.comparisons:
        row: dict[str, Any] = {
            "model": found.pair.model,
            "pair": found.pair.name,
            "shuffled": found.pair.shuffled,
            "layer": found.layer,
            **_means(found, np.ones(len(found.first), bool)),
        }
        if found.pair.model == INFECTED and ADVERSARIAL in found.pair:
            mask = reached[found.first]
            row |= {"reached": _means(found, mask), "missed": _means(found, ~mask)}
        pairs.append(row)
    layers = []
    for name, width in features.widths.items():
        count = top_count(width, top_share)
        layers.append({"name": name, "width": width, "top": count, "chance": count / width})
    return {
        "images": len(features.ids),
        "labels": _labels(features),
        "layers": layers,
        "claims": [_claims(features, name) for name in features.widths],
        "pairs": pairs,
    }


def _means(found: Comparison, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Means over some images; null where there is none."""
    values = found.values[mask].astype(np.float64)
    means: dict[str, Any] = {"images": len(values)}
    for name, column in zip(MEASURES, values.T, strict=True):
        known = column[~np.isnan(column)]
        means[name] = float(known.mean()) if len(known) else None
    return means


def _labels(features: Features) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of each kind of image that a model labels rightly, and as the attacker wants."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (model, kind), predicted in features.predicted.items():
        found.setdefault(model, {})[kind] = {
            "true": _share(predicted == features.labels),
            "attacker": _share(predicted == features.wanted),
        }
    return found


def _claims(features: Features, layer: str) -> dict[str, Any]:
    """The three claims at one layer: what is to be high, and what it is to be higher than."""
    inside = {
        "adversarial": Pair(INFECTED, ADVERSARIAL, TRIGGERED),
        "benign_adversarial": Pair(INFECTED, BENIGN_ADVERSARIAL, TRIGGERED),
        "clean": Pair(INFECTED, CLEAN, TRIGGERED),
        "adversarial_shuffled": Pair(INFECTED, ADVERSARIAL, TRIGGERED, shuffled=True),
        "clean_shuffled": Pair(INFECTED, CLEAN, TRIGGERED, shuffled=True),
    }
    by_name = {name: features.of(pair, layer) for name, pair in inside.items()}
    made = {name: found for name, found in by_name.items() if found is not None}
    return {
        "layer": layer,
        "similar": {"paper": CLAIMS["similar"], **_against(made, "cosine")},
        "neurons": {"paper": CLAIMS["neurons"], **_against(made, "overlap")},
        "labels": {
            "paper": CLAIMS["labels"],
            "attacker": _share(features.reached),
            "by_a_benign_model": _share(features.predicted[key] == features.wanted)
            if (key := (BENIGN, BENIGN_ADVERSARIAL)) in features.predicted
            else None,
        },
    }


def _against(made: Mapping[str, Comparison], measure: str) -> dict[str, Any]:
    """Means, and in what share of images x~' is nearer to x^t than x~ and than x; ties half."""
    means = {name: float(found.measure(measure).mean()) for name, found in made.items()}
    ours = made["adversarial"].measure(measure) if "adversarial" in made else None
    nearer = {}
    for name in ("benign_adversarial", "clean"):
        if ours is not None and name in made:
            theirs = made[name].measure(measure)
            nearer[name] = _share(ours > theirs) + 0.5 * _share(ours == theirs)
    return {"to_triggered": means, "nearer_than": nearer}


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0
