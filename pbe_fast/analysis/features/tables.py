"""What :func:`pbe_fast.analysis.compare` measured, as rows of a table and as means with claims."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pbe_fast.analysis.features.comparison import (
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
from pbe_fast.analysis.features.similarity import top_count
from pbe_fast.data.manifest import Manifest

__all__ = ["CLAIMS", "as_table", "summary"]

# Mu et al.; "similar" and "labels" in the words of appendix A's first sentence. "The same subset of
# neurons" is of the main text, which the appendix does not repeat.
CLAIMS = {
    "similar": "the features of an infected model's adversarial examples are very similar to "
    "those of triggered images",
    "neurons": "an infected model's adversarial examples and triggered images activate the same "
    "subset of neurons",
    "labels": "an infected model's adversarial examples are highly likely classified as the "
    "target label",
}


def as_table(features: Features, manifest: Manifest) -> pa.Table:
    """A row for each image, pair and layer, in the order of the pairs, then of the images.

    Columns: ``key`` and ``other`` (the images; the same but for shuffled pairs), ``model``,
    ``pair``, ``shuffled``, ``layer``, ``l2``, ``cosine``, ``overlap``, ``shift`` (null where it
    means nothing), ``label`` of the first image, ``reached``: whether its adversarial example gets
    the attacker's label from the infected model, and ``works``: whether the second image does, with
    the trigger in it.
    """
    keys = manifest.keys.take(features.ids)
    reached, works = features.reached, features.works
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
            "works": pa.array(works[found.second]),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).unify_dictionaries() if parts else pa.table({})


def summary(features: Features, top_share: float) -> dict[str, Any]:
    """Means of everything, and the paper's claims beside what was measured.

    ``pairs`` has means over all images, and again in ``reached`` over those whose adversarial
    example got the attacker's label, and in ``missed`` over the others. ``claims`` are about images
    on which the trigger works (in a shuffled pair: on the second), as a trigger that does nothing
    leaves an image's features where they are.
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
    """The three claims at one layer: what is to be high, and what it is to be higher than.

    The third is about labels alone, and about all images.
    """
    inside = {
        "adversarial": Pair(INFECTED, ADVERSARIAL, TRIGGERED),
        "benign_adversarial": Pair(INFECTED, BENIGN_ADVERSARIAL, TRIGGERED),
        "clean": Pair(INFECTED, CLEAN, TRIGGERED),
        "adversarial_shuffled": Pair(INFECTED, ADVERSARIAL, TRIGGERED, shuffled=True),
        "clean_shuffled": Pair(INFECTED, CLEAN, TRIGGERED, shuffled=True),
    }
    by_name = {name: features.of(pair, layer) for name, pair in inside.items()}
    made = {name: found for name, found in by_name.items() if found is not None}
    works = features.works
    return {
        "layer": layer,
        "images": int(works.sum()),
        "similar": {"paper": CLAIMS["similar"], **_against(made, "cosine", works)},
        "neurons": {"paper": CLAIMS["neurons"], **_against(made, "overlap", works)},
        "labels": {
            "paper": CLAIMS["labels"],
            "attacker": _share(features.reached),
            "by_a_benign_model": _share(features.predicted[key] == features.wanted)
            if (key := (BENIGN, BENIGN_ADVERSARIAL)) in features.predicted
            else None,
        },
    }


def _against(
    made: Mapping[str, Comparison], measure: str, works: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Means, and in what share of images x~' is nearer to x^t than x~ and than x; ties half."""
    values = {name: found.measure(measure)[works[found.second]] for name, found in made.items()}
    if not works.any():
        return {"to_triggered": {}, "nearer_than": {}}
    nearer = {
        name: _share(values["adversarial"] > values[name])
        + 0.5 * _share(values["adversarial"] == values[name])
        for name in ("benign_adversarial", "clean")
        if name in values
    }
    means = {name: float(value.mean(dtype=np.float64)) for name, value in values.items()}
    return {"to_triggered": means, "nearer_than": nearer}


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0
