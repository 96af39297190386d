"""Counting in other threads: the one dispatch mode of each, and functions that take their counters along."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from . import context
from .exact import ExactMode
from .ops import OpFlops

P = ParamSpec("P")
R = TypeVar("R")


class _Dispatcher:
    """Hands what a thread's dispatch mode sees to the counters that are active there."""

    def on_flops(self, flops: OpFlops) -> None:
        """Tells them of a counted operator."""
        for counter, scope in context.active():
            counter.on_flops(scope, flops)

    def on_unknown(self, name: str) -> None:
        """Tells them of an operator without a formula."""
        for counter, _ in context.active():
            counter.on_unknown(name)


class ThreadMode(threading.local):
    """At most one `ExactMode` for each thread, however many counters want it.

    One mode for each counter would be popped out of order by interleaved asyncio tasks, and stay on the stack.
    """

    def __init__(self) -> None:
        self.mode = ExactMode(_Dispatcher())
        self.users = 0

    def push(self) -> None:
        """Starts counting in this thread, or notes one more user."""
        if self.users == 0:
            self.mode.__enter__()  # type: ignore[no-untyped-call]
        self.users += 1

    def pop(self) -> None:
        """Notes one user less, and stops counting when it was the last one."""
        if self.users == 0:
            raise RuntimeError("an exact FlopCounter must be left in the thread in which it was entered: use bind()")
        self.users -= 1
        if self.users == 0:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


thread_mode = ThreadMode()
"""The dispatch mode of this thread."""


def carried(function: Callable[P, R], block: Callable[[], AbstractContextManager[None]]) -> Callable[P, R]:
    """`function`, run inside of a `block` and with the counters that are active now, whatever thread calls it."""
    captured = copy_context()

    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with block():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def anywhere(*args: P.args, **kwargs: P.kwargs) -> R:
        return captured.copy().run(inside, *args, **kwargs)

    return anywhere
