"""From many numbers to one: sums of exponentials, weights from scores, one score from step scores."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np

from .arrays import Array, ArrayLike, check_temperature, ops_for, require, require_items

Reduction: TypeAlias = Literal["last", "min", "prod", "mean"]
"""Ways from step scores to one score: the last one, the least, the product or the mean.

Example:
    >>> from typing import get_args
    >>> from inferscale.functional import Reduction, reduce_steps
    >>> {way: round(float(reduce_steps([0.9, 0.5, 0.8], way)), 3) for way in get_args(Reduction)}
    {'last': 0.8, 'min': 0.5, 'prod': 0.36, 'mean': 0.733}
"""


def logsumexp(values: ArrayLike) -> Array:
    """``log(sum(exp(values)))`` over the last axis, without overflow.

    Args:
        values: `[..., N]`; minus infinity stands for weight 0.

    Returns:
        `[...]` in float64; minus infinity where all of a row is.

    Example:
        >>> from inferscale.functional import logsumexp
        >>> float(logsumexp([-1000.0, -1000.0]))  # log(2 exp(-1000)), where exp(-1000) is 0 in float64
        -999.3068528194401
    """
    ops = ops_for(values)
    x = ops.float64(values)
    require_items("values", x)
    top = ops.xp.amax(x, -1, keepdims=True)
    top = ops.xp.where(ops.xp.isfinite(top), top, ops.xp.zeros_like(top))  # -inf - -inf would be NaN
    with np.errstate(divide="ignore", over="ignore"):
        return (ops.xp.log(ops.xp.exp(x - top).sum(-1, keepdims=True)) + top)[..., 0]


@np.errstate(over="ignore", invalid="ignore")
def softmax(scores: ArrayLike, temperature: float = 1.0, mask: ArrayLike | None = None) -> Array:
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

    Example:
        >>> from inferscale.functional import softmax
        >>> softmax([0.9, 0.8, 0.3], temperature=0.1).round(3)
        array([0.73 , 0.268, 0.002])
        >>> softmax([[0.9, 0.8, 0.3]], mask=[[True, True, False]]).round(3)
        array([[0.525, 0.475, 0.   ]])
    """
    ops = ops_for(scores, mask)
    temperature, x = check_temperature(temperature), ops.float64(scores)
    require_items("scores", x)
    if mask is not None:
        x = ops.xp.where(ops.boolean(mask), x, ops.float64(-math.inf))
    top = ops.xp.amax(x, -1, keepdims=True)
    require(ops.xp.isfinite(top), "softmax needs scores without NaN and at least one finite score in each row")
    # at infinite temperature the quotient of an infinite difference is NaN
    shifted = ops.xp.zeros_like(x) if math.isinf(temperature) else (x - top) / temperature
    weights = ops.xp.exp(ops.xp.where(x == -math.inf, x, shifted))
    return weights / weights.sum(-1, keepdims=True)


def reduce_steps(
    step_scores: ArrayLike, reduction: Reduction, mask: ArrayLike | None = None, *, check_range: bool = True
) -> Array:
    """One score from the scores of a solution's steps, over the last axis.

    ``"last"`` is what Snell et al. (arXiv:2408.03314) and REBASE (arXiv:2408.00724) report, ``"prod"`` is Lightman
    et al. (arXiv:2305.20050), ``"min"`` is Math-Shepherd (arXiv:2312.08935).

    Args:
        step_scores: `[..., S]`, one score for each step, in order.
        reduction: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
        mask: `[..., S]`, true where there is a step; for rows of unequal length.
        check_range: True if ``"min"`` and ``"prod"`` refuse scores outside [0, 1], for which one more step can raise
            a product and lengths do not compare.

    Returns:
        `[...]` in float64.

    Raises:
        ValueError: If the reduction is unknown, a row has no step, a score is not finite, or (with `check_range`) it
            is outside [0, 1] for ``"min"`` and ``"prod"``.

    Example:
        >>> from inferscale.functional import reduce_steps
        >>> steps = [[0.9, 0.2, 0.8], [0.7, 0.6, 0.0]]  # the second solution has two steps
        >>> reduce_steps(steps, "min", mask=[[1, 1, 1], [1, 1, 0]])
        array([0.2, 0.6])
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f'reduction must be "last", "min", "prod" or "mean", got {reduction!r}')
    ops = ops_for(step_scores, mask)
    xp, scores = ops.xp, ops.float64(step_scores)
    require_items("step_scores", scores)
    present = xp.ones_like(scores, dtype=xp.bool) if mask is None else ops.boolean(mask)
    require(present.any(-1), "a row of step_scores has no step: its mask is false everywhere")
    require(xp.isfinite(scores) | ~present, "step scores must be finite numbers; one is NaN or infinite")
    if check_range and reduction in ("min", "prod"):
        require(
            ((scores >= 0) & (scores <= 1)) | ~present,
            f'reduction "{reduction}" needs step scores in [0, 1]: rescale them, use "last" or "mean", '
            "or pass check_range=False",
        )
    if reduction == "last":
        last = xp.amax(xp.where(present, ops.arange(scores.shape[-1]), ops.int64(-1)), -1, keepdims=True)
        return ops.gather(scores, last)[..., 0]
    if reduction == "min":
        return xp.amin(xp.where(present, scores, ops.float64(math.inf)), -1)
    if reduction == "prod":
        return xp.where(present, scores, ops.float64(1.0)).prod(-1)
    return xp.where(present, scores, ops.float64(0.0)).sum(-1) / present.sum(-1)
