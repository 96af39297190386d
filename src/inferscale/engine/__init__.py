"""The only driver of searches: solving, journals, results and progress."""

from .journal import Journal
from .result import SearchResult
from .solver import solve, solve_batch, stream

__all__ = ["Journal", "SearchResult", "solve", "solve_batch", "stream"]
