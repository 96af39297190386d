"""The expected majority of k out of N samples, by a dynamic programme over the answers.

A subset of k splits over the answers; let t be its greatest count. The answers that have t members are tied, the
others have fewer. The polynomial ``prod_j (sum_{u<t} C(c_j, u) X^u + Y C(c_j, t) X^t)`` counts subsets by their size
(power of X) and by their number of tied answers (power of Y). A second polynomial counts the same, weighted by how
many of the tied ones are correct. Answers with fewer than t samples cannot tie, so they and the abstentions
are one binomial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

_EXACT_UP_TO = 128  # samples; beyond, probabilities in float64 stand for the integers


@lru_cache(maxsize=65536)
def majority_expectation(counts: tuple[int, ...], right: tuple[int, ...], total: int, k: int) -> float:
    """Expected correctness of the majority of k samples, uniform over subsets and over tied answers.

    Args:
        counts: Number of samples with each answer.
        right: How many of them are correct.
        total: Number N of samples, abstentions included.
        k: Size of the subsets.

    Returns:
        Exact, rounded once, for N up to 128; beyond, to about 1e-11.
    """
    most = max(counts, default=0)
    if k == total:
        tied = [correct / count for count, correct in zip(counts, right, strict=True) if count == most]
        return sum(tied) / len(tied) if tied else 0.0
    able = max((count for count, correct in zip(counts, right, strict=True) if correct), default=0)
    tops = range(1, min(k, able) + 1)  # a greater t leaves no correct answer among the tied
    if total <= _EXACT_UP_TO:
        return float(sum((_exact_top(counts, right, total, k, t) for t in tops), Fraction(0)) / math.comb(total, k))
    p = k / total
    return math.fsum(_thinned_top(counts, right, total, k, t) for t in tops) / _binomial(total, p, k)


def _exact_top(counts: Sequence[int], right: Sequence[int], total: int, k: int, t: int) -> Fraction:
    """Credit summed over the subsets whose greatest count is t, in integers."""
    ways, others = {(0, 0): (1, 0)}, total  # (size, tied): (subsets, t * correct among the tied)
    for count, correct in zip(counts, right, strict=True):
        if count < t:
            continue
        others -= count
        choices = [math.comb(count, u) for u in range(t + 1)]
        gain = math.comb(count - 1, t - 1) * correct  # t * C(count, t) * correct / count, which is whole
        new: dict[tuple[int, int], tuple[int, int]] = {}
        for (size, tied), (number, credit) in ways.items():
            for u in range(min(t, k - size) + 1):
                key = (size + u, tied + (u == t))
                old_number, old_credit = new.get(key, (0, 0))
                extra = number * gain if u == t else 0
                new[key] = (old_number + number * choices[u], old_credit + credit * choices[u] + extra)
        ways = new
    shares = (
        Fraction(credit * math.comb(others, k - size), tied * t) for (size, tied), (_, credit) in ways.items() if tied
    )
    return sum(shares, Fraction(0))


def _thinned_top(counts: Sequence[int], right: Sequence[int], total: int, k: int, t: int) -> float:
    """`_exact_top` as a probability: each sample is kept with probability k / total, on its own.

    Given that k are kept they are a uniform subset, so the caller divides by the probability of that. All terms are
    positive and at most 1: nothing cancels or overflows.
    """
    p, others = k / total, total
    ways, credit = np.zeros((2, k + 1, k // t + 2))
    ways[0, 0] = 1.0
    for count, correct in zip(counts, right, strict=True):
        if count < t:
            continue
        others -= count
        kept = [_binomial(count, p, u) for u in range(t + 1)]
        new_ways, new_credit = _convolve(ways, kept[:t]), _convolve(credit, kept[:t])
        new_ways[t:, 1:] += kept[t] * ways[: k + 1 - t, :-1]
        new_credit[t:, 1:] += kept[t] * (credit + ways * (correct / count))[: k + 1 - t, :-1]
        ways, credit = new_ways, new_credit
    rest = np.array([_binomial(others, p, k - size) for size in range(k + 1)])
    return float(rest @ (credit[:, 1:] / np.arange(1, credit.shape[1])).sum(-1))


def _convolve(table: Any, factors: Sequence[float]) -> Any:
    """`table`, a polynomial along its first axis, times the polynomial with coefficients `factors`."""
    product = np.zeros_like(table)
    for shift, factor in enumerate(factors[: len(table)]):
        product[shift:] += factor * table[: len(table) - shift]
    return product


@lru_cache(maxsize=65536)
def _binomial(n: int, p: float, successes: int) -> float:
    """Probability of so many successes in n trials, for 0 < p < 1."""
    if successes > n:
        return 0.0
    log_chance = successes * math.log(p) + (n - successes) * math.log1p(-p)
    return math.exp(math.log(math.comb(n, successes)) + log_chance)
