"""Generators: where samples come from.

Names load when they are first used: a generator that asks a server needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._remote_retry import RemoteError
    from .decoder import GeneratorStats
    from .huggingface import HFGenerator
    from .loading import CheckpointError
    from .memory import SearchMemoryError
    from .openai import OpenAIGenerator
    from .sampling import Sampler
    from .vllm import VLLMGenerator

_HOME = {
    "CheckpointError": "loading",
    "GeneratorStats": "decoder",
    "HFGenerator": "huggingface",
    "OpenAIGenerator": "openai",
    "RemoteError": "_remote_retry",
    "Sampler": "sampling",
    "SearchMemoryError": "memory",
    "VLLMGenerator": "vllm",
}

__all__ = [
    "CheckpointError",
    "GeneratorStats",
    "HFGenerator",
    "OpenAIGenerator",
    "RemoteError",
    "Sampler",
    "SearchMemoryError",
    "VLLMGenerator",
]


def __getattr__(name: str) -> Any:
    """A public name, loaded now."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
