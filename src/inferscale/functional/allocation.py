"""Children for each node: reward-balanced allocation, over directions, over a part of the tree."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from .arrays import NUMPY, Array, ArrayLike, NumpyOps, check_temperature, ops_for, require, require_items, whole_numbers
from .reductions import logsumexp

Rounding: TypeAlias = Literal["exact", "paper", "released"]
"""Ways from shares to whole numbers; only ``"exact"`` spends exactly the budget.

Example:
    >>> from typing import get_args
    >>> from inferscale.functional import Rounding, rebase_allocation
    >>> for rounding in get_args(Rounding):
    ...     children = rebase_allocation([0.9, 0.8, 0.8, 0.8], 16, 0.2, rounding)
    ...     print(f"{rounding:8}", children, children.sum())
    exact    [6 4 3 3] 16
    paper    [6 3 3 3] 15
    released [6 3 4 4] 17
"""

_SLACK = 1e-9  # a share that is whole up to rounding errors, 5.000000000000001, must not be rounded up


def rebase_allocation(
    scores: ArrayLike,
    budget: int | ArrayLike,
    temperature: float,
    rounding: Rounding = "exact",
    mask: ArrayLike | None = None,
    truncate_ratio: float | None = None,
) -> Array:
    """Number of children of each node, so that all together get exactly `budget`.

    Shares are ``softmax(scores / temperature)`` (Wu et al. 2024, arXiv:2408.00724, section 3.1.2). In descending order
    of score each node takes the ceiling of its share of what is left; equal scores keep their order.

    Args:
        scores: `[..., N]`, finite, higher is better.
        budget: Number of children for all nodes of a row, one number or `[...]`.
        temperature: T_b of the paper, in units of the score: rescale it for rewards outside (0, 1). Infinity gives
            equal shares, the surplus to the first.
        rounding: ``"exact"``; or to reproduce: ``"paper"`` rounds each share on its own, half up, ``"released"`` is
            the published code with its running remainders in float32.
        mask: `[..., N]`, true where there is a node; the others get 0 and their scores are not read.
        truncate_ratio: In (0, 1]: only the best ``ceil(truncate_ratio * nodes)`` of a row take part.

    Returns:
        `[..., N]` in int64; 0 means pruned.

    Raises:
        ValueError: If a score is not finite, a row without a node has a budget, the temperature is not above 0, the
            budget is negative or not whole, or ``"released"`` divides by a remainder of 0.

    Differs from the paper:
        The paper's ``Round(B * softmax_i)`` over- or underspends the budget (sums of 15 and 17 for 16 are usual); the
        released code overspends with ties. ``"exact"`` differs from the released code only where that one leaks,
        and in the order of ties.

    Example:
        >>> from inferscale.functional import rebase_allocation
        >>> scores = [0.9, 0.8, 0.3]
        >>> rebase_allocation(scores, 16, temperature=0.1), rebase_allocation(scores, 16, temperature=1.0)
        (array([12,  4,  0]), array([7, 6, 3]))
    """
    if rounding not in get_args(Rounding):
        raise ValueError(f'rounding must be "exact", "paper" or "released", got {rounding!r}')
    temperature = check_temperature(temperature)
    if truncate_ratio is not None and not 0 < truncate_ratio <= 1:
        raise ValueError(f"truncate_ratio must be in (0, 1], got {truncate_ratio!r}")
    ops = ops_for(scores, budget, mask)
    x = ops.float64(scores)
    require_items("scores", x)
    if isinstance(budget, (int, float, np.generic)):
        if not 0 <= budget < math.inf or budget != int(budget):
            raise ValueError(f"budget must be a whole number, 0 or more; got {budget!r}")
        budget = int(budget)
        if ops is NUMPY and x.ndim == 1 and rounding == "exact" and mask is None and truncate_ratio is None:
            return np.asarray(_exact_row(x.tolist(), budget, temperature), dtype=np.int64)
    total = whole_numbers(ops, "budget", budget)
    present = ops.xp.ones_like(x, dtype=ops.xp.bool) if mask is None else ops.boolean(mask)
    require(ops.xp.isfinite(x) | ~present, "scores must be finite numbers; one is NaN or infinite")
    require(total >= 0, "budget must be 0 or more in every row")
    require(present.any(-1) | (total == 0), "a row has a budget and no node: its mask is false everywhere")
    x = ops.xp.where(present, x + 0.0, ops.float64(-math.inf))  # + 0.0: minus zero sorts as zero
    if truncate_ratio is not None:  # the best ceil(ratio * nodes) of each row; earlier ones on ties
        rank = ops.argsort(ops.argsort(x, descending=True))
        kept = rank < ops.xp.ceil(truncate_ratio * ops.float64(present.sum(-1, keepdims=True)) - _SLACK)
        present = present & kept
        x = ops.xp.where(present, x, ops.float64(-math.inf))
    allocate = {"exact": _exact, "paper": _paper, "released": _released}[rounding]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return allocate(ops, x, present, total, temperature)


def _exact_row(scores: list[float], budget: int, temperature: float) -> list[int]:
    """`_exact` of one row in plain Python: the case that every level of a search calls."""
    for score in scores:
        if not math.isfinite(score):
            raise ValueError(f"scores must be finite numbers, got {score!r} at position {scores.index(score)}")
    top = max(scores)
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)  # stable also in reverse
    weights = [math.exp((scores[i] - top) / temperature) for i in order]
    suffix_sums = list(accumulate(reversed(weights)))[::-1]  # the softmax of what is left: no cancellation
    counts, left = [0] * len(scores), budget
    for i, weight, remaining in zip(order, weights, suffix_sums, strict=True):
        if left == 0:
            return counts
        counts[i] = min(left, math.ceil(left * weight / remaining - _SLACK))
        left -= counts[i]
    counts[order[-1]] += left  # what the slack has kept back
    return counts


def _exact(ops: NumpyOps, scores: Array, present: Array, budget: Array, temperature: float) -> Array:
    """Sequential ceil over suffix sums, which has no cancellation: sums to the budget by construction."""
    xp = ops.xp
    order = ops.argsort(scores, descending=True)
    ranked = ops.gather(scores, order)
    top = xp.where(present.any(-1, keepdims=True), ranked[..., :1], ops.float64(0.0))
    weights = xp.exp(xp.where(ranked == -math.inf, ranked, (ranked - top) / temperature))
    suffix_sums = ops.flip(ops.cumsum(ops.flip(weights)))
    shares = weights / xp.where(suffix_sums > 0, suffix_sums, ops.float64(1.0))
    last, left, counts = present.sum(-1) - 1, budget + xp.zeros_like(present.sum(-1)), []
    for i in range(scores.shape[-1]):
        wanted = xp.where(last == i, left, ops.int64(xp.ceil(left * shares[..., i] - _SLACK)))
        counts.append(xp.minimum(left, wanted))
        left = left - counts[-1]
    return ops.gather(xp.stack(counts, -1), ops.argsort(order))


def _paper(ops: NumpyOps, scores: Array, present: Array, budget: Array, temperature: float) -> Array:
    """``Round(B * softmax_i)``, half up."""
    top = ops.xp.amax(scores, -1, keepdims=True)
    weights = ops.xp.where(present, ops.xp.exp((scores - top) / temperature), ops.float64(0.0))
    total = ops.xp.where(present.any(-1), weights.sum(-1), ops.float64(1.0))
    return ops.int64(ops.xp.floor(weights / total[..., None] * budget[..., None] + 0.5))


def _released(ops: NumpyOps, scores: Array, present: Array, budget: Array, temperature: float) -> Array:
    """The published code: float32, no shift, running remainders, ties in reverse order."""
    xp = ops.xp
    order = ops.flip(ops.argsort(scores))
    scaled = ops.float32(ops.gather(scores, order)) / ops.float32(temperature)
    weights = ops.float32(xp.exp(ops.float64(scaled)))  # rounded once: the same on every device
    remaining = ops.float32(weights[..., 0] * 0)
    for i in range(weights.shape[-1]):
        remaining = remaining + weights[..., i]
    last, left, counts, finite = present.sum(-1), budget + xp.zeros_like(present.sum(-1)), [], present.any(-1) | True
    for i in range(weights.shape[-1]):
        quotient = ops.float32(left) * weights[..., i] / remaining
        quotient = xp.where(i < last, quotient, ops.float32(0.0))
        finite = finite & xp.isfinite(quotient)
        counts.append(ops.int64(xp.clip(xp.ceil(quotient), 0, 2**31)))
        left, remaining = left - counts[-1], remaining - weights[..., i]
    require(finite, 'rounding="released" divided by a remainder of 0 (the published code crashes here): use "exact"')
    return ops.gather(xp.stack(counts, -1), ops.argsort(order))


def dora_allocation(
    scores: ArrayLike,
    similarities: ArrayLike,
    budget: int | ArrayLike,
    temperature: float,
    similarity_temperature: float,
) -> Array:
    """Number of children of each node where nodes that are alike share the weight of one; `budget` in all.

    Shares are ``softmax(scores / T_b)_i * gamma_i`` with ``gamma_i = softmax(similarities[i] / T_s)_i``, which is one
    over the number of nodes in its direction where similarities are 0 or 1 and T_s is small (Wang et al. 2025,
    arXiv:2506.15707, equations 10 to 13). Rounded as `rebase_allocation` does.

    Args:
        scores: `[..., N]`, finite, higher is better.
        similarities: `[..., N, N]`, cosines.
        budget: Number of children for all nodes of a row, one number or `[...]`.
        temperature: T_b, in units of the score.
        similarity_temperature: T_s, in units of the cosine; infinity makes it `rebase_allocation`.

    Returns:
        `[..., N]` in int64; 0 means pruned.

    Raises:
        ValueError: If shapes do not fit, a number is not finite, or a temperature is not above 0.

    Example:
        >>> from inferscale.functional import dora_allocation, rebase_allocation
        >>> scores = [0.8, 0.8, 0.8]
        >>> alike = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]  # the first two go in one direction
        >>> rebase_allocation(scores, 12, 0.1), dora_allocation(scores, alike, 12, 0.1, similarity_temperature=0.01)
        (array([4, 4, 4]), array([3, 3, 6]))
    """
    ops = ops_for(scores, similarities, budget)
    x, cosines = ops.float64(scores), ops.float64(similarities)
    if tuple(cosines.shape) != (*x.shape, *x.shape[-1:]):
        raise ValueError(
            f"similarities of {tuple(x.shape)} scores have the shape [..., N, N], a number for every two nodes; "
            f"got {tuple(cosines.shape)}"
        )
    require(ops.xp.isfinite(cosines), "similarities must be finite numbers; one is NaN or infinite")
    scaled = cosines / check_temperature(similarity_temperature)
    own = ops.xp.stack([scaled[..., i, i] for i in range(x.shape[-1])], -1) if x.shape[-1] else x
    log_uniqueness = own - logsumexp(scaled)  # log gamma, equation 11
    return rebase_allocation(x / check_temperature(temperature) + log_uniqueness, budget, 1.0)


def ets_selection(
    weights: ArrayLike, needed: ArrayLike, clusters: ArrayLike, cost_weight: float, coverage_weight: float
) -> NDArray[np.bool_]:
    """The leaves of a tree that are worth their inner nodes; at least one.

    They maximise ``sum of weights - cost_weight * share of the tree's nodes + coverage_weight * share of the clusters``
    (Hooper et al. 2025, arXiv:2502.13575), as an integer linear programme.

    Args:
        weights: `[N]`, what each leaf is worth.
        needed: `[N, M]`, true where leaf i lies below inner node j.
        clusters: `[N]`, whole numbers that say which leaves are alike.
        cost_weight: Price of keeping all N + M nodes.
        coverage_weight: What it is worth to keep a leaf of each cluster.

    Returns:
        `[N]`, true for the leaves that are kept. NumPy only, one tree at a time.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.
        RuntimeError: If the programme is not solved.

    Example:
        >>> from inferscale.functional import ets_selection
        >>> weights = [0.5, 0.3, 0.2]
        >>> below = [[1, 0], [1, 0], [0, 1]]  # two leaves share an inner node; the third is dearer
        >>> ets_selection(weights, below, clusters=[0, 0, 0], cost_weight=1.0, coverage_weight=0.0)
        array([ True,  True, False])
        >>> ets_selection(weights, below, clusters=[0, 0, 1], cost_weight=1.0, coverage_weight=1.0)
        array([ True,  True,  True])
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    worth, below, kinds = np.asarray(weights, dtype=float), np.asarray(needed, dtype=bool), np.asarray(clusters)
    n = len(worth)
    if n == 0 or worth.shape != kinds.shape or below.shape[:1] != (n,) or below.ndim != 2:
        raise ValueError(
            f"weights and clusters have the shape [N] and needed [N, M]; got {worth.shape}, {kinds.shape} and "
            f"{below.shape}"
        )
    require(np.isfinite([*worth, cost_weight, coverage_weight]), "weights must be finite numbers")
    m, covers = below.shape[1], kinds[:, None] == np.unique(kinds)  # [N, K]
    k = covers.shape[1]
    # Variables, all in [0, 1]: x_i, leaf i is kept; y_j, inner node j is; c_k, cluster k is covered. Only x must be
    # said to be whole: at an optimum y_j is the greatest x below it, and c_k is 1 as soon as one x of its own is.
    price = cost_weight / (n + m)
    gain = np.concatenate([worth - price, np.full(m, -price), np.full(k, coverage_weight / k)])
    leaf, inner = np.nonzero(below)
    links = np.zeros((len(leaf), n + m + k))  # y_j - x_i >= 0
    links[np.arange(len(leaf)), n + inner], links[np.arange(len(leaf)), leaf] = 1, -1
    covered = np.concatenate([covers.T, np.zeros((k, m)), -np.eye(k)], axis=1)  # sum of x in k - c_k >= 0
    some = np.concatenate([np.ones(n), np.zeros(m + k)])[None]  # sum of x >= 1
    lower = np.concatenate([np.zeros(len(links) + k), [1.0]])
    found = milp(
        -gain,
        integrality=np.concatenate([np.ones(n), np.zeros(m + k)]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.concatenate([links, covered, some]), lb=lower),
    )
    if found.x is None:
        raise RuntimeError(f"the programme over {n} leaves was not solved: {found.message}")
    kept: NDArray[np.bool_] = found.x[:n] > 0.5
    return kept
