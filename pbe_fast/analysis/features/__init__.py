"""The paper's analysis, to be run on a model of one's own: what its appendix claims, measured."""

from pbe_fast.analysis.features.comparison import PAIRS, Comparison, Features, Pair, compare
from pbe_fast.analysis.features.job import measure_features
from pbe_fast.analysis.features.layers import PENULTIMATE, Layers
from pbe_fast.analysis.features.similarity import cosine, l2, top_overlap

__all__ = [
    "PAIRS",
    "PENULTIMATE",
    "Comparison",
    "Features",
    "Layers",
    "Pair",
    "compare",
    "cosine",
    "l2",
    "measure_features",
    "top_overlap",
]
