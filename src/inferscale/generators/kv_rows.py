"""Keys and values at rest: prefixes that rows share, and the rows' own suffixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROOM = 32  # private tokens that a batch starts with beyond what it holds


@dataclass(eq=False)
class Segment:
    """Keys and values of a prefix that many rows share.

    Attributes:
        kv: `[layers, 2, kv_heads, tokens, head_dim]`; ``None`` for an empty prefix.
        length: Number of tokens.
    """

    kv: Tensor | None
    length: int

    @property
    def bytes(self) -> int:
        """Size of the keys and values."""
        return 0 if self.kv is None else self.kv.numel() * self.kv.element_size()


class RowBatch:
    """Live rows: each continues a segment, rows of a segment stand together.

    Attributes:
        segments: The segment of each row.
        lengths: Private tokens of each row.
        kv: `[layers, 2, rows, kv_heads, capacity, head_dim]`, written in place; no row reads beyond its length.
    """

    def __init__(self, segments: Sequence[Segment], kv: Tensor, lengths: Sequence[int]) -> None:
        self.segments = list(segments)
        self.kv = kv
        self.lengths = list(lengths)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.segments)

    @property
    def bytes(self) -> int:
        """Size of the private keys and values."""
        return self.kv.numel() * self.kv.element_size()

    def load(self, row: int, start: int, kv: Tensor) -> None:
        """Copies `kv`, `[layers, 2, kv_heads, tokens, head_dim]`, into a row's private tokens from `start` on."""
        self.kv[:, :, row, :, start : start + kv.shape[3]] = kv
        self.lengths[row] = start + kv.shape[3]

    def piece(self, row: int, start: int, stop: int) -> Tensor:
        """A copy of a row's private keys and values, `[layers, 2, kv_heads, tokens, head_dim]`."""
        return self.kv[:, :, row, :, start:stop].clone()

    def select(self, rows: Sequence[int], capacity: int = 0) -> RowBatch:
        """A batch of these rows, in this order, with repeats: branch, prune, reorder and compact in one."""
        lengths = [self.lengths[row] for row in rows]
        used = max(lengths, default=0)
        kv = _empty(self.kv, len(rows), max(capacity, used + _ROOM))
        index = torch.tensor(rows, dtype=torch.long, device=kv.device)
        kv[:, :, :, :, :used] = self.kv[:, :, :, :, :used].index_select(2, index)
        return RowBatch([self.segments[row] for row in rows], kv, lengths)

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` private tokens in each row."""
        if tokens > self.kv.shape[4]:
            used = max(self.lengths)
            kv = _empty(self.kv, len(self), max(tokens, 2 * self.kv.shape[4]))
            kv[:, :, :, :, :used] = self.kv[:, :, :, :, :used]
            self.kv = kv


def _empty(like: Tensor, rows: int, capacity: int) -> Tensor:
    """Zeros: what a mask hides is still multiplied by 0, which must not meet a NaN of fresh memory."""
    layers, two, _, heads, _, width = like.shape
    return like.new_zeros(layers, two, rows, heads, capacity, width)
