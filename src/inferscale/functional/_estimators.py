"""What k samples would give, from the N that were drawn: unbiased, over all subsets of k at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ._arrays import Array, Arrays, arrays_of, require, require_items


def pass_at_k(correct: Array, k: int | Sequence[int]) -> Array:
    """Probability that at least one of k samples is correct (coverage).

    ``1 - C(N - c, k) / C(N, k)`` with c correct of N, from exact integers (Chen et al. 2021, arXiv:2107.03374).
    Average over problems afterwards; the standard error is the one over problems.

    Args:
        correct: `[..., N]`, 0 or 1 (or booleans).
        k: Number of samples, or several.

    Returns:
        `[...]` in float64, or `[..., K]` for a sequence of K numbers.

    Raises:
        ValueError: If a k is not in 1..N, or `correct` holds anything but 0 and 1.
    """
    ops = arrays_of(correct)
    correct = labels(ops, correct)
    total, count = correct.shape[-1], ops.int64(correct.sum(-1))
    return for_each_k(ops, k, total, lambda k: ops.float64(_pass_table(total, k))[count])


def best_of_k(scores: Array, correct: Array, k: int | Sequence[int], mask: Array | None = None) -> Array:
    """Probability that the best-scored of k samples is correct; equal scores share the credit.

    Args:
        scores: `[..., N]`, finite, higher is better.
        correct: `[..., N]`, 0 or 1.
        k: Number of samples, or several.
        mask: `[..., N]`, true where a sample has an answer; the others are chosen only when nothing else is, and
            are wrong.

    Returns:
        `[...]` in float64, or `[..., K]` for a sequence of K numbers.

    Raises:
        ValueError: If a k is not in 1..N, shapes differ, a score is not finite, or `correct` holds anything but 0
            and 1.
    """
    ops = arrays_of(scores, correct, mask)
    correct, scores = labels(ops, correct), ops.float64(scores)
    same_shape(scores=scores, correct=correct)
    if mask is not None:
        mask = ops.boolean(mask)
        scores, correct = ops.xp.where(mask, scores, ops.float64(0.0)), ops.xp.where(mask, correct, ops.float64(0.0))
    require(ops.xp.isfinite(scores), "scores must be finite numbers; one is NaN or infinite")
    if mask is not None:
        scores = ops.xp.where(mask, scores, ops.float64(-math.inf))
    ranked = ops.gather(scores, ops.argsort(scores))
    below, up_to = (ops.searchsorted(ranked, scores, side) for side in ("left", "right"))
    share = correct / ops.float64(up_to - below)

    def estimate(k: int) -> Array:
        # the best of k is among the first j in ascending order with probability C(j, k) / C(N, k)
        among_first = ops.float64(_first_table(correct.shape[-1], k))
        return (share * (among_first[up_to] - among_first[below])).sum(-1)

    return for_each_k(ops, k, correct.shape[-1], estimate)


def labels(ops: Arrays, correct: Array) -> Array:
    """`correct` in float64, checked."""
    correct = ops.float64(correct)
    require_items("correct", correct)
    require((correct == 0) | (correct == 1), "correct must hold 0 and 1 only: threshold graded scores first")
    return correct


def same_shape(**arrays: Array) -> None:
    """Raises a `ValueError` that names the shapes unless all are the same."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"arguments must have one shape, got {shapes}")


def check_k(k: int, total: int) -> None:
    """Raises a `ValueError` unless `k` samples can be drawn out of `total`."""
    if not 1 <= k <= total or k != int(k):
        raise ValueError(f"k must be a whole number between 1 and the {total} samples given, got {k!r}")


def for_each_k(ops: Arrays, k: int | Sequence[int], total: int, estimate: Callable[[int], Array]) -> Array:
    """`estimate` of one k, or of several along a new last axis."""
    several = np.ndim(k) > 0
    ks = [k] if not several else list(k)  # type: ignore[arg-type]
    for value in ks:
        check_k(value, total)  # type: ignore[arg-type]
    columns = [estimate(int(value)) for value in ks]  # type: ignore[arg-type]
    return ops.xp.stack(columns, -1) if several else columns[0]


@lru_cache(maxsize=256)
def _pass_table(total: int, k: int) -> list[float]:
    """pass@k of ``0..total`` correct, each the exact fraction rounded once."""
    chosen = _chosen(total, k)
    return [(chosen[-1] - none_correct) / chosen[-1] for none_correct in reversed(chosen)]


@lru_cache(maxsize=256)
def _first_table(total: int, k: int) -> list[float]:
    """Probability that all of k are among the first ``0..total``."""
    chosen = _chosen(total, k)
    return [inside / chosen[-1] for inside in chosen]


def _chosen(total: int, k: int) -> list[int]:
    """``C(0, k)`` to ``C(total, k)``."""
    chosen = [0] * k + [1]
    for n in range(k + 1, total + 1):
        chosen.append(chosen[-1] * n // (n - k))
    return chosen
