"""Seconds and peak memory of a counter's ``with`` blocks."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch


class Clock:
    """Adds up wall-clock seconds between `start` and `stop`; overlapping blocks count once.

    On a GPU the kernels of a block may still run when it ends. A pair of events on the current stream tells how long
    they took; they are waited for when `seconds` is read, not before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._started = 0.0
        self._seconds = 0.0
        self._event: Any = None
        self._pairs: list[tuple[float, Any, Any]] = []

    def start(self) -> None:
        """Begins a block."""
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._started, self._event = time.perf_counter(), _event()

    def stop(self) -> None:
        """Ends a block."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                elapsed = time.perf_counter() - self._started
                if self._event is None:
                    self._seconds += elapsed
                else:
                    self._pairs.append((elapsed, self._event, _event()))

    @property
    def seconds(self) -> float:
        """Seconds so far, those of a block that is still open included."""
        with self._lock:
            for elapsed, begin, end in self._pairs:
                end.synchronize()
                self._seconds += max(elapsed, begin.elapsed_time(end) / 1000)
            self._pairs.clear()
            return self._seconds + (time.perf_counter() - self._started if self._open else 0.0)

    def add(self, seconds: float) -> None:
        """Adds the seconds of another clock."""
        with self._lock:
            self._seconds += seconds

    def reset(self) -> None:
        """Starts again from zero, an open block from now."""
        with self._lock:
            self._seconds = 0.0
            self._pairs.clear()
            self._started, self._event = time.perf_counter(), _event() if self._open else None


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _event() -> Any:
    """A recorded CUDA event, where CUDA is in use."""
    if not _uses_cuda():
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


_memory_lock = threading.Lock()
_memory_users = 0


class MemoryPeak:
    """The most bytes allocated on the current GPU between `start` and `stop`; nothing without one.

    The allocator keeps a single peak: it begins anew with the first of all counters that are open together.
    """

    def __init__(self) -> None:
        self._open = False
        self._bytes: int | None = None

    def start(self) -> None:
        """Begins to look."""
        global _memory_users
        self._open = True
        with _memory_lock:
            _memory_users += 1
            if _memory_users == 1 and _uses_cuda():
                torch.cuda.reset_peak_memory_stats()

    def stop(self) -> None:
        """Notes the peak."""
        global _memory_users
        self._bytes = self.bytes
        self._open = False
        with _memory_lock:
            _memory_users -= 1

    @property
    def bytes(self) -> int | None:
        """The peak so far; ``None`` on a CPU."""
        now = int(torch.cuda.max_memory_allocated()) if self._open and _uses_cuda() else None
        return max(filter(None, (self._bytes, now)), default=None)

    def add(self, other: int | None) -> None:
        """Takes another peak into account."""
        self._bytes = max(filter(None, (self._bytes, other)), default=None)

    def reset(self) -> None:
        """Forgets earlier blocks; in an open one the allocator goes on with its peak."""
        self._bytes = None
