"""Thoughts on a key-value cache that is afterwards as it was before, and rows of it made of what is kept between calls.

Thoughts are cropped before anything is kept: what is parked is the plain model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferscale._compat import evaluating
from inferscale.runtime.branch import Branch
from inferscale.runtime.decoding import GeneratorStats
from inferscale.runtime.prefix_cache import PrefixCache, branch_path
from inferscale.runtime.sampling import Sampler

from .backbone import (
    FULL_PRECISION,
    Backbone,
    UnsupportedModelError,
    fork,
    is_croppable,
    positions_of,
    rollback,
    select_rows,
)
from .model import QuietSTaR


def left_padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids with zeros in front, and 1 where there is text, both int64 `[rows, longest]`."""
    width = max(map(len, texts))
    ids = [[0] * (width - len(row)) + list(row) for row in texts]
    keep = [[0] * (width - len(row)) + [1] * len(row) for row in texts]
    return torch.tensor(ids, device=device), torch.tensor(keep, device=device)


class CachedText:
    """Rows of text, padded on the left, whose keys and values are kept.

    Attributes:
        backbone: The model.
        keep: Which cached tokens are not padding, int64 `[rows, cached]`.
        cache: Keys and values.
        passes: Forwards so far.
    """

    def __init__(self, backbone: Backbone, keep: Tensor, cache: Any = None) -> None:
        self.backbone = backbone
        self.keep = keep
        self.cache = backbone.new_cache() if cache is None else cache
        self.passes = 0

    @classmethod
    def read(cls, backbone: Backbone, texts: Sequence[Sequence[int]]) -> CachedText:
        """The texts, read in one pass; an empty text is a row of padding."""
        device = backbone.device
        text = cls(backbone, torch.zeros(len(texts), 0, dtype=torch.long, device=device))
        if any(texts):
            ids, keep = left_padded(texts, device)
            text.feed(backbone.embed(ids), keep)
        return text

    @property
    def can_roll_back(self) -> bool:
        """Whether what was fed last can be taken back; else only a `fork` can be thought on."""
        return self.backbone.attention_only or (bool(self.cache.layers) and is_croppable(self.cache))

    def feed(self, embeds: Tensor, keep: Tensor | None = None) -> Tensor:
        """Last hidden states of new tokens, `[rows, new, hidden]`, from their embeddings.

        Args:
            embeds: `[rows, new, hidden]`.
            keep: Which of them are not padding, int64 `[rows, new]`; by default all.
        """
        rows, new, _ = embeds.shape
        started = self.keep.shape[1] > 0
        if new > 1 and started and not self.backbone.attention_only:
            # a recurrent layer that has a state takes one token at a time
            return torch.cat([self.feed(embeds[:, i : i + 1]) for i in range(new)], dim=1)
        self.keep = torch.cat([self.keep, self.keep.new_ones(rows, new) if keep is None else keep], dim=1)
        positions = positions_of(self.keep, self.keep.shape[1], self.keep.device)[:, -new:]
        unpadded = not started and bool(self.keep.all())
        mask = None if unpadded or (started and self.backbone.masks_padding_once) else self.keep
        self.passes += 1
        return self.backbone.states(embeds, mask, positions, self.cache)

    def rollback(self, tokens: int) -> None:
        """Takes back the last `tokens` tokens of every row."""
        rollback(self.cache, tokens)
        self.keep = self.keep[:, : self.keep.shape[1] - tokens]

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order; a row may come more than once."""
        if list(rows) != list(range(len(self.keep))):
            index = torch.tensor(rows, device=self.keep.device)
            select_rows(self.cache, index)
            self.keep = self.keep[index]

    def fork(self, rows: Tensor) -> CachedText:
        """These rows as a text of their own."""
        return CachedText(self.backbone, self.keep[rows], fork(self.cache, rows))


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought of each row.

    Attributes:
        before: Last hidden state at the token that is thought after, `[rows, hidden]`; ``None`` if it was not fed.
        after: Last hidden state at end-of-thought, `[rows, hidden]`.
        tokens: Ids, `[rows, T]`.
        logprobs: Their log-probabilities (nats), `[rows, T]`.
    """

    before: Tensor | None
    after: Tensor
    tokens: Tensor
    logprobs: Tensor


def think_once(
    quiet: QuietSTaR,
    text: CachedText,
    newest: Tensor | None,
    numbers: Tensor,
    sampler: Sampler,
    greedy: Tensor | None = None,
) -> Thought:
    """A thought at the end of each row, in T + 1 passes (one for T = 0), left in the cache.

    The first pass feeds the newest token and start together, the last one the last thought token and end.

    Args:
        quiet: The model.
        text: Rows; grows by T + 2 tokens, and by the newest one.
        newest: Embedding of a last token that has not been read yet, `[rows, 1, hidden]`; ``None`` if all have been.
        numbers: Uniform numbers in (0, 1), `[rows, T]`.
        sampler: Draws thought tokens.
        greedy: Rows that take the likeliest, bool `[rows]`.
    """
    rows, length = numbers.shape
    marks = [vector.expand(rows, 1, -1) for vector in (quiet.start, quiet.end)]
    pending = [marks[0]] if newest is None else [newest, marks[0]]
    if not length:
        pending.append(marks[1])
    hidden = text.feed(torch.cat(pending, dim=1))
    before = None if newest is None else hidden[:, 0]
    tokens, logprobs = [], []
    for step in range(length):
        draws = sampler.draw_mixed(quiet.logits(hidden[:, -1]), numbers[:, step], greedy)
        tokens.append(draws.tokens)
        logprobs.append(draws.logprobs)
        embeds = quiet.backbone.embed(draws.tokens[:, None])
        hidden = text.feed(torch.cat([embeds, marks[1]], dim=1) if step == length - 1 else embeds)
    if not length:
        empty = numbers.new_zeros(rows, 0)
        return Thought(before, hidden[:, -1], empty.long(), empty)
    return Thought(before, hidden[:, -1], torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1))


@torch.no_grad()
def check_cached(quiet: QuietSTaR) -> None:
    """Compares two thoughts on a cache with plain passes over the same tokens.

    Raises:
        UnsupportedModelError: If they differ: this model cannot think on a cache.
    """
    backbone = quiet.backbone
    ids = [(7919 * (i + 1)) % backbone.vocabulary for i in range(9)]
    texts = [ids[:2], ids[2:6]]
    newest = [ids[6], ids[7]]
    numbers = torch.full((2, 2), 0.4, dtype=torch.float64, device=backbone.device)
    with evaluating(backbone.model), torch.autocast(backbone.device.type, enabled=False):
        text = CachedText.read(backbone, texts)
        worst = 0.0
        for turn in range(2):
            embeds = backbone.embed(torch.tensor(newest, device=backbone.device)[:, None])
            thinking, first = (text, embeds) if text.can_roll_back else (text, None)
            if first is None:
                text.feed(embeds)
                thinking = text.fork(torch.arange(2, device=backbone.device))
            thought = think_once(quiet, thinking, first, numbers, Sampler(0.0))
            if thinking is text:
                text.rollback(thought.tokens.shape[1] + 2)
            texts = [[*row, token] for row, token in zip(texts, newest, strict=True)]
            for row, ids_of_row in enumerate(texts):
                wanted = _plain(quiet, ids_of_row, thought.tokens[row].tolist())
                error = (thought.after[row] - wanted).abs().max() / wanted.std().clamp(min=1e-6)
                worst = max(worst, float(error))
            newest = [ids[8], ids[turn]]
    if not worst < (1e-2 if backbone.dtype in FULL_PRECISION else 0.5):
        raise UnsupportedModelError(
            f"{type(backbone.model).__name__} thinks differently on a cache (off by {worst:.2g} standard deviations): "
            "its cache cannot be rolled back or copied; QuietSTaR.score and training still work"
        )


def _plain(quiet: QuietSTaR, ids: list[int], tokens: list[int]) -> Tensor:
    backbone = quiet.backbone
    text, thought = (backbone.embed(torch.tensor([row], device=backbone.device).long()) for row in (ids, tokens))
    embeds = torch.cat([text, quiet.start[None, None], thought, quiet.end[None, None]], dim=1)
    return backbone.states(embeds)[0, -1]


class PrefixRows:
    """Rows of text built of what a cache holds of their prefixes; the rest is read, and what rows leave behind parked.

    Attributes:
        cache: What is parked.
    """

    def __init__(self, backbone: Backbone, cache: PrefixCache, stats: GeneratorStats) -> None:
        self.cache = cache
        self._backbone = backbone
        self._stats = stats

    @staticmethod
    def serves(backbone: Backbone) -> bool:
        """Whether keys can be moved: not out of a window that counts padding, nor out of a recurrent state."""
        return backbone.attention_only and backbone.window is None and backbone.takes_positions

    def open(self, branches: Sequence[Branch]) -> CachedText:
        """A row for each branch that holds all of its prefix but the newest token."""
        keys = [(id(branch.request.node), branch.request.forced) for branch in branches]
        firsts = dict(zip(reversed(keys), reversed(branches), strict=True))  # one row reads what branches share
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        held: list[list[Tensor]] = []
        missing: list[tuple[int, ...]] = []
        for key in rows:
            wanted, path = firsts[key].prefix[:-1], branch_path(firsts[key])
            segment = self.cache.segment(path.root, path.prompt)
            pieces = [] if segment is None else self.cache.find(path, len(wanted) - len(path.prompt))
            kv = [] if segment is None or segment.kv is None else [segment.kv]
            kv += [piece.kv for piece in pieces if piece.kv is not None]
            held.append(kv)
            missing.append(wanted[sum(part.shape[3] for part in kv) :])
        text = self._gathered(held, missing)
        read = sum(map(len, missing))
        self._stats.prefill_tokens += read
        self._stats.reused_tokens += sum(len(branch.prefix) - 1 for branch in branches) - read
        text.select([rows[key] for key in keys])
        return text

    def park(self, text: CachedText, row: int, branch: Branch) -> None:
        """Keeps what the row of a branch that has ended has read, up to its last token if the node can grow."""
        if branch.finish is None:  # interrupted: memory may have run out
            return
        path, layers = branch_path(branch), text.cache.layers
        if branch.finish == "step":
            path = path.grown((*branch.forced, *branch.tokens)[:-1])
        places = text.keep[row].nonzero()[
            :, 0
        ]  # padding stands before what was held, and between that and what was read

        def cut(start: int, stop: int) -> Tensor:
            part = places[start:stop]
            return torch.stack(
                [torch.stack([layer.keys[row, :, part], layer.values[row, :, part]]) for layer in layers]
            )

        self.cache.park(path, cut, prompt=True)
        self._tell()

    def release(self, root: int) -> None:
        """Drops what is held for a tree."""
        self.cache.release(root)
        self._tell()

    def clear(self) -> None:
        """Drops everything."""
        self.cache.shrink(0)
        self._tell()

    def _tell(self) -> None:
        """Brings the figures of what is held up to date."""
        self._stats.cache_bytes = self.cache.bytes
        self._stats.evictions = self.cache.evictions

    def _gathered(self, held: Sequence[Sequence[Tensor]], missing: Sequence[Sequence[int]]) -> CachedText:
        """Rows of keys and values, right-aligned, `[layers, 2, rows, kv_heads, width, head_dim]`, and the rest read."""
        counts = [sum(part.shape[3] for part in parts) for parts in held]
        width, device = max(counts), self._backbone.device
        if not width:
            return CachedText.read(self._backbone, missing)
        layers, two, heads, _, size = (like := next(parts[0] for parts in held if parts)).shape
        kv = like.new_zeros(layers, two, len(held), heads, width, size)
        keep = torch.zeros(len(held), width, dtype=torch.long, device=device)
        for row, (parts, count) in enumerate(zip(held, counts, strict=True)):
            if parts:
                torch.cat(list(parts), dim=3, out=kv[:, :, row, :, width - count :])
                keep[row, width - count :] = 1
        cache = self._backbone.new_cache()
        for layer in range(layers):
            cache.update(kv[layer, 0], kv[layer, 1], layer)
        text = CachedText(self._backbone, keep, cache)
        if any(missing):
            ids, new = left_padded(missing, device)
            text.feed(self._backbone.embed(ids), new)
        return text
