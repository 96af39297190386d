"""Scores of the tokens of a path: paths as ids, two ways to run a model along them, and the base of step scores.

A path is laid out in pieces of ids: one for the prompt, one for each step. Pieces do not change when more steps follow,
so that the ids of a longer path start with those of its prefix, and every node is scored once (`TreeScorer`).
"""

from __future__ import annotations

import inspect
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import accumulate, compress, pairwise
from operator import add
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from inferscale.base import ProcessRewardModel, check_judge
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.runtime.charges import Charges
from inferscale.runtime.kv import Piece
from inferscale.runtime.loading import check_length, context_length, evaluating
from inferscale.runtime.plain import alike_in_rope, forget_longer_rows
from inferscale.runtime.prefix_cache import (
    KeyedPath,
    PrefixCache,
    chain_key,
    shared_prefixes,
)
from inferscale.runtime.prompts import PromptFormat
from inferscale.runtime.session import Session, run_in_pieces
from inferscale.tree import Judge, Node

Ids: TypeAlias = tuple[int, ...]
T = TypeVar("T")


class StepEncoder(Protocol):
    """Lays out a problem and the steps of a solution as ids."""

    def encode(self, node: Node) -> tuple[Ids, list[Ids]]:
        """Ids before the first step, and of each of ``node.inner_steps()`` those that end where it is scored."""
        ...


class TextStepEncoder:
    """Encodes the prompt once and each step on its own, followed by a separator.

    A text that is encoded as a whole can get other ids at its step ends: with a Qwen-style tokenizer that happens at
    two of three.

    Attributes:
        separator: Text that ends every encoded step; a step that does not end with it gets it.
        use_token_ids: True if the steps' own ids are used (the generator has the same tokenizer).
        prompts: Encodes the prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        separator: str | None,
        use_token_ids: bool,
        chat_template: bool | None,
        system_prompt: str | None,
        **prompt_options: Any,
    ) -> None:
        self.separator = separator
        self.use_token_ids = use_token_ids
        self.prompts = PromptFormat.choose(tokenizer, chat_template, system_prompt, **prompt_options)
        self._special = self.prompts.text.specials
        self._prompt = lru_cache(maxsize=4096)(self.prompts.encode)
        # Every path is encoded anew, and most of its steps are those of its parent.
        self._plain = lru_cache(maxsize=2**15)(self.prompts.text.plain)
        self._raw = lru_cache(maxsize=16)(self.prompts.text.raw)

    def encode(self, node: Node) -> tuple[Ids, list[Ids]]:
        """Ids of the problem's prompt, and of each step with its separator.

        Raises:
            ValueError: If steps have no ids of their own, and those are to be used.
        """
        return self._prompt(node.problem), [self._step(text, ids) for text, ids in node.inner_steps()]

    def _step(self, text: str, ids: Ids) -> Ids:
        end = self._raw(self.separator or "")  # a mark of the format: it may be a control token
        if not self.use_token_ids:
            body = text.removesuffix(self.separator).rstrip() if self.separator else text
            return self._plain(body) + end
        if not ids:
            raise ValueError(f"use_token_ids=True, but the step {text[:60]!r} carries no ids: pass use_token_ids=False")
        while ids and ids[-1] in self._special:  # the end of sequence belongs to no step
            ids = ids[:-1]
        return ids if self.separator and text.endswith(self.separator) else ids + end


@dataclass(frozen=True, slots=True)
class PathPart:
    """The part of a path that one node adds.

    Attributes:
        key: Name of the path up to here.
        ids: Its ids, in the order in which the model runs on them.
        marks: Places in `ids` whose outputs are scored.
        targets: For each mark the id that is predicted there; zeros where none is asked for.
        counts: Marks of each inner step.
        ends: True if the path ends with this node.
    """

    key: int
    ids: Ids
    marks: Ids
    targets: Ids
    counts: tuple[int, ...]
    ends: bool


@dataclass(frozen=True, slots=True)
class EncodedPath:
    """A node's whole path.

    Attributes:
        root: Key of its root.
        shared: Ids that all paths of the problem start with.
        parts: What each node adds, first to last.
    """

    root: int
    shared: Ids
    parts: tuple[PathPart, ...]

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.shared) + sum(len(part.ids) for part in self.parts)

    @property
    def ids(self) -> Ids:
        """All ids."""
        return (*self.shared, *(i for part in self.parts for i in part.ids))

    @property
    def keyed(self) -> KeyedPath:
        """The path by the names of its parts, under which they are cached."""
        return KeyedPath(self.root, self.shared, tuple((part.key, part.ids) for part in self.parts))

    @property
    def marks(self) -> list[int]:
        """Places in `ids` whose outputs are scored."""
        marks, start = [], len(self.shared)
        for part in self.parts:
            marks += [start + mark for mark in part.marks]
            start += len(part.ids)
        return marks


def step_ends(node: Node, encoder: StepEncoder) -> EncodedPath:
    """The path of `node`, scored at the last id of each step."""
    shared, pieces = encoder.encode(node)
    key, parts = chain_key(0, shared), []
    for place, steps in _pieces_of_nodes(node, pieces):
        ids = tuple(i for step in steps for i in step)
        ends = tuple(end - 1 for end in accumulate(map(len, steps)))
        # equal ids may be cut into steps otherwise, and of a finished node no keys and values are kept
        key = chain_key(chain_key(key, ids), ends, kind=place.is_finished)
        parts.append(PathPart(key, ids, ends, (0,) * len(ends), (1,) * len(ends), place.is_finished))
    return EncodedPath(node.root.key, shared, tuple(parts))


def token_predictions(node: Node, encoder: StepEncoder) -> EncodedPath:
    """The path of `node`, scored where each id of its steps is predicted.

    Token t is predicted by the output at t - 1. So everything is shifted by one: the prompt's last id is the first that
    belongs to a step, each node starts with the last id of the one before it, and the very last id is never run.
    Every id of a step counts, its separator included; the prompt's do not.
    """
    prompt, pieces = encoder.encode(node)
    key, last, parts = chain_key(0, prompt[:-1]), prompt[-1], []
    for place, steps in _pieces_of_nodes(node, pieces):
        targets = tuple(i for step in steps for i in step)
        ids = (last, *targets[:-1]) if targets else ()
        counts = tuple(map(len, steps))
        key = chain_key(chain_key(key, targets), counts, kind=place.is_finished)
        parts.append(PathPart(key, ids, tuple(range(len(ids))), targets, counts, place.is_finished))
        last = targets[-1] if targets else last
    return EncodedPath(node.root.key, prompt[:-1], tuple(parts))


def _pieces_of_nodes(node: Node, pieces: Sequence[Ids]) -> Iterator[tuple[Node, list[Ids]]]:
    """Each node of the path with the pieces of its own inner steps."""
    left = iter(pieces)
    for place in node.path:
        yield place, [next(left) for _ in (place.step.inner_steps() if place.step is not None else ())]


TokenScore: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From float32 outputs `[marks, outputs]` and target ids `[marks]` to one number for each mark `[marks]`."""


def pair_probability(good: int, bad: int) -> TokenScore:
    """P(good) in a softmax over the two outputs, which is the sigmoid of their difference."""

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(outputs[:, good] - outputs[:, bad])

    return score


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target, in nats."""
    return outputs.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def self_certainty(outputs: Tensor, targets: Tensor) -> Tensor:
    """The distance of each prediction from uniform, in nats: ``KL(uniform || p)`` (Kang et al. 2025, arXiv:2502.18581).

    With V outputs that is ``-mean(log p) - log V``; the targets do not matter.
    """
    return -outputs.log_softmax(dim=-1).mean(dim=-1) - math.log(outputs.shape[-1])


MAX_LOGITS = 2**26
"""Most outputs that one forward may have: 256 MiB in float32. More rows than that are run apart."""


def num_outputs(model: Any) -> int:
    """The outputs at a mark: the vocabulary of a language model, a few classes of a classifier."""
    head = model.get_output_embeddings()
    return 1 if head is None else int(getattr(head, "out_features", head.weight.shape[0]))


class PathScorer(ABC):
    """Gives a number for every mark of a path."""

    @abstractmethod
    def score(self, paths: Sequence[EncodedPath]) -> list[list[float]]:
        """For each path, the numbers at the marks of all its parts, in order."""

    def unscored(self, paths: Sequence[EncodedPath]) -> list[tuple[int, int, int]]:
        """For each path the new ids, the ids before them and the new marks that scoring it takes."""
        return [(len(path), 0, sum(len(part.marks) for part in path.parts)) for path in paths]

    def recall(self, paths: Sequence[EncodedPath]) -> None:
        """Called with paths that were scored and paid for in an earlier process."""

    def release(self, root: int) -> None:
        """Called when the tree with this root key will not be scored any more."""


class BatchScorer(PathScorer):
    """Runs whole texts, right-padded, shortest first: simple, and for every model."""

    def __init__(self, model: Any, token_score: TokenScore, rows: int) -> None:
        self._model = model
        self._token_score = token_score
        self._rows = rows
        self._parameters = inspect.signature(model.forward).parameters

    def score(self, paths: Sequence[EncodedPath]) -> list[list[float]]:
        """For each path, the numbers at its marks."""
        groups: dict[int, list[int]] = {}  # rotary angles that change with the length follow the longest row of a batch
        for place, path in enumerate(paths):
            groups.setdefault(alike_in_rope(self._model.config, len(path)), []).append(place)
        found: dict[int, list[float]] = {}
        for places in groups.values():
            rows = [paths[place] for place in places]
            values, self._rows = shortest_first(rows, self._rows, self._run, str(self._model.dtype))
            found.update(zip(places, values, strict=True))
        return [found[place] for place in range(len(paths))]

    def _run(self, batch: Sequence[EncodedPath]) -> list[list[float]]:
        marks = [path.marks for path in batch]
        if not any(marks):
            return [[] for _ in batch]
        positions = sorted({mark for places in marks for mark in places})
        if len(batch) > 1 and len(batch) * len(positions) * num_outputs(self._model) > MAX_LOGITS:
            half = len(batch) // 2
            return self._run(batch[:half]) + self._run(batch[half:])
        ids, mask = padded([path.ids for path in batch], 0, self._model.device)
        if alike_in_rope(self._model.config, ids.shape[1]):
            forget_longer_rows(self._model.modules())
        keeps = "logits_to_keep" in self._parameters  # then the head runs only where some row has a mark
        # One long row is read once for each window of its marks: their outputs would not fit beside each other.
        window = max(MAX_LOGITS // num_outputs(self._model), 1) if keeps and len(batch) == 1 else len(positions)
        rows = [i for i, places in enumerate(marks) for _ in places]
        flat = [mark for places in marks for mark in places]
        targets = torch.tensor([t for path in batch for part in path.parts for t in part.targets], dtype=torch.long)
        values: list[float] = []
        for start in range(0, len(positions), window):
            kept = positions[start : start + window]
            options = {"logits_to_keep": torch.tensor(kept, device=ids.device)} if keeps else {}
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
            # logits: [rows, positions, outputs]; out of them [marks of all rows, outputs]
            column = {position: i for i, position in enumerate(kept if keeps else range(ids.shape[1]))}
            here = slice(start, start + window) if len(batch) == 1 else slice(None)
            chosen = logits[rows[here], [column[mark] for mark in flat[here]]].float()
            values += self._token_score(chosen, targets[here].to(ids.device)).tolist()
        return split(values, [len(places) for places in marks])


class TreeScorer(PathScorer):
    """Scores every node once: a path's earlier nodes are held with their numbers, its prompt with all its branches."""

    def __init__(self, session: Session, cache: PrefixCache, token_score: TokenScore, rows: int) -> None:
        self.session = session
        self.cache = cache
        self._token_score = token_score
        self._rows = rows
        self._billed: dict[int, set[int]] = {}

    def score(self, paths: Sequence[EncodedPath]) -> list[list[float]]:
        """For each path, the numbers at its marks."""
        held = [self.cache.find(path.keyed) for path in paths]
        known: dict[tuple[int, int], Piece] = {}
        for path, pieces in zip(paths, held, strict=True):
            known |= {(path.root, part.key): piece for part, piece in zip(path.parts, pieces, strict=False)}
        # First the first part that each path lacks, at whatever depth, then the second: what several lack is run once.
        for turn in range(max((len(p.parts) - len(own) for p, own in zip(paths, held, strict=True)), default=0)):
            lacking: dict[tuple[int, int], tuple[EncodedPath, int]] = {}
            for path, pieces in zip(paths, held, strict=True):
                level = len(pieces) + turn
                if level < len(path.parts):
                    lacking.setdefault((path.root, path.parts[level].key), (path, level))
            self._score_parts([part for key, part in lacking.items() if key not in known], known)
        self.recall(paths)
        return [[value for part in path.parts for value in known[path.root, part.key].note] for path in paths]

    def unscored(self, paths: Sequence[EncodedPath]) -> list[tuple[int, int, int]]:
        """Count what each path adds to those scored before and to those before it in `paths`.

        Nodes dropped for room and run again are not counted: the price of a result does not depend on the memory.
        """
        billed = {path.root: set(self._billed.get(path.root, ())) for path in paths}
        bills = []
        for path in paths:
            seen = billed[path.root]
            new = [part for part in path.parts if part.key not in seen]
            prompt = 0 if seen else len(path.shared)  # the first path of a tree pays for it
            count = prompt + sum(len(part.ids) for part in new)
            bills.append((count, len(path) - count, sum(len(part.marks) for part in new)))
            seen.update(part.key for part in path.parts)
        return bills

    def recall(self, paths: Sequence[EncodedPath]) -> None:
        """Takes their parts for paid."""
        for path in paths:
            self._billed.setdefault(path.root, set()).update(part.key for part in path.parts)

    def release(self, root: int) -> None:
        """Drops what is held for a tree."""
        self.cache.release(root)
        if not len(self.cache):
            self.session.clear()
        self._billed.pop(root, None)

    def _score_parts(self, chosen: Sequence[tuple[EncodedPath, int]], known: dict[tuple[int, int], Piece]) -> None:
        """Runs of each path the part at a level; those before it are known."""
        for path, level in chosen:
            if not path.parts[level].ids:
                known[path.root, path.parts[level].key] = Piece()

        def run(piece: Sequence[tuple[EncodedPath, int]]) -> None:
            self._run(piece, known)

        def make_room() -> None:
            self.session.clear()
            self.cache.shrink(0)

        filled = sorted(((p, level) for p, level in chosen if p.parts[level].ids), key=lambda part: part[0].root)
        self._rows = run_in_pieces(filled, self._rows, run, lambda part: f"{len(part[0])} tokens", make_room)

    def _run(self, chosen: Sequence[tuple[EncodedPath, int]], known: dict[tuple[int, int], Piece]) -> None:
        # rows begin with what is held before the part, and are extended by ragged parts, without padding
        parts = [path.parts[level] for path, level in chosen]
        window = MAX_LOGITS // num_outputs(self.session.model)
        if len(parts) > 1 and sum(len(part.marks) for part in parts) > window:
            half = len(parts) // 2
            self._run(chosen[:half], known)
            self._run(chosen[half:], known)
            return
        held = [[known[path.root, part.key] for part in path.parts[:level]] for path, level in chosen]
        most = max(sum(len(part.ids) for part in path.parts[: level + 1]) for path, level in chosen)
        batch = self.cache.open(self.session, [path.keyed for path, _ in chosen], held, most)
        starts = batch.lengths.tolist()
        longest = max(len(part.ids) for part in parts)
        values: list[float] = []
        for start in range(0, longest, window if len(parts) == 1 else longest):  # one long row is run in pieces
            pieces = [_piece_of(part, start, start + window) if len(parts) == 1 else part for part in parts]
            logits = self.session.extend(batch, [part.ids for part in pieces], [part.marks for part in pieces])
            targets = torch.tensor([t for part in pieces for t in part.targets], dtype=torch.long, device=logits.device)
            values += self._token_score(logits.float(), targets).tolist()  # logits: [marks of all rows, outputs]
        notes = split(values, [len(part.marks) for part in parts])
        for row, ((path, _), part, note) in enumerate(zip(chosen, parts, notes, strict=True)):
            # nothing follows a finished node: its numbers are kept, without keys and values
            stop = starts[row] + len(part.ids)
            kv, states = (None, ()) if part.ends else (batch.piece(row, starts[row], stop), batch.states_at(row, stop))
            piece = Piece(part.ids, kv, tuple(note), states)
            known[path.root, part.key] = piece
            self.cache.put(path.root, part.key, piece)
        batch.close()


def _piece_of(part: PathPart, start: int, end: int) -> PathPart:
    """The ids from `start` to `end`, with their marks."""
    inside = [i for i, mark in enumerate(part.marks) if start <= mark < end]
    marks, targets = (tuple(part.marks[i] - start for i in inside), tuple(part.targets[i] for i in inside))
    return replace(part, ids=part.ids[start:end], marks=marks, targets=targets)


def shortest_first(
    rows: Sequence[Any], size: int, run: Callable[[Sequence[Any]], list[T]], note: str
) -> tuple[list[T], int]:
    """The results of `run` for each of `rows`, and the batch size that did fit into memory.

    Args:
        rows: Anything with a length in tokens; neighbours in length share a batch, so that little is padded.
        size: Most rows in a batch; halved while memory runs out.
        run: Runs a batch.
        note: What an error says of a row beside its length.
    """
    found: dict[int, T] = {}

    def run_piece(piece: Sequence[int]) -> None:
        found.update(zip(piece, run([rows[i] for i in piece]), strict=True))

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = run_in_pieces(order, size, run_piece, lambda i: f"{len(rows[i])} tokens, {note}")
    return [found[i] for i in range(len(rows))], size


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[rows, longest]`, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def split(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """`values` cut into consecutive lists of the given lengths."""
    ends = list(accumulate(counts, initial=0))
    return [list(values[a:b]) for a, b in pairwise(ends)]


CacheKind: TypeAlias = Literal["tree", "none"]


class StepScorer:
    """One model, run along the paths of nodes.

    With ``cache="tree"`` every node is run once, whatever is scored when; what a node costs is what it adds to the
    nodes scored before. Otherwise whole texts are run, and paid for, each time.
    """

    def __init__(
        self,
        model: Any,
        path_of: Callable[[Node], EncodedPath],
        token_score: TokenScore,
        *,
        micro_batch: int | None,
        cache: CacheKind,
        max_cache_bytes: int | None,
        context: int | None,
    ) -> None:
        rows = checked_rows(micro_batch)
        self._model, self._path_of, self._context = model, path_of, context
        self._charges = Charges(model)
        self._whole: PathScorer = BatchScorer(model, token_score, rows or 32)
        self._lock = threading.Lock()
        self._newest: dict[Node, EncodedPath] = {}  # of the nodes of the newest call
        shared = shared_prefixes(model, cache, max_cache_bytes)
        self._tree = None if shared is None else TreeScorer(*shared, token_score, rows or 64)

    def paths(self, nodes: Sequence[Node]) -> list[EncodedPath]:
        """The path of each node.

        Raises:
            ValueError: If one is longer than the model reads.
        """
        # The nodes of a call are laid out once for their price and their scores.
        known = self._newest
        self._newest = {node: known[node] if node in known else self._path_of(node) for node in nodes}
        paths = [self._newest[node] for node in nodes]
        for node, path in zip(nodes, paths, strict=True):
            check_length(len(path), self._context, node, type(self._model).__name__)
        return paths

    def token_scores(self, nodes: Sequence[Node]) -> list[list[list[float]]]:
        """For each node and each of its steps, the numbers at the step's marks."""
        paths = self.paths(nodes)
        with self._lock, evaluating(self._model), torch.inference_mode():
            values = self._by_length(paths, lambda scorer, chosen: scorer.score(chosen))
        counts = [[count for part in path.parts for count in part.counts] for path in paths]
        return [split(*pair) for pair in zip(values, counts, strict=True)]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of scoring each node."""
        paths = self.paths(nodes)
        bills = self._by_length(paths, lambda scorer, chosen: scorer.unscored(chosen))
        return self._charges.scorings(bills, [path.root for path in paths], [len(path.shared) for path in paths])

    def recall(self, nodes: Sequence[Node]) -> None:
        """Takes note that nodes were scored and paid for in an earlier process."""
        if self._tree is not None:
            paths = self.paths(nodes)
            with self._lock:
                self._tree.recall([path for path in paths if self._tree.session.covers(len(path))])

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        self._newest = {}
        if self._tree is not None:
            with self._lock:
                self._tree.release(root.key)

    def _by_length(
        self, paths: Sequence[EncodedPath], run: Callable[[PathScorer, Sequence[EncodedPath]], list[T]]
    ) -> list[T]:
        """The results of `run` for each path; paths of lengths that shared prefixes do not cover are run whole."""
        if self._tree is None:
            return run(self._whole, paths)
        fits = [self._tree.session.covers(len(path)) for path in paths]
        short = iter(run(self._tree, [path for path, fit in zip(paths, fits, strict=True) if fit]))
        long = iter(run(self._whole, [path for path, fit in zip(paths, fits, strict=True) if not fit]))
        return [next(short if fit else long) for fit in fits]


def checked_rows(micro_batch: int | None) -> int | None:
    """`micro_batch`, once it is a number of rows or ``None``."""
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch={micro_batch}: give a positive number")
    return micro_batch


class LocalProcessReward(ProcessRewardModel):
    """A process reward model that runs transformers models in this process, one or several along the same paths.

    Attributes:
        tokenizer: The tokenizer of all.
        reduction: How step scores become one score.
        judge: The part of a solution that is judged.
    """

    no_effect = frozenset({"micro_batch", "cache", "max_cache_bytes"})

    def __init__(
        self,
        models: Sequence[Any],
        tokenizer: Any,
        encoder: StepEncoder,
        path_of: Callable[[Node, StepEncoder], EncodedPath],
        token_score: TokenScore,
        *,
        reduction: Reduction,
        judge: Judge,
        micro_batch: int | None,
        cache: CacheKind,
        max_cache_bytes: int | None,
        reads_all: bool = False,
    ) -> None:
        """Makes a scorer for each model.

        Args:
            models: The models.
            tokenizer: The tokenizer of all.
            encoder: Lays out a path as ids.
            path_of: Places the marks.
            token_score: The number at a mark.
            reduction: How step scores become one score.
            judge: The part of a solution that is judged.
            micro_batch: Most rows run at a time.
            cache: ``"tree"`` or ``"none"``.
            max_cache_bytes: Most keys and values kept between calls.
            reads_all: True if the models read the whole solution, of which the part is judged; else the part alone.
        """
        self.tokenizer = tokenizer
        self.reduction = reduction
        self.judge = check_judge(judge)
        self._read: Judge = "all" if reads_all else judge
        self._encoder = encoder
        # the same for all, so that none is run on what another one cannot read
        context = min(filter(None, (context_length(model.config, tokenizer) for model in models)), default=None)
        options: dict[str, Any] = {
            "micro_batch": micro_batch, "cache": cache, "max_cache_bytes": max_cache_bytes, "context": context
        }  # fmt: skip
        self._scorers = [
            StepScorer(model, lambda node: path_of(node, encoder), token_score, **options) for model in models
        ]

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, the score of each of its steps.

        Raises:
            ValueError: If a path has more tokens than the model reads.
        """
        parts, counts = self._parts(nodes)
        run = list(compress(parts, map(any, counts)))
        of_models = zip(*(scorer.token_scores(run) for scorer in self._scorers), strict=True)
        found = ([self._step_score(*tokens) for tokens in zip(*steps, strict=True)] for steps in of_models)
        return [list(compress(next(found), steps)) if any(steps) else [] for steps in counts]

    def _parts(self, nodes: Sequence[Node]) -> tuple[list[Node], list[list[bool]]]:
        """For each node the path that is run, and which of its steps are judged; without one it is not run."""
        parts = [node.part(self._read) for node in nodes]
        if self._read != self.judge:
            return parts, [node.steps_in(self.judge) for node in nodes]
        return parts, [[True] * len(part.inner_steps()) for part in parts]

    def _step_score(self, *tokens: Sequence[float]) -> float:
        """The score of one step, given under each model the numbers at its marks."""
        return tokens[0][0]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of scoring each node: with ``cache="tree"`` the tokens that it adds, else its whole text."""
        parts, counts = self._parts(nodes)
        run = list(compress(parts, map(any, counts)))
        costs = zip(*(scorer.cost(run) for scorer in self._scorers), strict=True)
        return [reduce(add, next(costs)) if any(steps) else Cost() for steps in counts]

    def recall(self, nodes: Sequence[Node]) -> None:
        """Takes note that nodes were scored and paid for in an earlier process."""
        parts, counts = self._parts(nodes)
        for scorer in self._scorers:
            scorer.recall(list(compress(parts, map(any, counts))))

    def check_prompt(self, root: Node) -> None:
        """Refuses a prompt that is longer than the model reads."""
        self._scorers[0].paths([root])

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        for scorer in self._scorers:
            scorer.release(root)
