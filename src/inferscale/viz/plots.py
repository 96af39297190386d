"""Curves of accuracy against compute, and pictures of one search (extra ``plot``).

Every function draws into the axes that it is given, or into those of a new figure, and returns the axes;
``axes.figure.savefig("curve.png")`` writes them. pyplot is not touched: no window opens and no global state changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from inferscale._compat import require
from inferscale.engine.result import SearchResult
from inferscale.scaling import CostName, CoverageFit, CurvePoint, Plan, SizeFit, pareto_frontier
from inferscale.viz import MOST_ANSWERED, MOST_VOTES, RAMP, Mark, Scale, one_line, readable_marks, tidy_rows, votes_of

Axes: TypeAlias = Any
"""``matplotlib.axes.Axes``."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of lines, told apart with any colour vision and on white: Okabe and Ito's, without their yellow."""


def in_legend(name: str) -> str:
    """A name as it is: matplotlib reads what stands between dollars as a formula, and hides what begins with ``_``."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def new_axes(ax: Axes, size: tuple[float, float] = (5.5, 4)) -> Axes:
    """`ax`, or the axes of a new figure of `size` (inches)."""
    if ax is not None:
        return ax
    return require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained").subplots()


Quantity: TypeAlias = Literal["accuracy", "error"]

_MARKERS = "osD^vP*Xh<>"
_NAME = "name of a line"
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
    """Points as a pandas data frame, a row for each point and a column for each of its figures.

    Raises:
        ImportError: If pandas is not installed (extra ``plot``).

    Example:
        >>> from inferscale.scaling import CurvePoint
        >>> from inferscale.viz import to_frame
        >>> points = [
        ...     CurvePoint("RepeatedSampling", "majority", n, accuracy, 0.02, 500, 100.0 * n, 1e8 * n, 0.0, 0.1)
        ...     for n, accuracy in [(4, 0.5), (16, 0.6)]
        ... ]
        >>> print(to_frame(points)[["strategy", "n", "accuracy", "tokens"]])
                   strategy   n  accuracy  tokens
        0  RepeatedSampling   4       0.5   400.0
        1  RepeatedSampling  16       0.6  1600.0
    """
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
        ax: Where to draw; new axes by default.
        label: What the legend says.

    Raises:
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale.scaling import CurvePoint
        >>> from inferscale.viz import plot_scaling
        >>> measured = [("RepeatedSampling", 4, 0.5), ("RepeatedSampling", 16, 0.6), ("DVTS", 4, 0.6)]
        >>> points = [
        ...     CurvePoint(strategy, "majority", n, accuracy, 0.02, 500, 100.0 * n, 1e8 * n, 0.0, 0.1)
        ...     for strategy, n, accuracy in measured
        ... ]
        >>> axes = plot_scaling(points, x="tokens", y="error")
        >>> axes.get_legend_handles_labels()[1]
        ['RepeatedSampling, majority', 'DVTS, majority']
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


def label_lines(where: Axes, size: float = 8) -> None:
    """Writes the name of each line at its right end in the line's colour, in place of a legend.

    Names that would stand on one another are moved apart, in the order of their ends. Call it when limits and scales
    are final; a second call names anew. With more than six lines a reader is lost: draw another panel.

    Args:
        where: Axes, or a figure: all of its axes, with room for the names where its layout makes room ("constrained").
        size: Of the names, in points.

    Example:
        >>> from inferscale.scaling import CurvePoint
        >>> from inferscale.viz import label_lines, plot_scaling
        >>> measured = [("RepeatedSampling", 4, 0.5), ("RepeatedSampling", 16, 0.6), ("DVTS", 4, 0.6)]
        >>> points = [
        ...     CurvePoint(strategy, "majority", n, accuracy, 0.02, 500, 100.0 * n, 1e8 * n, 0.0, 0.1)
        ...     for strategy, n, accuracy in measured
        ... ]
        >>> axes = plot_scaling(points, label="strategy")
        >>> label_lines(axes)
        >>> axes.get_legend(), [text.get_text() for text in axes.texts]
        (None, ['RepeatedSampling', 'DVTS'])
    """
    figure, panels = (where.figure, [where]) if hasattr(where, "plot") else (where, where.axes)
    before, places = None, list[Any]()
    for _ in range(5):  # names need room, and room moves the lines' ends
        if before == places:
            break
        before = places
        for ax in panels:
            _label_lines(ax, size)
        figure.draw_without_rendering()
        places = [[round(float(edge), 3) for edge in ax.get_position().bounds] for ax in panels]


def _label_lines(ax: Axes, size: float) -> None:
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    for text in [text for text in ax.texts if text.get_gid() == _NAME]:
        text.remove()
    handles, names = ax.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]  # bars of errors are behind their line
    drawn = [(line, name) for line, name in zip(lines, names, strict=True) if len(line.get_xdata())]
    to_points = 72 / ax.figure.dpi
    ends = [line.get_transform().transform(line.get_xydata()[-1]) * to_points for line, _ in drawn]
    right = ax.transAxes.transform((1, 0))[0] * to_points
    height = float("-inf")
    for place in sorted(range(len(drawn)), key=lambda i: float(ends[i][1])):
        line, name = drawn[place]
        x, y = map(float, ends[place])
        height = max(height + 1.2 * size, y)
        ax.annotate(
            name, line.get_xydata()[-1], (right - x + 6, height - y), xycoords=line.get_transform(),
            textcoords="offset points", color=line.get_color(), fontsize=size, va="center", annotation_clip=False,
            gid=_NAME,
        )  # fmt: skip


def plot_frontier(
    points: Sequence[CurvePoint], x: CostName = "flops", y: Quantity = "accuracy", ax: Axes = None
) -> Axes:
    """The Pareto frontier as steps: the best that each budget can buy.

    Args:
        points: Points of any strategies and models on the same problems.
        x: The cost, as in `plot_scaling`.
        y: As in `plot_scaling`.
        ax: Where to draw; new axes by default.

    Raises:
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale.scaling import CurvePoint
        >>> from inferscale.viz import plot_frontier, plot_scaling
        >>> points = [
        ...     CurvePoint("RepeatedSampling", "majority", n, accuracy, 0.02, 500, 100.0 * n, 1e8 * n, 0.0, 0.1)
        ...     for n, accuracy in [(4, 0.5), (16, 0.6), (64, 0.6)]
        ... ]
        >>> axes = plot_frontier(points, ax=plot_scaling(points))  # into the same axes
        >>> axes.get_legend_handles_labels()[1]
        ['best at each budget', 'RepeatedSampling, majority']
    """
    ax = new_axes(ax)
    frontier = pareto_frontier(points, x)
    costs, heights = [getattr(p, x) for p in frontier], [getattr(p, y) for p in frontier]
    ax.step(costs, heights, where="post", color="black", linewidth=1, linestyle=":", label="best at each budget")
    _scale_costs(ax, points, x)
    return _finished(ax, x, y)


def plot_optimal_size(points: Sequence[CurvePoint], fit: SizeFit, x: CostName = "flops", ax: Axes = None) -> Axes:
    """Sizes of the models on the Pareto frontier against the compute, with the fitted line.

    Args:
        points: Points with `parameters`, of models of one family.
        fit: The line, by `fit_optimal_size`.
        x: The cost that it was fitted to.
        ax: Where to draw; new axes by default.

    Raises:
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale.scaling import CurvePoint, fit_optimal_size
        >>> from inferscale.viz import plot_optimal_size
        >>> def point(size, flops, accuracy):
        ...     measured = (4, accuracy, 0.02, 500, 400.0, flops, 0.0, 1.0)
        ...     return CurvePoint("RepeatedSampling", "majority", *measured, parameters=size)
        >>> points = [point(10**5, 4e7, 0.3), point(10**6, 5e8, 0.5), point(10**7, 6e9, 0.7)]
        >>> axes = plot_optimal_size(points, fit_optimal_size(points))
        >>> axes.get_legend_handles_labels()[1]
        ['optimal model', 'log$_{10}$ C = 1.09 log$_{10}$ N +2.16']
    """
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


def plot_plan(plan: Plan, cost: str | None = None, ax: Axes = None) -> Axes:
    """All that a plan tried, accuracy against cost with 95 % intervals; the frontier as steps, the choices named.

    Args:
        plan: The plan.
        cost: One of the names of `Budget`; by default the one that the plan's frontier is of.
        ax: Where to draw; new axes by default.

    Raises:
        ValueError: If the plan does not know that cost.
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import plot_plan
        >>> problems = [isc.Problem(f"Question {i}?", answer="2") for i in range(30)]
        >>> made = isc.plan(
        ...     problems, ToyGenerator(depth=2), budgets=isc.Budget(tokens=50), strategies=[isc.RepeatedSampling(8)]
        ... )
        >>> axes = plot_plan(made)
        >>> axes.get_xlabel()
        'sampled tokens per problem'
        >>> axes.get_legend_handles_labels()[1]
        ['best at each cost', 'tried', 'ToyGenerator: RepeatedSampling(n=4), MajorityVote()']
    """
    ax = new_axes(ax, (7, 4.5))
    known = sorted({name for t in plan.tried for name in t.costs})
    cost = cost or plan.cost
    if cost not in known:
        raise ValueError(f"cost={cost!r}: the plan knows {', '.join(known)}")
    shown = [t for t in plan.tried if cost in t.costs]
    chosen = [choice.tried for choice in plan.choices if choice.tried is not None]

    def bars(these: Sequence[Any], **look: Any) -> None:
        heights = [t.accuracy for t in these]
        lengths = [[t.accuracy - t.low for t in these], [t.high - t.accuracy for t in these]]
        ax.errorbar([t.costs[cost] for t in these], heights, yerr=lengths, fmt="o", linewidth=0.7, **look)

    bars(shown, color="0.7", markersize=3, label="tried")
    frontier = plan.frontier(cost)
    ax.step([t.costs[cost] for t in frontier], [t.accuracy for t in frontier], where="post", color="black",
            linewidth=1, linestyle=":", label="best at each cost")  # fmt: skip
    for index, t in enumerate(dict.fromkeys(t.configuration.name for t in chosen)):
        these = [c for c in chosen if c.configuration.name == t][:1]
        bars(these, color=COLOURS[index % len(COLOURS)], markersize=7, label=in_legend(t))
    if all(t.costs[cost] > 0 for t in shown):
        ax.set_xscale("log")
        _thin_marks(ax)
    ax.set_xlabel(_LABELS.get(cost, f"{cost} per problem"))
    ax.set_ylabel("accuracy")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="x-small")
    return ax


def plot_coverage(points: Sequence[CurvePoint], fit: CoverageFit | None = None, ax: Axes = None) -> Axes:
    """Accuracy against the number of samples, coverage included, with a fitted power law of the coverage.

    Args:
        points: What to draw.
        fit: The law, by `fit_coverage`; ``None`` draws none.
        ax: Where to draw; new axes by default.

    Raises:
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale import Problem, RepeatedSampling
        >>> from inferscale.scaling import fit_coverage, scaling_curve
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import plot_coverage
        >>> problems = [Problem(f"Question {i}?", answer="2") for i in range(20)]
        >>> points = scaling_curve(problems, [RepeatedSampling(8)], ToyGenerator(depth=2), votes=["coverage"])
        >>> fit = fit_coverage([point.n for point in points], [point.accuracy for point in points])
        >>> axes = plot_coverage(points, fit)
        >>> axes.get_legend_handles_labels()[1]
        ['RepeatedSampling, coverage', 'exp(-1.46 k$^{-0.89}$)']
    """
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

    Args:
        points: What to draw.
        x: The cost, as in `plot_scaling`.
        y: As in `plot_scaling`.
        columns: Panels in a row; by default all.

    Raises:
        ValueError: If there are no points.
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale.scaling import CurvePoint
        >>> from inferscale.viz import plot_votes
        >>> points = [
        ...     CurvePoint("REBASE", vote, n, accuracy, 0.02, 500, 100.0 * n, 1e8 * n, 0.0, 0.1)
        ...     for vote, n, accuracy in [("majority", 4, 0.5), ("majority", 16, 0.6), ("weighted", 4, 0.6)]
        ... ]
        >>> figure = plot_votes(points)
        >>> [panel.get_title() for panel in figure.axes]
        ['majority', 'weighted']
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
        if x != "tokens":
            _thin_marks(ax)


def _thin_marks(ax: Axes) -> None:
    """Marks at 1, 2 and 5: within a decade the small ones are named, and names must fit."""
    ax.xaxis.set_minor_locator(require("matplotlib.ticker", "plot").LogLocator(subs=(2, 5)))


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


_LINES = {"pruned": ("#9a9a9a", 0.8, (0, (3, 2))), "kept": ("#6a6a6a", 1.0, "-"), "chosen": ("black", 2.6, "-")}
_MEANINGS = {"chosen": "reported", "kept": "returned", "pruned": "pruned"}
_BEND = [step / 12 for step in range(13)]


def plot_tree(result: SearchResult, ax: Axes = None) -> Axes:
    """The search tree from left to right, scores as colours, the reported path thick and pruned ones dashed.

    Steps are circles, ends are squares; above 60 nodes, what was pruned below one parent is one triangle, and so are
    its leaves with equal answers.

    Args:
        result: A search.
        ax: Where to draw; new axes by default.

    Raises:
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale import REBASE, solve
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> from inferscale.viz import plot_tree
        >>> axes = plot_tree(solve("How many?", REBASE(4), ToyGenerator(), reward_model=ToyProcessReward()))
        >>> axes.get_legend_handles_labels()[1]  # axes.figure.savefig("tree.png") writes it
        ['pruned', 'returned', 'reported']
    """
    marks = readable_marks(result.root, result.leaves, result.trajectories, result.selected_leaf)
    rows = tidy_rows([mark.children for mark in marks])
    ax = new_axes(ax, (8, min(12, max(2.4, 0.13 * max(rows) + 1.2))))
    scale = Scale.of(score for mark in marks for score in mark.scores)
    for order, (state, line) in enumerate(_LINES.items(), start=1):
        _draw_edges(ax, marks, rows, state, line, order)
    for shape in "os<":
        _draw_marks(ax, marks, rows, shape, scale)
    if len(marks) <= MOST_ANSWERED:
        for mark, row in zip(marks, rows, strict=True):
            if mark.answer is not None:
                text = one_line(mark.answer, 16)
                ax.annotate(text, (mark.depth, row), (6, -3), textcoords="offset points", fontsize=8, parse_math=False)
    _finish_tree(ax, marks, scale)
    return ax


def _draw_edges(
    ax: Axes, marks: Sequence[Mark], rows: Sequence[float], state: str, line: tuple[str, float, object], order: int
) -> None:
    """The branches that lead to the marks of one state, as one collection of curves."""
    curves = []
    for mark, row in zip(marks, rows, strict=True):
        for place in mark.children:
            if marks[place].state == state:
                rise = rows[place] - row
                curves.append([(mark.depth + t, row + rise * t * t * (3 - 2 * t)) for t in _BEND])
    if curves:
        colour, width, style = line
        lines = require("matplotlib.collections", "plot").LineCollection(
            curves, colors=colour, linewidths=width, linestyles=[style], zorder=order, label=_MEANINGS[state]
        )
        ax.add_collection(lines)


def _draw_marks(ax: Axes, marks: Sequence[Mark], rows: Sequence[float], shape: str, scale: Scale) -> None:
    found = [place for place, mark in enumerate(marks) if _shape(mark) == shape]
    if found:
        chosen = [marks[place].state == "chosen" for place in found]
        ax.scatter(
            [marks[place].depth for place in found],
            [rows[place] for place in found],
            s=[60 if is_chosen else 28 for is_chosen in chosen],
            c=[scale.colour(marks[place].score) for place in found],
            linewidths=[1.6 if is_chosen else 0.6 for is_chosen in chosen],
            edgecolors="black",
            marker=shape,
            zorder=4,
        )


def _shape(mark: Mark) -> str:
    return "<" if mark.is_folded else "s" if mark.nodes[0].is_finished else "o"


def _finish_tree(ax: Axes, marks: Sequence[Mark], scale: Scale) -> None:
    ax.invert_yaxis()
    ax.margins(x=0.06, y=0.06)
    ax.set_yticks([])
    ax.set_xticks(range(max(mark.depth for mark in marks) + 1))
    ax.set_xlabel("steps")
    ax.spines[["left", "right", "top"]].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="x-small", frameon=False, loc="upper left")
    if any(mark.scores for mark in marks):
        colours = require("matplotlib.colors", "plot")
        ramp = colours.LinearSegmentedColormap.from_list("scores", RAMP)
        shown = require("matplotlib.cm", "plot").ScalarMappable(colours.Normalize(scale.low, scale.high), ramp)
        ax.figure.colorbar(shown, ax=ax, label="score", shrink=0.6)


def plot_answers(result: SearchResult, ax: Axes = None) -> Axes:
    """Draw how many trajectories gave each answer as bars, coloured by mean score; the reported one is framed.

    Args:
        result: A search.
        ax: Where to draw; new axes by default.

    Raises:
        ImportError: If matplotlib is not installed (extra ``plot``).

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import plot_answers
        >>> axes = plot_answers(solve("How many?", RepeatedSampling(16), ToyGenerator()))
        >>> [label.get_text() for label in axes.get_yticklabels()]  # axes.figure.savefig("votes.png") writes them
        ['1', '2', '0', '3']
    """
    votes = votes_of(result.trajectories)
    shown, rest = votes[:MOST_VOTES], votes[MOST_VOTES:]
    names = ["no answer" if v.answer is None else one_line(v.answer, 24) for v in shown]
    numbers = [v.number for v in shown]
    scale = Scale.of(score for v in votes for score in v.scores)
    frames = [2.4 if v.has(result.selected) else 0.6 for v in shown]
    colours = [scale.colour(v.score) for v in shown]
    if rest:
        names, numbers = [*names, f"{len(rest)} more"], [*numbers, sum(v.number for v in rest)]
        frames, colours = [*frames, 0.6], [*colours, "white"]
    ax = new_axes(ax, (5.5, 0.8 + 0.32 * len(names)))
    bars = ax.barh(range(len(names)), numbers, color=colours, edgecolor="black", linewidth=frames)
    scores = ["" if v.score is None else f" (mean score {scale.written(v.score)})" for v in shown] + [""] * bool(rest)
    ax.bar_label(bars, [f"{n}{score}" for n, score in zip(numbers, scores, strict=True)], padding=4, fontsize=8)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.invert_yaxis()
    ax.margins(x=0.35)
    ax.spines[["right", "top"]].set_visible(False)
    ax.set_xlabel("trajectories")
    return ax


__all__ = [
    "Axes",
    "Quantity",
    "label_lines",
    "plot_answers",
    "plot_coverage",
    "plot_frontier",
    "plot_optimal_size",
    "plot_scaling",
    "plot_tree",
    "plot_votes",
    "to_frame",
]
