"""``schedule="stream"``: every search is resumed as soon as its own answers are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from ._models import Models
from ._search import Search

MAX_CALLS = 64
"""Most calls of the models under way at a time."""


@dataclass(frozen=True)
class _Call:
    """A call of a model.

    Attributes:
        search: Who waits for it.
        run: Runs the model, in any thread.
        take: Hands the answer over.
    """

    search: Search
    run: Callable[[], list[Any]]
    take: Callable[[Any], None]


class Streams:
    """Hands every search's portion to a thread of its own; trees and journal are touched by the caller's thread alone.

    A portion and its random streams depend on its search alone, and so do the results: they are those of waves.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="inferscale")
        self._under_way: dict[Future[list[Any]], _Call] = {}

    def __enter__(self) -> Self:
        """The schedule."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the threads.

        After an error the calls that are under way are waited for and their answers kept: they have been paid for.
        After an interrupt, or when the caller has had enough, they are left to end by themselves.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        patient = kind is not None and issubclass(kind, Exception)
        answered, _ = wait(self._under_way, timeout=None if patient else 0)
        for future in answered:
            if not future.cancelled() and future.exception() is None:
                self._take(future)

    def advance(self, active: Sequence[Search]) -> None:
        """Sends what idle searches ask for; if all of them wait then, waits for the next answers."""
        busy = {call.search for call in self._under_way.values()}
        for search in active:
            call = None if search in busy else self._next_call(search)
            if call is not None:
                self._under_way[self._pool.submit(copy_context().run, call.run)] = call
        if len(self._under_way) < len(active):
            return
        answered, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in answered:
            self._take(future)

    def _next_call(self, search: Search) -> _Call | None:
        """The call that `search` waits for, once its journal has no more answers; ``None`` if it has ended."""
        models = self._models
        while search.leaves is None:
            if portion := models.samples_for(search):
                return _Call(search, partial(models.sample, [portion]), partial(models.take_steps, search, portion))
            if nodes := models.nodes_for(search):
                return _Call(search, partial(models.judge, [nodes]), partial(models.take_scores, search, nodes))
        return None

    def _take(self, future: Future[list[Any]]) -> None:
        """Resumes the search whose answer is there."""
        call = self._under_way.pop(future)
        (answer,) = future.result()
        call.take(answer)
        self._models.journal.flush()
