r"""Whether an answer is right, without ever executing it.

Two graders, both functions of two answers: `inferscale.answers.same_answer` (exact normal forms, standard library,
microseconds) and `MathGrader` (symbolic equivalence by math-verify, in a process that is killed when it hangs).
Either goes wherever a `same_answer` is asked for: ``MajorityVote(same_answer=grader)``, `run_evaluation`,
`scaling_curve`.
"""

from __future__ import annotations

import queue
import re
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Literal, Self, TypeAlias

from inferscale.answers import MAX_ANSWER_CHARS, parse_number, same_answer

from ._grading_process import GradingProcess

Verdict: TypeAlias = Literal["same", "different", "timeout", "crash", "skipped"]

_SPECIAL_FLOAT = re.compile(r"\d\s*[eE]\s*[-+]?\s*\d{4,}")  # 1e999999999: math-verify reads 1
_CACHE_SIZE = 65536


@dataclass
class GradingStats:
    """What a `MathGrader` has done.

    Attributes:
        compared: Pairs asked for, repeated ones not counted.
        in_process: Of these, decided by normal forms without a worker.
        timeouts: Pairs that took too long; they count as different.
        crashes: Pairs on which the worker died; they count as different.
        skipped: Pairs not looked at because the total time was spent; they count as different.
        seconds: Time spent waiting for workers.
    """

    compared: int = 0
    in_process: int = 0
    timeouts: int = 0
    crashes: int = 0
    skipped: int = 0
    seconds: float = 0.0


class MathGrader:
    """Symbolic equivalence of two answers: ``grader(first, second) -> bool``, symmetric.

    Equal normal forms are the same; two plain numbers with different ones are not; all other pairs go to math-verify
    in a worker process, which is killed and replaced when it needs longer than `timeout` or too much memory. What
    could not be decided counts as different and is counted in `stats`. Nothing is unpickled or executed: worker and
    parent speak JSON. It may be called from any thread (calls wait for a free worker), from a running event loop
    (which waits; use ``asyncio.to_thread(grader, a, b)`` to let it go on) and from notebooks.

    Attributes:
        timeout: Most processor time for one pair, in seconds.
        total_seconds: Most seconds for all pairs together.
        memory_bytes: Most address space of a worker.
        stats: What happened so far.
    """

    def __init__(
        self,
        timeout: float = 2.0,
        total_seconds: float | None = None,
        workers: int = 1,
        memory_bytes: int = 4 << 30,
        startup_seconds: float = 120.0,
    ) -> None:
        """Checks that math-verify is there; workers start with the first pair that needs one.

        Args:
            timeout: Most processor time for one pair, in seconds, so that verdicts do not depend on the machine's
                load (on Windows: seconds by the clock).
            total_seconds: Most seconds for all pairs together; later pairs are decided by normal forms alone.
            workers: Processes, one for each thread that grades at the same time.
            memory_bytes: Most address space of a worker.
            startup_seconds: Most seconds for a worker to start.

        Raises:
            ImportError: If math-verify is not installed.
            ValueError: If a limit is not positive.
        """
        if find_spec("math_verify") is None:
            raise ImportError('MathGrader needs math-verify: pip install "inferscale[math]", or use same_answer')
        for name, value in {"timeout": timeout, "total_seconds": total_seconds, "workers": workers}.items():
            if value is not None and not value > 0:
                raise ValueError(f"MathGrader({name}={value!r}): give a number greater than 0")
        self.stats = GradingStats()
        self.timeout, self.total_seconds, self.memory_bytes = timeout, total_seconds, memory_bytes
        self._cache: dict[tuple[str, str], Verdict] = {}
        self._lock = threading.Lock()
        self._workers = [GradingProcess(timeout, memory_bytes, startup_seconds) for _ in range(workers)]
        self._idle: queue.LifoQueue[GradingProcess] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        weakref.finalize(self, _kill_all, self._workers)  # also at the interpreter's exit

    def __call__(self, first: str, second: str) -> bool:
        """Whether the two answers are the same."""
        return self.judge(first, second) == "same"

    def judge(self, first: str, second: str) -> Verdict:
        """The verdict, with the reason when there is none: ``"timeout"``, ``"crash"`` or ``"skipped"``."""
        pair = (first, second) if first <= second else (second, first)
        with self._lock:
            known = self._cache.get(pair)
        if known is not None:
            return known
        verdict = _by_normal_form(*pair)
        in_process = verdict is not None
        if verdict is None:
            verdict = self._by_worker(*pair)
        self._remember(pair, verdict, in_process)
        return verdict

    def close(self) -> None:
        """Ends the workers; another call starts them again."""
        _kill_all(self._workers)

    def __enter__(self) -> Self:
        """The grader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers."""
        self.close()

    def __repr__(self) -> str:
        """Limits, as they go into the record of a run."""
        return f"MathGrader(timeout={self.timeout}, total_seconds={self.total_seconds})"

    def _by_worker(self, first: str, second: str) -> Verdict:
        if self.total_seconds is not None and self.stats.seconds >= self.total_seconds:
            return "skipped"
        worker = self._idle.get()
        started = time.perf_counter()
        try:
            return worker.compare(first, second)
        finally:
            self._idle.put(worker)
            with self._lock:
                self.stats.seconds += time.perf_counter() - started

    def _remember(self, pair: tuple[str, str], verdict: Verdict, in_process: bool) -> None:
        with self._lock:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[pair] = verdict
            self.stats.compared += 1
            self.stats.in_process += in_process
            self.stats.timeouts += verdict == "timeout"
            self.stats.crashes += verdict == "crash"
            self.stats.skipped += verdict == "skipped"


def _by_normal_form(first: str, second: str) -> Verdict | None:
    """The verdict where normal forms decide; ``None`` where mathematics has to be read."""
    if same_answer(first, second):
        return "same"
    if max(len(first), len(second)) > MAX_ANSWER_CHARS or not first.strip() or not second.strip():
        return "different"
    if parse_number(first) is not None and parse_number(second) is not None:
        return "different"
    if _SPECIAL_FLOAT.search(first) or _SPECIAL_FLOAT.search(second):
        return "different"
    return None


def _kill_all(workers: Iterable[GradingProcess]) -> None:
    for worker in workers:
        worker.kill()
