"""What one forward of a `Session` does with its keys, values and queries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferscale.flops.formulas import PackedRows

from .kv_attention import Plan, causal_attention, join, partial_attention
from .kv_rows import RowBatch, Segment

_BLOCK = 16  # rows whose private parts are padded to the same length


class PromptPlan(Plan):
    """Several prompts in one packed sequence, each causal on its own, all after the same prefix (it may be empty).

    Attributes:
        kv: Keys and values of each prompt, the prefix included, `[layers, 2, kv_heads, tokens, head_dim]`.
    """

    def __init__(self, lengths: Sequence[int], layers: int, prefix: Segment) -> None:
        ends = list(accumulate(lengths))
        self._spans = list(zip([0, *ends], ends, strict=False))
        self._lengths = list(lengths)
        self._layers = layers
        self._prefix = prefix
        self.kv: list[Tensor] = []

    @property
    def work(self) -> PackedRows:
        """Each prompt's square, half of which a causal mask lets through, and every query against the prefix."""
        shared = sum(self._lengths) * self._prefix.length
        causal = sum(n * (n + 1) // 2 for n in self._lengths)
        squares = sum(n * n for n in self._lengths)
        return PackedRows(len(self._lengths), causal + shared, squares + shared, self._prefix.length)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Each prompt against itself and the prefix."""
        past = self._prefix.length
        if not self.kv:
            self.kv = [key.new_empty(self._layers, 2, key.shape[0], past + b - a, key.shape[2]) for a, b in self._spans]
        outputs = []
        for (start, stop), kv in zip(self._spans, self.kv, strict=True):
            kv[layer, 0, :, past:], kv[layer, 1, :, past:] = key[:, start:stop], value[:, start:stop]
            if self._prefix.kv is not None:
                kv[layer, :, :, :past] = self._prefix.kv[layer]
            outputs.append(causal_attention(query[:, start:stop], kv[layer, 0], kv[layer, 1], scale))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class RowPlan(Plan):
    """New tokens of some rows of a batch, in ascending order, packed row by row.

    Attributes:
        absolute: Position in the whole sequence of each new token.
    """

    def __init__(self, batch: RowBatch, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        device = batch.kv.device
        starts = batch.lengths[rows]
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        position = np.repeat(starts, counts) + place
        self.absolute = position + np.repeat(batch.bases[rows], counts)
        self._batch, self._rows, self._past = batch, len(rows), int(starts.sum())
        self._most = int(counts.max())
        seen = np.ones(len(batch), dtype=np.int64)
        seen[rows] = starts + counts
        self._keys = int(seen.max())
        self._blocks = _row_blocks(seen) if device.type == "cpu" else [(0, len(batch), self._keys)]
        self._spans = _token_spans(batch.runs(rows), np.cumsum(counts))
        self._one_each = self._most == 1 and len(rows) == len(batch) and bool((np.diff(rows) == 1).all())
        self._step = int(starts[0]) if self._one_each and bool((starts == starts[0]).all()) else None
        self._bias = None
        if self._step is None:
            self._row = torch.from_numpy(np.repeat(rows, counts)).to(device)
            self._position = torch.from_numpy(position).to(device)
            self._place = torch.from_numpy(place).to(device)
            self._bias = self._make_bias()

    @property
    def work(self) -> PackedRows:
        """Every query against its prompt, and the private parts padded to the longest of their block."""
        shared = sum((stop - start) * segment.length for segment, start, stop in self._spans)
        private = self._most * sum((stop - start) * keys for start, stop, keys in self._blocks)
        read = sum({id(segment.kv): segment.length for segment, _, _ in self._spans}.values()) + self._past
        return PackedRows(self._rows, int(self.absolute.sum()) + len(self.absolute), shared + private, read)

    def _make_bias(self) -> Tensor:
        """-inf where a key comes after the query, `[rows, 1, queries, keys]`; rows that do not run see every key."""
        kv = self._batch.kv
        last = torch.full((len(self._batch), self._most), self._keys, device=kv.device)
        last[self._row, self._place] = self._position
        hidden = torch.arange(self._keys, device=kv.device) > last[..., None]
        dtype = kv.dtype if kv.device.type == "cpu" else torch.float32
        return torch.zeros(hidden.shape, dtype=dtype, device=kv.device).masked_fill_(hidden, -torch.inf)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Each token against its problem's prompt and its row's own tokens up to itself."""
        keys, values = self._batch.kv[layer]
        if self._step is not None:
            keys[:, :, self._step], values[:, :, self._step] = key.transpose(0, 1), value.transpose(0, 1)
        else:
            keys[self._row, :, self._position] = key.transpose(0, 1)
            values[self._row, :, self._position] = value.transpose(0, 1)
        heads, tokens, width = query.shape
        grouped = query.view(key.shape[0], heads // key.shape[0], tokens, width)
        out, lse = self._private(grouped, keys, values, scale)
        shared, shared_lse = self._shared(layer, grouped, scale)
        return join(out, lse, shared, shared_lse).reshape(heads, tokens, width)

    def _private(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Each row against its own tokens; `query` is `[kv_heads, group, tokens, head_dim]`."""
        by_token = query.permute(2, 0, 1, 3)
        if self._one_each:
            out, lse = self._by_blocks(by_token, keys, values, self._bias, scale)
            return out.permute(1, 2, 0, 3), lse.permute(1, 2, 0)
        group, most = query.shape[1], self._most
        ragged = query.new_zeros(len(self._batch), query.shape[0], group, most, query.shape[3])
        ragged[self._row, :, :, self._place] = by_token
        bias = None if self._bias is None else self._bias.repeat(1, 1, group, 1)
        out, lse = self._by_blocks(ragged.flatten(2, 3), keys, values, bias, scale)
        out, lse = out.view(*ragged.shape), lse.view(*ragged.shape[:4])
        return (
            out[self._row, :, :, self._place].permute(1, 2, 0, 3),
            lse[self._row, :, :, self._place].permute(1, 2, 0),
        )

    def _by_blocks(
        self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """`partial_attention` with each block of rows reading no further than its longest row."""
        parts = [
            partial_attention(
                query[start:stop],
                keys[start:stop, :, :most],
                values[start:stop, :, :most],
                None if bias is None else bias[start:stop, :, :, :most],
                scale,
            )
            for start, stop, most in self._blocks
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])

    def _shared(self, layer: int, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """All queries of a problem against its prompt, as one product for each kv head."""
        outputs, sums = [], []
        for segment, start, stop in self._spans:
            part = query[:, :, start:stop]
            if segment.kv is None:
                out, lse = torch.zeros_like(part), torch.full(part.shape[:3], -torch.inf, device=part.device)
            else:
                keys, values = segment.kv[layer]
                out, lse = partial_attention(part.flatten(1, 2)[None], keys[None], values[None], None, scale)
            outputs.append(out.view(part.shape))
            sums.append(lse.view(part.shape[:3]))
        return (outputs[0], sums[0]) if len(outputs) == 1 else (torch.cat(outputs, dim=2), torch.cat(sums, dim=2))


def _row_blocks(seen: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Blocks of rows, start and stop, with the most keys that one of their rows sees; neighbours are often alike."""
    starts = np.arange(0, len(seen), _BLOCK)
    most = np.maximum.reduceat(seen, starts)
    edges = [0, *(np.flatnonzero(np.diff(most)) + 1).tolist()]
    stops = [*(edges[1:]), len(starts)]
    return [
        (start * _BLOCK, min(stop * _BLOCK, len(seen)), int(most[start]))
        for start, stop in zip(edges, stops, strict=True)
    ]


def _token_spans(runs: Sequence[tuple[Segment, int, int]], ends: NDArray[np.int64]) -> list[tuple[Segment, int, int]]:
    """The packed tokens of runs of rows; `ends` holds where the tokens of each row end."""
    return [(segment, int(ends[start - 1]) if start else 0, int(ends[stop - 1])) for segment, start, stop in runs]
