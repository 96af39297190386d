"""Decoding on a `Session`: prompts read once, nodes parked between calls, finished rows taken out of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from .branch import Branch
from .decoder import Decoder, GeneratorStats
from .kv_rows import ROOM, RowBatch, Segment
from .kv_store import KVStore, Piece, chain_key
from .kv_tree import Session
from .stems import Stem


@dataclass(frozen=True, slots=True)
class _Live:
    """A branch that decodes: its row in the batch, the place of its first own token there, its node's name."""

    branch: Branch
    row: int
    start: int
    node: int


class TreeDecoder(Decoder):
    """Reads every prompt and every path once, whatever the order in which a search visits its nodes.

    Attributes:
        session: Runs the model.
        store: What is parked.
    """

    refills = True
    follows_branches = False

    def __init__(self, session: Session, store: KVStore, stats: GeneratorStats) -> None:
        self.session = session
        self.store = store
        self._stats = stats
        self._batch: RowBatch | None = None
        self._live: list[_Live] = []
        self._rows = np.zeros(0, dtype=np.int64)

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch; what is held of their prefixes is not read again."""
        before = self.session.tokens
        segments = self._segments(branches)
        keys = [(id(branch.request.node), branch.request.forced) for branch in branches]
        stems: dict[tuple[int, str], Stem] = {}
        for key, branch in zip(keys, branches, strict=True):
            if key not in stems:
                segment = segments[branch.request.node.root.key, branch.prompt]
                stems[key] = Stem.find(branch, segment, self.store)
        batch, logits = self._read(list(stems.values()))
        read = self.session.tokens - before
        self._stats.prefill_tokens += read
        self._stats.reused_tokens += sum(len(branch.prefix) for branch in branches) - read
        places = {key: place for place, key in enumerate(stems)}
        index = [places[key] for key in keys]
        new = [
            _Live(branch, row, len(stems[key].ids) - len(branch.forced), stems[key].nodes[-1][0])
            for row, (key, branch) in enumerate(zip(keys, branches, strict=True))
        ]
        self._add(batch, index, new)
        return logits if index == list(range(len(logits))) else logits[index]

    def _add(self, batch: RowBatch, index: Sequence[int], new: Sequence[_Live]) -> None:
        """Puts rows of `batch` behind those that decode."""
        parts = [(batch, index)]
        if self._batch is not None:
            parts.insert(0, (self._batch, [live.row for live in self._live]))
        if len(parts) > 1 or index != list(range(len(batch))):
            room = max(live.branch.most_tokens for live in new)
            batch = RowBatch.gathered(parts, min(room, ROOM))
        self._batch = batch
        self._set_live([*self._live, *new], compact=True)
        self._watch_memory()

    def _set_live(self, live: Sequence[_Live], compact: bool) -> None:
        self._live = [replace(one, row=row) for row, one in enumerate(live)] if compact else list(live)
        self._rows = np.array([one.row for one in self._live], dtype=np.int64)

    def _segments(self, branches: Sequence[Branch]) -> dict[tuple[int, tuple[int, ...]], Segment]:
        """The shared segment of every prompt, by root key and prompt ids; missing ones are read together."""
        wanted = dict.fromkeys((branch.request.node.root.key, branch.prompt) for branch in branches)
        found = {(root, prompt): self.store.segment(root, prompt[:-1]) for root, prompt in wanted}
        missing = [key for key, segment in found.items() if segment is None]
        read = self.session.prefill([prompt[:-1] for _, prompt in missing])
        for (root, prompt), segment in zip(missing, read, strict=True):
            self.store.put_segment(root, prompt[:-1], segment)
            found[root, prompt] = segment
        return {key: segment for key, segment in found.items() if segment is not None}

    def _read(self, stems: Sequence[Stem]) -> tuple[RowBatch, Tensor]:
        """A row for each stem, its missing tokens read and parked, and the logits after it."""
        batch = self.session.open([stem.segment for stem in stems], max(len(stem.ids) for stem in stems))
        for row, stem in enumerate(stems):
            for piece in stem.pieces:
                if piece.kv is not None:
                    batch.load(row, batch.lengths[row], piece.kv)
            batch.lengths[row] = stem.held
        logits = self.session.extend(batch, [stem.ids[stem.held :] for stem in stems])
        for row, stem in enumerate(stems):
            self._park_path(batch, row, stem)
        return batch, logits

    def _park_path(self, batch: RowBatch, row: int, stem: Stem) -> None:
        """Parks the nodes of a path that were not, or not wholly, held."""
        at = 0
        for place, (key, ids) in enumerate(stem.nodes):
            held = place < len(stem.pieces) and len(stem.pieces[place].ids) == len(ids)
            if not held and ids:
                self.store.put(stem.root, key, Piece(ids, batch.piece(row, at, at + len(ids))))
            at += len(ids)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each live row."""
        assert self._batch is not None
        return self.session.step(self._batch, self._rows, tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Parks the branches that can go on, and takes the others' rows out of the batch when half of it is idle."""
        assert self._batch is not None
        for place in sorted(set(range(len(self._live))) - set(rows)):
            self._park_branch(self._batch, self._live[place])
        self._watch_memory()
        left = [self._live[place] for place in rows]
        compact = 2 * len(rows) <= len(self._batch)
        if not rows:
            self._batch.close()
            self._batch = None
        elif compact:
            self._batch = self._batch.select([live.row for live in left])
        self._set_live(left, compact)

    def _park_branch(self, batch: RowBatch, live: _Live) -> None:
        ids = (*live.branch.forced, *live.branch.tokens)
        if live.branch.finish == "step" and len(ids) > 1:
            read = ids[:-1]  # the last token is read when the node grows
            kv = batch.piece(live.row, live.start, live.start + len(read))
            self.store.put(live.branch.request.node.root.key, chain_key(live.node, ids), Piece(read, kv))

    def make_room(self) -> None:
        """Drops the rows and everything parked."""
        self._batch = None
        self._set_live([], compact=True)
        self.session.buffers.clear()
        self.store.shrink(0)

    def release(self, root: int) -> None:
        """Drops what is parked for a tree, and with the last one the memory for rows."""
        self.store.release(root)
        if not len(self.store):
            self.session.buffers.clear()
        self._stats.cache_bytes = self.store.bytes

    def _watch_memory(self) -> None:
        self._stats.cache_bytes = self.store.bytes
        self._stats.evictions = self.store.evictions
        live = self.session.buffers.bytes + (0 if self._batch is None else self._batch.bytes)
        self._stats.peak_cache_bytes = max(self._stats.peak_cache_bytes, self.store.bytes + live)
