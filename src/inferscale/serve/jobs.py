"""A search for one prompt, from the request to its result, and why there may be none."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from inferscale._search import Search
from inferscale._task import Task
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.result import SearchResult
from inferscale.tree import Node, Problem


class BusyError(Exception):
    """There is no room for another search.

    Attributes:
        retry_after: Seconds until there may be.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many searches are waiting")
        self.retry_after = retry_after


class ClosedError(Exception):
    """No more searches are begun, or this one was ended before its time."""


class UnreadablePromptError(ValueError):
    """The generator cannot read the prompt."""


@dataclass(eq=False)
class Job:
    """A search for one prompt: cancelled by its future, which holds the result in the end.

    Attributes:
        problem: The problem.
        task: Strategy, models, vote, budget and seed.
        occurrence: How many equal prompts came before it in the same request.
        future: The result.
    """

    problem: Problem
    task: Task
    occurrence: int = 0
    future: Future[SearchResult] = field(default_factory=Future)
    _search: Search | None = field(default=None, init=False)
    _created: float = field(default_factory=time.perf_counter, init=False)

    @property
    def search(self) -> Search:
        """The search, once it has begun."""
        if self._search is None:
            raise RuntimeError("this search has not begun")
        return self._search

    @property
    def seconds(self) -> float:
        """Time since the request."""
        return time.perf_counter() - self._created

    @property
    def cost(self) -> Cost:
        """What has been spent so far."""
        return Cost() if self._search is None else self._search.cost

    def begin(self) -> None:
        """Begins the search, or begins it again.

        Raises:
            UnreadablePromptError: If the generator cannot read the prompt.
        """
        try:
            self.task.generator.max_sample_tokens(GenerateRequest(Node(self.problem)))
        except ValueError as error:
            raise UnreadablePromptError(str(error)) from None
        self._search = self.task.start(0, self.problem, Counter({self.problem.prompt: self.occurrence}))

    def release(self) -> None:
        """Lets the models forget the search."""
        if self._search is not None:
            self.task.release(self._search.root)

    def progress(self) -> dict[str, Any]:
        """Numbers for the client."""
        cost, state = self.cost, "waiting" if self._search is None else "searching"
        return {"state": state, "tokens": cost.tokens, "samples": cost.num_generated, "scored": cost.num_scored}
