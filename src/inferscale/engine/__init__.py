"""The only driver of searches: solving, journals, results and progress."""

from .journal import Journal
from .result import Abstentions, SearchResult
from .search import Search, SearchUpdate
from .solver import Session, Solver, asolve, solve, solve_batch, stream

__all__ = [
    "Abstentions",
    "Journal",
    "Search",
    "SearchResult",
    "SearchUpdate",
    "Session",
    "Solver",
    "asolve",
    "solve",
    "solve_batch",
    "stream",
]
