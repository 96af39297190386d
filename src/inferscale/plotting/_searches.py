"""Pictures of one search: its tree, and how its trajectories voted."""

from __future__ import annotations

from collections.abc import Sequence

from inferscale._optional import require
from inferscale.render import (
    MOST_ANSWERED,
    MOST_VOTES,
    RAMP,
    Mark,
    Scale,
    one_line,
    readable_marks,
    tidy_rows,
    votes_of,
)
from inferscale.result import SearchResult

from ._axes import Axes, new_axes

_LINES = {"pruned": ("#9a9a9a", 0.8, (0, (3, 2))), "kept": ("#6a6a6a", 1.0, "-"), "chosen": ("black", 2.6, "-")}
_MEANINGS = {"chosen": "reported", "kept": "returned", "pruned": "pruned"}
_BEND = [step / 12 for step in range(13)]


def plot_tree(result: SearchResult, ax: Axes = None) -> Axes:
    """The search tree from left to right, scores as colours, the reported path thick and pruned ones dashed.

    Steps are circles, ends are squares; above 60 nodes, what was pruned below one parent is one triangle, and so are
    its leaves with equal answers.

    Args:
        result: A search.
        ax: Where to draw.
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
    """How many trajectories gave which answer, as bars with their mean scores as colours; the reported one is framed.

    Args:
        result: A search.
        ax: Where to draw.
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
