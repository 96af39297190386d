"""What a forward was asked to do, read from its arguments without touching a tensor's values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from inferscale._caches import CACHE_NAMES

from .formulas import PackedRows
from .ledger import Phase, Tally, forward_sizes, forward_tally, packed_tally, phase_of
from .spec import ModelSpec


class Reading(NamedTuple):
    """The sizes of one forward.

    Attributes:
        new: New tokens in each row.
        past: Cached tokens of each row.
        batch: Rows.
        logits: Positions of each row that the head runs for; ``None`` for all.
        keeps_all: Whether the cache keeps what has left the model's window.
        packed: The rows that one sequence stands for, if the cache packs rows.
        opaque: Whether the cache holds its keys and values elsewhere, and does not tell what attention does.
    """

    new: int
    past: int
    batch: int
    logits: int | None = None
    keeps_all: bool = False
    packed: PackedRows | None = None
    opaque: bool = False

    @property
    def phase(self) -> Phase:
        """The phase of the forward."""
        if self.packed is not None:
            return phase_of(self.new // self.packed.rows, self.packed.read_tokens)
        return phase_of(self.new, self.past)

    def tally(self, spec: ModelSpec | None) -> Tally:
        """The tally of the forward; without a closed form, only its sizes."""
        if self.packed is not None:
            return packed_tally(spec, self.new, self.new if self.logits is None else self.logits, self.packed)
        if spec is None:
            return forward_sizes(self.new, self.past, self.batch, self.logits)
        return forward_tally(spec, self.new, self.past, self.batch, self.logits, self.keeps_all)


def _has_layers(cache: Any) -> bool:
    """Whether a cache is transformers', and holds (or will hold) its keys and values in layers of its own."""
    layers = getattr(cache, "layers", None)
    return layers is not None and bool(layers or getattr(cache, "layer_class_to_replicate", None) is not None)


class Reader:
    """Reads the arguments of one model's ``forward``; only Python integers, so a GPU is never waited for.

    One exception: a `StaticCache` holds its length on the device. It is read once for each forward of several tokens
    and counted on from there.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        names = list(inspect.signature(module.forward).parameters)
        self._position = {name: index for index, name in enumerate(names)}
        self._keeps_logits = "logits_to_keep" in names or "num_logits_to_keep" in names
        config = getattr(module, "config", None)
        text = getattr(config, "text_config", None) or config
        self._has_window = getattr(text, "sliding_window", None) is not None
        self._static: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Reading | None:
        """The sizes of the call, or ``None`` if it has neither ``input_ids`` nor ``inputs_embeds``."""
        tokens = self._argument("input_ids", args, kwargs)
        if tokens is None:
            tokens = self._argument("inputs_embeds", args, kwargs)
        if tokens is None or tokens.dim() < 2:
            return None
        batch, new = tokens.shape[:2]
        cache = next((c for n in CACHE_NAMES if (c := self._argument(n, args, kwargs)) is not None), None)
        kept = self._kept(args, kwargs, new)
        if cache is None:
            return Reading(new, 0, batch, kept)
        packed = getattr(cache, "packed_rows", None)
        if packed is not None:
            return Reading(new, 0, batch, kept, packed=packed)
        if not _has_layers(cache):
            return Reading(new, 0, batch, kept, opaque=True)
        keeps_all = self._has_window and not any(cache.is_sliding)
        return Reading(new, self._past(cache, new), batch, kept, keeps_all)

    def _argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        position = self._position.get(name, len(args))
        return args[position] if position < len(args) else None

    def _kept(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], new: int) -> int | None:
        """Positions that the head runs for; 0 means all, as in transformers."""
        if not self._keeps_logits:
            return None
        kept = self._argument("logits_to_keep", args, kwargs)
        if isinstance(kept, torch.Tensor):
            return kept.numel()
        return min(int(kept), new) if kept else None

    def _past(self, cache: Any, new: int) -> int:
        """Tokens that the cache holds."""
        length = cache.get_seq_length()
        if not isinstance(length, torch.Tensor):
            return int(length)
        known = self._static.get(cache)
        if known is None or new > 1:
            known = int(length)
        self._static[cache] = known + new
        return known
