"""Votes over answers given as whole numbers; a negative number abstains."""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array, ArrayLike, NumpyOps, ops_for, require, require_items, whole_numbers


def majority_vote(answer_ids: ArrayLike, weights: ArrayLike | None = None, scores: ArrayLike | None = None) -> Array:
    """The answer with the greatest total weight in each row; -1 where all abstain.

    Equal totals go to the greater sum of `scores`, then to the answer whose first member comes earliest. Sums do not
    depend on the order of the members, so a tie is one in any order.

    Args:
        answer_ids: `[..., N]` whole numbers; negative ones abstain and never win.
        weights: `[..., N]`, 0 or more; 1 each if left out.
        scores: `[..., N]`, finite, read only to break ties.

    Returns:
        `[...]` in int64.

    Raises:
        ValueError: If a row is empty, ids are not whole, shapes differ, a weight is negative or a number is not finite.

    Example:
        >>> from inferscale.functional import majority_vote
        >>> int(majority_vote([7, 4, 4, -1]))  # -1 abstains
        4
        >>> int(majority_vote([7, 4, 4, -1], weights=[0.9, 0.3, 0.2, 0.9]))
        7
    """
    ops = ops_for(answer_ids, weights, scores)
    ids, w, s = vote_arrays(ops, answer_ids, weights, scores)
    leaders = vote_leaders(ops, ids, w, s)
    first = ops.xp.argmax(ops.int64(leaders), -1)  # the first one, in NumPy and in torch
    return ops.xp.where(leaders.any(-1), ops.gather(ids, first[..., None])[..., 0], ops.int64(-1))


def vote_arrays(
    ops: NumpyOps, answer_ids: ArrayLike, weights: ArrayLike | None, scores: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """The three arguments of a vote, converted and checked; ``None`` stays ``None``."""
    ids = whole_numbers(ops, "answer_ids", answer_ids)
    require_items("answer_ids", ids)
    given: dict[str, Array] = {"weights": weights, "scores": scores}
    for name, values in given.items():
        if values is None:
            continue
        values = given[name] = ops.float64(values)
        if values.shape != ids.shape:
            raise ValueError(f"{name} must have the shape of answer_ids, {tuple(ids.shape)}; got {tuple(values.shape)}")
        require(ops.xp.isfinite(values), f"{name} must be finite numbers; one is NaN or infinite")
    if given["weights"] is not None:
        negative = "weights must be 0 or more: a negative one would vote against its answer; rescale them"
        require(given["weights"] >= 0, negative)
    return ids, given["weights"], given["scores"]


def vote_leaders(ops: NumpyOps, ids: Array, weights: Array, scores: Array) -> Array:
    """`[..., N]`: true where a member's answer has the greatest total weight, and among those the greatest scores."""
    leaders = ids >= 0
    for values in (ops.xp.ones_like(ids) if weights is None else weights, scores):
        if values is not None:
            sums = ops.float64(group_totals(ops, ids, values))
            too_great = "the weights or scores of one answer sum up to more than float64 holds: rescale them"
            require(ops.xp.isfinite(sums) | (ids < 0), too_great)
            totals = ops.xp.where(leaders, sums, ops.float64(-math.inf))
            leaders = leaders & (totals == ops.xp.amax(totals, -1, keepdims=True))
    return leaders


@np.errstate(over="ignore", invalid="ignore")
def group_totals(ops: NumpyOps, ids: Array, values: Array) -> Array:
    """`[..., N]`: for each member the sum of `values` over the members with its id.

    Sums carry their rounding error along (Knuth's two-sum, so about 106 bits) and are rounded once at the end: as
    `math.fsum`, they do not depend on the order. A sum beyond float64 is no finite number.
    """
    total = error = ops.xp.zeros_like(values)
    for j in range(ids.shape[-1]):
        addend = ops.xp.where(ids == ids[..., j : j + 1], values[..., j : j + 1], ops.xp.zeros_like(values))
        new = total + addend
        part = new - total  # two-sum: total + addend = new + (what rounding lost), exactly
        error = error + ((total - (new - part)) + (addend - part))
        total = new
    return total + error
