"""Hooks that tell counters about the forwards of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from . import context
from .context import Call
from .ledger import Scope
from .reading import Reader, Reading
from .targets import Target, bodies_of, head_of, unwrap


class Listener(Protocol):
    """A counter, as hooks see it."""

    def watches(self, watch: Watch) -> bool:
        """Whether the counter counts this model."""

    def on_forward(self, call: Call, scope: Scope, reading: Reading) -> None:
        """A forward begins."""

    def on_head(self, call: Call, scope: Scope, positions: int) -> None:
        """The last matrix begins to run on its own, for `positions`."""

    def on_extra(self, call: Call, scope: Scope, flops: int) -> None:
        """A linear layer beside the model begins to run."""

    def on_end(self, call: Call, completed: bool) -> None:
        """A forward has ended, with a result or with an exception."""

    def on_missed(self, what: str, advice: str) -> None:
        """Something ran that the counter does not count."""


class Watch:
    """The hooks of one model, shared by all open counters that watch it.

    The model may be called as a whole, or its body and its last matrix on their own; a part that runs inside of the
    whole is not counted again. The hook on the whole is kept out of compiled graphs, where those on the parts do
    nothing.

    Attributes:
        module: The model.
        listeners: The open counters that watch it.
        parts: Ids of the modules inside, itself included.
    """

    def __init__(self, target: Target) -> None:
        module = self.module = target.module
        self.listeners: list[Listener] = []
        self.parts = frozenset(map(id, module.modules()))
        self._reader = Reader(unwrap(module))
        self._handles: list[Any] = []
        self._hook(module, _disable(self._before), _disable(self._after))
        self._body_readers = {body: Reader(body) for body in bodies_of(module)}
        for body in self._body_readers:
            self._hook(body, self._before_body, self._after)
        head = head_of(module)
        if head is not None:
            self._hook(head, self._before_head, self._after_head)
        for extra in target.extras:
            self._hook(extra, self._before_extra, self._after)

    def remove(self) -> None:
        """Takes the hooks away again."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=True),
        ]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._begin(module, self._reader.read(args, kwargs))

    def _before_body(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and context.running_call(self) is None:
            reading = self._body_readers[module].read(args, kwargs)
            self._begin(module, reading and reading._replace(logits=0))

    def _begin(self, module: nn.Module, reading: Reading | None) -> None:
        """Tells the counters that count here of a forward."""
        call = Call(self, module, "chunk" if reading is None else reading.phase)
        context.begin_call(call)
        for counter, scope in self._counting():
            if reading is None:
                counter.on_missed(
                    f"{type(module).__name__} called with neither input_ids nor inputs_embeds", 'use mode="exact"'
                )
            else:
                counter.on_forward(call, scope, reading)

    def _before_head(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        call = context.running_call(self)
        if call is not None:
            call.in_head = True
            return
        call, states = Call(self, module, "head", in_head=True), _input(args, kwargs)
        context.begin_call(call)
        for counter, scope in self._counting():
            counter.on_head(call, scope, states.numel() // states.shape[-1])

    def _before_extra(self, module: nn.Linear, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and context.running_call(self) is None:
            call = Call(self, module, "head")
            context.begin_call(call)
            for counter, scope in self._counting():
                counter.on_extra(call, scope, 2 * _input(args, kwargs).numel() * module.out_features)

    def _counting(self) -> list[tuple[Listener, Scope]]:
        """The counters that watch this model and count here; its listeners hear of it if there is none."""
        counting = [(counter, scope) for counter, scope in context.active() if counter.watches(self)]
        if not counting and not context.is_quiet():
            for listener in self.listeners:
                listener.on_missed(
                    f"{type(self.module).__name__} in a thread or task where its counter is not active",
                    "give the thread counter.bind(function), or open `with counter.scope(...)` there",
                )
        return counting

    def _after(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if torch.compiler.is_compiling():
            return
        call = context.end_call(self, module)
        if call is not None:
            for counter, _ in context.active():
                if counter.watches(self):
                    counter.on_end(call, completed=result is not None)

    def _after_head(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        call = None if torch.compiler.is_compiling() else context.running_call(self)
        if call is not None and call.module is not module:
            call.in_head = False
        else:
            self._after(module, args, result)


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The one tensor that a linear layer is called with."""
    states: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    return states


def _disable(hook: Callable[..., None]) -> Callable[..., None]:
    """`hook`, called from compiled code and never traced."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


_watches: dict[int, Watch] = {}
_lock = threading.Lock()


def acquire(target: Target, listener: Listener) -> Watch:
    """The hooks of a model, installed if no open counter watched it yet."""
    with _lock:
        watch = _watches.get(id(target.module))
        if watch is None:
            watch = _watches[id(target.module)] = Watch(target)
        watch.listeners.append(listener)
        return watch


def release(watch: Watch, listener: Listener) -> None:
    """Takes the hooks away if no other open counter watches the model."""
    with _lock:
        watch.listeners.remove(listener)
        if not watch.listeners:
            watch.remove()
            del _watches[id(watch.module)]


def is_watched(module: nn.Module, listener: Listener) -> bool:
    """Whether `module` is, or is a part of, a model that `listener` counts."""
    whole = _watches.get(id(module))
    if whole is not None and listener.watches(whole):
        return True
    return any(id(module) in watch.parts and listener.watches(watch) for watch in tuple(_watches.values()))


def watch_of(module: nn.Module) -> Watch | None:
    """The hooks of `module`, if an open counter watches it."""
    return _watches.get(id(module))
