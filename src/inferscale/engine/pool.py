"""One budget for all problems of a call: its driver, which grants samples to the searches that they help most."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from inferscale.base import Generator, SearchStrategy
from inferscale.cost import Budget, Cost
from inferscale.flow import Flow, expand, score
from inferscale.strategies import RepeatedSampling
from inferscale.strategies.pooling import Allocation, Drawn
from inferscale.tree import Node

from .search import Grant, Search


@dataclass(frozen=True)
class _OneByOne(SearchStrategy):
    """The tree of `RepeatedSampling`, sample by sample, each scored as it comes."""

    n: int

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The samples."""
        leaves = list[Node]()
        for _ in range(self.n):
            new = yield from expand([root], until="end")
            yield from score(new)
            leaves += new
        return leaves or root.leaves()


def pooled_strategy(strategy: SearchStrategy, allocation: Allocation) -> SearchStrategy:
    """Return a strategy with the same tree whose samples are scored as they come, where `allocation` needs that."""
    if allocation.needs_scores and type(strategy) is RepeatedSampling:
        return _OneByOne(strategy.n)
    return strategy


class Pool:
    """Shares out one budget among searches that all wait.

    Searches are granted samples when every one of them waits for a grant or has ended, so that who gets how much
    depends on problems, seed and budget alone, and not on what was ready first.
    """

    def __init__(self, budget: Budget, allocation: Allocation) -> None:
        self.budget = budget
        self.allocation = allocation
        self._ended, self._replayed = Cost(), 0.0  # of the searches that have ended
        self._states: dict[Search, Drawn] = {}
        self._started = time.perf_counter()

    def finished(self, search: Search) -> None:
        """Take the cost of a search that has ended."""
        self._ended += search.cost
        self._replayed += search.replayed_seconds
        self._states.pop(search, None)

    def _state(self, search: Search) -> Drawn:
        """What the allocation is told of a waiting search; read anew only after new samples."""
        known = self._states.get(search)
        if known is None or known.samples != search.cost.num_generated:
            known = self._states[search] = search.state()
        return known

    def grant(self, searches: Sequence[Search], generator: Generator) -> None:
        """Give `searches` their next samples if all of them wait, or end them all: ``stopped_by="pool"``.

        No clock ends them while a journal has answers, and what those took counts as if it had been waited for. Tokens
        and samples are spent exactly: a sample that might not fit waits until it does, and one that is alone is cut at
        the tokens that are left.
        """
        if not searches or not all(search.is_held for search in searches):
            return
        spent = sum((search.cost for search in searches), self._ended)
        elapsed = time.perf_counter() - self._started + sum((s.replayed_seconds for s in searches), self._replayed)
        elapsed = 0.0 if any(search.is_replaying for search in searches) else elapsed
        chosen: list[int] = []
        cap = self.budget.exhausted(spent, elapsed)
        if cap is None:
            chosen = self.allocation.chosen([self._state(search) for search in searches])
        if not chosen or any(search.is_cancelled() for search in searches):
            for search in searches:
                search.stop("cancel" if search.is_cancelled() else "pool", by_clock=cap == "seconds")
            return
        calls = None if self.budget.calls is None else self.budget.calls - spent.num_generated
        tokens = None if self.budget.tokens is None else self.budget.tokens - spent.tokens
        for place, index in enumerate(chosen[:calls]):
            search, bound = searches[index], None
            if tokens is not None:
                bound = search.most_next(generator)
                if bound is None or bound > tokens:
                    if place:
                        break
                    bound = tokens
                tokens -= bound
            most = None if bound is None else search.cost.tokens + bound
            search.grant = Grant(search.cost.num_generated + 1, most)
