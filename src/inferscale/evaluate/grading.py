"""Grading answers without ever executing them.

Two graders, both functions of two answers: `inferscale.answers.same_answer` (exact normal forms, standard library,
microseconds) and `MathGrader` (symbolic equivalence by math-verify, in a process that is killed when it hangs).
Either goes wherever a `same_answer` is asked for: ``MajorityVote(same_answer=grader)``, `run_evaluation`,
`scaling_curve`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from inferscale.answers import MAX_ANSWER_CHARS, brackets, is_range, is_relation, parse_number, same_answer
from inferscale.identity import Identified

_OUT_OF_TIME = getattr(signal, "SIGPROF", 0)
_WORKER = Path(__file__).with_name("_math_worker.py")
_Lines: TypeAlias = "queue.SimpleQueue[str | None]"


class GradingProcess:
    """One process; used by one thread at a time."""

    def __init__(self, timeout: float, memory_bytes: int, startup_seconds: float) -> None:
        # processor time is the limit where the system can hold it, so that verdicts do not depend on the machine's load
        self._patience = timeout if os.name == "nt" else 10 * timeout + 10
        self._startup_seconds = startup_seconds
        limits = (timeout, self._patience + 5, memory_bytes)
        self._command = [sys.executable, "-P", str(_WORKER), *map(str, limits)]
        self._process: subprocess.Popen[str] | None = None
        self._replies: _Lines = queue.SimpleQueue()
        self._ready = False

    def compare(self, first: str, second: str) -> Literal["same", "different", "timeout", "crash"]:
        """The verdict on one pair; after a hang or a crash the process is another one."""
        process = self._started()
        if process.stdin is None:
            raise RuntimeError("the grading process has no standard input")
        try:
            process.stdin.write(json.dumps({"first": first, "second": second}) + "\n")
            process.stdin.flush()
            line = self._replies.get(timeout=self._patience)
        except queue.Empty:
            self._replace()
            return "timeout"
        except OSError:
            line = None
        except BaseException:
            self.kill()  # a reply that comes later must not be taken for the next one's
            raise
        if line is None:
            code = process.wait()
            self._replace()
            return "timeout" if code == -_OUT_OF_TIME else "crash"
        return "same" if json.loads(line)["same"] else "different"

    def kill(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was still to be written has no reader any more
                        stream.close()
            self._process = None

    def _replace(self) -> None:
        self.kill()
        self._launch()  # starts while the caller goes on

    def _launch(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8", start_new_session=os.name == "posix",
        )  # fmt: skip
        # a session of its own: Ctrl-C at the terminal is the parent's business
        self._process, self._replies, self._ready = process, queue.SimpleQueue(), False
        threading.Thread(target=_read_lines, args=(process, self._replies), daemon=True).start()
        return process

    def _started(self) -> subprocess.Popen[str]:
        process = self._process if self._process is not None else self._launch()
        if not self._ready:
            try:
                line = self._replies.get(timeout=self._startup_seconds)
            except queue.Empty:
                line = None
            if line is None:
                self.kill()
                raise RuntimeError(
                    "the grading process did not start: check that `python -c 'import math_verify'` works, or grade "
                    "with inferscale.answers.same_answer"
                )
            self._ready = True
        return process


def _read_lines(process: subprocess.Popen[str], replies: _Lines) -> None:
    """Hands over what the process writes, and ``None`` at its end."""
    if process.stdout is not None:
        with contextlib.suppress(ValueError):  # closed while reading
            for line in process.stdout:
                replies.put(line)
    replies.put(None)


Verdict: TypeAlias = Literal["same", "different", "timeout", "crash", "skipped"]
"""The finding of a grader on two answers: `"timeout"` and `"crash"` of the worker leave it undecided, and so does
`"skipped"`, if the time of all pairs was spent before it looked. Only `"same"` counts as the same.

Example:
    >>> from inferscale.evaluate import MathGrader, Verdict
    >>> def undecided(verdicts: list[Verdict]) -> int:
    ...     return sum(verdict in ("timeout", "crash", "skipped") for verdict in verdicts)
    >>> with MathGrader() as grader:
    ...     verdicts = [grader.judge(answer, "0.5") for answer in ("1/2", "0.4")]
    >>> verdicts, undecided(verdicts)
    (['same', 'different'], 0)
"""

_BASE = re.compile(r"(?<=\w)_\{?(\d+)\}?\$?\s*$")  # 101_2 is not 101_3, whose subscripts math-verify leaves out
_SPECIAL_FLOAT = re.compile(r"\d\s*[eE]\s*[-+]?\s*\d{4,}")  # 1e999999999: math-verify reads 1
_CACHE_SIZE = 65536


@dataclass
class GradingStats:
    """Counters of a `MathGrader`.

    Attributes:
        compared: Pairs asked for, repeated ones not counted.
        in_process: Of these, decided by normal forms without a worker.
        timeouts: Pairs that took too long; they count as different.
        crashes: Pairs on which the worker died; they count as different.
        skipped: Pairs not looked at because the total time was spent; they count as different.
        seconds: Seconds spent waiting for workers.

    Example:
        >>> from inferscale.evaluate import MathGrader
        >>> with MathGrader() as grader:
        ...     grader("1/2", "0.5"), grader("(1, 2)", "{1, 2}")
        (True, False)
        >>> grader.stats  # normal forms and shapes decided both: no worker was needed
        GradingStats(compared=2, in_process=2, timeouts=0, crashes=0, skipped=0, seconds=0.0)
    """

    compared: int = 0
    in_process: int = 0
    timeouts: int = 0
    crashes: int = 0
    skipped: int = 0
    seconds: float = 0.0


class MathGrader(Identified):
    r"""Symbolic equivalence of an answer and the gold answer: ``grader(answer, gold) -> bool``.

    What `same_answer` accepts is the same; two plain numbers that it does not are different, and so are an equation and
    a value, a tuple and a set, and other shapes that differ. All other pairs go to math-verify, gold answer first, in a
    worker process, which is killed and replaced when it needs longer than `timeout` or too much memory; an answer that
    was not read whole, and numbers that agree in six places alone, are different. What could not be decided counts as
    different and is counted in `stats`. Nothing is unpickled or executed: worker and parent speak JSON. It may be
    called from any thread (calls wait for a free worker), from a running event loop (which waits; use
    ``asyncio.to_thread(grader, a, b)`` to let it go on) and from notebooks.

    Attributes:
        timeout: Most processor time for one pair, in seconds.
        total_seconds: Most seconds for all pairs together.
        memory_bytes: Most address space of a worker.
        stats: What happened so far.

    Example:
        Needs the extra ``math``, and starts a process of its own::

            from inferscale.evaluate import MathGrader

            with MathGrader() as grader:
                grader(r"\sqrt{8}", r"2\sqrt{2}")  # True
                grader("x + 1", "1 + x")  # True
    """

    no_effect = frozenset({"workers", "startup_seconds"})

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
        """Return True if the two answers are the same."""
        return self.judge(first, second) == "same"

    def judge(self, first: str, second: str) -> Verdict:
        """The verdict, with the reason when there is none: ``"timeout"``, ``"crash"`` or ``"skipped"``."""
        pair = first, second
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
    shapes = brackets(first), brackets(second)
    if shapes[0] != shapes[1] and all(shapes):  # a pair is no set, an open interval no closed one
        return "different"
    if is_relation(first) != is_relation(second) and not (
        any(shapes) or is_range(first) or is_range(second)
    ):  # an equation is not its right side
        return "different"
    bases = _BASE.search(first), _BASE.search(second)
    if bases[0] and bases[1] and bases[0][0] != bases[1][0]:
        return "different"
    if _SPECIAL_FLOAT.search(first) or _SPECIAL_FLOAT.search(second):
        return "different"
    return None


def _kill_all(workers: Iterable[GradingProcess]) -> None:
    for worker in workers:
        worker.kill()
