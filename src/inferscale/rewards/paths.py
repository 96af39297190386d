"""Reading a model along the paths of a tree: ids and marks of a path, two ways to read them, and both as one."""

from __future__ import annotations

import inspect
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.runtime.charges import Charges
from inferscale.runtime.kv import RowBatch, Segment
from inferscale.runtime.loading import evaluating
from inferscale.runtime.memory import run_in_pieces
from inferscale.runtime.prefix_cache import KVStore, Piece, chain_key, check_cache_options, default_cache_bytes
from inferscale.runtime.prompts import PromptFormat
from inferscale.runtime.session import Session, checked_session, length_bound
from inferscale.tree import Node, Step


class StepEncoder:
    """Encodes the prompt once and each step on its own, so that ids of a longer path start with those of its prefix.

    A text that is encoded as a whole can get other ids at its step ends: with a Qwen-style tokenizer that happens at
    two of three.

    Attributes:
        separator: Text that ends every encoded step; a step that does not end with it gets it.
        use_token_ids: Whether the steps' own ids are used (the generator has the same tokenizer).
    """

    def __init__(self, tokenizer: Any, prompts: PromptFormat, separator: str | None, use_token_ids: bool) -> None:
        self.separator = separator
        self.use_token_ids = use_token_ids
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._prompt = lru_cache(maxsize=4096)(prompts.encode)
        self._plain = lru_cache(maxsize=65536)(self._encode_plain)

    def prompt(self, node: Node) -> tuple[int, ...]:
        """Ids of the problem's prompt."""
        return self._prompt(node.problem.prompt)

    def steps(self, step: Step) -> list[tuple[int, ...]]:
        """Ids of each inner step of `step`."""
        return [self._inner(text, ids) for text, ids in step.inner_steps()]

    def _inner(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        end = self._plain(self.separator) if self.separator else ()
        if not self.use_token_ids:
            body = text.removesuffix(self.separator).rstrip() if self.separator else text
            return self._plain(body) + end
        if not ids:
            raise ValueError(f"use_token_ids=True, but the step {text[:60]!r} carries no ids: pass use_token_ids=False")
        kept = tuple(ids)
        while kept and kept[-1] in self._special:  # the end of sequence belongs to no step
            kept = kept[:-1]
        return kept if self.separator and text.endswith(self.separator) else kept + end

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Part:
    """What one node adds to its path.

    Attributes:
        key: Name of the path up to here.
        ids: Ids read.
        marks: Places in `ids` where the model is read.
        targets: For each mark the id predicted there, for models that are asked so.
        counts: Marks of each inner step.
        ends: Whether the path ends with this node.
    """

    key: int
    ids: tuple[int, ...]
    marks: tuple[int, ...]
    targets: tuple[int, ...]
    counts: tuple[int, ...]
    ends: bool


@dataclass(frozen=True, slots=True)
class Path:
    """A node's whole path.

    Attributes:
        root: Key of its root.
        shared: Ids that all paths of the problem start with.
        parts: What each node adds, first to last.
    """

    root: int
    shared: tuple[int, ...]
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.shared) + sum(len(part.ids) for part in self.parts)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids."""
        return (*self.shared, *(i for part in self.parts for i in part.ids))

    @property
    def marks(self) -> list[int]:
        """Places in `ids` where the model is read."""
        marks, start = [], len(self.shared)
        for part in self.parts:
            marks += [start + mark for mark in part.marks]
            start += len(part.ids)
        return marks


def step_ends(node: Node, encoder: StepEncoder) -> Path:
    """The path of `node`, read at the last id of each step."""
    prompt, parts = encoder.prompt(node), []
    key = chain_key(0, prompt)
    for step_node in node.path:
        steps = _steps(step_node, encoder)
        ends = [sum(map(len, steps[: i + 1])) - 1 for i in range(len(steps))]
        ids = tuple(i for step in steps for i in step)
        key = chain_key(chain_key(key, ids), ends, kind=step_node.is_finished)
        parts.append(Part(key, ids, tuple(ends), (), (1,) * len(steps), step_node.is_finished))
    return Path(node.root.key, prompt, tuple(parts))


def predictions(node: Node, encoder: StepEncoder) -> Path:
    """The path of `node`, read where each id of its steps is predicted: one place earlier."""
    prompt = encoder.prompt(node)
    last, parts = prompt[-1], []
    key = chain_key(0, prompt[:-1])
    for step_node in node.path:
        steps = _steps(step_node, encoder)
        targets = tuple(i for step in steps for i in step)
        ids = (last, *targets[:-1]) if targets else ()
        counts = tuple(map(len, steps))
        key = chain_key(chain_key(key, targets), counts, kind=step_node.is_finished)
        parts.append(Part(key, ids, tuple(range(len(ids))), targets, counts, step_node.is_finished))
        last = targets[-1] if targets else last
    return Path(node.root.key, prompt[:-1], tuple(parts))


def _steps(node: Node, encoder: StepEncoder) -> list[tuple[int, ...]]:
    return [] if node.step is None else encoder.steps(node.step)


Read: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From float32 outputs `[marks, outputs]` and target ids `[marks]` to one number for each mark `[marks]`."""


def read_pair(good: int, bad: int) -> Read:
    """P(good) in a softmax over the two outputs."""

    def read(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(logits[:, good] - logits[:, bad])

    return read


def read_sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """The sigmoid of a single output."""
    return torch.sigmoid(logits[:, 0])


def read_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target."""
    return logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def read_self_certainty(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the prediction is from uniform, in nats: ``KL(uniform || p)`` (Kang et al. 2025, arXiv:2502.18581)."""
    return -logits.log_softmax(dim=-1).mean(dim=-1) - math.log(logits.shape[-1])


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


CacheKind: TypeAlias = Literal["tree", "none"]
PathOf: TypeAlias = Callable[[Node], Path]

_ROWS = {"tree": 64, "none": 32}


class SingleReading(ProcessRewardModel):
    """A process reward model that reads one model."""

    _reading: StepReading

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: with ``cache="tree"`` the tokens that it adds, else its whole text."""
        return self._reading.cost(nodes)

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        self._reading.release(root)


class StepReading:
    """Reads a model along the paths of nodes.

    With ``cache="tree"`` every node is read once, whatever is scored when; what a node costs is what it adds to the
    nodes read before. Otherwise whole texts are read, and paid for, each time.
    """

    def __init__(
        self,
        model: Any,
        path_of: PathOf,
        read: Read,
        *,
        rows: int | None,
        cache: CacheKind,
        max_cache_bytes: int | None,
    ) -> None:
        check_cache_options(cache, max_cache_bytes)
        if rows is not None and rows < 1:
            raise ValueError(f"micro_batch={rows}: give a positive number")
        self._model, self._path_of = model, path_of
        self._charges = Charges(model)
        self._plain: Reader = BatchReader(model, read, rows or _ROWS["none"])
        self._tree: Reader | None = None
        self._lock = threading.Lock()
        self._bound = length_bound(model.config)
        session = checked_session(model) if cache == "tree" else None
        if session is not None:
            size = default_cache_bytes(model) if max_cache_bytes is None else max_cache_bytes
            self._tree = TreeReader(session, KVStore(size), read, rows or _ROWS["tree"])

    def values(self, nodes: Sequence[Node]) -> list[list[list[float]]]:
        """For each node and each of its steps, the numbers at the step's marks."""
        paths = [self._path_of(node) for node in nodes]
        found: dict[int, list[float]] = {}
        with self._lock, evaluating(self._model), torch.inference_mode():
            for reader, chosen in self._assigned(paths):
                found.update(zip(chosen, reader.read([paths[i] for i in chosen]), strict=True))
        counts = [[count for part in path.parts for count in part.counts] for path in paths]
        return [split(found[i], counts[i]) for i in range(len(paths))]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs."""
        paths = [self._path_of(node) for node in nodes]
        bills: dict[int, tuple[int, int, int]] = {}
        for reader, chosen in self._assigned(paths):
            bills.update(zip(chosen, reader.unread([paths[i] for i in chosen]), strict=True))
        return [self._charges.scoring(new, marks, past) for new, past, marks in (bills[i] for i in range(len(paths)))]

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        if self._tree is not None:
            with self._lock:
                self._tree.release(root.key)

    def _assigned(self, paths: Sequence[Path]) -> list[tuple[Reader, list[int]]]:
        """Which reader reads which paths."""
        every = list(range(len(paths)))
        if self._tree is None:
            return [(self._plain, every)]
        bound = self._bound
        short = [i for i in every if bound is None or len(paths[i]) <= bound]
        long = [i for i in every if bound is not None and len(paths[i]) > bound]
        return [(self._tree, short), (self._plain, long)]
