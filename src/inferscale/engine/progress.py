"""Progress bars of searches and of evaluations."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from .result import SearchResult


class ProgressBar:
    """Problems done, rounds, tokens a second, and the accuracy so far. Imports tqdm, so make one only to show it.

    Args:
        total: Number of problems; ``None`` if it is not known.
        done: Problems done before, which do not count for the time left.
        right: Of them, how many were answered right.
        graded: Of them, how many have a gold answer.
    """

    def __init__(self, total: int | None, *, done: int = 0, right: int = 0, graded: int = 0) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(total=total, initial=done, unit="problem", dynamic_ncols=True, leave=False)
        self._right, self._graded = right, graded
        self._tokens = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        """The bar, which is shown already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away, also after an error."""
        self._bar.close()

    def finished(self, result: SearchResult) -> None:
        """Count a problem that was searched, right if its answer is the gold one."""
        self.count(result.cost.tokens, result.is_correct)

    def count(self, tokens: int, correct: bool | None) -> None:
        """Count a problem; `correct` is ``None`` where it has no gold answer."""
        self._tokens += tokens
        if correct is not None:
            self._graded += 1
            self._right += correct
        self._bar.update(1)

    def show(self, open_tokens: int = 0, **numbers: object) -> None:
        """Show `numbers`, the speed (with the tokens of problems under way) and the accuracy."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        shown = {**numbers, "tok/s": f"{(self._tokens + open_tokens) / seconds:.0f}"}
        if self._graded:
            shown["accuracy"] = f"{self._right / self._graded:.3f}"
        self._bar.set_postfix(shown)
