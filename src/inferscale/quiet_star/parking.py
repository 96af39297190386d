"""Keys and values of prompts and nodes kept between calls, so that a search reads no text twice.

Thoughts are cropped before anything is kept: what is parked is the plain model's. A node's piece begins with the token
before its own first one and leaves out its own last one, which nothing has read yet; pieces of a path follow each other
without a gap, after the prompt less its last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferscale.generators.branch import Branch
from inferscale.generators.decoder import GeneratorStats
from inferscale.generators.kv_rows import Segment
from inferscale.generators.kv_store import KVStore, Piece, chain_key

from .backbone import Backbone
from .cached import CachedText, left_padded

_KIND = 1  # pieces that begin one token early


@dataclass(frozen=True, slots=True)
class _Stem:
    """What branches of one node with one forced text have in common: all but their newest token."""

    branch: Branch
    held: tuple[Tensor, ...]
    missing: tuple[int, ...]

    @property
    def held_tokens(self) -> int:
        return sum(kv.shape[3] for kv in self.held)


class Parking:
    """Builds a batch of texts out of what is held, reads the rest, and keeps what branches leave behind.

    Attributes:
        store: What is parked, under a byte budget; what was dropped is read again.
    """

    def __init__(self, backbone: Backbone, store: KVStore, stats: GeneratorStats) -> None:
        self.store = store
        self._backbone = backbone
        self._stats = stats

    @staticmethod
    def serves(backbone: Backbone) -> bool:
        """Whether keys can be moved: not out of a window that counts padding, nor out of a recurrent state."""
        return backbone.attention_only and backbone.window is None and backbone.takes_positions

    def open(self, branches: Sequence[Branch]) -> CachedText:
        """A row for each branch that holds all of its prefix but the newest token."""
        stems: dict[tuple[int, str], _Stem] = {}
        for branch in branches:
            name = _stem_name(branch)
            if name not in stems:
                stems[name] = self._stem(branch)
        ordered = list(stems.values())
        text = self._gathered(ordered)
        self._park_prompts(text, ordered)
        read = sum(len(stem.missing) for stem in ordered)
        self._stats.prefill_tokens += read
        self._stats.reused_tokens += sum(len(branch.prefix) - 1 for branch in branches) - read
        row_of = {name: row for row, name in enumerate(stems)}
        text.select([row_of[_stem_name(branch)] for branch in branches])
        return text

    def park(self, text: CachedText, row: int, branch: Branch) -> None:
        """Keeps what a finished branch has read: the token before its first one, and all of its own but the last."""
        own = branch.forced + tuple(branch.tokens)
        if not own or branch.finish != "step":
            return
        ids = ((branch.prompt + branch.path)[-1], *own[:-1])
        kv = _row(text.cache, row)
        piece = Piece(ids, kv[:, :, :, kv.shape[3] - len(ids) :].clone())
        name = chain_key(list(_names(branch))[-1][0], own, _KIND)
        self.store.put(branch.request.node.root.key, name, piece)
        self._tell()

    def release(self, root: int) -> None:
        """Drops what is held for a tree."""
        self.store.release(root)
        self._tell()

    def clear(self) -> None:
        """Drops everything."""
        self.store.shrink(0)
        self._tell()

    def _tell(self) -> None:
        """Brings the figures of what is held up to date."""
        self._stats.cache_bytes = self.store.bytes
        self._stats.evictions = self.store.evictions

    def _stem(self, branch: Branch) -> _Stem:
        root = branch.request.node.root.key
        wanted = branch.prefix[:-1]
        segment = self.store.segment(root, branch.prompt[:-1])
        if segment is None:
            return _Stem(branch, (), wanted)
        held = [] if segment.kv is None else [segment.kv]
        done, last = len(branch.prompt) - 1, branch.prompt[-1]
        for name, own in list(_names(branch))[1:]:
            ids = (last, *own[:-1])
            piece = self.store.piece(root, name, ids)
            if piece is None or piece.kv is None or len(piece.ids) < len(ids):
                break
            held.append(piece.kv)
            done, last = done + len(ids), own[-1]
        return _Stem(branch, tuple(held), wanted[done:])

    def _gathered(self, stems: Sequence[_Stem]) -> CachedText:
        """The stems side by side: what is held, right-aligned, and after it what has to be read."""
        width = max(stem.held_tokens for stem in stems)
        device = self._backbone.device
        if not width:
            return CachedText.read(self._backbone, [stem.missing for stem in stems])
        like = next(stem.held[0] for stem in stems if stem.held)
        layers, two, heads, _, size = like.shape
        kv = like.new_zeros(layers, two, len(stems), heads, width, size)
        keep = torch.zeros(len(stems), width, dtype=torch.long, device=device)
        for row, stem in enumerate(stems):
            if stem.held:
                first = width - stem.held_tokens
                torch.cat(stem.held, dim=3, out=kv[:, :, row, :, first:])
                keep[row, first:] = 1
        cache = self._backbone.new_cache()
        for layer in range(layers):
            cache.update(kv[layer, 0], kv[layer, 1], layer)
        text = CachedText(self._backbone, keep, cache)
        if any(stem.missing for stem in stems):
            ids, new = left_padded([stem.missing for stem in stems], device)
            text.feed(self._backbone.embed(ids), new)
        return text

    def _park_prompts(self, text: CachedText, stems: Sequence[_Stem]) -> None:
        for row, stem in enumerate(stems):
            prompt, root = stem.branch.prompt, stem.branch.request.node.root.key
            if stem.held or self.store.segment(root, prompt[:-1]) is not None:
                continue
            kv = None
            if len(prompt) > 1:
                whole = _row(text.cache, row)
                first = whole.shape[3] - len(stem.missing)
                kv = whole[:, :, :, first : first + len(prompt) - 1].clone()
            self.store.put_segment(root, prompt[:-1], Segment(kv, len(prompt) - 1))
        self._tell()


def _stem_name(branch: Branch) -> tuple[int, str]:
    """What branches of one stem have in common: their node, and the forced text."""
    return id(branch.request.node), branch.request.forced


def _row(cache: Any, row: int) -> Tensor:
    """Keys and values of one row, `[layers, 2, kv_heads, tokens, head_dim]`."""
    return torch.stack([torch.stack([layer.keys[row], layer.values[row]]) for layer in cache.layers])


def _names(branch: Branch) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Names and own tokens of the prompt and of the steps of the path; steps of no tokens are left out."""
    name = chain_key(0, branch.prompt[:-1], _KIND)
    yield name, branch.prompt[:-1]
    for step in branch.request.node.steps:
        if step.token_ids:
            name = chain_key(name, step.token_ids, _KIND)
            yield name, step.token_ids
