"""Search trees as text and as HTML that needs nothing from outside (no script, no font, no picture)."""

from ._colours import RAMP, Scale
from ._layout import tidy_rows
from ._marks import Mark, marks_of
from ._page import page
from ._text import render_tree

__all__ = ["RAMP", "Mark", "Scale", "marks_of", "page", "render_tree", "tidy_rows"]
