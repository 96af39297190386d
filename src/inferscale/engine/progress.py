"""Progress bars of searches and of evaluations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from inferscale.answers import same_answer

from .result import SearchResult
from .search import Search


class Bar:
    """Counts problems; shows nothing, and imports nothing of tqdm, unless it is enabled."""

    def __init__(self, total: int | None, enabled: bool, *, done: int = 0, right: int = 0, graded: int = 0) -> None:
        self._bar: Any = None
        self._enabled = enabled
        self._total, self._done = total, done
        self._right, self._graded = right, graded
        self._tokens = 0
        self._started = time.perf_counter()

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it."""
        return self._bar is not None

    def __enter__(self) -> Self:
        """Shows the bar; problems done before do not count for the time left."""
        if self._enabled:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit="problem", dynamic_ncols=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away, also after an error."""
        if self._bar is not None:
            self._bar.close()

    def count(self, correct: bool | None, tokens: int) -> None:
        """Counts a problem; `correct` is ``None`` where it has no gold answer."""
        if self._bar is None:
            return
        self._tokens += tokens
        if correct is not None:
            self._graded += 1
            self._right += correct
        self._bar.update(1)

    def say(self, open_tokens: int = 0, **numbers: object) -> None:
        """Shows `numbers`, the speed (with the tokens of problems under way) and the accuracy."""
        if self._bar is None:
            return
        seconds = max(time.perf_counter() - self._started, 1e-9)
        shown = {**numbers, "tok/s": f"{(self._tokens + open_tokens) / seconds:.0f}"}
        if self._graded:
            shown["accuracy"] = f"{self._right / self._graded:.3f}"
        self._bar.set_postfix(shown)


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
