"""The plain way to run a batch: left padding, a `DynamicCache` for one call, nothing kept after it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .branch import Branch
from .decoder import Decoder, GeneratorStats


class StatelessDecoder(Decoder):
    """Next-token logits for rows that grow token by token; every call starts from whole prefixes.

    Slow and simple: the reference for `TreeDecoder`, and what serves the models that it cannot.
    """

    def __init__(self, model: Any, stats: GeneratorStats) -> None:
        self._model = model
        self._stats = stats
        self._parameters = inspect.signature(model.forward).parameters
        self._cache: Any = None
        self._mask = torch.empty(0)

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch."""
        prefixes = [branch.prefix for branch in branches]
        self._stats.prefill_tokens += sum(map(len, prefixes))
        width = max(map(len, prefixes))
        ids = [[0] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
        mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
        self._cache = None
        self._mask = torch.tensor(mask, device=self._model.device)
        return self._forward(torch.tensor(ids, device=self._model.device))

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        if not rows:
            self._cache = None
            return
        index = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[index]
        self._cache.batch_select_indices(index)

    def _forward(self, ids: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        if "position_ids" in self._parameters:
            positions = self._mask.cumsum(dim=1) - 1
            options["position_ids"] = positions[:, -ids.shape[1] :].clamp(min=0)
        if "logits_to_keep" in self._parameters:
            options["logits_to_keep"] = 1
        output = self._model(
            input_ids=ids, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **options
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
