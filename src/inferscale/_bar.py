"""A progress bar over problems: tokens a second, and accuracy so far where gold answers are known."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self


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
