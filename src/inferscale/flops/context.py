"""Which counters are counting here: kept for each context, so for each asyncio task and each bound thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from .ledger import Phase, Scope

T = TypeVar("T")

Entry: TypeAlias = tuple[Any, Scope]
"""A counter and the scope that it is in."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One ``with`` block of a counter, or of one of its scopes.

    Attributes:
        owner: The counter.
        scope: The scope that the block is in.
        parent: The block around it.
        is_scope: Whether it is a scope's block.
        entries: Each active counter once, with its innermost scope.
        name: What stays the same when a block around it ends first and the frame is made anew.
    """

    owner: Any
    scope: Scope
    parent: Frame | None
    is_scope: bool
    entries: tuple[Entry, ...]
    name: object


@dataclass(slots=True, eq=False)
class Call:
    """A forward that is running.

    Attributes:
        watch: The hooks of the model.
        module: What was called: the model, its body or its last matrix.
        phase: The phase.
        in_head: Whether the last matrix is running.
        expected: FLOPs by the closed form, for each counter that verifies.
        executed: FLOPs seen so far, for each counter that verifies.
        has_mode: Whether the dispatch mode was pushed for this call alone, its thread having none.
    """

    watch: Any
    module: Any
    phase: Phase
    in_head: bool = False
    expected: dict[Any, int] | None = None
    executed: Counter[Any] | None = None
    has_mode: bool = False


_frame: ContextVar[Frame | None] = ContextVar("inferscale_flops_frame", default=None)
_calls: ContextVar[tuple[Call, ...]] = ContextVar("inferscale_flops_calls", default=())
_unwatched: ContextVar[bool] = ContextVar("inferscale_flops_unwatched", default=False)
_quiet: ContextVar[bool] = ContextVar("inferscale_flops_quiet", default=False)


def active() -> tuple[Entry, ...]:
    """The counters that count here, outermost first."""
    frame = _frame.get()
    return () if frame is None else frame.entries


def scope_of(owner: Any) -> Scope | None:
    """The scope that `owner` is in here; ``None`` if it does not count here."""
    return next((scope for counter, scope in active() if counter is owner), None)


def enter(owner: Any, scope: Scope, is_scope: bool = False) -> Frame:
    """Opens a block of `owner`."""
    parent = _frame.get()
    if parent is None:
        _calls.set(())  # a forward that was interrupted may have left its own
    frame = _push(owner, scope, parent, is_scope, object())
    _frame.set(frame)
    return frame


def leave(frame: Frame) -> None:
    """Closes a block, whether or not blocks opened after it are still open."""
    _frame.set(_without(_frame.get(), frame))


def innermost_block(owner: Any) -> Frame | None:
    """The block of `owner` itself that was opened last, scopes left out."""
    frame = _frame.get()
    while frame is not None and (frame.owner is not owner or frame.is_scope):
        frame = frame.parent
    return frame


def _push(owner: Any, scope: Scope, parent: Frame | None, is_scope: bool, name: object) -> Frame:
    others = () if parent is None else tuple(entry for entry in parent.entries if entry[0] is not owner)
    return Frame(owner, scope, parent, is_scope, (*others, (owner, scope)), name)


def _without(top: Frame | None, frame: Frame) -> Frame | None:
    """The chain of blocks with `frame` taken out."""
    if top is None or top.name is frame.name:
        return None if top is None else top.parent
    return _push(top.owner, top.scope, _without(top.parent, frame), top.is_scope, top.name)


def running() -> tuple[Call, ...]:
    """Forwards that are running here, outermost first."""
    return _calls.get()


def running_call(watch: Any) -> Call | None:
    """The innermost forward of `watch` that is running here."""
    for call in reversed(_calls.get()):
        if call.watch is watch:
            return call
    return None


def begin_call(call: Call) -> None:
    """Notes that a forward has begun."""
    _calls.set((*_calls.get(), call))


def end_call(watch: Any, module: Any) -> Call | None:
    """Takes back the innermost forward of `watch` if it was a call of `module`, and what was left open inside."""
    calls = _calls.get()
    for index in range(len(calls) - 1, -1, -1):
        if calls[index].watch is watch:
            if calls[index].module is not module:
                return None
            _calls.set(calls[:index])
            return calls[index]
    return None


@contextmanager
def unwatched_call() -> Iterator[None]:
    """A block in which a model runs that has been noticed to be unwatched."""
    token = _unwatched.set(True)
    try:
        yield
    finally:
        _unwatched.reset(token)


def in_unwatched_call() -> bool:
    """Whether such a model is running here."""
    return _unwatched.get()


def is_quiet() -> bool:
    """Whether forwards that no counter counts are meant to be so."""
    return _quiet.get()


def quietly(work: Callable[[], T]) -> T:
    """The result of `work`, run where no counter is active and none complains."""

    def run() -> T:
        _quiet.set(True)
        return work()

    return Context().run(run)
