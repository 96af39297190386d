"""Who may see whom when every position thinks at once (pure functions).

Text sees text before it. A thought of position j sees the text up to j and its own earlier tokens, nothing else: text
never sees a thought, and thoughts of different positions never see each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TEXT = -1


@dataclass(frozen=True, slots=True)
class Slots:
    """Tokens in one long row, text or thought.

    Attributes:
        owner: Which thought a token belongs to, -1 for text; int64 `[n]`.
        anchor: Index in the text: its own for text, that of the thinking position for a thought; int64 `[n]`.
        step: Place in the thought, from 0; 0 for text; int64 `[n]`.
    """

    owner: Tensor
    anchor: Tensor
    step: Tensor

    @classmethod
    def text(cls, length: int, device: torch.device) -> Slots:
        """A text of `length` tokens."""
        index = torch.arange(length, device=device)
        return cls(torch.full_like(index, _TEXT), index, torch.zeros_like(index))

    @classmethod
    def thoughts(cls, positions: Tensor, first: int, steps: int) -> Slots:
        """Tokens `first` to ``first + steps - 1`` of a thought at each of `positions`, one thought after another."""
        owner = torch.arange(len(positions), device=positions.device)
        step = torch.arange(first, first + steps, device=positions.device)
        return cls(owner.repeat_interleave(steps), positions.repeat_interleave(steps), step.repeat(len(positions)))

    def __add__(self, other: Slots) -> Slots:
        """These tokens, then the others."""
        return Slots(
            torch.cat([self.owner, other.owner]),
            torch.cat([self.anchor, other.anchor]),
            torch.cat([self.step, other.step]),
        )

    @property
    def place(self) -> Tensor:
        """How many tokens the row would hold before this one if only its own thought were there, `[n]`."""
        return self.anchor + (self.owner >= 0) * (1 + self.step)


def sees(query: Slots, key: Slots, q: Tensor, k: Tensor, window: int | None) -> Tensor:
    """Whether query number `q` sees key number `k` (broadcast), padding aside."""
    text = (key.owner[k] == _TEXT) & (key.anchor[k] <= query.anchor[q])
    own = (key.owner[k] == query.owner[q]) & (query.owner[q] >= 0) & (key.step[k] <= query.step[q])
    visible = text | own
    return visible if window is None else visible & (query.place[q] - key.place[k] < window)


def thought_mask(query: Slots, key: Slots, keep: Tensor | None = None, window: int | None = None) -> Tensor:
    """The mask as one tensor of bools, `[rows or 1, 1, queries, keys]`; true where a query sees a key.

    Args:
        query: The new tokens.
        key: All tokens in the order of the cache, the new ones last.
        keep: Which text tokens are not padding, bool `[rows, text]`; ``None`` for all. The text is first in `key`.
        window: Positions that a query sees, itself included; ``None`` for all.
    """
    q = torch.arange(len(query.owner), device=query.owner.device)[:, None]
    k = torch.arange(len(key.owner), device=query.owner.device)[None]
    visible = sees(query, key, q, k, window)[None, None]
    if keep is None:
        return visible
    kept = torch.nn.functional.pad(keep, (0, len(key.owner) - keep.shape[1]), value=True)
    # A padded text token still sees itself, so that no row is empty: a NaN would survive a weight of 0.
    itself = (key.owner[k] == query.owner[q]) & (key.place[k] == query.place[q])
    return (visible & kept[:, None, None]) | itself


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add to attention scores: 0 where visible, the least finite number elsewhere.

    Eager attention adds whatever it is given: a mask of bools would be silently wrong there.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def block_mask(query: Slots, key: Slots, keep: Tensor | None = None, window: int | None = None) -> Any:
    """The same visibility for FlexAttention, a ``BlockMask``: blocks that nobody sees are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    text = 0 if keep is None else keep.shape[1]

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = sees(query, key, q, k, window)
        if keep is None:
            return seen
        kept = (k >= text) | keep[batch, k.clamp(max=text - 1)]
        return (seen & kept) | ((key.owner[k] == query.owner[q]) & (key.place[k] == query.place[q]))

    rows = None if keep is None else keep.shape[0]
    return create_block_mask(visible, rows, None, len(query.owner), len(key.owner), device=query.owner.device)
