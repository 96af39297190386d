"""What one forward of a `Session` does with its keys, values and queries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from inferscale.flops.formulas import PackedRows

from .kv_attention import Plan, join, partial_attention
from .kv_rows import RowBatch, Segment


class PromptPlan(Plan):
    """Several prompts in one packed sequence, each causal on its own."""

    def __init__(self, lengths: Sequence[int], layers: int) -> None:
        ends = list(accumulate(lengths))
        self._spans = list(zip([0, *ends], ends, strict=False))
        self._lengths = list(lengths)
        self._layers = layers
        self.kv: list[Tensor] = []

    @property
    def work(self) -> PackedRows:
        """Each prompt's square, half of which a causal mask lets through."""
        causal = sum(n * (n + 1) // 2 for n in self._lengths)
        return PackedRows(len(self._lengths), causal, sum(n * n for n in self._lengths), 0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Each prompt against itself."""
        if not self.kv:
            self.kv = [key.new_empty(self._layers, 2, key.shape[0], b - a, key.shape[2]) for a, b in self._spans]
        outputs = []
        for (start, stop), kv in zip(self._spans, self.kv, strict=True):
            kv[layer, 0], kv[layer, 1] = key[:, start:stop], value[:, start:stop]
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    query[None, :, start:stop],
                    kv[None, layer, 0],
                    kv[None, layer, 1],
                    is_causal=True,
                    scale=scale,
                    enable_gqa=query.shape[0] != key.shape[0],
                )[0]
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class RowPlan(Plan):
    """New tokens of some rows of a batch, packed row by row.

    Attributes:
        positions: Position in its row's private part of each new token.
        absolute: Position in the whole sequence of each new token.
    """

    def __init__(self, batch: RowBatch, rows: Sequence[int], counts: Sequence[int]) -> None:
        device = batch.kv.device
        starts = [batch.lengths[row] for row in rows]
        self.positions = [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)]
        bases = _repeat([batch.segments[row].length for row in rows], counts)
        self.absolute = [position + base for position, base in zip(self.positions, bases, strict=True)]
        self._batch, self._rows, self._past = batch, len(rows), sum(starts)
        self._keys = max(self.positions) + 1
        self._most = max(counts)
        self._spans = _segment_spans([batch.segments[row] for row in rows], counts)
        one_each = self._most == 1 and list(rows) == list(range(len(batch)))
        self._step = self.positions[0] if one_each and len(set(starts)) == 1 else None
        self._one_each = one_each
        self._row = torch.tensor(_repeat(rows, counts), device=device)
        self._position = torch.tensor(self.positions, device=device)
        self._place = torch.tensor([i for count in counts for i in range(count)], device=device)
        self._bias = None if self._step is not None else self._make_bias()

    @property
    def work(self) -> PackedRows:
        """Every query against its prompt, and the private parts padded to the longest."""
        shared = sum((stop - start) * segment.length for segment, start, stop in self._spans)
        private = len(self._batch) * self._most * self._keys
        read = sum({id(segment): segment.length for segment, _, _ in self._spans}.values()) + self._past
        return PackedRows(self._rows, sum(self.absolute) + len(self.absolute), shared + private, read)

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
        out, lse = self._private(grouped, keys[:, :, : self._keys], values[:, :, : self._keys], scale)
        shared, shared_lse = self._shared(layer, grouped, scale)
        return join(out, lse, shared, shared_lse).reshape(heads, tokens, width)

    def _private(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Each row against its own tokens; `query` is `[kv_heads, group, tokens, head_dim]`."""
        by_token = query.permute(2, 0, 1, 3)
        if self._one_each:
            out, lse = partial_attention(by_token, keys, values, self._bias, scale)
            return out.permute(1, 2, 0, 3), lse.permute(1, 2, 0)
        group, most = query.shape[1], self._most
        ragged = query.new_zeros(len(self._batch), query.shape[0], group, most, query.shape[3])
        ragged[self._row, :, :, self._place] = by_token
        bias = None if self._bias is None else self._bias.repeat(1, 1, group, 1)
        out, lse = partial_attention(ragged.flatten(2, 3), keys, values, bias, scale)
        out, lse = out.view(*ragged.shape), lse.view(*ragged.shape[:4])
        return (
            out[self._row, :, :, self._place].permute(1, 2, 0, 3),
            lse[self._row, :, :, self._place].permute(1, 2, 0),
        )

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


def _repeat(values: Sequence[int], counts: Sequence[int]) -> list[int]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def _segment_spans(segments: Sequence[Segment], counts: Sequence[int]) -> list[tuple[Segment, int, int]]:
    """Runs of packed tokens whose rows continue the same segment."""
    spans, start = [], 0
    for _, run in groupby(zip(segments, counts, strict=True), key=lambda pair: id(pair[0])):
        members = list(run)
        stop = start + sum(count for _, count in members)
        spans.append((members[0][0], start, stop))
        start = stop
    return spans
