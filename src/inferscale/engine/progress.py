"""Progress bars of searches and of evaluations."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

from .result import SearchResult

_INTERVAL = 0.2
"""Least seconds between two looks at tokens that are being drawn, and between two pictures of the bar."""
_LOG_INTERVAL = 30.0
"""Least seconds between two lines of a log."""


class _Lines:
    """A log file for a bar, which draws over itself on a terminal: each of its pictures is a line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if picture := text.strip():
            self._file.write(picture + "\n")

    def flush(self) -> None:
        self._file.flush()


class ProgressBar:
    """Problems done, rounds, tokens, tokens a second, the time left, and the accuracy so far.

    It imports tqdm, so make one only to show it. Where standard error is no terminal, as in the log of a job, it is a
    line at the start, one at the end, and one every half minute.

    The time left takes an open problem for one of ``all tokens / problems done`` tokens, but of no more than those
    under way can have: while none is done that bound alone says how long it may take.

    Args:
        total: Number of problems; ``None`` if it is not known.
        done: Problems done before, which do not count for the time left.
        right: Of them, how many were answered right.
        graded: Of them, how many have a gold answer.
    """

    def __init__(self, total: int | None, *, done: int = 0, right: int = 0, graded: int = 0) -> None:
        from tqdm.asyncio import tqdm_asyncio
        from tqdm.auto import tqdm

        is_log = tqdm is tqdm_asyncio and not sys.stderr.isatty()  # a notebook has another bar
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # tqdm's time left knows problems alone
        self._bar: Any = tqdm(
            total=total, initial=done, unit="problem", dynamic_ncols=True, leave=False, bar_format=form,
            mininterval=_LOG_INTERVAL if is_log else _INTERVAL, miniters=0,
            file=_Lines(sys.stderr) if is_log else None,
        )  # fmt: skip
        self._right, self._graded = right, graded
        self._left = None if total is None else total - done
        self._done = self._tokens = self._drawn = 0
        self._started = self._shown = time.perf_counter()

    def __enter__(self) -> Self:
        """The bar, which is shown already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away, also after an error; the last numbers have been seen."""
        self._bar.refresh()
        self._bar.close()

    def finished(self, result: SearchResult) -> None:
        """Count a problem that was searched, right if its answer is the gold one."""
        self.count(result.cost.tokens, result.is_correct)

    def count(self, tokens: int, correct: bool | None) -> None:
        """Count a problem; `correct` is ``None`` where it has no gold answer."""
        self._tokens += tokens
        self._done += 1
        if correct is not None:
            self._graded += 1
            self._right += correct
        self._bar.update(1)

    def drew(self, tokens: int) -> bool:
        """Count tokens of samples that have not ended; True if it is time to `show` them."""
        self._drawn += tokens
        return time.perf_counter() - self._shown >= _INTERVAL

    def show(self, open_tokens: int = 0, most_tokens: float | None = None, **numbers: object) -> None:
        """Show `numbers`, and what is known of tokens, time and accuracy.

        Args:
            open_tokens: Cost of the problems under way, in tokens.
            most_tokens: The most tokens that one of them can have with what it has asked for, on average.
            numbers: Shown before, by their names.
        """
        self._shown = time.perf_counter()
        seconds = max(self._shown - self._started, 1e-9)
        tokens = self._drawn or self._tokens + open_tokens  # those of a journal were drawn before
        shown = {**numbers, "tokens": str(tokens), "tok/s": f"{tokens / seconds:.0f}"}
        seconds_left = self._seconds_left(tokens, tokens / seconds, most_tokens)
        if seconds_left is not None:
            minutes, rest = divmod(round(seconds_left), 60)
            shown["left"] = (
                f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
            )
        if self._graded:
            shown["accuracy"] = f"{self._right / self._graded:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(0)  # drawn if the last time was long enough ago: rounds may come in thousands a second

    def _seconds_left(self, tokens: int, speed: float, most_tokens: float | None) -> float | None:
        bounds = [most_tokens, tokens / self._done if self._done else None]
        known = [bound for bound in bounds if bound is not None]
        if self._left is None or not speed or not known:
            return None
        under_way = max(tokens - self._tokens, 0)
        return max((self._left - self._done) * min(known) - under_way, 0) / speed
