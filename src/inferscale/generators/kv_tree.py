"""Prefixes forwarded once: a prompt's keys and values held once per problem, each live row's suffix held in place.

A `Session` runs one model. `Session.prefill` reads prompts into `Segment`s; a `RowBatch` holds rows that continue
them; `Session.extend` reads further tokens, any number for each row; `RowBatch.select` is the one operation for
branching, pruning, reordering and compacting.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from inferscale._caches import cache_argument

from .kv_attention import NAME, Plan, PlanCache, UnsupportedModelError, running
from .kv_plans import PromptPlan, RowPlan
from .kv_rows import Buffers, RowBatch, Segment

_PREFILL_TOKENS = 8192  # packed prompt tokens in one forward

_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()


class Session:
    """Runs one unmodified model on segments and rows.

    Attributes:
        model: The model.
        tokens: Tokens forwarded so far.
        buffers: Memory for rows.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokens = 0
        self.buffers = Buffers()
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = cache_argument(model)
        if "position_ids" not in self._parameters:
            raise UnsupportedModelError(f"{type(model).__name__} takes no position_ids")
        self._layers = int(model.config.get_text_config().num_hidden_layers)
        self._configs = _configs(model)
        self._lock = _locks.setdefault(model, threading.RLock())
        self._like: Tensor | None = None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Segment]:
        """One segment for each prompt; prompts are packed, without padding."""
        segments: list[Segment] = []
        for chunk in _chunks(prompts, _PREFILL_TOKENS):
            filled = [ids for ids in chunk if ids]
            kv: list[Tensor] = []
            if filled:
                plan = PromptPlan([len(ids) for ids in filled], self._layers)
                self._forward(
                    plan, [i for ids in filled for i in ids], [p for ids in filled for p in range(len(ids))], [0]
                )
                kv = plan.kv
                self._like = kv[0]
            pieces = iter(kv)
            segments += [Segment(next(pieces) if ids else None, len(ids)) for ids in chunk]
        return segments

    def open(self, segments: Sequence[Segment], capacity: int) -> RowBatch:
        """Rows without private tokens, one for each of `segments`, with room for `capacity` tokens."""
        if self._like is None:
            self.prefill([[0]])
        assert self._like is not None
        kv = self.buffers.take(self._like[:, :, None], len(segments), capacity)
        return RowBatch(segments, kv, [0] * len(segments), self.buffers)

    def extend(
        self, batch: RowBatch, tokens: Sequence[Sequence[int]], marks: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Reads `tokens` of each row; logits `[marks, outputs]` at the marked ones.

        Args:
            batch: Rows.
            tokens: At least one id for each row.
            marks: For each row the places in its `tokens` to give logits for; by default the last one.
        """
        counts = [len(ids) for ids in tokens]
        ends = list(accumulate(counts))
        starts = [end - count for end, count in zip(ends, counts, strict=True)]
        if marks is None:
            kept = [end - 1 for end in ends]
        else:
            kept = [start + mark for start, places in zip(starts, marks, strict=True) for mark in places]
        return self._extend(batch, range(len(batch)), [i for ids in tokens for i in ids], counts, kept)

    def step(self, batch: RowBatch, rows: Sequence[int], tokens: Tensor) -> Tensor:
        """One more token `[rows]` in each of `rows`; logits `[rows, vocabulary]`."""
        return self._extend(batch, rows, tokens, [1] * len(rows), range(len(rows)))

    def _extend(
        self,
        batch: RowBatch,
        rows: Sequence[int],
        ids: Sequence[int] | Tensor,
        counts: Sequence[int],
        kept: Sequence[int],
    ) -> Tensor:
        batch.reserve(max(batch.lengths[row] + count for row, count in zip(rows, counts, strict=True)))
        plan = RowPlan(batch, rows, counts)
        logits = self._forward(plan, ids, plan.absolute, kept)
        for row, count in zip(rows, counts, strict=True):
            batch.lengths[row] += count
        return logits

    def _forward(
        self, plan: Plan, ids: Sequence[int] | Tensor, positions: Sequence[int], kept: Sequence[int]
    ) -> Tensor:
        """Logits `[kept, outputs]` of one packed forward."""
        device = self.model.device
        packed = ids if isinstance(ids, Tensor) else torch.tensor(ids, device=device)
        self.tokens += len(packed)
        options: dict[str, Any] = {}
        everything = len(kept) == len(packed)
        if "logits_to_keep" in self._parameters and not everything:
            options["logits_to_keep"] = torch.tensor(kept, dtype=torch.long, device=device)
            everything = True
        cache = PlanCache(plan)
        with self._lock, _attending(self._configs), running(cache):
            output = self.model(
                input_ids=packed[None],
                position_ids=torch.tensor(positions, device=device)[None],
                use_cache=True,
                **{self._cache_argument: cache},
                **options,
            )
        if cache.attended != self._layers:
            raise UnsupportedModelError(f"{cache.attended} of {self._layers} layers attend through AttentionInterface")
        logits: Tensor = output.logits[0]
        return logits if everything else logits[torch.tensor(kept, dtype=torch.long, device=device)]


def _configs(model: Any) -> list[Any]:
    """The configurations that the model's parts look their attention up in."""
    found = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


@contextmanager
def _attending(configs: Sequence[Any]) -> Iterator[None]:
    """Lets the model use `tree_attention` for one forward."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _chunks(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Consecutive prompts, at most `most` tokens together unless one alone has more."""
    chunk: list[Sequence[int]] = []
    for ids in prompts:
        if chunk and sum(map(len, chunk)) + len(ids) > most:
            yield chunk
            chunk = []
        chunk.append(ids)
    if chunk:
        yield chunk
