r"""Pictures of searches: text, HTML that needs nothing from outside, and plots (extra ``plot``).

Example:
    >>> import inferscale as isc
    >>> result = isc.solve("How many?", isc.RepeatedSampling(2), isc.testing.ToyGenerator(depth=1))
    >>> print(isc.render_tree(result.root))
    How many?
    ├─ u q w i c\nThe answer is 1 [eos]
    └─ t i l o k\nThe answer is 3 [eos]
"""

from typing import TYPE_CHECKING

from inferscale._compat import late_names

from .html import MOST_ANSWERED, RAMP, UNSCORED, Scale, growing, page, svg, tidy_rows
from .text import MOST_VOTES, Mark, Votes, marks_of, one_line, readable_marks, render_tree, votes_of

if TYPE_CHECKING:
    from .plots import (
        label_lines,
        plot_answers,
        plot_coverage,
        plot_frontier,
        plot_optimal_size,
        plot_plan,
        plot_scaling,
        plot_tree,
        plot_votes,
        to_frame,
    )

_PLOTS = (
    *("label_lines", "plot_answers", "plot_coverage", "plot_frontier", "plot_optimal_size", "plot_plan"),
    *("plot_scaling", "plot_tree", "plot_votes", "to_frame"),
)

__all__ = [
    "MOST_ANSWERED",
    "MOST_VOTES",
    "Mark",
    "RAMP",
    "Scale",
    "UNSCORED",
    "Votes",
    "growing",
    "label_lines",
    "marks_of",
    "one_line",
    "page",
    "plot_answers",
    "plot_coverage",
    "plot_frontier",
    "plot_optimal_size",
    "plot_plan",
    "plot_scaling",
    "plot_tree",
    "plot_votes",
    "readable_marks",
    "render_tree",
    "svg",
    "tidy_rows",
    "to_frame",
    "votes_of",
]

# The plots read curves and results, which themselves show trees: they are loaded when they are asked for.
__getattr__ = late_names(__name__, dict.fromkeys(_PLOTS, ".plots"))
