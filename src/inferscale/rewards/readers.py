"""Two ways to read a model along paths: whole texts in padded batches, or every node once on a `Session`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inferscale.generators.kv_rows import RowBatch, Segment
from inferscale.generators.kv_store import KVStore, Piece
from inferscale.generators.kv_tree import Session
from inferscale.generators.memory import run_in_pieces

from .heads import Read
from .paths import Part, Path


class Reader(ABC):
    """Gives a number for every mark of a path."""

    @abstractmethod
    def read(self, paths: Sequence[Path]) -> list[list[float]]:
        """For each path, the numbers at the marks of all its parts, in order."""

    def unread(self, paths: Sequence[Path]) -> list[tuple[int, int, int]]:
        """For each path the new ids, the ids before them and the new marks that reading it takes."""
        return [(len(path), 0, sum(len(part.marks) for part in path.parts)) for path in paths]

    def release(self, root: int) -> None:
        """The tree with this root key will not be read any more."""


class BatchReader(Reader):
    """Reads whole texts, right-padded, shortest first: simple, and for every model."""

    def __init__(self, model: Any, read: Read, rows: int) -> None:
        self._model = model
        self._read = read
        self._rows = rows
        self._parameters = inspect.signature(model.forward).parameters

    def read(self, paths: Sequence[Path]) -> list[list[float]]:
        """For each path, the numbers at its marks."""
        found: dict[int, list[float]] = {}
        order = sorted(range(len(paths)), key=lambda i: len(paths[i]))

        def run(piece: Sequence[int]) -> None:
            found.update(zip(piece, self._run([paths[i] for i in piece]), strict=True))

        self._rows = run_in_pieces(order, self._rows, run, lambda i: f"{len(paths[i])} tokens, {self._model.dtype}")
        return [found[i] for i in range(len(paths))]

    def _run(self, batch: Sequence[Path]) -> list[list[float]]:
        rows = [path.ids for path in batch]
        marks = [path.marks for path in batch]
        if not any(marks):
            return [[] for _ in batch]
        ids, mask = padded(rows, 0, self._model.device)
        positions = sorted({mark for places in marks for mark in places})
        options: dict[str, Any] = {}
        if "logits_to_keep" in self._parameters:  # the head runs only where some row is read
            options["logits_to_keep"] = torch.tensor(positions, dtype=torch.long, device=ids.device)
        else:
            positions = list(range(ids.shape[1]))
        if "position_ids" in self._parameters:
            options["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        column = {position: i for i, position in enumerate(positions)}
        row_index = [i for i, places in enumerate(marks) for _ in places]
        columns = [column[mark] for places in marks for mark in places]
        targets = [t for path in batch for part in path.parts for t in _targets(part)]
        values = self._read(
            logits[row_index, columns].float(), torch.tensor(targets, dtype=torch.long, device=ids.device)
        ).tolist()
        return split(values, [len(places) for places in marks])


class TreeReader(Reader):
    """Reads every node once: a path's earlier nodes are held with their numbers, its prompt with all its branches."""

    def __init__(self, session: Session, store: KVStore, read: Read, rows: int) -> None:
        self._session = session
        self._store = store
        self._read = read
        self._rows = rows
        self._billed: dict[int, set[int]] = {}

    def read(self, paths: Sequence[Path]) -> list[list[float]]:
        """For each path, the numbers at its marks."""
        known: dict[tuple[int, int], Piece] = {}
        depth = [self._held(path, known) for path in paths]
        for level in range(min(depth, default=0), max((len(path.parts) for path in paths), default=0)):
            wanted: dict[tuple[int, int], Path] = {}
            for path, held in zip(paths, depth, strict=True):
                if held <= level < len(path.parts):
                    wanted.setdefault((path.root, path.parts[level].key), path)
            missing = [path for key, path in wanted.items() if key not in known]
            self._read_level(missing, level, known)
        for path in paths:
            self._billed.setdefault(path.root, set()).update(part.key for part in path.parts)
        return [[value for part in path.parts for value in known[path.root, part.key].note] for path in paths]

    def unread(self, paths: Sequence[Path]) -> list[tuple[int, int, int]]:
        """What each path adds to those read before and to those before it in `paths`.

        Nodes dropped for room and read again are not counted: the price of a result does not depend on the memory.
        """
        billed = {path.root: set(self._billed.get(path.root, ())) for path in paths}
        bills = []
        for path in paths:
            seen = billed[path.root]
            new = [part for part in path.parts if part.key not in seen]
            prompt = 0 if seen else len(path.shared)
            count = prompt + sum(len(part.ids) for part in new)
            bills.append((count, len(path) - count, sum(len(part.marks) for part in new)))
            seen.update(part.key for part in path.parts)
        return bills

    def release(self, root: int) -> None:
        """Drops what is held for a tree."""
        self._store.release(root)
        if not len(self._store):
            self._session.buffers.clear()
        self._billed.pop(root, None)

    def _held(self, path: Path, known: dict[tuple[int, int], Piece]) -> int:
        """How many parts need not be read, which are put into `known`."""
        for place, part in enumerate(path.parts):
            piece = self._store.piece(path.root, part.key, part.ids)
            lacks_kv = piece is not None and piece.kv is None and bool(part.ids) and place + 1 < len(path.parts)
            if piece is None or len(piece.ids) < len(part.ids) or lacks_kv:
                return place
            known[path.root, part.key] = piece
        return len(path.parts)

    def _read_level(self, paths: Sequence[Path], level: int, known: dict[tuple[int, int], Piece]) -> None:
        """Reads the part at `level` of each path; those before it are known."""
        full = [path for path in paths if path.parts[level].ids]
        for path in paths:
            if not path.parts[level].ids:
                known[path.root, path.parts[level].key] = Piece((), None)

        def run(piece: Sequence[Path]) -> None:
            self._run(piece, level, known)

        self._rows = run_in_pieces(
            sorted(full, key=lambda path: path.root), self._rows, run, lambda p: f"{len(p)} tokens", self._make_room
        )

    def _run(self, paths: Sequence[Path], level: int, known: dict[tuple[int, int], Piece]) -> None:
        parts = [path.parts[level] for path in paths]
        batch = self._open(paths, level, known)
        starts = list(batch.lengths)
        logits = self._session.extend(batch, [part.ids for part in parts], [part.marks for part in parts])
        targets = torch.tensor([t for part in parts for t in _targets(part)], dtype=torch.long, device=logits.device)
        values: Tensor = self._read(logits.float(), targets)
        notes = split(values.tolist(), [len(part.marks) for part in parts])
        for row, (path, part, note) in enumerate(zip(paths, parts, notes, strict=True)):
            kv = None if part.ends else batch.piece(row, starts[row], starts[row] + len(part.ids))
            piece = Piece(part.ids, kv, tuple(note))
            known[path.root, part.key] = piece
            self._store.put(path.root, part.key, piece)
        batch.close()

    def _open(self, paths: Sequence[Path], level: int, known: dict[tuple[int, int], Piece]) -> RowBatch:
        """Rows that hold everything before `level`."""
        segments = self._segments(paths)
        most = max(sum(len(part.ids) for part in path.parts[: level + 1]) for path in paths)
        batch = self._session.open([segments[path.root, path.shared] for path in paths], most)
        for row, path in enumerate(paths):
            for part in path.parts[:level]:
                piece = known[path.root, part.key]
                if piece.kv is not None:
                    batch.load(row, batch.lengths[row], piece.kv)
        return batch

    def _segments(self, paths: Sequence[Path]) -> dict[tuple[int, tuple[int, ...]], Segment]:
        wanted = dict.fromkeys((path.root, path.shared) for path in paths)
        found = {key: self._store.segment(*key) for key in wanted}
        missing = [key for key, segment in found.items() if segment is None]
        for key, segment in zip(missing, self._session.prefill([ids for _, ids in missing]), strict=True):
            self._store.put_segment(*key, segment)
            found[key] = segment
        return {key: segment for key, segment in found.items() if segment is not None}

    def _make_room(self) -> None:
        self._session.buffers.clear()
        self._store.shrink(0)


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[rows, longest]`, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def split(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """`values` cut into consecutive lists of the given lengths."""
    pieces, start = [], 0
    for count in counts:
        pieces.append(list(values[start : start + count]))
        start += count
    return pieces


def _targets(part: Part) -> tuple[int, ...]:
    return part.targets or (0,) * len(part.marks)
