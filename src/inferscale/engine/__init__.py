"""The only driver of searches: solving, journals, results and progress."""

from .journal import Journal
from .result import SearchResult
from .search import Search
from .solver import Session, Solver, solve, solve_batch, stream

__all__ = ["Journal", "Search", "SearchResult", "Session", "Solver", "solve", "solve_batch", "stream"]
