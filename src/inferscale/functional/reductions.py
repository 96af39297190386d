"""From many numbers to one: sums of exponentials, weights from scores, one score from step scores."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np

from .arrays import Array, Arrays, arrays_of, check_temperature, require, require_items

Reduction: TypeAlias = Literal["last", "min", "prod", "mean"]
"""How step scores become one score: the last one, the least, the product or the mean."""


def logsumexp(values: Array) -> Array:
    """``log(sum(exp(values)))`` over the last axis, without overflow.

    Args:
        values: `[..., N]`; minus infinity stands for weight 0.

    Returns:
        `[...]` in float64; minus infinity where all of a row is.
    """
    ops = arrays_of(values)
    values = ops.float64(values)
    require_items("values", values)
    top = ops.xp.amax(values, -1, keepdims=True)
    top = ops.xp.where(ops.xp.isfinite(top), top, ops.xp.zeros_like(top))
    with np.errstate(divide="ignore", over="ignore"):
        return (ops.xp.log(ops.xp.exp(values - top).sum(-1, keepdims=True)) + top)[..., 0]


@np.errstate(over="ignore", invalid="ignore")
def softmax(scores: Array, temperature: float = 1.0, mask: Array | None = None) -> Array:
    """Weights ``exp(scores / temperature)``, normalised over the last axis.

    Shifted by the greatest score, so any finite scores and temperatures work.

    Args:
        scores: `[..., N]`; minus infinity stands for weight 0.
        temperature: In units of the score; infinity gives equal weights.
        mask: `[..., N]`, true where an entry takes part; the others get weight 0.

    Returns:
        `[..., N]` in float64; each row sums to 1.

    Raises:
        ValueError: If the temperature is not above 0, or a row has NaN, plus infinity or nothing above minus
            infinity.
    """
    ops = arrays_of(scores, mask)
    temperature, scores = check_temperature(temperature), ops.float64(scores)
    require_items("scores", scores)
    if mask is not None:
        scores = ops.xp.where(ops.boolean(mask), scores, ops.float64(-math.inf))
    top = ops.xp.amax(scores, -1, keepdims=True)
    require(ops.xp.isfinite(top), "softmax needs scores without NaN and at least one finite score in each row")
    # at infinite temperature the quotient of an infinite difference is NaN
    shifted = ops.xp.zeros_like(scores) if math.isinf(temperature) else (scores - top) / temperature
    shifted = ops.xp.where(scores == -math.inf, scores, shifted)
    weights = ops.xp.exp(shifted)
    return weights / weights.sum(-1, keepdims=True)


def reduce_steps(
    step_scores: Array, reduction: Reduction, mask: Array | None = None, *, check_range: bool = True
) -> Array:
    """One score from the scores of a solution's steps, over the last axis.

    ``"last"`` is what Snell et al. (arXiv:2408.03314) and REBASE (arXiv:2408.00724) report, ``"prod"`` is Lightman
    et al. (arXiv:2305.20050), ``"min"`` is Math-Shepherd (arXiv:2312.08935).

    Args:
        step_scores: `[..., S]`, one score for each step, in order.
        reduction: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
        mask: `[..., S]`, true where there is a step; for rows of unequal length.
        check_range: Whether ``"min"`` and ``"prod"`` refuse scores outside [0, 1], for which one more step can raise
            a product and lengths do not compare.

    Returns:
        `[...]` in float64.

    Raises:
        ValueError: If the reduction is unknown, a row has no step, a score is not finite, or (with `check_range`) it
            is outside [0, 1] for ``"min"`` and ``"prod"``.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f'reduction must be "last", "min", "prod" or "mean", got {reduction!r}')
    ops = arrays_of(step_scores, mask)
    scores = ops.float64(step_scores)
    require_items("step_scores", scores)
    present = ops.xp.ones_like(scores, dtype=ops.xp.bool) if mask is None else ops.boolean(mask)
    require(present.any(-1), "a row of step_scores has no step: its mask is false everywhere")
    require(ops.xp.isfinite(scores) | ~present, "step scores must be finite numbers; one is NaN or infinite")
    if check_range and reduction in ("min", "prod"):
        require(
            ((scores >= 0) & (scores <= 1)) | ~present,
            f'reduction "{reduction}" needs step scores in [0, 1]: rescale them, use "last" or "mean", '
            "or pass check_range=False",
        )
    return _reduce(ops, scores, present, reduction)


def _reduce(ops: Arrays, scores: Array, present: Array, reduction: Reduction) -> Array:
    xp = ops.xp
    if reduction == "last":
        last = xp.amax(xp.where(present, ops.arange(scores.shape[-1]), ops.int64(-1)), -1, keepdims=True)
        return ops.gather(scores, last)[..., 0]
    if reduction == "min":
        return xp.amin(xp.where(present, scores, ops.float64(math.inf)), -1)
    if reduction == "prod":
        return xp.where(present, scores, ops.float64(1.0)).prod(-1)
    return xp.where(present, scores, ops.float64(0.0)).sum(-1) / present.sum(-1)
