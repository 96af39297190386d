"""When more samples would not change a vote, and how many samples that takes: pure functions of counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from random import Random

import numpy as np
from numpy.typing import NDArray

_EXACT_STATES = 20_000
_DRAWS = 1000
_POINTS = 4001
_MAX_EXPONENT = 700.0  # exp of it is just within float64


@lru_cache(maxsize=4096)
def beta_confidence(first: int, second: int) -> float:
    """``P(p1 > p2)`` for the two leading answers with so many votes, under a uniform prior.

    ``1 - I_half(v1 + 1, v2 + 1) = sum_{j <= v1} C(n, j) / 2^n`` with ``n = v1 + v2 + 1``: the stop of
    Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860).
    """
    n = first + second + 1
    return float(sum(math.comb(n, j) for j in range(first + 1)) / (1 << n))


@lru_cache(maxsize=4096)
def dirichlet_confidence(counts: tuple[int, ...]) -> float:
    """``P(p1 > all others)`` for votes `counts`, the leader's first, under ``p ~ Dirichlet(counts + 1)``.

    A Dirichlet vector is gamma variables over their sum, so this is the integral of the leader's Gamma(v1 + 1) density
    times the others' distribution functions; Simpson's rule, error below 1e-9 for up to a few hundred votes. With two
    answers it is `beta_confidence`.
    """
    leader = counts[0]
    high = leader + 1 + 12 * math.sqrt(leader + 1) + 30
    x = np.linspace(0.0, high, _POINTS)
    density = np.exp(leader * np.log(np.maximum(x, 1e-300)) - x - math.lgamma(leader + 1))
    if leader == 0:
        density = np.exp(-x)
    for count in counts[1:]:
        density = density * _erlang_distribution(x, count)
    simpson = np.ones(_POINTS)
    simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
    return float((density * simpson).sum() * (x[1] - x[0]) / 3)


def _erlang_distribution(x: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Distribution function of Gamma(count + 1): ``1 - exp(-x) sum_{k <= count} x^k / k!``."""
    if x[-1] < _MAX_EXPONENT:
        total = term = np.ones_like(x)
        for k in range(1, count + 1):
            term = term * x / k
            total = total + term
        below: NDArray[np.float64] = np.exp(-x) * total
    else:  # the terms and their sum are beyond float64, their products with exp(-x) are not
        log_x, below = np.log(np.maximum(x, 1e-300)), np.exp(-x)
        for k in range(1, count + 1):
            below = below + np.exp(k * log_x - x - math.lgamma(k + 1))
    return 1 - below


def expected_stop(
    probabilities: Sequence[float], max_samples: int, batch: int, stops: Callable[[tuple[int, ...]], bool]
) -> float:
    """Expected number of samples paid for by a search that stops once `stops` holds for the votes.

    Args:
        probabilities: Chance of each answer; what is missing to 1 abstains.
        max_samples: Where it stops at the latest.
        batch: Samples are paid for in blocks of so many; the rule is tested after each sample.
        stops: Called with the votes of each answer.

    Exact over all vote counts where there are few of them, else the mean over 1,000 simulated runs of a fixed seed.
    """
    chances = check_probabilities(probabilities)
    states = math.comb(max_samples + len(chances), len(chances))
    stop_times = _exact_stop_times if states <= _EXACT_STATES else _simulated_stop_times
    return math.fsum(
        mass * min(max_samples, math.ceil(time / batch) * batch)
        for time, mass in stop_times(chances, max_samples, stops).items()
    )


def check_probabilities(probabilities: Sequence[float]) -> list[float]:
    """The probabilities greater than 0.

    Raises:
        ValueError: If one is negative, all are 0, or they sum to more than 1.
    """
    if any(p < 0 for p in probabilities) or not 0 < math.fsum(probabilities) <= 1 + 1e-9:
        raise ValueError(f"probabilities={list(probabilities)!r}: give chances of answers, at most 1 together")
    return [p for p in probabilities if p > 0]


def _exact_stop_times(
    chances: Sequence[float], max_samples: int, stops: Callable[[tuple[int, ...]], bool]
) -> dict[int, float]:
    abstains = max(0.0, 1 - math.fsum(chances))
    times: dict[int, float] = {}
    masses = {(0,) * len(chances): 1.0}
    for time in range(1, max_samples + 1):
        after: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for votes, mass in masses.items():
            after[votes] += mass * abstains
            for i, chance in enumerate(chances):
                after[(*votes[:i], votes[i] + 1, *votes[i + 1 :])] += mass * chance
        masses = {votes: mass for votes, mass in after.items() if time < max_samples and not stops(votes)}
        times[time] = math.fsum(after.values()) - math.fsum(masses.values())
    return times


def _simulated_stop_times(
    chances: Sequence[float], max_samples: int, stops: Callable[[tuple[int, ...]], bool]
) -> dict[int, float]:
    rng, times = Random(0), Counter[int]()
    cumulative, answers = list(accumulate([*chances, max(0.0, 1 - math.fsum(chances))])), range(len(chances) + 1)
    for _ in range(_DRAWS):
        votes = [0] * len(answers)
        for time, answer in enumerate(rng.choices(answers, cum_weights=cumulative, k=max_samples), 1):
            votes[answer] += 1
            if time == max_samples or stops(tuple(votes[:-1])):
                times[time] += 1
                break
    return {time: count / _DRAWS for time, count in times.items()}


def expected_windows(probabilities: Sequence[float], window: int, max_samples: int) -> float:
    """Expected samples of early-stopping self-consistency: ``w (1 - (1 - Q)^M) / Q``.

    ``Q = sum_a p_a^w`` is the chance that a window is unanimous and ``M = floor(max_samples / w)`` the number of
    windows (Li et al. 2024, arXiv:2401.10480, in closed form).
    """
    chances, windows = check_probabilities(probabilities), max_samples // window
    unanimous = math.fsum(chance**window for chance in chances)
    return window * -math.expm1(windows * math.log1p(-unanimous)) / unanimous if unanimous < 1 else float(window)
