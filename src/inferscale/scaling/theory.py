"""What voting can reach: limits, finite samples and rates.

Theorems 1 and 2 of Wu et al. 2024 (arXiv:2408.00724): with more samples, the accuracy of a (weighted) majority vote
goes to the share of problems on which the right answer has the greatest (weighted) probability, and the distance
shrinks exponentially. They need a unique greatest answer; here ties share the credit. The sign in the paper is
loose: where the greatest answer is wrong, accuracy falls to 0 from above.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .enumeration import enumerated_vote

Floats = NDArray[np.float64]


def voting_limit(probabilities: ArrayLike, gold: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Accuracy `[...]` of a vote over ever more samples: 1, 0, or the share of the tie.

    Args:
        probabilities: `[..., answers]` probability of each answer; what is missing to 1 abstains.
        gold: `[...]` index of the right answer, -1 if it never occurs.
        weights: `[..., answers]` mean score of each answer's samples, for the weighted vote (Theorem 2).

    Raises:
        ValueError: If a probability is negative or a row sums to more than 1, or weights or gold do not fit.
    """
    mass = _checked(probabilities)
    if weights is not None:
        mass = mass * _checked_weights(weights, mass)
    leaders = mass >= mass.max(axis=-1, keepdims=True) * (1 - 1e-12)
    leaders &= mass > 0
    index = np.asarray(gold, dtype=np.int64)
    if ((index < -1) | (index >= mass.shape[-1])).any():
        raise ValueError(f"gold={gold!r:.80}: each is the index of one of {mass.shape[-1]} answers, or -1")
    hit = np.take_along_axis(leaders, np.maximum(index, 0)[..., None], axis=-1)[..., 0] & (index >= 0)
    return np.asarray(hit / np.maximum(leaders.sum(axis=-1), 1), dtype=np.float64)


def majority_accuracy(probabilities: ArrayLike, gold: int, n: int) -> float:
    """Probability that a majority vote over `n` samples gives the answer `gold`; ties share the credit.

    Exact, by the multinomial distribution: the counts are independent Poisson numbers given their sum, so the sum
    over all counts is a product of one polynomial for each answer.

    Args:
        probabilities: `[answers]` probability of each answer; what is missing to 1 abstains.
        gold: Index of the right answer, -1 if it never occurs.
        n: Samples.

    Raises:
        ValueError: If `n` is less than 1, the probabilities are no distribution, or there is no answer `gold`.
    """
    p = _one_row(probabilities)
    if not _occurs(p, gold, n):
        return 0.0
    rest = [float(q) for index, q in enumerate(p) if index != gold and q > 0]
    abstain = max(0.0, 1.0 - float(p.sum()))
    blank = _poisson(n * abstain, n)
    total = 0.0
    for top in range(1, n + 1):
        share = _poisson(n * float(p[gold]), n)[top]
        if share == 0.0:
            continue
        # table[s]: distribution of the votes of the others, with s of them level with the gold answer
        table = [blank[: n - top + 1]]
        for q in rest:
            votes = _poisson(n * q, n)
            below = np.where(np.arange(n + 1) < top, votes, 0.0)
            level = np.where(np.arange(n + 1) == top, votes, 0.0)
            grown = [np.convolve(row, below)[: n - top + 1] for row in table] + [np.zeros(n - top + 1)]
            for s, row in enumerate(table):
                grown[s + 1] = grown[s + 1] + np.convolve(row, level)[: n - top + 1]
            table = grown
        total += share * sum(float(row[n - top]) / (s + 1) for s, row in enumerate(table))
    return total / float(_poisson(float(n), n)[n])


def weighted_accuracy(
    probabilities: ArrayLike,
    weights: ArrayLike,
    gold: int,
    n: int,
    rng: np.random.Generator | None = None,
    trials: int = 10_000,
) -> tuple[float, float]:
    """Accuracy of a weighted vote over `n` samples, and its standard error (0 when it is exact).

    Every sample of answer `a` weighs ``weights[a]``, the mean score of its samples (Theorem 2).

    Args:
        probabilities: `[answers]` probability of each answer; what is missing to 1 abstains.
        weights: `[answers]`, 0 or more.
        gold: Index of the right answer, -1 if it never occurs.
        n: Samples.
        rng: Without it every outcome of the multinomial distribution is tried; with it, `trials` are drawn.
        trials: Monte Carlo draws.

    Raises:
        ValueError: If `n` is less than 1, there is no answer `gold`, the weights do not fit, there are too many
            outcomes to try, or fewer than two trials.
    """
    p = _one_row(probabilities)
    values = _checked_weights(weights, p)
    if not _occurs(p, gold, n):
        return 0.0, 0.0
    if trials < 2:
        raise ValueError(f"trials={trials}: a standard error takes at least two draws")
    chances = np.append(p, max(0.0, 1.0 - float(p.sum())))
    if (total := float(chances.sum())) > 1 + 1e-12:
        chances /= total  # within rounding of 1, which numpy refuses
    if rng is None:
        return enumerated_vote(chances.tolist(), values.tolist(), gold, n), 0.0
    mass = rng.multinomial(n, chances, size=trials)[:, : len(p)] * values
    leaders = (mass >= mass.max(axis=1, keepdims=True) * (1 - 1e-12)) & (mass > 0)
    credit = np.where(leaders[:, gold], 1.0 / np.maximum(leaders.sum(axis=1), 1), 0.0)
    return float(credit.mean()), float(credit.std(ddof=1) / math.sqrt(trials))


def error_bound(probabilities: ArrayLike, n: int, weights: ArrayLike | None = None) -> float:
    """Bound on ``|accuracy after n samples - limit|``: ``answers * exp(-n * gap**2 / (2 * R**2))``.

    `gap` is the distance of the two greatest (weighted) probabilities and R the greatest weight (1 without): the
    union bound and Hoeffding's inequality in the proof of Theorem 1. Infinite patience is needed for a tie: 1.

    Raises:
        ValueError: If `n` is less than 1, the probabilities are no distribution, or the weights do not fit.
    """
    mass = _one_row(probabilities)
    _check_n(n)
    scale = 1.0
    if weights is not None:
        values = _checked_weights(weights, mass)
        mass, scale = mass * values, float(values.max()) or 1.0
    ordered = np.sort(mass)[::-1]
    gap = float(ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0))
    return min(1.0, len(mass) * math.exp(-n * gap**2 / (2 * scale**2)))


def cramer_rate(first: float, second: float) -> float:
    """Factor by which the error falls with each further sample: ``1 - (sqrt(first) - sqrt(second))**2``.

    The exact exponential rate of a vote between two leading answers of these probabilities (Cramér).

    Raises:
        ValueError: If the two are no probabilities of two answers.
    """
    _one_row([first, second])
    return 1.0 - (math.sqrt(first) - math.sqrt(second)) ** 2


def _checked(probabilities: ArrayLike) -> Floats:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim == 0 or p.shape[-1] == 0 or not ((p >= 0).all() and (p.sum(axis=-1) <= 1 + 1e-9).all()):
        raise ValueError(
            f"probabilities must be at least 0 and sum to at most 1 in each row, got {probabilities!r:.200}"
        )
    return p


def _one_row(probabilities: ArrayLike) -> Floats:
    p = _checked(probabilities)
    if p.ndim != 1:
        raise ValueError(f"probabilities of one problem are a row of numbers, got shape {p.shape}")
    return p


def _checked_weights(weights: ArrayLike, p: Floats) -> Floats:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape[-1:] != p.shape[-1:] or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"weights must be finite and at least 0, one for each of {p.shape[-1]} answers, got {weights!r:.200}"
        )
    return values


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n={n}: a vote needs at least one sample")


def _occurs(p: Floats, gold: int, n: int) -> bool:
    """Whether the right answer is among those that samples may have."""
    _check_n(n)
    if not -1 <= gold < len(p):
        raise ValueError(f"gold={gold}: give the index of one of {len(p)} answers, or -1 if the right one never occurs")
    return gold >= 0


def _poisson(rate: float, n: int) -> Floats:
    """Probabilities of 0..n under a Poisson distribution."""
    from scipy.special import gammaln, xlogy

    k = np.arange(n + 1)
    return np.asarray(np.exp(xlogy(k, rate) - rate - gammaln(k + 1)))
