"""Particles by weight: how many are worth having, and drawing which ones go on."""

from __future__ import annotations

import math
import random
from typing import Literal, TypeAlias, get_args

import numpy as np

from .arrays import Array, ArrayLike, NumpyOps, ops_for, require, require_items

Resampling: TypeAlias = Literal["multinomial", "stratified", "systematic", "residual"]
"""Schemes of drawing ancestors; in all four the expected count of particle i is ``n * w_i``.

Example:
    >>> import random
    >>> from typing import get_args
    >>> import numpy as np
    >>> from inferscale.functional import Resampling, resample
    >>> for scheme in get_args(Resampling):  # ten ancestors: 5, 3 and 2 are expected
    ...     ancestors = resample([0.5, 0.3, 0.2], 10, scheme, random.Random(1))
    ...     print(f"{scheme:11}", np.bincount(ancestors, minlength=3))
    multinomial [6 3 1]
    stratified  [5 3 2]
    systematic  [5 3 2]
    residual    [5 3 2]
"""

_SLACK = 1e-9  # a share that is whole up to rounding errors, 2.9999999999999996, counts as whole


def effective_sample_size(weights: ArrayLike, *, log: bool = False) -> Array:
    """``(sum w)**2 / sum(w**2)`` over the last axis: between 1 and N.

    Args:
        weights: `[..., N]`, 0 or more, not necessarily normalised.
        log: True if `weights` are logarithms; minus infinity is then weight 0.

    Returns:
        `[...]` in float64.

    Raises:
        ValueError: If a weight is negative, NaN or plus infinity, or all of a row are 0.

    Example:
        >>> from inferscale.functional import effective_sample_size
        >>> [float(effective_sample_size(weights)) for weights in ([1, 1, 1, 1], [2, 1, 1, 0], [1, 0, 0, 0])]
        [4.0, 2.6666666666666665, 1.0]
        >>> float(effective_sample_size([-1000.0, -1000.0], log=True))
        2.0
    """
    ops = ops_for(weights)
    w = ops.float64(weights)
    require_items("weights", w)
    top = ops.xp.amax(w, -1, keepdims=True)
    require(ops.xp.isfinite(top), "weights must be finite numbers, and not all of a row may be 0")
    if not log:
        _check_weights(ops, w)
    scaled = ops.xp.exp(w - top) if log else w / top  # the ratio does not depend on the scale
    return scaled.sum(-1) ** 2 / (scaled**2).sum(-1)


def resample(
    weights: ArrayLike,
    n: int,
    scheme: Resampling = "systematic",
    rng: random.Random | np.random.Generator | None = None,
    *,
    uniforms: ArrayLike | None = None,
) -> Array:
    """Ancestors drawn in proportion to `weights`: positions on the last axis, repeats allowed.

    With normalised weights w and uniform numbers u, ancestors are where the running sum of w first exceeds
    ``u_j`` (multinomial), ``(u_j + j) / n`` (stratified) or ``(u + j) / n`` (systematic). Residual resampling gives
    each particle ``floor(n * w_i)`` places and draws the others from what is left over. Douc, Cappé and Moulines
    2005 (arXiv:cs/0507025) compare them.

    Args:
        weights: `[..., N]`, 0 or more, not necessarily normalised.
        n: Number of ancestors of each row.
        scheme: ``"multinomial"``, ``"stratified"``, ``"systematic"`` or ``"residual"``. Systematic counts are
            ``floor(n * w_i)`` or one more.
        rng: Source of the uniform numbers.
        uniforms: Instead of `rng`: numbers in [0, 1), `[..., 1]` for ``"systematic"``, else `[..., n]`.

    Returns:
        `[..., n]` in int64.

    Raises:
        ValueError: If a weight is negative or not finite, all of a row are 0, or not exactly one of `rng` and
            `uniforms` is given.

    Example:
        >>> import random
        >>> from inferscale.functional import resample
        >>> resample([0.7, 0.1, 0.2], 10, rng=random.Random(0))  # ten particles out of three
        array([0, 0, 0, 0, 0, 0, 0, 1, 2, 2])
        >>> resample([0.7, 0.1, 0.2], 10, "stratified", uniforms=[0.5] * 10)
        array([0, 0, 0, 0, 0, 0, 0, 1, 2, 2])
    """
    if scheme not in get_args(Resampling):
        raise ValueError(f'scheme must be "multinomial", "stratified", "systematic" or "residual", got {scheme!r}')
    if not 1 <= n < math.inf or n != int(n):
        raise ValueError(f"n must be a whole number, 1 or more; got {n!r}")
    if (rng is None) == (uniforms is None):
        raise ValueError("resample needs its randomness: give either rng=random.Random(seed) or uniforms=...")
    n, ops = int(n), ops_for(weights, uniforms)
    w = ops.float64(weights)
    require_items("weights", w)
    _check_weights(ops, w)
    shape = (*w.shape[:-1], 1 if scheme == "systematic" else n)
    u = ops.float64(uniforms if rng is None else draw_uniforms(shape, rng))
    if tuple(u.shape) != shape:
        raise ValueError(f"uniforms must have the shape {shape}, got {tuple(u.shape)}")
    if rng is None:
        require((u >= 0) & (u < 1), "uniforms must be in [0, 1)")
    if scheme == "multinomial":
        return _invert(ops, w, u)
    if scheme != "residual":
        return _invert(ops, w, (u + ops.arange(n)) / n)  # one u for all strata, or one in each
    w = w / ops.xp.amax(w, -1, keepdims=True)  # their sum may be beyond float64
    expected = w / w.sum(-1, keepdims=True) * n
    whole = ops.xp.floor(expected + _SLACK)  # places that are certain
    places = ops.cumsum(whole)
    rest = ops.xp.clip(expected - whole, 0.0, None)
    rest = ops.xp.where(rest.sum(-1, keepdims=True) > 0, rest, w)  # nothing is left over, so none is drawn
    position = ops.float64(ops.arange(n)) + ops.xp.zeros_like(u)
    certain = ops.searchsorted(places, position, side="right")
    return ops.xp.where(position < places[..., -1:], certain, _invert(ops, rest, u))


def draw_uniforms(shape: tuple[int, ...], rng: random.Random | np.random.Generator) -> Array:
    """Uniform numbers in [0, 1) as a NumPy array, row by row from `rng`."""
    size = math.prod(shape)
    drawn = rng.random(size) if isinstance(rng, np.random.Generator) else [rng.random() for _ in range(size)]
    return np.asarray(drawn, dtype=np.float64).reshape(shape)


def _check_weights(ops: NumpyOps, weights: Array) -> None:
    require(ops.xp.isfinite(weights) & (weights >= 0), "weights must be finite numbers, 0 or more")
    require(ops.xp.amax(weights, -1) > 0, "all weights of a row are 0: nothing can be drawn")


def _invert(ops: NumpyOps, weights: Array, u: Array) -> Array:
    """For each u the position where the running sum of the normalised weights first exceeds it."""
    running = ops.cumsum(weights / ops.xp.amax(weights, -1, keepdims=True))
    total = running[..., -1:]
    last = ops.searchsorted(running, total, side="left")  # of positive weight; u * total may round up to total
    return ops.xp.minimum(ops.searchsorted(running, u * total, side="right"), last)
