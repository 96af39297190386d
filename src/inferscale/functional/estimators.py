"""Unbiased estimators of pass@k, best-of-k and (weighted) majority@k out of a pool of samples."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from .arrays import Array, ArrayLike, NumpyOps, ops_for, require, require_items, whole_numbers
from .leading import Binomial, leader_credit
from .resampling import draw_uniforms
from .voting import group_totals, vote_arrays, vote_leaders


def pass_at_k(correct: ArrayLike, k: int | Sequence[int]) -> Array:
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

    Example:
        >>> from inferscale.functional import pass_at_k
        >>> right = [True, False, False, True]
        >>> pass_at_k(right, [1, 2, 4]).round(3)
        array([0.5  , 0.833, 1.   ])
    """
    ops = ops_for(correct)
    right = labels(ops, correct)
    total, count = right.shape[-1], ops.int64(right.sum(-1))
    return for_each_k(ops, k, total, lambda k: ops.float64(_pass_table(total, k))[count])


def best_of_k(scores: ArrayLike, correct: ArrayLike, k: int | Sequence[int], mask: ArrayLike | None = None) -> Array:
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

    Example:
        >>> from inferscale.functional import best_of_k
        >>> scores, right = [0.9, 0.8, 0.4, 0.3], [False, True, True, False]  # the judge's favourite is wrong
        >>> best_of_k(scores, right, [1, 2, 3, 4]).round(3)
        array([0.5 , 0.5 , 0.25, 0.  ])
    """
    ops = ops_for(scores, correct, mask)
    right, x = labels(ops, correct), ops.float64(scores)
    same_shape(scores=x, correct=right)
    chances = _best_chances(ops, x, mask)
    return for_each_k(ops, k, right.shape[-1], lambda k: (right * chances(k)).sum(-1))


def best_of_k_chances(scores: ArrayLike, k: int, mask: ArrayLike | None = None) -> Array:
    """Probability that each of the samples is the best-scored of k that are drawn from them without replacement.

    As weights of a vote they give the answer that best-of-k reports most often: with k = 1 the majority's, with k = N
    the best-scored one's.

    Args:
        scores: `[..., N]`, finite, higher is better; equal scores share their chance.
        k: Number of samples drawn.
        mask: `[..., N]`, true where a sample has an answer; the others are chosen only when nothing else is, and
            have no chance of their own.

    Returns:
        `[..., N]` in float64.

    Raises:
        ValueError: If k is not in 1..N, shapes differ, or a score is not finite.

    Example:
        >>> from inferscale.functional import best_of_k_chances, majority_vote
        >>> scores, answers = [0.9, 0.8, 0.4, 0.3], [7, 5, 5, 5]  # the favourite against the majority
        >>> best_of_k_chances(scores, k=3)
        array([0.75, 0.25, 0.  , 0.  ])
        >>> [int(majority_vote(answers, best_of_k_chances(scores, k))) for k in (1, 4)]
        [5, 7]
    """
    ops = ops_for(scores, mask)
    x = ops.float64(scores)
    require_items("scores", x)
    return _best_chances(ops, x, mask)(check_k(k, x.shape[-1]))


def optimal_n(scores: ArrayLike, correct: ArrayLike, mask: ArrayLike | None = None) -> int:
    """The n at which best-of-n is right most often, from samples of some problems whose correctness is known.

    Against over-optimisation: an imperfect score is right about what is likely and wrong about what is rare, so that
    accuracy rises with n and falls again (Khalaf et al. 2025, arXiv:2506.19248). The mean of `best_of_k` over problems
    is an unbiased estimate for every n up to N; the smallest n of the greatest mean comes back.

    Args:
        scores: `[problems, N]`, finite, higher is better.
        correct: `[problems, N]`, 0 or 1.
        mask: `[problems, N]`, true where a sample has an answer.

    Raises:
        ValueError: As `best_of_k`.

    Example:
        >>> from inferscale.functional import best_of_k, optimal_n
        >>> scores = [[0.9, 0.8, 0.7, 0.4, 0.3]]
        >>> right = [[False, True, True, False, False]]  # what the judge likes best is wrong
        >>> best_of_k(scores, right, range(1, 6)).round(3)
        array([[0.4, 0.5, 0.4, 0.2, 0. ]])
        >>> optimal_n(scores, right)
        2
    """
    total = ops_for(scores, correct, mask).float64(scores).shape[-1]
    curve = best_of_k(scores, correct, range(1, total + 1), mask)
    return 1 + int(curve.reshape(-1, total).mean(0).argmax())


def _best_chances(ops: NumpyOps, x: Array, mask: ArrayLike | None) -> Callable[[int], Array]:
    """From a k to the chances `[..., N]` of `best_of_k_chances`."""
    present = ops.xp.ones_like(x, dtype=ops.xp.bool) if mask is None else ops.boolean(mask)
    require(ops.xp.isfinite(x) | ~present, "scores must be finite numbers; one is NaN or infinite")
    x = ops.xp.where(present, x, ops.float64(-math.inf))
    ranked = ops.gather(x, ops.argsort(x))
    below, up_to = (ops.searchsorted(ranked, x, side) for side in ("left", "right"))
    share = ops.xp.where(present, ops.float64(1.0), ops.float64(0.0)) / ops.float64(up_to - below)  # of tied scores

    def chances(k: int) -> Array:
        # The best of k is among the first j in ascending order with probability C(j, k) / C(N, k).
        among_first = ops.float64(_first_table(x.shape[-1], k))
        return share * (among_first[up_to] - among_first[below])

    return chances


def labels(ops: NumpyOps, correct: ArrayLike) -> Array:
    """`correct` in float64, checked."""
    right = ops.float64(correct)
    require_items("correct", right)
    require((right == 0) | (right == 1), "correct must hold 0 and 1 only: threshold graded scores first")
    return right


def same_shape(**arrays: Array) -> None:
    """Raise a ValueError that names the shapes unless all are the same."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"arguments must have one shape, got {shapes}")


def check_k(k: float, total: int) -> int:
    """`k` as an int.

    Raises:
        ValueError: If so many samples cannot be drawn out of `total`.
    """
    if not 1 <= k <= total or k != int(k):
        raise ValueError(f"k must be a whole number between 1 and the {total} samples given, got {k!r}")
    return int(k)


def for_each_k(ops: NumpyOps, k: int | Sequence[int], total: int, estimate: Callable[[int], Array]) -> Array:
    """`estimate` of one k, or of several along a new last axis."""
    if isinstance(k, int) or np.ndim(k) == 0:
        return estimate(check_k(k, total))  # type: ignore[arg-type]
    ks = [check_k(value, total) for value in k]
    return ops.xp.stack([estimate(value) for value in ks], -1)


@lru_cache(maxsize=256)
def _pass_table(total: int, k: int) -> list[float]:
    """pass@k of ``c = 0..total`` correct, ``(C(N, k) - C(N - c, k)) / C(N, k)``: exact fractions rounded once."""
    chosen = _chosen(total, k)
    return [(chosen[-1] - none_correct) / chosen[-1] for none_correct in reversed(chosen)]


@lru_cache(maxsize=256)
def _first_table(total: int, k: int) -> list[float]:
    """Probability that all of k are among the first ``0..total``."""
    chosen = _chosen(total, k)
    return [inside / chosen[-1] for inside in chosen]


def _chosen(total: int, k: int) -> list[int]:
    """``C(0, k)`` to ``C(total, k)``, each from the one before: ``C(n, k) = C(n - 1, k) n / (n - k)``."""
    chosen = [0] * k + [1]
    for n in range(k + 1, total + 1):
        chosen.append(chosen[-1] * n // (n - k))
    return chosen


_EXACT_UP_TO = 128  # samples; beyond, probabilities in float64 stand for the integers


@lru_cache(maxsize=65536)
def majority_expectation(counts: tuple[int, ...], right: tuple[int, ...], total: int, k: int) -> float:
    """Expected correctness of the majority of k samples, uniform over subsets and over tied answers.

    For N up to 128 in exact integers, summed over the greatest count t of the subset: answers join it one at a time
    with u <= t samples each, those with u = t are tied, and what has been counted is (size, tied). Beyond, in float64:
    kept with probability k / N each, the samples are a uniform subset given that k are kept.

    Args:
        counts: Number of samples with each answer.
        right: Number of correct ones among them.
        total: Number N of samples, abstentions included.
        k: Size of the subsets.

    Returns:
        Rounded once for N up to 128; beyond, right to about 1e-11.
    """
    most = max(counts, default=0)
    if k == 1:
        return sum(right) / total
    if k == total:
        tied = [correct / count for count, correct in zip(counts, right, strict=True) if count == most]
        return sum(tied) / len(tied) if tied else 0.0
    able = max((count for count, correct in zip(counts, right, strict=True) if correct), default=0)
    tops = range(1, min(k, able) + 1)  # a greater t leaves no correct answer among the tied
    if total <= _EXACT_UP_TO:
        return float(sum((_exact_top(counts, right, total, k, t) for t in tops), Fraction(0)) / math.comb(total, k))
    kinds: dict[int, list[float]] = {}  # correctness of the answers with equal counts
    for count, correct in zip(counts, right, strict=True):
        kinds.setdefault(count, []).append(correct / count)
    repeats = [len(shares) for shares in kinds.values()]
    credit_of = [sum(shares) / len(shares) for shares in kinds.values()]
    return leader_credit(Binomial(k / total), list(kinds), repeats, credit_of, total - sum(counts), k)


def _exact_top(counts: Sequence[int], right: Sequence[int], total: int, k: int, t: int) -> Fraction:
    """Credit summed over the subsets whose greatest count is t, in integers."""
    ways, others = {(0, 0): (1, 0)}, total  # (size, tied): (subsets, t * correct among the tied)
    for count, correct in zip(counts, right, strict=True):
        if count < t:
            continue
        others -= count
        choices = [math.comb(count, u) for u in range(t + 1)]  # ways to take u samples of this answer
        gain = math.comb(count - 1, t - 1) * correct  # t * C(count, t) * correct / count, which is whole
        new: dict[tuple[int, int], tuple[int, int]] = {}
        for (size, tied), (number, credit) in ways.items():
            for u in range(min(t, k - size) + 1):
                key = (size + u, tied + (u == t))
                old_number, old_credit = new.get(key, (0, 0))
                extra = number * gain if u == t else 0
                new[key] = (old_number + number * choices[u], old_credit + credit * choices[u] + extra)
        ways = new
    # The rest of the subset are answers too rare to reach t, and abstentions; `tied` answers share the credit.
    shares = (
        Fraction(credit * math.comb(others, k - size), tied * t) for (size, tied), (_, credit) in ways.items() if tied
    )
    return sum(shares, Fraction(0))


def majority_at_k(answer_ids: ArrayLike, correct: ArrayLike, k: int | Sequence[int]) -> Array:
    """Expected correctness of the majority of k samples; answers tied for first share the credit.

    Over all subsets of k: exact for N up to 128, beyond right to about 1e-11. It is also the expectation, over random
    orders, of "the earliest wins". All abstaining counts as wrong. The numbers are brought to the CPU, since exact
    integers have no tensor.

    Args:
        answer_ids: `[..., N]` whole numbers; negative ones abstain.
        correct: `[..., N]`, 0 or 1 (``answer_ids == gold``); an answer is as correct as its members are on average.
        k: Number of samples, or several.

    Returns:
        `[...]` in float64, or `[..., K]` for a sequence of K numbers.

    Raises:
        ValueError: If a k is not in 1..N, shapes differ, or `correct` holds anything but 0 and 1.

    Example:
        >>> from inferscale.functional import majority_at_k
        >>> answers, gold = [4, 4, 4, 7, 9], 4
        >>> majority_at_k(answers, [answer == gold for answer in answers], [1, 3, 5])
        array([0.6, 0.8, 1. ])
    """
    ops = ops_for(answer_ids, correct)
    ids, right = whole_numbers(ops, "answer_ids", answer_ids), labels(ops, correct)
    same_shape(answer_ids=ids, correct=right)
    total, rows = ids.shape[-1], []
    for row_ids, row_right in zip(ids.reshape(-1, total).tolist(), right.reshape(-1, total).tolist(), strict=True):
        groups: dict[int, list[int]] = {}
        for answer, is_right in zip(row_ids, row_right, strict=True):
            if answer >= 0:
                groups.setdefault(answer, []).append(int(is_right))
        # greatest answers first: in one order, equal tallies are found in the cache
        pairs = sorted(((len(members), sum(members)) for members in groups.values()), reverse=True)
        rows.append((tuple(count for count, _ in pairs), tuple(number for _, number in pairs)))

    def estimate(k: int) -> Array:
        values = [majority_expectation(counts, right, total, k) for counts, right in rows]
        return ops.float64(np.asarray(values, dtype=np.float64)).reshape(ids.shape[:-1])

    return for_each_k(ops, k, total, estimate)


def weighted_majority_at_k(
    answer_ids: ArrayLike,
    correct: ArrayLike,
    k: int,
    weights: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    *,
    rng: random.Random | np.random.Generator | None = None,
    max_subsets: int = 20_000,
    num_subsets: int = 100,
) -> tuple[Array, Array]:
    """Expected correctness of a vote with weights, or with ties broken by scores, over k samples; its standard error.

    There is no short formula: all subsets are tried when there are at most `max_subsets`, else `num_subsets` are
    drawn, each without repeats.

    Args:
        answer_ids: `[..., N]` whole numbers; negative ones abstain.
        correct: `[..., N]`, 0 or 1; an answer is as correct as its members are on average.
        k: Number of samples.
        weights: `[..., N]`, 0 or more; 1 each if left out.
        scores: `[..., N]`, finite; break ties, what is still tied shares the credit.
        rng: Draws the subsets; needed when there are more than `max_subsets`.
        max_subsets: The most subsets that are tried one by one.
        num_subsets: Number of subsets to draw otherwise.

    Returns:
        Expectation and standard error, `[...]` each in float64; the error is 0 when all subsets were tried.

    Raises:
        ValueError: If k is not in 1..N, shapes differ, a weight is negative, no subset is asked for, or `rng` is
            missing and needed.

    Example:
        >>> from inferscale.functional import majority_at_k, weighted_majority_at_k
        >>> answers, right = [4, 4, 7, 7], [True, True, False, False]
        >>> scores = [0.9, 0.8, 0.3, 0.2]
        >>> accuracy, error = weighted_majority_at_k(answers, right, 3, weights=scores)
        >>> float(accuracy), float(error), float(majority_at_k(answers, right, 3))
        (1.0, 0.0, 0.5)
    """
    ops = ops_for(answer_ids, correct, weights, scores)
    ids, w, s = vote_arrays(ops, answer_ids, weights, scores)
    right = labels(ops, correct)
    same_shape(answer_ids=ids, correct=right)
    total = ids.shape[-1]
    k = check_k(k, total)
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be 1 or more, got {num_subsets!r}")
    everything = math.comb(total, k) <= max_subsets
    if everything:
        subsets = np.asarray(list(itertools.combinations(range(total), k)))
    elif rng is None:
        raise ValueError(f"{total} samples have {math.comb(total, k)} subsets of {k}: pass rng= to draw {num_subsets}")
    else:
        subsets = np.argsort(draw_uniforms((num_subsets, total), rng), axis=-1)[:, :k]
    picks = ops.int64(subsets)  # [subsets, k]
    value = group_totals(ops, ids, right) / _group_sizes(ops, ids)
    ids, w, s, value = (None if array is None else array[..., picks] for array in (ids, w, s, value))
    # In each subset, [..., subsets, k], the answers that lead share the credit; it is 0 where all abstain.
    per_answer = ops.float64(vote_leaders(ops, ids, w, s)) / _group_sizes(ops, ids)
    leading = per_answer.sum(-1)
    credit = (per_answer * value).sum(-1) / ops.xp.where(leading > 0, leading, ops.float64(1.0))
    mean = credit.mean(-1)
    if everything:
        return mean, ops.xp.zeros_like(mean)
    spread = ((credit - mean[..., None]) ** 2).sum(-1) / max(num_subsets - 1, 1)
    return mean, ops.xp.sqrt(spread / num_subsets)


def _group_sizes(ops: NumpyOps, ids: Array) -> Array:
    """`[..., N]`: number of members with the same id."""
    return ops.float64(group_totals(ops, ids, ops.xp.ones_like(ids)))
