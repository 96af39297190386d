"""What is best at each budget, and the model size that this asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .points import CurvePoint

CostName: TypeAlias = Literal["flops", "generator_flops", "reward_flops", "tokens", "seconds"]


def pareto_frontier(points: Iterable[CurvePoint], cost: CostName = "flops") -> list[CurvePoint]:
    """Points that no other point beats (as accurate and cheaper, or better and no dearer), cheapest first.

    Coverage is no method and is left out. Of equal points the first one counts.

    Args:
        points: Points of any strategies and models on the same problems.
        cost: What counts as cost. ``"generator_flops"`` leaves the reward model out, as the figures of Wu et al.
            do: a search that scores its steps then looks cheaper than it is.
    """
    methods = [p for p in points if p.vote != "coverage"]
    frontier: list[CurvePoint] = []
    for candidate in sorted(methods, key=lambda p: (getattr(p, cost), -p.accuracy)):
        if not frontier or candidate.accuracy > frontier[-1].accuracy:
            frontier.append(candidate)
    return frontier


def compute_optimal(points: Iterable[CurvePoint], budget: float, cost: CostName = "flops") -> CurvePoint | None:
    """The most accurate method whose cost is at most `budget`, the cheapest of equals; ``None`` if all cost more."""
    affordable = [p for p in pareto_frontier(points, cost) if getattr(p, cost) <= budget]
    return affordable[-1] if affordable else None


@dataclass(frozen=True)
class SizeFit:
    """``log10 C = a * log10 N + b``: the compute C from which on a model of N parameters is the best one.

    Wu et al. 2024 (arXiv:2408.00724) give a = 1.19 and b = 2.03 for Pythia on GSM8K.

    Attributes:
        a: Slope.
        b: Intercept.
        points: Number of fitted points.
        sizes: Number of different sizes among them.
    """

    a: float
    b: float
    points: int
    sizes: int

    def compute(self, parameters: ArrayLike) -> NDArray[np.float64]:
        """FLOPs of a problem at which models of these sizes are optimal."""
        return np.asarray(10 ** (self.a * np.log10(np.asarray(parameters, dtype=np.float64)) + self.b))

    def size(self, flops: ArrayLike) -> NDArray[np.float64]:
        """Optimal number of parameters at a budget of FLOPs."""
        return np.asarray(10 ** ((np.log10(np.asarray(flops, dtype=np.float64)) - self.b) / self.a))


def fit_optimal_size(points: Iterable[CurvePoint], cost: CostName = "flops") -> SizeFit:
    """Least squares over the points of the Pareto frontier: log10 of their cost on log10 of their model's size.

    Args:
        points: Points with `parameters`, of models of one family.
        cost: What counts as cost.

    Raises:
        ValueError: If a point does not say its size, or fewer than two sizes reach the frontier.
    """
    frontier = pareto_frontier(points, cost)
    missing = [p.name for p in frontier if p.parameters is None]
    if missing:
        raise ValueError(f"the point {missing[0]!r} does not say its model's size: give parameters=...")
    sizes = np.asarray([float(p.parameters or 0) for p in frontier])
    return fit_size(sizes, [getattr(p, cost) for p in frontier])


def fit_size(parameters: ArrayLike, flops: ArrayLike) -> SizeFit:
    """The line through pairs of model size and the compute at which that size is best.

    Raises:
        ValueError: If there are fewer than two different sizes, or a size or cost is not above 0.
    """
    sizes, compute = np.asarray(parameters, dtype=np.float64), np.asarray(flops, dtype=np.float64)
    if not ((sizes > 0).all() and (compute > 0).all()):
        raise ValueError("a fit needs sizes and costs above 0: what ran on a server has no FLOPs, choose another cost")
    different = len(set(sizes.tolist()))
    if different < 2:
        raise ValueError(f"a fit needs at least two model sizes on the frontier, got {different}: measure more budgets")
    a, b = np.polyfit(np.log10(sizes), np.log10(compute), 1)
    return SizeFit(float(a), float(b), len(sizes), different)


def cost_ratio(
    points: Sequence[CurvePoint],
    better: Callable[[CurvePoint], bool],
    baseline: Callable[[CurvePoint], bool],
    cost: CostName = "flops",
) -> float | None:
    """How many times less `better` needs to be as accurate as `baseline` ever gets; ``None`` if it never is.

    This is the figure of table 1 of Wu et al.: the cheapest point of the one at or above the best of the other.

    Raises:
        ValueError: If the points hold no baseline, or one that reaches it costs nothing.
    """
    known = [p for p in points if baseline(p)]
    if not known:
        raise ValueError("no point belongs to the baseline")
    target = min(known, key=lambda p: (-p.accuracy, getattr(p, cost)))
    reached = [getattr(p, cost) for p in points if better(p) and p.accuracy >= target.accuracy]
    if not reached:
        return None
    if min(reached) <= 0:
        raise ValueError(f"a point has a {cost} of 0: what ran on a server has no FLOPs, choose another cost")
    return float(getattr(target, cost) / min(reached))
