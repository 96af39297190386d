"""The engine's progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from ._bar import Bar
from ._search import Search
from .answers import same_answer
from .result import SearchResult


class Progress(Bar):
    """Problems done, rounds, tokens a second, and accuracy so far.

    A round answers what the searches that are under way ask for: with ``schedule="wave"`` it is a wave.
    """

    def __init__(self, total: int | None, enabled: bool) -> None:
        super().__init__(total, enabled)
        self._rounds = 0

    def finished(self, result: SearchResult) -> None:
        """Counts a problem."""
        if self.is_shown:
            self.count(_is_correct(result), result.cost.tokens)

    def resumed(self, active: Sequence[Search]) -> None:
        """Counts a round, in which the searches that had answers went on, and refreshes the numbers."""
        if self.is_shown:
            self._rounds += 1
            self.say(sum(search.cost.tokens for search in active), rounds=self._rounds)


def _is_correct(result: SearchResult) -> bool | None:
    if result.problem.answer is None:
        return None
    return result.answer is not None and same_answer(result.answer, result.problem.answer)
