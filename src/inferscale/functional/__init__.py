"""The arithmetic of inference-time scaling: allocation, votes, estimators, resampling, likeness.

Every function works on the last axis and is batched over the leading ones. NumPy arrays, torch tensors (CPU and
CUDA) and lists go in; the same kind on the same device comes out, lists as NumPy arrays. Sums are formed and
results given in float64, whole numbers in int64, whatever the precision of the input.

Example:
    >>> from inferscale.functional import pass_at_k, rebase_allocation
    >>> round(float(pass_at_k([True, False, False, True], 2)), 3)
    0.833
    >>> rebase_allocation([0.9, 0.8, 0.1], 8, 0.1).tolist()
    [6, 2, 0]
"""

from .allocation import Rounding, dora_allocation, ets_selection, rebase_allocation
from .arrays import Array, ArrayLike
from .estimators import (
    best_of_k,
    best_of_k_chances,
    majority_at_k,
    optimal_n,
    pass_at_k,
    weighted_majority_at_k,
)
from .likeness import cosine_similarities, likeness_clusters, ngram_embeddings
from .reductions import Reduction, logsumexp, reduce_steps, softmax
from .resampling import Resampling, effective_sample_size, resample
from .voting import majority_vote

__all__ = [
    "Array",
    "ArrayLike",
    "Reduction",
    "Resampling",
    "Rounding",
    "best_of_k",
    "best_of_k_chances",
    "cosine_similarities",
    "dora_allocation",
    "effective_sample_size",
    "ets_selection",
    "likeness_clusters",
    "logsumexp",
    "majority_at_k",
    "majority_vote",
    "ngram_embeddings",
    "optimal_n",
    "pass_at_k",
    "rebase_allocation",
    "reduce_steps",
    "resample",
    "softmax",
    "weighted_majority_at_k",
]
