"""What releases of transformers name differently: a forward's key-value cache."""

from __future__ import annotations

import inspect
from typing import Any

CACHE_NAMES = ("past_key_values", "cache")  # of caches that hold keys and values


def cache_argument(module: Any) -> str:
    """The name under which ``module.forward`` takes its cache, and its output returns it.

    ``"past_key_values"`` (or ``"cache_params"`` for state-space models) up to transformers 5.23, ``"cache"`` since; a
    model of your own may use any of them. A forward that shows none of them takes ``"past_key_values"``.
    """
    takes = inspect.signature(module.forward).parameters
    return next((name for name in (*CACHE_NAMES, "cache_params") if name in takes), CACHE_NAMES[0])
