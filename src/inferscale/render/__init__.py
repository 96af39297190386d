"""Search trees as text and as HTML that needs nothing from outside (no script, no font, no picture)."""

from ._colours import RAMP, UNSCORED, Scale
from ._layout import tidy_rows
from ._marks import Mark, marks_of, readable_marks
from ._page import page
from ._safe import one_line
from ._svg import MOST_ANSWERED, svg
from ._text import render_tree
from ._votes import MOST_VOTES, Votes, votes_of

__all__ = [
    "MOST_ANSWERED",
    "MOST_VOTES",
    "Mark",
    "RAMP",
    "Scale",
    "UNSCORED",
    "Votes",
    "marks_of",
    "one_line",
    "page",
    "readable_marks",
    "render_tree",
    "svg",
    "tidy_rows",
    "votes_of",
]
