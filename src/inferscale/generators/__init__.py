"""Generators: where samples come from.

Names load when they are first used: a generator that asks a server needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscale._compat import late_names

if TYPE_CHECKING:
    from inferscale._http import RemoteError
    from inferscale.runtime.decoding import GeneratorStats
    from inferscale.runtime.loading import CheckpointError
    from inferscale.runtime.sampling import Draws, Sampler, TokenSampler, inverse_cdf
    from inferscale.runtime.session import SearchMemoryError

    from .huggingface import HFGenerator
    from .openai import OpenAIGenerator
    from .vllm import VLLMGenerator

_HOME = {
    "CheckpointError": "inferscale.runtime.loading",
    "Draws": "inferscale.runtime.sampling",
    "GeneratorStats": "inferscale.runtime.decoding",
    "HFGenerator": "inferscale.generators.huggingface",
    "OpenAIGenerator": "inferscale.generators.openai",
    "RemoteError": "inferscale._http",
    "Sampler": "inferscale.runtime.sampling",
    "SearchMemoryError": "inferscale.runtime.session",
    "TokenSampler": "inferscale.runtime.sampling",
    "VLLMGenerator": "inferscale.generators.vllm",
    "inverse_cdf": "inferscale.runtime.sampling",
}

__all__ = [
    "CheckpointError",
    "Draws",
    "GeneratorStats",
    "HFGenerator",
    "OpenAIGenerator",
    "RemoteError",
    "Sampler",
    "SearchMemoryError",
    "TokenSampler",
    "VLLMGenerator",
    "inverse_cdf",
]


__getattr__ = late_names(__name__, _HOME)
