"""Keys and values of prompts and nodes kept for the next visit, and how much of a path they spare reading again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .branch import Branch
from .kv import Segment


def chain_key(previous: int, ids: Sequence[int], kind: int = 0) -> int:
    """The name of what follows `previous` by `ids`: equal paths have equal names, whoever made them."""
    return hash((previous, kind, *ids))


@dataclass(frozen=True, slots=True)
class Piece:
    """Keys and values of the first tokens of a node.

    Attributes:
        ids: Those tokens.
        kv: `[layers, 2, kv_heads, tokens, head_dim]`, ``None`` for no token.
        note: Whatever belongs to the node beside them.
    """

    ids: tuple[int, ...]
    kv: Tensor | None
    note: tuple[float, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the keys and values."""
        return 0 if self.kv is None else self.kv.numel() * self.kv.element_size()


class KVStore:
    """Parks keys and values by their root and the name of their path; the least recently used go first.

    A path is named by its tokens (see `chain_key`), so that equal paths share what is held. Whatever was dropped is
    computed again when it is needed: the store never changes a result.

    Attributes:
        max_bytes: The budget.
        bytes: What is held.
        evictions: Entries dropped for room.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[tuple[int, int], Piece] = OrderedDict()
        self._roots: dict[int, set[int]] = {}

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def piece(self, root: int, node: int, ids: Sequence[int]) -> Piece | None:
        """What is held under this name, if its tokens are the first of `ids`."""
        entry = self._entries.get((root, node))
        if entry is None or entry.ids != tuple(ids[: len(entry.ids)]):
            return None
        self._entries.move_to_end((root, node))
        return entry

    def segment(self, root: int, ids: Sequence[int]) -> Segment | None:
        """The prompt's shared segment, if it is held for these ids."""
        entry = self.piece(root, chain_key(0, ids), ids)
        return None if entry is None or len(entry.ids) != len(ids) else Segment(entry.kv, len(ids))

    def put(self, root: int, node: int, piece: Piece) -> None:
        """Holds a node's keys and values, in place of what was held for it."""
        self._drop((root, node))
        if piece.bytes > self.max_bytes:
            return
        self._entries[root, node] = piece
        self._roots.setdefault(root, set()).add(node)
        self.bytes += piece.bytes
        self.shrink(self.max_bytes)

    def put_segment(self, root: int, ids: Sequence[int], segment: Segment) -> None:
        """Holds a prompt's shared segment."""
        self.put(root, chain_key(0, ids), Piece(tuple(ids), segment.kv))

    def shrink(self, most: int) -> None:
        """Drops the least recently used entries until at most `most` bytes are held."""
        while self.bytes > most:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def release(self, root: int) -> None:
        """Drops all that belongs to a root."""
        for node in list(self._roots.get(root, ())):
            self._drop((root, node))

    def _drop(self, key: tuple[int, int]) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.bytes -= entry.bytes
        members = self._roots[key[0]]
        members.discard(key[1])
        if not members:
            del self._roots[key[0]]


def default_cache_bytes(model: Any) -> int:
    """2 GiB on a CPU, a quarter of the memory of a GPU."""
    device = model.device
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return 2 * 1024**3


def check_cache_options(cache: str, max_cache_bytes: int | None) -> None:
    """Refuses options that name no way of caching."""
    if cache not in ("tree", "none"):
        raise ValueError(f'cache={cache!r}: choose "tree" or "none"')
    if max_cache_bytes is not None and max_cache_bytes < 0:
        raise ValueError(f"max_cache_bytes={max_cache_bytes}: give 0 or more")


@dataclass(eq=False)
class Stem:
    """What branches of one node with one forced text have in common.

    The prompt's last token counts as the root's own, so that a shared segment holds what comes before it and every
    node, the root included, has at least one token whose logits lead on.

    Attributes:
        branch: One of them.
        root: Key of the tree's root.
        segment: The prompt without its last token.
        nodes: Name and own tokens of each node of the path, the root's first.
        pieces: What is held of the first of these nodes.
    """

    branch: Branch
    root: int
    segment: Segment
    nodes: list[tuple[int, tuple[int, ...]]]
    pieces: list[Piece]

    @classmethod
    def find(cls, branch: Branch, segment: Segment, store: KVStore) -> Stem:
        """The stem, with the parked pieces of its path up to the first that is missing."""
        root = branch.request.node.root
        nodes: list[tuple[int, tuple[int, ...]]] = []
        key = chain_key(0, branch.prompt[:-1])
        for ids in (branch.prompt[-1:], *(step.token_ids for step in branch.request.node.steps)):
            key = chain_key(key, ids)
            nodes.append((key, ids))
        pieces: list[Piece] = []
        for key, ids in nodes:
            if not ids:
                pieces.append(Piece((), None))
                continue
            piece = store.piece(root.key, key, ids)
            if piece is None:
                break
            pieces.append(piece)
            if len(piece.ids) < len(ids):
                break
        return cls(branch, root.key, segment, nodes, pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """All private tokens before the first sampled one."""
        return self.branch.prompt[-1:] + self.branch.path + self.branch.forced

    @property
    def held(self) -> int:
        """Private tokens that need not be read; the last one always must, for its logits."""
        return min(sum(len(piece.ids) for piece in self.pieces), len(self.ids) - 1)
