"""The majority of k samples, from the N that were drawn: all subsets of k, or a sample of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np

from ._arrays import Array, Arrays, arrays_of, whole_numbers
from ._estimators import check_k, for_each_k, labels, same_shape
from ._majority import majority_expectation
from ._resampling import draw_uniforms
from ._votes import group_totals, vote_arrays, vote_leaders


def majority_at_k(answer_ids: Array, correct: Array, k: int | Sequence[int]) -> Array:
    """Expected correctness of the majority of k samples; answers tied for first share the credit.

    Exact over all subsets of k. It is also the expectation, over random orders, of "the earliest wins". All
    abstaining counts as wrong. The numbers are brought to the CPU, since exact integers have no tensor.

    Args:
        answer_ids: `[..., N]` whole numbers; negative ones abstain.
        correct: `[..., N]`, 0 or 1 (``answer_ids == gold``); an answer is as correct as its members are on average.
        k: Number of samples, or several.

    Returns:
        `[...]` in float64, or `[..., K]` for a sequence of K numbers.

    Raises:
        ValueError: If a k is not in 1..N, shapes differ, or `correct` holds anything but 0 and 1.
    """
    ops = arrays_of(answer_ids, correct)
    ids, correct = whole_numbers(ops, "answer_ids", answer_ids), labels(ops, correct)
    same_shape(answer_ids=ids, correct=correct)
    total = ids.shape[-1]
    rows = [
        _tally(*row) for row in zip(ids.reshape(-1, total).tolist(), correct.reshape(-1, total).tolist(), strict=True)
    ]

    def estimate(k: int) -> Array:
        values = [majority_expectation(counts, right, total, k) for counts, right in rows]
        return ops.float64(np.asarray(values, dtype=np.float64)).reshape(ids.shape[:-1])

    return for_each_k(ops, k, total, estimate)


def weighted_majority_at_k(
    answer_ids: Array,
    correct: Array,
    k: int,
    weights: Array | None = None,
    scores: Array | None = None,
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
    """
    ops = arrays_of(answer_ids, correct, weights, scores)
    ids, weights, scores = vote_arrays(ops, answer_ids, weights, scores)
    correct = labels(ops, correct)
    same_shape(answer_ids=ids, correct=correct)
    total = ids.shape[-1]
    check_k(k, total)
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be 1 or more, got {num_subsets!r}")
    k = int(k)
    everything = math.comb(total, k) <= max_subsets
    if everything:
        subsets = np.asarray(list(itertools.combinations(range(total), k)))
    elif rng is None:
        raise ValueError(f"{total} samples have {math.comb(total, k)} subsets of {k}: pass rng= to draw {num_subsets}")
    else:
        subsets = np.argsort(draw_uniforms((num_subsets, total), rng), axis=-1)[:, :k]
    subsets = ops.int64(subsets)
    value = group_totals(ops, ids, correct) / _group_sizes(ops, ids)
    picked = [None if array is None else array[..., subsets] for array in (ids, weights, scores, value)]
    credit = _shared_credit(ops, *picked)
    mean = credit.mean(-1)
    if everything:
        return mean, ops.xp.zeros_like(mean)
    spread = ((credit - mean[..., None]) ** 2).sum(-1) / max(num_subsets - 1, 1)
    return mean, ops.xp.sqrt(spread / num_subsets)


def _shared_credit(ops: Arrays, ids: Array, weights: Array | None, scores: Array | None, value: Array) -> Array:
    """Mean `value` of the answers that lead the vote; 0 where all abstain."""
    leaders = ops.float64(vote_leaders(ops, ids, weights, scores))
    per_answer = leaders / _group_sizes(ops, ids)
    answers = per_answer.sum(-1)
    return (per_answer * value).sum(-1) / ops.xp.where(answers > 0, answers, ops.float64(1.0))


def _group_sizes(ops: Arrays, ids: Array) -> Array:
    """`[..., N]`: number of members with the same id."""
    return ops.float64(group_totals(ops, ids, ops.xp.ones_like(ids)))


def _tally(ids: Sequence[int], correct: Sequence[float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Members and correct members of each answer, greatest first (one order, so that equal tallies are cached)."""
    groups: dict[int, list[int]] = {}
    for answer, right in zip(ids, correct, strict=True):
        if answer >= 0:
            groups.setdefault(answer, []).append(int(right))
    pairs = sorted(((len(members), sum(members)) for members in groups.values()), reverse=True)
    return tuple(count for count, _ in pairs), tuple(right for _, right in pairs)
