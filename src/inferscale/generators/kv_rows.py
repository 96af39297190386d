"""Keys and values at rest: prefixes that rows share, and the rows' own suffixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROOM = 32  # private tokens that a batch starts with beyond what it holds, if more are to come


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


class Buffers:
    """Hands out memory for rows, and takes it back: fresh memory costs page faults at every step of a search.

    On a GPU nothing is kept here, since torch's allocator keeps what is freed.

    What is handed out holds zeros or old keys and values, never the NaNs that fresh memory may hold: what a mask hides
    is still multiplied by 0.
    """

    def __init__(self) -> None:
        self._spare: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """Size of the memory that waits for use."""
        return sum(flat.numel() * flat.element_size() for flat in self._spare)

    def take(self, like: Tensor, rows: int, capacity: int) -> Tensor:
        """A tensor `[layers, 2, rows, kv_heads, capacity, head_dim]` of the kind of `like`."""
        layers, two, _, heads, _, width = like.shape
        shape = (layers, two, rows, heads, capacity, width)
        size = layers * two * rows * heads * capacity * width
        for place, flat in enumerate(self._spare):
            if size <= flat.numel() <= 4 * size and (flat.dtype, flat.device) == (like.dtype, like.device):
                return self._spare.pop(place)[:size].view(shape)
        return like.new_zeros(size).view(shape)

    def give(self, kv: Tensor) -> None:
        """Takes memory back that nobody reads any more; the newest is kept, and the one before if it is no smaller."""
        if kv.device.type != "cpu":
            return
        flat = kv.new_empty(0).set_(kv.untyped_storage())
        self._spare = [*(old for old in self._spare[-1:] if old.numel() >= flat.numel()), flat]

    def clear(self) -> None:
        """Lets go of what waits for use."""
        self._spare = []


class RowBatch:
    """Live rows: each continues a segment, rows of a segment stand together.

    Attributes:
        segments: The segment of each row.
        lengths: Private tokens of each row.
        bases: Tokens of each row's segment.
        kv: `[layers, 2, rows, kv_heads, capacity, head_dim]`, written in place; no row reads beyond its length.
        buffers: Where the memory comes from.
    """

    def __init__(
        self, segments: Sequence[Segment], kv: Tensor, lengths: Sequence[int] | NDArray[np.int64], buffers: Buffers
    ) -> None:
        self.segments = list(segments)
        self.kv = kv
        self.lengths = np.array(lengths, dtype=np.int64)
        self.bases = np.array([segment.length for segment in segments], dtype=np.int64)
        self.buffers = buffers
        self._runs = np.cumsum([i > 0 and s.kv is not segments[i - 1].kv for i, s in enumerate(segments)])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.segments)

    @property
    def bytes(self) -> int:
        """Size of the private keys and values, room for more included."""
        return self.kv.numel() * self.kv.element_size()

    @property
    def live_bytes(self) -> int:
        """Size of what the rows hold: their private tokens, and every segment once."""
        shared = {id(segment.kv): segment.bytes for segment in self.segments}
        per_token = self.bytes // max(len(self) * self.kv.shape[4], 1)
        return int(self.lengths.sum()) * per_token + sum(shared.values())

    def load(self, row: int, start: int, kv: Tensor) -> None:
        """Copies `kv`, `[layers, 2, kv_heads, tokens, head_dim]`, into a row's private tokens from `start` on."""
        self.kv[:, :, row, :, start : start + kv.shape[3]] = kv
        self.lengths[row] = start + kv.shape[3]

    def piece(self, row: int, start: int, stop: int) -> Tensor:
        """A copy of a row's private keys and values, `[layers, 2, kv_heads, tokens, head_dim]`."""
        return self.kv[:, :, row, :, start:stop].clone()

    def runs(self, rows: NDArray[np.int64]) -> list[tuple[Segment, int, int]]:
        """Runs of `rows` that continue the same segment: the segment, and where the run starts and stops."""
        edges = np.flatnonzero(np.diff(self._runs[rows])) + 1
        starts = [0, *edges.tolist()]
        return [
            (self.segments[rows[start]], start, stop)
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)
        ]

    def select(self, rows: Sequence[int]) -> RowBatch:
        """A batch of these rows, in this order, with repeats: branch, prune, reorder and compact in one.

        The old batch must not be used again.
        """
        return RowBatch.gathered([(self, rows)])

    @staticmethod
    def gathered(parts: Sequence[tuple[RowBatch, Sequence[int]]], room: int = ROOM) -> RowBatch:
        """One batch of rows of several, see `select`, with room for `room` tokens more; the old ones are closed."""
        lengths = np.concatenate([batch.lengths[list(rows)] for batch, rows in parts])
        first = parts[0][0]
        kv = first.buffers.take(first.kv, len(lengths), int(lengths.max(initial=0)) + room)
        start = 0
        for batch, rows in parts:
            used = int(batch.lengths[list(rows)].max(initial=0))
            index = torch.tensor(rows, dtype=torch.long, device=kv.device)
            kv[:, :, start : start + len(rows), :, :used] = batch.kv[:, :, :, :, :used].index_select(2, index)
            start += len(rows)
        segments = [batch.segments[row] for batch, rows in parts for row in rows]
        for batch, _ in parts:
            batch.close()
        return RowBatch(segments, kv, lengths, first.buffers)

    def rollback(self, counts: Sequence[int]) -> None:
        """Forgets the newest private tokens of each row, as many as `counts` says.

        Raises:
            ValueError: If a row has fewer.
        """
        left = self.lengths - np.array(counts, dtype=np.int64)
        if (left < 0).any() or (left > self.lengths).any():
            raise ValueError(f"rollback({list(counts)}): the rows have {self.lengths.tolist()} private tokens")
        self.lengths = left

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` private tokens in each row."""
        if tokens > self.kv.shape[4]:
            used = int(self.lengths.max())
            kv = self.buffers.take(self.kv, len(self), max(tokens, 2 * self.kv.shape[4]))
            kv[:, :, :, :, :used] = self.kv[:, :, :, :, :used]
            self.buffers.give(self.kv)
            self.kv = kv

    def close(self) -> None:
        """Gives the memory back; the batch must not be used again."""
        self.buffers.give(self.kv)
        self.segments, self.lengths = [], self.lengths[:0]
