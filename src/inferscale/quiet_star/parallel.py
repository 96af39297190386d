"""Thoughts from many positions at once: through one mask, or folded into the batch; `selfcheck` decides which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from . import cache as caches
from .backbone import Backbone, positions_of
from .masks import Slots, additive, block_mask, thought_mask

Way: TypeAlias = Literal["mask", "mask_by_kind", "fold"]
"""How thoughts run in parallel: one 4D mask, one for each kind of layer, or every thought as a row of the batch."""


@dataclass
class TextPass:
    """A text that the model has read.

    Attributes:
        embeds: Input embeddings, `[rows, text, hidden]`.
        keep: Which tokens are not padding, bool `[rows, text]`; ``None`` for all.
        hidden: Last hidden states, those of the plain model, `[rows, text, hidden]`.
        cache: Its keys and values; ``None`` if none are kept.
    """

    embeds: Tensor
    keep: Tensor | None
    hidden: Tensor
    cache: Any = None

    def repeated(self, times: int) -> TextPass:
        """Every row `times` times in a row. The cache is extended in place: do not use this pass any more."""
        if times == 1:
            return self
        rows = torch.arange(len(self.embeds), device=self.embeds.device).repeat_interleave(times)
        if self.cache is not None:
            caches.select_rows(self.cache, rows)
        keep = None if self.keep is None else self.keep[rows]
        return TextPass(self.embeds[rows], keep, self.hidden[rows], self.cache)


def read_text(backbone: Backbone, embeds: Tensor, keep: Tensor | None, way: Way) -> TextPass:
    """The text's hidden states, by the model's own forward without any mask of ours."""
    cached = way != "fold" and not backbone.recomputes
    cache = backbone.new_cache() if cached else None
    positions = positions_of(keep, embeds.shape[1], embeds.device)
    hidden = backbone.states(embeds, None if keep is None else keep.long(), positions, cache)
    return TextPass(embeds, keep, hidden, cache)


class Session(Protocol):
    """Thoughts of one text that grow token by token."""

    def feed(self, embeds: Tensor) -> Tensor:
        """Hidden states of the next tokens of every thought, `[rows, positions, new, hidden]`, from embeddings."""

    def close(self) -> None:
        """Leaves the text as it was."""


class MaskedSession:
    """All thoughts in one row, kept apart by the mask; keys and values are kept from one call to the next.

    Under gradient checkpointing there is no cache: text and thoughts are read again in every call.
    """

    def __init__(self, backbone: Backbone, text: TextPass, positions: Tensor, way: Way) -> None:
        self._backbone, self._text, self._positions = backbone, text, positions
        self._by_kind = way == "mask_by_kind"
        self._keys = Slots.text(text.embeds.shape[1], text.embeds.device)
        self._text_positions = positions_of(text.keep, text.embeds.shape[1], text.embeds.device)
        self._length = 0  # tokens of each thought so far
        self._earlier: list[tuple[Slots, Tensor]] = []

    def feed(self, embeds: Tensor) -> Tensor:
        """Hidden states of the next tokens of every thought, `[rows, positions, new, hidden]`."""
        rows, positions, new, width = embeds.shape
        slots = Slots.thoughts(self._positions, self._length, new)
        self._length += new
        flat = embeds.reshape(rows, positions * new, width)
        if self._text.cache is None:
            self._earlier.append((slots, flat))
            hidden = self._without_cache()[:, -positions * new :]
        else:
            self._keys = self._keys + slots
            hidden = self._backbone.states(flat, self._mask(slots), self._places(slots), self._text.cache)
        return hidden.reshape(rows, positions, new, width)

    def close(self) -> None:
        """Takes the thoughts out of the text's cache."""
        if self._text.cache is not None:
            caches.rollback(self._text.cache, self._length * len(self._positions))

    def _without_cache(self) -> Tensor:
        slots = Slots.text(self._text.embeds.shape[1], self._text.embeds.device)
        parts = [self._text.embeds]
        for earlier, embeds in self._earlier:
            slots, parts = slots + earlier, [*parts, embeds]
        self._keys = slots
        return self._backbone.states(torch.cat(parts, dim=1), self._mask(slots), self._places(slots))

    def _places(self, slots: Slots) -> Tensor:
        """Position ids: a thought goes on where its text stops, `[rows or 1, queries]`."""
        return self._text_positions[:, slots.anchor] + (slots.place - slots.anchor)

    def _mask(self, slots: Slots) -> Any:
        backbone = self._backbone
        if not self._by_kind:
            return self._for_attention(slots, backbone.window)
        return {
            kind: self._for_attention(slots, backbone.window if kind == "sliding_attention" else None)
            for kind in backbone.kinds
        }

    def _for_attention(self, slots: Slots, window: int | None) -> Any:
        attention, keep = self._backbone.attention, self._text.keep
        if attention == "flex_attention":
            return block_mask(slots, self._keys, keep, window)
        mask = thought_mask(slots, self._keys, keep, window)
        mask = mask.expand(len(self._text.embeds), -1, -1, -1)
        return mask if attention == "sdpa" else additive(mask, self._text.embeds.dtype)


class FoldedSession:
    """Every thought as a row of its own, with its text padded on the left: slow, and right for any architecture."""

    def __init__(self, backbone: Backbone, text: TextPass, positions: Tensor, max_rows: int) -> None:
        self._backbone, self._text, self._max_rows = backbone, text, max_rows
        length = text.embeds.shape[1]
        index = torch.arange(length, device=positions.device)[None] - (length - 1 - positions[:, None])
        self._index = index.clamp(min=0)  # [positions, text]
        kept = (index >= 0).expand(len(text.embeds), -1, -1)
        self._keep = kept if text.keep is None else kept & text.keep[:, self._index]  # [rows, positions, text]
        # A padded position has no text at all: let it see itself.
        self._keep = self._keep | ((index == positions[:, None]) & ~self._keep.any(dim=-1, keepdim=True))
        self._fed: list[Tensor] = []

    def feed(self, embeds: Tensor) -> Tensor:
        """Hidden states of the next tokens of every thought, `[rows, positions, new, hidden]`."""
        rows, positions, new, width = embeds.shape
        self._fed.append(embeds)
        thoughts = torch.cat(self._fed, dim=2).flatten(0, 1)
        fed = thoughts.shape[1]
        keep = torch.nn.functional.pad(self._keep.flatten(0, 1), (0, fed), value=True)
        parts = []
        for start in range(0, rows * positions, self._max_rows):
            chosen = slice(start, start + self._max_rows)
            numbers = torch.arange(start, min(chosen.stop, rows * positions), device=embeds.device)
            text = self._text.embeds[(numbers // positions)[:, None], self._index[numbers % positions]]
            parts.append(self._read(torch.cat([text, thoughts[chosen]], dim=1), keep[chosen])[:, -new:])
        return torch.cat(parts).reshape(rows, positions, new, width)

    def close(self) -> None:
        """Nothing to put back."""

    def _read(self, embeds: Tensor, keep: Tensor) -> Tensor:
        first = int(keep.int().argmax(dim=1).min())  # columns that are padding in every row
        keep, embeds = keep[:, first:], embeds[:, first:]
        mask = None if bool(keep.all()) else keep.long()
        return self._backbone.states(embeds, mask, positions_of(keep, keep.shape[1], keep.device))


def open_session(backbone: Backbone, text: TextPass, positions: Tensor, way: Way, max_rows: int) -> Session:
    """Thoughts that begin at `positions` (indices into the text, `[m]`)."""
    if way == "fold":
        return FoldedSession(backbone, text, positions, max_rows)
    return MaskedSession(backbone, text, positions, way)
