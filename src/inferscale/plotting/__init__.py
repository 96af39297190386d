"""Curves of accuracy against compute, and pictures of one search (extra ``plot``).

Every function draws into the axes that it is given, or into those of a new figure, and returns the axes;
``axes.figure.savefig("curve.png")`` writes them. pyplot is not touched: no window opens and no global state changes.
"""

from ._axes import Axes
from ._curves import Quantity, plot_coverage, plot_frontier, plot_optimal_size, plot_scaling, plot_votes, to_frame
from ._searches import plot_answers, plot_tree

__all__ = [
    "Axes",
    "Quantity",
    "plot_answers",
    "plot_coverage",
    "plot_frontier",
    "plot_optimal_size",
    "plot_scaling",
    "plot_tree",
    "plot_votes",
    "to_frame",
]
