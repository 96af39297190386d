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

    Raises:
        ValueError: If there is no problem, one has no samples, or scores do not fit.
    """
    if not len(answer_ids) or not all(map(len, answer_ids)):
        raise ValueError("the limit of voting is estimated from problems that have samples: one has none")
    ids = [np.asarray(row, dtype=np.int64) for row in answer_ids]
    weights = [np.ones(len(row)) for row in ids] if scores is None else [_weights(row) for row in scores]
    if [len(row) for row in weights] != [len(row) for row in ids]:
        raise ValueError("give one score for each sample")
    estimate = float(np.mean([_vote(a, w, g) for a, w, g in zip(ids, weights, gold_ids, strict=True)]))
    draws = []
    for _ in range(resamples):
        chosen = rng.integers(len(ids), size=len(ids))
        draws.append(np.mean([_resampled_vote(ids[i], weights[i], gold_ids[i], rng) for i in chosen]))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return estimate, float(low), float(high)


def _weights(scores: Sequence[float]) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("scores of a weighted vote must be finite and at least 0: rescale them")
    return values


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
