"""Taking thoughts back out of a key-value cache, exactly or not at all."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer


class RollbackError(RuntimeError):
    """A cache cannot be put back as it was."""


def new_cache(config: Any, attention_only: bool) -> Any:
    """An empty cache that can be rolled back where the architecture allows it at all.

    Args:
        config: The model's configuration.
        attention_only: Whether all layers are softmax attention. They get plain layers, which keep every key (a
            sliding window is then the mask's business); other layers get what the configuration asks for.
    """
    if attention_only:
        return DynamicCache()
    cache = DynamicCache(config=config)
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()  # type: ignore[no-untyped-call]
    return cache


def is_croppable(cache: Any) -> bool:
    """Whether `rollback` can serve this cache; ask after the first forward."""
    return all(_layer_is_croppable(layer) for layer in cache.layers)


def _layer_is_croppable(layer: Any) -> bool:
    if isinstance(layer, StaticLayer):
        return type(layer) is StaticLayer
    if getattr(layer, "is_sliding", False) and not getattr(layer, "record_past", False):
        return bool(layer.get_seq_length() < layer.sliding_window)
    return bool(getattr(layer, "is_croppable", isinstance(layer, DynamicLayer)))


def rollback(cache: Any, tokens: int) -> None:
    """Removes the last `tokens` tokens of every row; what is left is what was there before them.

    Raises:
        RollbackError: If a layer cannot forget (a recurrent state, a full sliding window of fixed size): nothing is
            removed then. Work on a `fork` instead.
    """
    if tokens < 0:
        raise ValueError(f"rollback({tokens}): give the number of tokens to remove")
    if tokens == 0:
        return
    if not is_croppable(cache):
        stuck = sorted({type(layer).__name__ for layer in cache.layers if not _layer_is_croppable(layer)})
        raise RollbackError(f"layers of type {', '.join(stuck)} cannot be rolled back: think on a fork() of the cache")
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            if layer.is_initialized:
                layer.cumulative_length.sub_(tokens)  # stale slots after the end are masked
        else:
            layer.crop(-tokens)


def fork(cache: Any, rows: Tensor) -> Any:
    """A copy that holds these rows in this order (a row may come more than once); the original stays as it is."""
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        other = copy.copy(cache)  # keys and values are replaced, never written to: sharing them is safe
        other.layers = [copy.copy(layer) for layer in cache.layers]
    else:
        other = copy.deepcopy(cache)
    select_rows(other, rows)
    return other


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keeps these rows in this order; a row may come more than once.

    Raises:
        RollbackError: If the cache has a fixed batch.
    """
    if isinstance(cache, StaticCache):
        raise RollbackError("a StaticCache has a fixed batch: use a DynamicCache")
    cache.reorder_cache(rows)
