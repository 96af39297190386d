"""Curves of accuracy against compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from inferscale._optional import require
from inferscale.scaling import CostName, CoverageFit, CurvePoint, SizeFit, pareto_frontier

from ._axes import COLOURS, Axes, in_legend, new_axes

Quantity: TypeAlias = Literal["accuracy", "error"]

_MARKERS = "osD^vP*Xh<>"
_LABELS = {
    "flops": "FLOPs per problem, policy and reward model",
    "generator_flops": "FLOPs per problem, policy alone",
    "reward_flops": "FLOPs per problem, reward model alone",
    "tokens": "sampled tokens per problem",
    "seconds": "seconds per problem",
    "accuracy": "accuracy",
    "error": "error rate",
}


def to_frame(points: Iterable[CurvePoint]) -> Any:
    """Points as a pandas data frame, one row each."""
    return require("pandas", "plot").DataFrame([p.row() for p in points])


def plot_scaling(
    points: Sequence[CurvePoint],
    x: CostName = "flops",
    y: Quantity = "accuracy",
    ax: Axes = None,
    label: Literal["name", "method", "strategy", "model", "vote"] = "name",
) -> Axes:
    """Accuracy or error rate against cost, a line for each model, strategy and vote, bars of one standard error.

    Args:
        points: What to draw.
        x: The cost, on a logarithmic axis unless it is 0 everywhere (FLOPs of models on a server).
        y: ``"error"`` has a logarithmic axis too, as in Wu et al. 2024 (arXiv:2408.00724).
        ax: Where to draw.
        label: What the legend says.
    """
    ax = new_axes(ax)
    for index, line in enumerate(_lines(points, x).values(), start=len(ax.containers)):
        ax.errorbar(
            [getattr(p, x) for p in line],
            [getattr(p, y) for p in line],
            yerr=[0.0 if p.standard_error != p.standard_error else p.standard_error for p in line],
            color=COLOURS[index % len(COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
            linewidth=1.2,
            capsize=2,
            linestyle="--" if line[0].vote == "coverage" else "-",
            label=in_legend(getattr(line[0], label)),
        )
    _scale_costs(ax, points, x)
    if y == "error" and all(p.error > 0 for p in points):
        ax.set_yscale("log")
    return _finished(ax, x, y)


def plot_frontier(
    points: Sequence[CurvePoint], x: CostName = "flops", y: Quantity = "accuracy", ax: Axes = None
) -> Axes:
    """The Pareto frontier as steps: the best that each budget can buy."""
    ax = new_axes(ax)
    frontier = pareto_frontier(points, x)
    costs, heights = [getattr(p, x) for p in frontier], [getattr(p, y) for p in frontier]
    ax.step(costs, heights, where="post", color="black", linewidth=1, linestyle=":", label="best at each budget")
    _scale_costs(ax, points, x)
    return _finished(ax, x, y)


def plot_optimal_size(points: Sequence[CurvePoint], fit: SizeFit, x: CostName = "flops", ax: Axes = None) -> Axes:
    """Sizes of the models on the Pareto frontier against the compute, with the fitted line."""
    ax = new_axes(ax)
    frontier = pareto_frontier(points, x)
    costs = [getattr(p, x) for p in frontier]
    ax.scatter(costs, [p.parameters for p in frontier], s=20, label="optimal model")
    text = f"log$_{{10}}$ C = {fit.a:.2f} log$_{{10}}$ N {fit.b:+.2f}"
    ax.plot(costs, fit.size(costs), color="black", linewidth=1, linestyle="--", label=text)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylabel("parameters of the optimal model")
    return _finished(ax, x, None)


def plot_coverage(points: Sequence[CurvePoint], fit: CoverageFit | None = None, ax: Axes = None) -> Axes:
    """Accuracy against the number of samples, coverage included, with a fitted power law of the coverage."""
    ax = new_axes(ax)
    for index, (name, line) in enumerate(_lines(points, "n").items()):
        marker, colour = _MARKERS[index % len(_MARKERS)], COLOURS[index % len(COLOURS)]
        ax.plot([p.n for p in line], [p.accuracy for p in line], marker=marker, color=colour, label=in_legend(name))
    if fit is not None:
        sizes = sorted({p.n for p in points})
        ax.plot(sizes, fit(sizes), "k--", linewidth=1, label=f"exp({fit.a:.2f} k$^{{{fit.b:.2f}}}$)")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("samples")
    return _finished(ax, None, "accuracy")


def plot_votes(
    points: Sequence[CurvePoint], x: CostName = "flops", y: Quantity = "accuracy", columns: int | None = None
) -> Any:
    """A figure with one panel for each vote; strategies and models are its lines.

    Raises:
        ValueError: If there are no points.
    """
    if not points:
        raise ValueError("there are no points to plot")
    votes = list(dict.fromkeys(p.vote for p in points))
    columns = columns or len(votes)
    rows = -(-len(votes) // columns)
    figure = require("matplotlib.figure", "plot").Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    for panel, vote in zip(figure.subplots(rows, columns, squeeze=False).flat, votes, strict=False):
        of_vote = [p for p in points if p.vote == vote]
        plot_scaling(of_vote, x, y, ax=panel, label="method")
        panel.set_title(vote)
    return figure


def _scale_costs(ax: Axes, points: Iterable[CurvePoint], x: CostName) -> None:
    if any(getattr(p, x) > 0 for p in points):
        ax.set_xscale("log", base=2 if x == "tokens" else 10)


def _lines(points: Iterable[CurvePoint], x: str) -> dict[str, list[CurvePoint]]:
    lines: dict[str, list[CurvePoint]] = {}
    for p in points:
        lines.setdefault(p.name, []).append(p)
    return {name: sorted(line, key=lambda p: float(getattr(p, x))) for name, line in lines.items()}


def _finished(ax: Axes, x: str | None, y: str | None) -> Axes:
    if x is not None:
        ax.set_xlabel(_LABELS[x])
    if y is not None:
        ax.set_ylabel(_LABELS[y])
    ax.grid(visible=True, which="both", linewidth=0.3)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="x-small")
    return ax
