"""When more calls hurt: votes over easy and hard items (Chen et al. 2024, arXiv:2403.02419)."""

from __future__ import annotations

import math


def two_class_accuracy(calls: int, easy_share: float, easy: float, hard: float) -> float:
    """Accuracy of a vote of an odd number of calls on a mix of easy and hard items with binary answers.

    ``a * V(p1, K) + (1 - a) * V(p2, K)``, V the chance that more than half of
    K independent calls are right.

    Raises:
        ValueError: If `calls` is even or less than 1, or the others are not between 0 and 1.
    """
    if calls < 1 or calls % 2 == 0:
        raise ValueError(f"calls={calls}: the two-class model votes over an odd number of calls")
    if not all(0 <= value <= 1 for value in (easy_share, easy, hard)):
        raise ValueError(f"easy_share={easy_share}, easy={easy}, hard={hard}: give numbers between 0 and 1")
    from scipy.special import betainc

    half = (calls + 1) / 2
    return float(easy_share * betainc(half, half, easy) + (1 - easy_share) * betainc(half, half, hard))


def optimal_calls(easy_share: float, easy: float, hard: float) -> tuple[float, int]:
    """Where the two-class accuracy peaks: the real-valued formula, and the best odd number of calls.

    Theorem 2, for ``1 > easy > 1/2 > hard``, ``easy + hard > 1`` and items of both kinds.

    Raises:
        ValueError: If there is no inner maximum.
    """
    if not (1 > easy > 0.5 > hard and easy + hard > 1 and 0 < easy_share < 1):
        raise ValueError(
            f"easy_share={easy_share}, easy={easy}, hard={hard}: an inner maximum needs 1 > easy > 1/2 > hard, "
            "easy + hard > 1 and a share between 0 and 1; otherwise one call or ever more calls are best"
        )
    ratio = easy_share * (2 * easy - 1) / ((1 - easy_share) * (1 - 2 * hard))
    peak = 2 * math.log(ratio) / math.log(hard * (1 - hard) / (easy * (1 - easy))) - 1
    best = max(1, math.ceil(peak))
    return peak, best if best % 2 else best + 1
