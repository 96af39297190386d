"""The arithmetic of inference-time scaling: allocation, votes, estimators, resampling.

Every function works on the last axis and is batched over the leading ones. NumPy arrays, torch tensors (CPU and
CUDA) and lists go in; the same kind on the same device comes out, lists as NumPy arrays. Sums are formed and
results given in float64, whole numbers in int64, whatever the precision of the input.
"""

from inferscale.functional._allocation import Rounding, rebase_allocation
from inferscale.functional._reductions import Reduction, logsumexp, reduce_steps, softmax

__all__ = ["Reduction", "Rounding", "logsumexp", "rebase_allocation", "reduce_steps", "softmax"]
