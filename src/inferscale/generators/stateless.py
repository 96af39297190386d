"""The plain way to run a batch: left padding, a `DynamicCache` for one call, nothing kept after it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inferscale._caches import cache_argument

from .branch import Branch
from .decoder import Decoder, GeneratorStats


class StatelessDecoder(Decoder):
    """Next-token logits for rows that grow token by token; every call starts from whole prefixes.

    Slow and simple: the reference for `TreeDecoder`, and what serves the models that it cannot. A model whose output
    has no key-value cache, or one that cannot give up rows (state-space models), reads whole sequences for each token.
    """

    follows_branches = False

    def __init__(self, model: Any, stats: GeneratorStats) -> None:
        self._model = model
        self._stats = stats
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = cache_argument(model)
        self._cache: Any = None
        self._caches = True
        self._ids = torch.empty(0)
        self._mask = torch.empty(0)

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch."""
        prefixes = [branch.prefix for branch in branches]
        self._stats.prefill_tokens += sum(map(len, prefixes))
        width = max(map(len, prefixes))
        ids = [[0] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
        mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
        self._cache, self._caches = None, True
        self._ids = torch.tensor(ids, device=self._model.device)
        self._mask = torch.tensor(mask, device=self._model.device)
        logits = self._forward(self._ids)
        self._caches = _can_drop_rows(self._cache)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        return self._forward(tokens[:, None] if self._caches else self._ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        index = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        self._mask, self._ids = self._mask[index], self._ids[index]
        if not rows:
            self._cache = None
        elif self._caches:
            self._cache.batch_select_indices(index)

    def make_room(self) -> None:
        """Drops the cache."""
        self._cache = None

    def _forward(self, ids: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        if "position_ids" in self._parameters:
            positions = self._mask.cumsum(dim=1) - 1
            options["position_ids"] = positions[:, -ids.shape[1] :].clamp(min=0)
        if "logits_to_keep" in self._parameters:
            options["logits_to_keep"] = 1
        if self._cache is not None and self._caches:
            options[self._cache_argument] = self._cache
        output = self._model(input_ids=ids, attention_mask=self._mask, use_cache=self._caches, **options)
        self._cache = output.get(self._cache_argument)
        logits: Tensor = output.logits[:, -1]
        return logits


def _can_drop_rows(cache: Any) -> bool:
    """Whether the cache is there, and each of its layers can go on with some of its rows."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)
