"""Thoughts on a key-value cache that is afterwards as it was before: what it holds is the plain model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferscale._compat import evaluating
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
    def prefill(
        cls, backbone: Backbone, texts: Sequence[Sequence[int]], held: Sequence[Sequence[Tensor]] = ()
    ) -> CachedText:
        """Run texts through the model, in one pass; an empty text is a row of padding.

        Args:
            backbone: The model.
            texts: Ids of each row, behind what is held of it.
            held: Keys and values of each row's first tokens, in parts `[layers, 2, kv_heads, tokens, head_dim]`.
        """
        device = backbone.device
        counts = [sum(part.shape[3] for part in parts) for parts in held]
        width = max(counts, default=0)
        text = cls(backbone, torch.zeros(len(texts), width, dtype=torch.long, device=device))
        if width:
            # `[padding | held | padding | read]`: both halves are right-aligned, and the mask leaves the padding out
            like = next(parts[0] for parts in held if parts)
            layers, two, heads, _, size = like.shape
            kv = like.new_zeros(layers, two, len(held), heads, width, size)
            for row, (parts, count) in enumerate(zip(held, counts, strict=True)):
                if parts:
                    torch.cat(list(parts), dim=3, out=kv[:, :, row, :, width - count :])
                    text.keep[row, width - count :] = 1
            for layer in range(layers):
                text.cache.update(kv[layer, 0], kv[layer, 1], layer)
        longest = max(map(len, texts))
        if longest:
            ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in texts], device=device)
            keep = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in texts], device=device)
            text.feed(backbone.embed(ids), keep)
        return text

    @classmethod
    def joined(cls, texts: Sequence[CachedText]) -> CachedText:
        """Make one text of the rows of several, without the padding that they all have."""
        rows = [(text, row) for text in texts for row in range(len(text.keep))]
        most = max(int(text.keep.sum(dim=1).max()) for text in texts)
        return cls.prefill(texts[0].backbone, [()] * len(rows), [[text.cut(row, 0, most)] for text, row in rows])

    @property
    def can_roll_back(self) -> bool:
        """True if what was fed last can be taken back; else only a `fork` can be thought on."""
        return self.backbone.attention_only or (bool(self.cache.layers) and is_croppable(self.cache))

    def feed(self, embeds: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run new tokens and return their last hidden states, `[rows, new, hidden]`.

        Args:
            embeds: Their embeddings, `[rows, new, hidden]`.
            keep: Which of them are not padding, int64 `[rows, new]`; by default all.
        """
        rows, new, _ = embeds.shape
        started = self.keep.shape[1] > 0
        if new > 1 and started and not self.backbone.attention_only:
            # A recurrent layer that has a state takes one token at a time.
            return torch.cat([self.feed(embeds[:, i : i + 1]) for i in range(new)], dim=1)
        self.keep = torch.cat([self.keep, self.keep.new_ones(rows, new) if keep is None else keep], dim=1)
        positions = positions_of(self.keep, self.keep.shape[1], self.keep.device)[:, -new:]
        unpadded = not started and bool(self.keep.all())
        mask = None if unpadded or (started and self.backbone.masks_padding_once) else self.keep
        self.passes += 1
        return self.backbone.states(embeds, mask, positions, self.cache)

    def rollback(self, tokens: int) -> None:
        """Take back the last `tokens` tokens of every row."""
        rollback(self.cache, tokens)
        self.keep = self.keep[:, : self.keep.shape[1] - tokens]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; a row may come more than once."""
        if list(rows) != list(range(len(self.keep))):
            index = torch.tensor(rows, device=self.keep.device)
            select_rows(self.cache, index)
            self.keep = self.keep[index]

    def fork(self, rows: Tensor) -> CachedText:
        """Copy these rows into a text of their own."""
        return CachedText(self.backbone, self.keep[rows], fork(self.cache, rows))

    def cut(self, row: int, start: int, stop: int) -> Tensor:
        """Copy keys and values of tokens of a row, padding not counted: `[layers, 2, kv_heads, tokens, head_dim]`."""
        part = self.keep[row].nonzero()[start:stop, 0]
        return torch.stack(
            [torch.stack([layer.keys[row, :, part], layer.values[row, :, part]]) for layer in self.cache.layers]
        )


@dataclass(frozen=True, slots=True)
class Thought:
    """Thoughts at the end of rows of text, one for each.

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
    """Think at the end of each row, in T + 1 passes (one for T = 0); the thought is left in the cache.

    ::

        pass 1       [x_p, start]      the state at x_p is the plain one, that at start draws c_1
        pass 2 .. T  [c_1] .. [c_T-1]  draw c_2 .. c_T
        pass T + 1   [c_T, end]        the state at end is mixed

    Args:
        quiet: The model.
        text: Rows; grows by T + 2 tokens, and by the newest one.
        newest: Embedding of a last token x_p that has not been read yet, `[rows, 1, hidden]`; ``None`` if all have
            been.
        numbers: Uniform numbers in (0, 1), `[rows, T]`.
        sampler: Draws thought tokens.
        greedy: Rows that take the likeliest, bool `[rows]`.
    """
    rows, length = numbers.shape
    start, end = (vector.expand(rows, 1, -1) for vector in (quiet.start, quiet.end))
    tokens = torch.empty(rows, length, dtype=torch.long, device=numbers.device)
    logprobs = torch.empty(rows, length, device=numbers.device)
    fed = [*([] if newest is None else [newest]), start, *([] if length else [end])]
    hidden = text.feed(torch.cat(fed, dim=1))
    before = None if newest is None else hidden[:, 0]
    for step in range(length):
        draws = sampler.draw_mixed(quiet.logits(hidden[:, -1]), numbers[:, step], greedy)
        tokens[:, step], logprobs[:, step] = draws.tokens, draws.logprobs
        embeds = quiet.backbone.embed(draws.tokens[:, None])
        hidden = text.feed(torch.cat([embeds, end], dim=1) if step == length - 1 else embeds)
    return Thought(before, hidden[:, -1], tokens, logprobs)


@torch.no_grad()
def check_cached(quiet: QuietSTaR) -> None:
    """Compare two thoughts on a cache with plain passes over the same tokens.

    Raises:
        UnsupportedModelError: If they differ: this model cannot think on a cache.
    """
    backbone, device = quiet.backbone, quiet.backbone.device
    ids = [(7919 * (i + 1)) % backbone.vocabulary for i in range(9)]
    texts, newest = [ids[:2], ids[2:6]], [ids[6], ids[7]]
    numbers = torch.full((2, 2), 0.4, dtype=torch.float64, device=device)
    worst = 0.0
    with evaluating(backbone.model), torch.autocast(device.type, enabled=False):
        text = CachedText.prefill(backbone, texts)
        for turn in range(2):  # the second thought shows what the first one has left behind
            embeds = backbone.embed(torch.tensor(newest, device=device)[:, None])
            if text.can_roll_back:
                thought = think_once(quiet, text, embeds, numbers, Sampler(0.0))
                text.rollback(thought.tokens.shape[1] + 2)
            else:
                text.feed(embeds)
                fork = text.fork(torch.arange(2, device=device))
                thought = think_once(quiet, fork, None, numbers, Sampler(0.0))
            texts = [[*row, token] for row, token in zip(texts, newest, strict=True)]
            for row, tokens in enumerate(texts):
                before, drawn = backbone.embed(torch.tensor(tokens, device=device)), backbone.embed(thought.tokens[row])
                plain = torch.cat([before, quiet.start[None], drawn, quiet.end[None]])
                wanted = backbone.states(plain[None])[0, -1]
                error = (thought.after[row] - wanted).abs().max() / wanted.std().clamp(min=1e-6)
                worst = max(worst, float(error))
            newest = [ids[8], ids[turn]]
    if not worst < (1e-2 if backbone.dtype in FULL_PRECISION else 0.5):
        raise UnsupportedModelError(
            f"{type(backbone.model).__name__} thinks differently on a cache (off by {worst:.2g} standard deviations): "
            "its cache cannot be rolled back or copied; QuietSTaR.score and training still work"
        )
