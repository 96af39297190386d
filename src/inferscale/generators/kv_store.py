"""Keys and values of prompts and nodes, kept for the next visit under a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .kv_rows import Segment

_PROMPT = -1  # key of a root's shared segment; node keys are not negative


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
    """Parks keys and values by root and node; the least recently used go first when the budget is full.

    Whatever was dropped is computed again when it is needed: the store never changes a result.

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
        """What is held for the node, if its tokens are the first of `ids`: a key alone may name another sample."""
        entry = self._entries.get((root, node))
        if entry is None or entry.ids != tuple(ids[: len(entry.ids)]):
            return None
        self._entries.move_to_end((root, node))
        return entry

    def segment(self, root: int, ids: Sequence[int]) -> Segment | None:
        """The prompt's shared segment, if it is held for these ids."""
        entry = self.piece(root, _PROMPT, ids)
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
        self.put(root, _PROMPT, Piece(tuple(ids), segment.kv))

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
