"""Votes over answers given as whole numbers; a negative number abstains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .arrays import NUMPY, Array, Arrays, arrays_of, require, require_items, whole_numbers

_TOO_GREAT = "the weights or scores of one answer sum up to more than float64 holds: rescale them"


def majority_vote(answer_ids: Array, weights: Array | None = None, scores: Array | None = None) -> Array:
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
    """
    ops = arrays_of(answer_ids, weights, scores)
    ids, weights, scores = vote_arrays(ops, answer_ids, weights, scores)
    if ops is NUMPY and ids.ndim == 1:
        lists = [None if values is None else values.tolist() for values in (weights, scores)]
        return np.int64(_vote_row(ids.tolist(), *lists))
    leaders = vote_leaders(ops, ids, weights, scores)
    first = ops.xp.argmax(ops.int64(leaders), -1)  # the first one, in NumPy and in torch
    return ops.xp.where(leaders.any(-1), ops.gather(ids, first[..., None])[..., 0], ops.int64(-1))


def vote_arrays(
    ops: Arrays, answer_ids: Array, weights: Array | None, scores: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """The three arguments of a vote, converted and checked."""
    ids = whole_numbers(ops, "answer_ids", answer_ids)
    require_items("answer_ids", ids)
    given = []
    for name, values in (("weights", weights), ("scores", scores)):
        values = None if values is None else ops.float64(values)
        if values is not None:
            if values.shape != ids.shape:
                raise ValueError(
                    f"{name} must have the shape of answer_ids, {tuple(ids.shape)}; got {tuple(values.shape)}"
                )
            require(ops.xp.isfinite(values), f"{name} must be finite numbers; one is NaN or infinite")
        given.append(values)
    if given[0] is not None:
        require(given[0] >= 0, "weights must be 0 or more: a negative one would vote against its answer; rescale them")
    return ids, given[0], given[1]


def vote_leaders(ops: Arrays, ids: Array, weights: Array | None, scores: Array | None) -> Array:
    """`[..., N]`: whether a member's answer has the greatest total weight, and among those the greatest scores."""
    leaders = ids >= 0
    for values in (ops.xp.ones_like(ids) if weights is None else weights, scores):
        if values is not None:
            sums = ops.float64(group_totals(ops, ids, values))
            require(ops.xp.isfinite(sums) | (ids < 0), _TOO_GREAT)
            totals = ops.xp.where(leaders, sums, ops.float64(-math.inf))
            leaders = leaders & (totals == ops.xp.amax(totals, -1, keepdims=True))
    return leaders


@np.errstate(over="ignore", invalid="ignore")
def group_totals(ops: Arrays, ids: Array, values: Array) -> Array:
    """`[..., N]`: for each member the sum of `values` over the members with its id.

    Sums carry their rounding error along (Knuth's two-sum, so about 106 bits) and are rounded once at the end: as
    `math.fsum`, they do not depend on the order. A sum beyond float64 is no finite number.
    """
    total = error = ops.xp.zeros_like(values)
    for j in range(ids.shape[-1]):
        addend = ops.xp.where(ids == ids[..., j : j + 1], values[..., j : j + 1], ops.xp.zeros_like(values))
        new = total + addend
        part = new - total
        error = error + ((total - (new - part)) + (addend - part))
        total = new
    return total + error


def _vote_row(ids: Sequence[int], weights: Sequence[float] | None, scores: Sequence[float] | None) -> int:
    """`majority_vote` of one row in plain Python."""
    members: dict[int, list[int]] = {}
    for position, answer in enumerate(ids):
        if answer >= 0:
            members.setdefault(answer, []).append(position)

    def total(values: Sequence[float] | None, positions: Sequence[int]) -> float:
        try:
            return len(positions) if values is None else math.fsum(values[i] for i in positions)
        except OverflowError:
            raise ValueError(_TOO_GREAT) from None

    def rank(answer: int) -> tuple[float, float]:
        positions = members[answer]
        return total(weights, positions), 0.0 if scores is None else total(scores, positions)

    return max(members, key=rank, default=-1)  # max keeps the first of equals; a dict keeps first members in order
