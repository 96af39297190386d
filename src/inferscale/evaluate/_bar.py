"""The progress bar of a run: problems, time left, accuracy so far, tokens per second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self


class RunBar:
    """Counts problems; shows nothing unless it is asked to."""

    def __init__(self, total: int, done: int, right: int, graded: int, enabled: bool) -> None:
        self._bar: Any = None
        self._enabled = enabled
        self._total, self._done = total, done
        self._right, self._graded = right, graded
        self._tokens = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        """Shows the bar; problems done before do not count for the time left."""
        if self._enabled:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit="problem", dynamic_ncols=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def solved(self, correct: bool | None, tokens: int) -> None:
        """Counts a problem."""
        if self._bar is None:
            return
        self._tokens += tokens
        if correct is not None:
            self._graded += 1
            self._right += correct
        shown = {"tok/s": f"{self._tokens / max(time.perf_counter() - self._started, 1e-9):.0f}"}
        if self._graded:
            shown = {"accuracy": f"{self._right / self._graded:.3f}", **shown}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(1)
