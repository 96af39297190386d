"""Votes over a few samples, by trying every outcome."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

MAX_OUTCOMES = 200_000


def count_outcomes(answers: int, n: int) -> int:
    """Ways in which `n` samples can fall on so many answers."""
    return math.comb(n + answers - 1, n)


def compositions(answers: int, n: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `n` as an ordered sum of `answers` numbers of 0 or more."""
    if answers == 1:
        yield (n,)
        return
    for first in range(n + 1):
        for rest in compositions(answers - 1, n - first):
            yield (first, *rest)


def enumerated_vote(chances: Sequence[float], weights: Sequence[float], gold: int, n: int) -> float:
    """Probability that the answer `gold` has the greatest total weight among `n` samples; ties share the credit.

    Args:
        chances: Probability of each answer, then that of an abstention; they sum to 1.
        weights: Weight of a sample of each answer.
        gold: Index of the right answer.
        n: Samples.

    Raises:
        ValueError: If there are more than `MAX_OUTCOMES` outcomes.
    """
    if count_outcomes(len(chances), n) > MAX_OUTCOMES:
        raise ValueError(
            f"{n} samples of {len(chances) - 1} answers have {count_outcomes(len(chances), n)} outcomes, too many to "
            "try one by one: pass rng=np.random.default_rng(...) to estimate"
        )
    log_chances = [math.log(p) if p > 0 else -math.inf for p in chances]
    terms = []
    for counts in compositions(len(chances), n):
        credit = _credit(counts, weights, gold)
        if credit and all(c == 0 or log_p > -math.inf for c, log_p in zip(counts, log_chances, strict=True)):
            log_ways = math.lgamma(n + 1) - sum(math.lgamma(c + 1) for c in counts)
            log_mass = sum(c * log_p for c, log_p in zip(counts, log_chances, strict=True) if c)
            terms.append(credit * math.exp(log_ways + log_mass))
    return math.fsum(terms)


def _credit(counts: Sequence[int], weights: Sequence[float], gold: int) -> float:
    totals = [count * weight for count, weight in zip(counts, weights, strict=False)]
    top = max(totals)
    if top <= 0 or totals[gold] < top * (1 - 1e-12):
        return 0.0
    return 1 / sum(total >= top * (1 - 1e-12) for total in totals)
