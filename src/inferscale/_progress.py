"""The engine's progress bar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from ._search import Search
from .answers import same_answer
from .result import SearchResult


class Progress:
    """Problems done, rounds, tokens per second, and accuracy so far where gold answers are known; or nothing.

    A round answers what the searches that are under way ask for: with ``schedule="wave"`` it is a wave. Nothing of tqdm
    is imported unless the bar is shown.
    """

    def __init__(self, total: int | None, enabled: bool) -> None:
        self._bar: Any = None
        self._total = total
        self._enabled = enabled
        self._rounds = self._tokens = self._right = self._graded = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        """Shows the bar."""
        if self._enabled:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, unit="problem", dynamic_ncols=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away, also after an error."""
        if self._bar is not None:
            self._bar.close()

    def finished(self, result: SearchResult) -> None:
        """Counts a problem."""
        if self._bar is None:
            return
        self._tokens += result.cost.tokens
        if result.problem.answer is not None:
            self._graded += 1
            self._right += result.answer is not None and same_answer(result.answer, result.problem.answer)
        self._bar.update(1)

    def resumed(self, active: Sequence[Search]) -> None:
        """Counts a round, in which the searches that had answers went on, and refreshes the numbers."""
        if self._bar is None:
            return
        self._rounds += 1
        tokens = self._tokens + sum(search.cost.tokens for search in active)
        shown = {"rounds": self._rounds, "tok/s": f"{tokens / (time.perf_counter() - self._started):.0f}"}
        if self._graded:
            shown["accuracy"] = f"{self._right / self._graded:.3f}"
        self._bar.set_postfix(shown)
