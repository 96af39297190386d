"""Likeness of texts: character n-grams as vectors, and the cosines between vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, ArrayLike, ops_for, require

_PRIME, _ODD = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)


def ngram_embeddings(texts: Sequence[str], max_length: int = 4, bits: int = 12) -> NDArray[np.float64]:
    """Vectors whose cosine says how many character n-grams two texts share; needs no model.

    For each length n from 1 to `max_length` the n-grams are counted, and the counts scaled to unit length, so that a
    cosine is the mean over n (as chrF averages over n; Popović 2015). Case and the kind of white space do not count.
    The n-grams are hashed into ``2 ** bits`` counts for each n; two of them in one place make texts a little more
    alike. The same text gives the same vector in any process.

    Args:
        texts: T texts.
        max_length: Greatest n.
        bits: Logarithm to base 2 of the counts for each n.

    Returns:
        `[T, max_length * 2 ** bits]`, rows of unit length; zeros for a text of nothing but white space.

    Example:
        >>> from inferscale.functional import ngram_embeddings
        >>> first, second, third = ngram_embeddings(["The answer is 42", "the  answer is 42", "Mia sells 20"])
        >>> round(float(first @ second), 3), round(float(first @ third), 3)
        (1.0, 0.193)
    """
    rows = np.zeros((len(texts), max_length, 1 << bits))
    for row, text in zip(rows, texts, strict=True):
        plain = " ".join(text.casefold().split())
        codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        hashed = np.zeros_like(codes)
        for n in range(min(max_length, len(codes))):
            hashed = hashed[: len(codes) - n] * _PRIME + codes[n:] + np.uint64(1)  # of the n + 1 characters from here
            row[n] = np.bincount((hashed * _ODD) >> np.uint64(64 - bits), minlength=1 << bits)
    lengths = np.sqrt((rows**2).sum(-1, keepdims=True))
    rows /= np.where(lengths == 0, 1, lengths)
    known = np.count_nonzero(lengths, axis=1, keepdims=True)  # a short text has no long n-grams
    vectors: NDArray[np.float64] = (rows / np.sqrt(np.maximum(known, 1))).reshape(len(texts), -1)
    return vectors


def cosine_similarities(vectors: ArrayLike) -> Array:
    """The cosine between every two vectors; 0 with a vector of zeros.

    Args:
        vectors: `[..., N, D]`, finite.

    Returns:
        `[..., N, N]` in float64, rounded to 12 places, so that equal pairs have equal cosines.

    Raises:
        ValueError: If a number is not finite, or there are fewer than two axes.

    Example:
        >>> from inferscale.functional import cosine_similarities, ngram_embeddings
        >>> steps = ["6 * 7 = 42", "7 * 6 = 42", "Mia sells 20"]
        >>> cosine_similarities(ngram_embeddings(steps)).round(2)
        array([[1.  , 0.67, 0.11],
               [0.67, 1.  , 0.11],
               [0.11, 0.11, 1.  ]])
    """
    ops = ops_for(vectors)
    x = ops.float64(vectors)
    if x.ndim < 2:
        raise ValueError(f"vectors must have the shape [..., N, D], a row for each; got {tuple(x.shape)}")
    require(ops.xp.isfinite(x), "vectors must be finite numbers; one is NaN or infinite")
    top = ops.xp.amax(abs(x), -1, keepdims=True) if x.shape[-1] else ops.xp.zeros_like(x[..., :1])
    x = x / ops.xp.where(top == 0, ops.float64(1.0), top)  # squares of any numbers fit float64 then
    lengths = ops.xp.sqrt((x * x).sum(-1, keepdims=True))
    x = x / ops.xp.where(lengths == 0, ops.float64(1.0), lengths)
    return (x @ x.swapaxes(-1, -2)).round(decimals=12)


def likeness_clusters(similarities: ArrayLike, max_distance: float) -> NDArray[np.int64]:
    """The cluster of each item, numbered from 0 in the order of their first members: average linkage.

    Clusters are joined while the mean of ``1 - similarity`` between their members is at most `max_distance`.

    Args:
        similarities: `[N, N]`, symmetric. NumPy only, one set at a time.
        max_distance: 0 joins what is equal.

    Returns:
        `[N]`.

    Raises:
        ValueError: If it is no square or a number is not finite.

    Example:
        >>> from inferscale.functional import cosine_similarities, likeness_clusters, ngram_embeddings
        >>> steps = ["6 * 7 = 42", "Mia sells 20", "7 * 6 = 42", "Mia sells 20."]
        >>> likeness_clusters(cosine_similarities(ngram_embeddings(steps)), max_distance=0.5)
        array([0, 1, 0, 1])
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    cosines = np.asarray(similarities, dtype=float)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1]:
        raise ValueError(f"similarities have the shape [N, N], a number for every two items; got {cosines.shape}")
    require(np.isfinite(cosines), "similarities must be finite numbers; one is NaN or infinite")
    if len(cosines) < 2:
        return np.zeros(len(cosines), dtype=np.int64)
    above = np.triu_indices(len(cosines), 1)
    joined = linkage(np.maximum(1 - cosines[above], 0), method="average")
    labels = fcluster(joined, max_distance, criterion="distance")
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    order: NDArray[np.int64] = np.argsort(np.argsort(first))[which].astype(np.int64)
    return order
