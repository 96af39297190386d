"""Notices transformers models that run inside a counter without being watched by it.

While a counter is open, ``PreTrainedModel.__call__`` looks whether the model is watched, and calls on. The alternative,
torch's global module hooks, runs for every module inside of a model (8 % of a tiny model's forward against none that
can be measured here) and makes ``torch.compile`` compile again. A model that was compiled before the counter was opened
goes unnoticed.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import nn

from . import context
from .watch import is_watched

_lock = threading.Lock()
_users = 0
_guarded: list[Any] = []  # the class that is looked after now, or nothing


def start() -> None:
    """Begins to watch out, or notes one more user; does not import transformers for it."""
    global _users
    with _lock:
        _users += 1
        library = sys.modules.get("transformers.modeling_utils")
        if library is not None and not _guarded:
            _guarded.append(library.PreTrainedModel)
            library.PreTrainedModel.__call__ = _call


def stop() -> None:
    """Notes one user less, and puts everything back after the last."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _guarded:
            del _guarded.pop().__call__


def _call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The model's own result."""
    if torch.compiler.is_compiling() or context.running() or not _is_missed(self):
        return nn.Module.__call__(self, *args, **kwargs)
    with context.unwatched_call():  # the models inside of this one are part of the same news
        return nn.Module.__call__(self, *args, **kwargs)


def _is_missed(module: nn.Module) -> bool:
    """Whether counters that are active here do not count `module`; they are told."""
    missed = False
    if not context.in_unwatched_call():
        for counter, _ in context.active():
            if not is_watched(module, counter):
                counter.on_unwatched(type(module).__name__)
                missed = True
    return missed
