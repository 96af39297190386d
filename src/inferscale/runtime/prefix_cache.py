"""Keys and values of prompts and nodes kept for the next visit: what is held of a path, and what has to be read.

Generators, reward models and thoughts share this cache. They name what lies on a path by its tokens, find the longest
beginning that is held, run the model on the rest in their own way, and park what the next visit will want. Whatever was
dropped is computed again: the cache never changes a result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .branch import Branch
from .kv import KV, Piece, RowBatch
from .session import Session, checked_session
from .states import RowStates


def chain_key(previous: int, ids: Sequence[int], kind: int = 0) -> int:
    """The name of what follows `previous` by `ids`: equal paths have equal names, whoever made them."""
    return hash((previous, kind, *ids))


@dataclass(frozen=True, slots=True)
class KeyedPath:
    """A path as the cache knows it.

    Attributes:
        root: Key of the tree's root.
        prompt: Ids that all paths of the tree begin with, whose keys and values rows share.
        pieces: The name of each piece that follows (see `chain_key`), and its ids.
    """

    root: int
    prompt: tuple[int, ...]
    pieces: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def prompt_key(self) -> int:
        """The name of the prompt."""
        return chain_key(0, self.prompt)

    def grown(self, ids: Sequence[int]) -> KeyedPath:
        """The path followed by one more piece, unless that is empty."""
        if not ids:
            return self
        last = self.pieces[-1][0] if self.pieces else self.prompt_key
        return replace(self, pieces=(*self.pieces, (chain_key(last, ids), tuple(ids))))


def branch_path(branch: Branch) -> KeyedPath:
    """The path that leads to the node of `branch`, forced text left out.

    The prompt's last token counts as the root's own, so that every node, the root included, has a last token. A node is
    two pieces: all of its tokens but the last, which have been read when its branch ends, and the last one, which is
    read for the logits after it when the node grows.
    """
    key, pieces = chain_key(0, branch.prompt[:-1]), []
    for own in (branch.prompt[-1:], *(step.token_ids for step in branch.request.node.steps)):
        for ids in (own[:-1], own[-1:]):
            if ids:
                key = chain_key(key, ids)
                pieces.append((key, ids))
    return KeyedPath(branch.request.node.root.key, branch.prompt[:-1], tuple(pieces))


class PrefixCache:
    """Holds keys and values by the root of their tree and the name of their piece; the least recently used go first.

    Attributes:
        max_bytes: The budget.
        bytes: Size of what is held.
        evictions: Entries dropped for room.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[tuple[int, int], Piece] = OrderedDict()  # by root and name, newest use last
        self._roots: dict[int, set[int]] = {}  # names of each root, so that a tree is released without a search

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def piece(self, root: int, name: int, ids: Sequence[int]) -> Piece | None:
        """The piece of this name, if it is held and of these tokens (names are hashes, and may collide)."""
        entry = self._entries.get((root, name))
        if entry is None or entry.ids != tuple(ids):
            return None
        self._entries.move_to_end((root, name))
        return entry

    def find(self, path: KeyedPath, most: int | None = None) -> list[Piece]:
        """The longest beginning of the path's pieces that is held, and of which no gap is left in keys and values.

        Args:
            path: The path.
            most: Most tokens of it that are wanted.
        """
        found: list[Piece] = []
        tokens = going_on = 0  # and the pieces up to the last one that a row can go on from
        for place, (name, ids) in enumerate(path.pieces):
            tokens += len(ids)
            if most is not None and tokens > most:
                break
            piece = self.piece(path.root, name, ids) if ids else Piece()
            # A piece of which the numbers alone were kept is good for its own path, not for one that goes on.
            if piece is None or (ids and piece.kv is None and place + 1 < len(path.pieces)):
                break
            found.append(piece)
            if piece.states is not None and (ids or going_on == place):
                going_on = place + 1
        return found[:going_on]

    def prompt(self, path: KeyedPath) -> Piece | None:
        """The prompt of a path, if it is held; one of no tokens always is."""
        return self.piece(path.root, path.prompt_key, path.prompt) if path.prompt else Piece()

    def put(self, root: int, name: int, piece: Piece) -> None:
        """Holds a piece, in place of what was held under its name; one that is larger than the budget is not held."""
        self._drop((root, name))
        if piece.bytes > self.max_bytes:
            return
        self._entries[root, name] = piece
        self._roots.setdefault(root, set()).add(name)
        self.bytes += piece.bytes
        self.shrink(self.max_bytes)

    def open(
        self, session: Session, paths: Sequence[KeyedPath], held: Sequence[Sequence[Piece]], capacity: int
    ) -> RowBatch:
        """A row for each path, which continues its prompt and holds some of its pieces.

        Args:
            session: Runs the model; prompts that are not held are read in it, all together.
            paths: The paths.
            held: The pieces that were found of each path.
            capacity: Tokens behind the prompt that the rows have room for.
        """
        prompts: dict[tuple[int, tuple[int, ...]], Piece] = {}
        missing: dict[tuple[int, tuple[int, ...]], KeyedPath] = {}
        for key, path in {(path.root, path.prompt): path for path in paths}.items():
            piece = self.prompt(path)
            if piece is None:
                missing[key] = path
            else:
                prompts[key] = piece
        for (key, path), piece in zip(missing.items(), session.prefill([ids for _, ids in missing]), strict=True):
            self.put(path.root, path.prompt_key, piece)
            prompts[key] = piece
        batch = session.open([prompts[path.root, path.prompt] for path in paths], capacity)
        for row, pieces in enumerate(held):
            batch.fill(row, pieces)
        return batch

    def park(
        self,
        path: KeyedPath,
        cut: Callable[[int, int], KV],
        states: RowStates | None = (),
        prompt: bool = False,
    ) -> None:
        """Holds every piece of a path that is not held yet.

        Args:
            path: The path, read to its end.
            cut: Gives a copy of the keys and values between two places, counted from the first token behind the prompt.
            states: States at the path's end; empty if the model has none, ``None`` if they are not held.
            prompt: True to hold the prompt too; `cut` then counts from its first token.
        """
        pieces, start = path.pieces, 0
        if prompt:
            pieces = ((path.prompt_key, path.prompt), *pieces)
        end = sum(len(ids) for _, ids in pieces)
        for name, ids in pieces:
            stop = start + len(ids)
            held = self.piece(path.root, name, ids) if ids else Piece()
            own = states if stop == end or not states else None
            if held is None or (held.states is None and own is not None):
                kv = cut(start, stop) if held is None else held.kv
                self.put(path.root, name, Piece(ids, kv, states=own))
            start = stop

    def shrink(self, most: int) -> None:
        """Drops the least recently used entries until at most `most` bytes are held."""
        while self.bytes > most:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def release(self, root: int) -> None:
        """Drops all that belongs to a root."""
        for name in list(self._roots.get(root, ())):
            self._drop((root, name))

    def _drop(self, key: tuple[int, int]) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.bytes -= entry.bytes
        members = self._roots[key[0]]
        members.discard(key[1])
        if not members:
            del self._roots[key[0]]


def check_cache_options(cache: str, max_cache_bytes: int | None) -> None:
    """Raises ``ValueError`` for options that name no way of caching."""
    if cache not in ("tree", "none"):
        raise ValueError(f'cache={cache!r}: choose "tree" or "none"')
    if max_cache_bytes is not None and max_cache_bytes < 0:
        raise ValueError(f"max_cache_bytes={max_cache_bytes}: give 0 or more")


def cache_bytes(model: Any, max_cache_bytes: int | None) -> int:
    """The budget that is given, or else 2 GiB on a CPU and a quarter of the memory of a GPU."""
    if max_cache_bytes is not None:
        return max_cache_bytes
    on_gpu = model.device.type == "cuda"
    return int(torch.cuda.get_device_properties(model.device).total_memory) // 4 if on_gpu else 2 * 1024**3


def shared_prefixes(model: Any, cache: str, max_cache_bytes: int | None) -> tuple[Session, PrefixCache] | None:
    """A session and a cache for it, or ``None`` if prefixes are not to be shared, or, with a warning, cannot be.

    Raises:
        ValueError: If an option does not fit.
    """
    check_cache_options(cache, max_cache_bytes)
    session = checked_session(model) if cache == "tree" else None
    return None if session is None else (session, PrefixCache(cache_bytes(model, max_cache_bytes)))
