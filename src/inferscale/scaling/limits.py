"""The limit of voting over a data set, estimated from samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .theory import Floats


def estimate_voting_limit(
    answer_ids: Sequence[Sequence[int]],
    gold_ids: Sequence[int],
    rng: np.random.Generator,
    scores: Sequence[Sequence[float]] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """The limit of voting over a data set, estimated from samples, with a bootstrap interval.

    Args:
        answer_ids: For each problem the answers of its samples, -1 for an abstention.
        gold_ids: For each problem the right answer.
        rng: Source of the bootstrap.
        scores: For each sample its score, for the weighted vote.
        resamples: Bootstrap draws, over problems and over each problem's samples.
        confidence: Of the interval.

    Returns:
        Estimate, lower and upper end. The estimate is the plain vote over all samples: biased where the leading
        answers of a problem are close, which the interval reflects only in part.
    """
    ids = [np.asarray(row, dtype=np.int64) for row in answer_ids]
    weights = [np.ones(len(row)) if scores is None else np.asarray(scores[i]) for i, row in enumerate(ids)]
    estimate = float(np.mean([_vote(a, w, g) for a, w, g in zip(ids, weights, gold_ids, strict=True)]))
    draws = []
    for _ in range(resamples):
        chosen = rng.integers(len(ids), size=len(ids))
        draws.append(np.mean([_resampled_vote(ids[i], weights[i], gold_ids[i], rng) for i in chosen]))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return estimate, float(low), float(high)


def _vote(ids: NDArray[np.int64], weights: Floats, gold: int) -> float:
    valid = ids >= 0
    if not valid.any():
        return 0.0
    names, inverse = np.unique(ids[valid], return_inverse=True)
    mass = np.bincount(inverse, weights=weights[valid])
    leaders = names[mass >= mass.max() * (1 - 1e-12)]
    return float(gold in leaders) / len(leaders)


def _resampled_vote(ids: NDArray[np.int64], weights: Floats, gold: int, rng: np.random.Generator) -> float:
    picked = rng.integers(len(ids), size=len(ids))
    return _vote(ids[picked], weights[picked], gold)
