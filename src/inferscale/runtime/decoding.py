"""The token loop, two decoders that run its batches (on shared prefixes, or plainly), and the runner of requests."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferscale._compat import evaluating
from inferscale.base import Sampling, Ticket, Traffic
from inferscale.flops import report_tokens
from inferscale.flow import GenerateRequest, Race
from inferscale.tree import Node, Step

from .branch import Branch, BranchFactory, side_by_side
from .charges import Charges, row_groups
from .kv import ROOM, RowBatch
from .plain import PlainRows, plain_way, used_ranges
from .prefix_cache import KeyedPath, PrefixCache, branch_path, shared_prefixes
from .processing import LogitsProcessing
from .sampling import Draws, TokenSampler, as_bits, uniforms_on_device
from .session import Session, run_halving
from .text import TokenText


@dataclass
class GeneratorStats:
    """Work that a generator has really done, repeats included.

    Attributes:
        prefill_tokens: Prompt and path tokens read by the model.
        reused_tokens: Prompt and path tokens of branches that were not read, since their keys and values were held.
        decoded_tokens: Tokens sampled and kept.
        wasted_tokens: Tokens drawn beyond the end of a step, or again after memory ran out.
        cache_bytes: Keys and values held now.
        peak_cache_bytes: The most keys and values held at a time, rows that decode included.
        evictions: Parked nodes and prompts dropped for room.
        seconds: Seconds in which it sampled, in `generate` and in sessions.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.HFGenerator(*isc.zoo.load("policy-xs"), max_new_tokens=4)
        >>> result = isc.solve(isc.zoo.problems("dev")[0], isc.RepeatedSampling(4), generator)
        >>> stats = generator.stats
        >>> stats.prefill_tokens == result.cost.prompt_tokens  # the prompt was read once for all four
        True
        >>> stats.decoded_tokens == result.cost.generated_tokens
        True
    """

    prefill_tokens: int = 0
    reused_tokens: int = 0
    decoded_tokens: int = 0
    wasted_tokens: int = 0
    cache_bytes: int = 0
    peak_cache_bytes: int = 0
    evictions: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second."""
        return self.decoded_tokens / self.seconds if self.seconds else 0.0


class Decoder(ABC):
    """Next-token logits for a batch of branches that grow token by token.

    Attributes:
        refills: True if `start` can add rows, behind those that are left of the batch.
        follows_branches: True if it looks at the tokens of its branches, so that they must be told of every one.
    """

    refills: bool = False
    follows_branches: bool = True

    def another(self) -> Decoder:
        """A decoder without rows on the same model and cache, so that several batches can be under way; or this one."""
        return self

    @abstractmethod
    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits `[branches, vocabulary]` of the first token of each branch."""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[rows, vocabulary]` after one more token `[rows]` in each row that is left."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these; their branches have ended. There may be none."""

    def finished(self, branch: Branch, step: Step) -> Step:
        """The step of a branch that has ended, with what this decoder alone knows of it."""
        return step

    def make_room(self) -> None:
        """Memory ran out: lets go of everything that can be computed again."""

    def release(self, root: int) -> None:
        """The tree with this root key will not grow any more."""


_PATIENCE = 16
"""Looks after which branches that wait join, however few they are: a copy of the rows then costs little beside them."""

# State of a row: the key of its random stream, the tokens drawn (those included that its branch was not told of
# yet), the counts at which a length ends a step and the path, and whether it takes likeliest tokens or has ended.
_ROW = np.dtype([("key", "u8"), ("count", "i8"), ("due", "i8"), ("room", "i8"), ("greedy", "?"), ("ended", "?")])


class TokenBuffer:
    """Rows of drawn tokens, each with its branch.

    Most tokens can end nothing: a branch is told of its tokens only when one of them may end a step, or a length does.

    Attributes:
        branches: The branch of each row.
        temperatures: Temperatures that requests give, each with its rows.
        rows: State of each row, with the fields ``key``, ``count``, ``due``, ``room``, ``greedy``, ``ended``.
    """

    def __init__(self) -> None:
        self.branches: list[Branch] = []
        self.rows = np.zeros(0, _ROW)
        self._requests: list[GenerateRequest] = []  # those of the branches, each once
        self._texts: list[tuple[TokenText, NDArray[np.int64]]] = []  # what ends texts, and the rows that it ends
        self.temperatures: list[tuple[float, NDArray[np.int64]]] = []  # those that requests give, and their rows
        # the columns of `Draws`, and whether a step may end there: `[5, rows, room]`
        self._drawn = np.zeros((5, 0, 64))

    def add(self, branches: Sequence[Branch]) -> None:
        """Adds rows for branches that have no tokens yet."""
        new = [(b.key, 0, b.due, b.room, b.request.greedy, False) for b in branches]
        self.branches = [*self.branches, *branches]
        self.rows = np.concatenate([self.rows, np.array(new, _ROW)])
        self._drawn = np.pad(self._drawn, ((0, 0), (0, len(new)), (0, 0)))
        self._group()

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drops all rows but these."""
        self.branches = [self.branches[row] for row in rows]
        self.rows, self._drawn = self.rows[rows], self._drawn[:, rows]
        self._group()

    def _group(self) -> None:
        self._requests = list({id(b.request): b.request for b in self.branches}.values())
        owned: dict[TokenText, list[int]] = {}
        for row, branch in enumerate(self.branches):
            owned.setdefault(branch.text, []).append(row)
        self._texts = [(text, np.array(own)) for text, own in owned.items()]
        heated: dict[float, list[int]] = {}
        for row, branch in enumerate(self.branches):
            if branch.request.temperature:  # 0 is greedy
                heated.setdefault(branch.request.temperature, []).append(row)
        self.temperatures = [(temperature, np.array(own)) for temperature, own in heated.items()]

    def most_ahead(self, wanted: int) -> int:
        """Number of tokens, up to `wanted`, to draw without a look: no row leaves its room, some row needs them all."""
        rows = self.rows
        return int(min(wanted, (rows["room"] - rows["count"]).min(), (rows["due"] - rows["count"]).max()))

    def record(self, drawn: NDArray[np.float64], tell_all: bool) -> None:
        """Takes the next tokens of every row; branches that may have ended, or all of them, are told.

        Args:
            drawn: The columns of `Draws`, `[4, rows, tokens]`.
            tell_all: True if every branch is told of every token.
        """
        counts, new, room = self.rows["count"], drawn.shape[2], self._drawn.shape[2]
        short = int(counts.max()) + new - room
        if short > 0:
            self._drawn = np.pad(self._drawn, ((0, 0), (0, 0), (0, max(short, room))))
        rows = np.arange(len(self.branches))[:, None]
        places = counts[:, None] + np.arange(new)
        flags = np.zeros(drawn.shape[1:], dtype=bool)
        for text, own in self._texts:
            flags[own] = text.may_end(drawn[0, own].astype(np.int64))
        self._drawn[:4, rows, places] = drawn
        self._drawn[4, rows, places] = flags
        counts += new
        told = flags.any(axis=1) | (counts >= self.rows["due"]) | tell_all
        for row in np.flatnonzero(told).tolist():
            self._tell(row, tell_all)

    def _tell(self, row: int, everything: bool) -> None:
        """Tells a branch of its new tokens up to each place where it, or a step, may end; or of all of them."""
        branch = self.branches[row]
        tell(branch, self.drawn(row), everything)
        self.rows["due"][row], self.rows["ended"][row] = branch.due, branch.finish is not None

    def drawn(self, row: int) -> NDArray[np.float64]:
        """The columns of a row, `[5, tokens]`."""
        return self._drawn[:, row, : self.rows["count"][row]]

    def end_at_limits(self) -> None:
        """Ends the rows of which as much was drawn as their races allow; what they are in the end, `cut` says."""
        for row, branch in enumerate(self.branches):
            if branch.limit is not None and branch.finish is None:
                self.rows["due"][row] = branch.due
                if branch.limit <= self.rows["count"][row]:
                    branch.finish, self.rows["ended"][row] = "budget", True

    def end_overdue(self) -> bool:
        """Ends the rows whose requests are over, with every token that was drawn for them; True if there are any."""
        over = {id(request) for request in self._requests if request.is_over}
        if over:
            self.end({id(branch) for branch in self.branches if id(branch.request) in over})
        return bool(over)

    def end(self, branches: Container[int]) -> None:
        """Ends the rows of branches, given by `id`, with every token that was drawn for them."""
        for row, branch in enumerate(self.branches):
            if id(branch) in branches and branch.finish is None:
                self._tell(row, everything=True)
                branch.finish = branch.finish or "budget"
                self.rows["ended"][row] = True


_CPU = torch.device("cpu")


def tell(branch: Branch, drawn: NDArray[np.float64], everything: bool) -> None:
    """Tells a branch of its new tokens up to each place where it, or a step, may end; or of all of them.

    Args:
        branch: The branch.
        drawn: The columns of all that was drawn for it, `[5, tokens]`.
        everything: True to tell it of those behind the last such place too.
    """
    count = drawn.shape[1]
    while branch.finish is None:
        start = len(branch.tokens)
        flagged = np.flatnonzero(drawn[4, start:])
        stop = min(start + int(flagged[0]) + 1, branch.due) if len(flagged) else branch.due
        if stop > count:
            if not everything or start == count:
                break
            stop = count
        ids, logprobs, confidences, own = drawn[:4, start:stop].tolist()
        branch.take([int(i) for i in ids], logprobs, confidences, own)


def cut(branch: Branch, limit: int) -> None:
    """Makes a branch that has ended what it would be had it never been allowed more than `limit` tokens."""
    branch.limit = limit
    if branch.drawn is None or (branch.finish != "budget" and len(branch.tokens) < limit):
        return
    branch.restart()
    if limit > 0:
        tell(branch, branch.drawn[:, :limit], everything=True)
    branch.finish = branch.finish or "budget"


@dataclass
class Heat:
    """The branches of one race in a session, and the lengths of those that have arrived."""

    race: Race
    branches: list[Branch] = field(default_factory=list)
    ended: list[Branch] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


class Rows:
    """Branches of one decoder: those that decode together, and those that wait for a place.

    A branch whose request is over ends at the next look with what it has (``"budget"``), or is not begun.

    Attributes:
        on_tokens: Called with the number of tokens just drawn.
        prefill_seconds: Seconds in which prompts and paths were read; on a GPU, of those whose tokens were looked at.
    """

    def __init__(
        self,
        decoder: Decoder,
        sampler: TokenSampler,
        stats: GeneratorStats,
        check_every: int,
        processing: LogitsProcessing | None = None,
        device: torch.device = _CPU,
    ) -> None:
        """Begins without branches.

        Args:
            decoder: Gives logits.
            sampler: Draws tokens.
            stats: Counts tokens.
            check_every: Tokens drawn between two looks at which branches have ended. A look waits for the device; what
                was drawn beyond an end is wasted.
            processing: What changes the logits before a token is drawn.
            device: Where the model runs.
        """
        self.decoder = decoder
        self._device = device
        self.on_tokens: Callable[[int], object] | None = None
        self.prefill_seconds = 0.0
        self._reading: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # on a GPU, begin and end of readings
        self._sampler, self._stats, self._check_every, self._processing = sampler, stats, check_every, processing
        self._waiting: deque[Branch] = deque()
        self._ended: list[Branch] = []
        self._reset()

    def _reset(self) -> None:
        self._buffer = TokenBuffer()
        # The logits [rows, vocabulary] after the newest token of each row; or those tokens [rows], to be read yet.
        self._logits: Tensor | None = None
        self._newest: Tensor | None = None
        # Where tokens are drawn: of each row its stream's key and the tokens drawn, `[rows, 1]`, then those that are
        # greedy, and those of other temperatures.
        self._streams: tuple[Tensor, Tensor, Tensor | None, list[tuple[float, Tensor]]] | None = None
        self._processed = None if self._processing is None else self._processing.rows()
        self._looks = 0  # since rows were filled

    @property
    def unfinished(self) -> list[Branch]:
        """The branches that have not ended."""
        return [branch for branch in (*self._buffer.branches, *self._waiting) if branch.finish is None]

    def __bool__(self) -> bool:
        """True while there are branches that were not handed over."""
        return bool(self._waiting or self._buffer.branches or self._ended)

    def submit(self, branches: Sequence[Branch]) -> None:
        """Puts branches that have no tokens yet behind those that wait, or beside those of their problem and node."""
        self._waiting = deque(side_by_side([*self._waiting, *branches]))

    def advance(self, size: int) -> list[Branch]:
        """Samples until at least one branch has ended; those that have, ``[]`` only if there is none left.

        It can be called again after an exception: the tokens of the rows that decoded are then drawn once more.

        Args:
            size: Most branches that decode at a time. When as many wait as decode, they join, or else after some looks,
                if the decoder can do that; else when all have ended.

        Raises:
            FloatingPointError: If the logits hold NaN or infinity.
            ValueError: If logits processors leave a branch without a token.
        """
        try:
            while not self._ended and (self._waiting or self._buffer.branches):
                # The newest tokens are read only now: what had ended with them was handed over first.
                if self._newest is not None:
                    self._logits, self._newest = self.decoder.step(self._newest), None
                self._fill(size)
                if self._buffer.branches:
                    self._draw()
        except BaseException:
            self.interrupt()
            raise
        ended, self._ended = self._ended, []
        return ended

    def interrupt(self) -> None:
        """Takes all rows out, as after an error: their branches begin again, before those that wait."""
        live, counts = self._buffer.branches, self._buffer.rows["count"]
        for row in reversed(range(len(live))):
            self._stats.wasted_tokens += int(counts[row])
            if live[row].finish is None:
                live[row].restart()
                self._waiting.appendleft(live[row])
            else:
                self._ended.insert(0, live[row])
        self._reset()
        self.decoder.keep([])

    def cancel(self, branches: Sequence[Branch]) -> None:
        """Ends branches with what was drawn of them; `advance` hands them over."""
        given = {id(branch) for branch in branches if branch.finish is None}
        self._ended += unbegun([branch for branch in self._waiting if id(branch) in given])
        self._waiting = deque(branch for branch in self._waiting if id(branch) not in given)
        if any(id(branch) in given for branch in self._buffer.branches):
            self._buffer.end(given)
            self._take_out()

    def end_at_limits(self) -> None:
        """Ends branches that have come to the limits of their races; `advance` hands them over."""
        self._buffer.end_at_limits()
        self._take_out()

    def _fill(self, size: int) -> None:
        """Lets waiting branches join, if it is worth the copy of the rows that decode."""
        live = len(self._buffer.branches)
        count = min(len(self._waiting), size - live)
        if count < 1 or (live and not (self.decoder.refills and (count >= live or self._looks >= _PATIENCE))):
            return
        new, over = list[Branch](), list[Branch]()
        while self._waiting and len(new) < size - live:
            branch = self._waiting.popleft()
            (over if branch.request.is_over else new).append(branch)
        self._ended += unbegun(over)
        if not new:
            return
        try:
            first = self._read(new)
            self._logits = first if self._logits is None else torch.cat([self._logits, first])
        except BaseException:
            self._waiting.extendleft(reversed(new))
            raise
        self._buffer.add(new)
        self._streams = None
        if self._processed is not None:
            self._processed.add(new, home_of(self._logits))
        self._looks = 0

    def _read(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch, timed; a GPU keeps its own time, so that nobody waits for it."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            first = self.decoder.start(branches)
            self.prefill_seconds += time.perf_counter() - started
            return first
        stream = torch.cuda.current_stream(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        first = self.decoder.start(branches)
        end.record(stream)
        self._reading.append((begin, end))
        return first

    def _draw(self) -> None:
        """Draws the next tokens of all rows, looks at them, and takes out the branches that have ended."""
        buffer, processed, logits = self._buffer, self._processed, self._logits
        assert logits is not None

        # Draw some tokens of every row, without a look at them. Token t of a branch takes number t of its stream.
        looks = self.decoder.follows_branches or (processed is not None and processed.needs_looks)
        ahead, home = 1 if looks else buffer.most_ahead(self._check_every), home_of(logits)
        if self._streams is None:
            some, rows = bool(buffer.rows["greedy"].any()), buffer.rows[:, None]
            greedy = torch.from_numpy(buffer.rows["greedy"].copy()).to(home) if some else None
            others = [(temperature, torch.from_numpy(own).to(home)) for temperature, own in buffer.temperatures]
            counts = torch.from_numpy(rows["count"].copy()).to(home)
            self._streams = as_bits(rows["key"]).to(home), counts, greedy, others
        keys, counts, greedy, others = self._streams
        numbers = uniforms_on_device(keys, counts + torch.arange(ahead, device=home))
        self._streams = keys, counts + ahead, greedy, others
        draws: list[Draws] = []
        for place in range(ahead):
            if draws:
                logits = self.decoder.step(draws[-1].tokens.to(logits.device))
            plain = logits.to(home)
            scores = None if processed is None else processed(plain)
            draws.append(self._sampler.draw_mixed(plain, numbers[:, place], greedy, scores, others))
            if processed is not None:
                processed.push(draws[-1].tokens)

        # Look at them, in one copy from the device, [4, rows, tokens]: steps end in text, which is the host's.
        drawn: NDArray[np.float64] = torch.stack([each.columns() for each in draws], dim=2).cpu().numpy()
        while self._reading:  # the copy has waited for all that came before it
            begin, end = self._reading.pop()
            self.prefill_seconds += begin.elapsed_time(end) / 1e3
        if np.isnan(drawn[1]).any():
            raise FloatingPointError(
                f"the model's logits hold NaN or infinity ({logits.dtype}): load it in bfloat16 or float32"
            )
        buffer.record(drawn, tell_all=self.decoder.follows_branches)
        if buffer.end_overdue():  # others of their search may wait, and would be asked only when they join
            self.cancel([branch for branch in self._waiting if branch.request.is_over])
        self._looks += 1
        if self.on_tokens is not None:
            self.on_tokens(drawn.shape[1] * drawn.shape[2])

        # Take the rows of ended branches out, and go on with the others.
        self._newest, self._logits = draws[-1].tokens.to(logits.device), None
        self._take_out()

    def _take_out(self) -> None:
        """Takes the rows of ended branches out."""
        buffer, ended = self._buffer, self._buffer.rows["ended"]
        left = np.flatnonzero(~ended)
        if len(left) == len(ended):
            return
        out = [buffer.branches[row] for row in np.flatnonzero(ended)]
        for row in np.flatnonzero(ended).tolist():
            if buffer.branches[row].request.race is not None:
                buffer.branches[row].drawn = buffer.drawn(row).copy()
        kept = sum(len(branch.tokens) for branch in out)
        self._stats.decoded_tokens += kept
        self._stats.wasted_tokens += int(buffer.rows["count"][ended].sum()) - kept
        self.decoder.keep(left.tolist())
        buffer.keep(left)
        self._streams = None
        if self._processed is not None:
            self._processed.keep(left.tolist())
        for name in ("_logits", "_newest"):
            values: Tensor | None = getattr(self, name)
            if values is not None:
                setattr(self, name, values[torch.from_numpy(left).to(values.device)] if len(left) else None)
        self._ended += out


def unbegun(branches: Sequence[Branch]) -> Sequence[Branch]:
    """The branches, ended before their first token."""
    for branch in branches:
        branch.finish = "budget"
    return branches


def home_of(logits: Tensor) -> torch.device:
    """Where tokens are drawn: where the logits are, but mps has no float64."""
    return torch.device("cpu") if logits.device.type == "mps" else logits.device


class StatelessDecoder(Decoder):
    """Next-token logits for rows that grow token by token; every call starts from whole prefixes.

    Slow and simple: the reference for `TreeDecoder`, and what serves the models that it cannot. How rows are run is
    found by a probe before the first of them, see `plain_way`: a batch never changes a result.
    """

    follows_branches = False

    def __init__(self, model: Any, stats: GeneratorStats) -> None:
        self._model = model
        self._stats = stats
        self._ranges = used_ranges(model.config)
        self._run: PlainRows | None = None

    def another(self) -> Decoder:
        """A decoder of the same model."""
        return type(self)(self._model, self._stats)

    def alike(self, branches: Sequence[Branch]) -> list[list[Branch]]:
        """The branches in groups, each of which may run in one batch: of any lengths, or of one."""
        groups: dict[tuple[int, int], list[Branch]] = {}
        for branch in branches:
            passed = self._passed(branch)
            length = 0 if plain_way(self._model, passed).pads else len(branch.prefix)
            groups.setdefault((passed, length), []).append(branch)
        return list(groups.values())

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch."""
        prefixes = [branch.prefix for branch in branches]
        self._stats.prefill_tokens += sum(map(len, prefixes))
        self._run = PlainRows(self._model, plain_way(self._model, max(map(self._passed, branches))))
        return self._run.start(prefixes)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row."""
        assert self._run is not None
        return self._run.step(tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        if self._run is not None:
            self._run.keep(rows)

    def make_room(self) -> None:
        """Drops the rows."""
        self._run = None

    def _passed(self, branch: Branch) -> int:
        """The longest of the model's ranges that the branch may pass."""
        longest = len(branch.prefix) + branch.most_tokens
        return max((r for r in self._ranges if r < longest), default=0)


class TreeDecoder(Decoder):
    """Reads every prompt and every path once, whatever the order in which a search visits its nodes.

    A row of the batch holds what comes after the prompt less its last token, see `branch_path`. Rows whose branches
    have ended stay idle in the batch until half of it is idle.

    Attributes:
        session: Runs the model.
        cache: Keys and values kept for the next visit.
    """

    refills = True
    follows_branches = False

    def __init__(self, session: Session, cache: PrefixCache, stats: GeneratorStats) -> None:
        self.session = session
        self.cache = cache
        self._stats = stats
        self._batch: RowBatch | None = None
        self._live: list[tuple[Branch, KeyedPath]] = []  # each branch that decodes, and the path to its node
        self._rows = np.zeros(0, dtype=np.int64)  # and its row in the batch

    def another(self) -> Decoder:
        """A decoder with the same cache."""
        return type(self)(self.session, self.cache, self._stats)

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch; what is held of their prefixes is not read again."""
        before = self.session.tokens
        # Branches of one node with one forced text share all that comes before their first sampled token: one row reads
        # it, and is then copied for each of them.
        keys = [(id(branch.request.node), branch.request.forced) for branch in branches]
        stems = dict(zip(reversed(keys), reversed(branches), strict=True))
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        firsts = [stems[key] for key in places]
        paths = [branch_path(branch) for branch in firsts]
        ids = [branch.prompt[-1:] + branch.path + branch.forced for branch in firsts]
        # The last token must be read, even if it is held, for the logits after it.
        held = [self.cache.find(path, len(own) - 1) for path, own in zip(paths, ids, strict=True)]
        batch = self.cache.open(self.session, paths, held, max(map(len, ids)))
        logits = self.session.extend(batch, [own[n:] for own, n in zip(ids, batch.lengths.tolist(), strict=True)])
        read = self.session.tokens - before
        self._stats.prefill_tokens += read
        self._stats.reused_tokens += sum(len(branch.prefix) for branch in branches) - read
        index = [places[key] for key in keys]
        parts = [(batch, index)]
        if self._batch is not None:  # the new rows stand behind those that decode
            parts.insert(0, (self._batch, self._rows.tolist()))
        in_place = index == list(range(len(batch)))
        if len(parts) > 1 or not in_place:
            batch = RowBatch.gathered(parts, min(max(branch.most_tokens for branch in branches), ROOM))
        self._batch = batch
        self._live += [(branch, paths[row]) for branch, row in zip(branches, index, strict=True)]
        self._rows = np.arange(len(batch))
        self._watch_memory()
        return logits if in_place else logits[index]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each live row."""
        assert self._batch is not None
        return self.session.step(self._batch, self._rows, tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Parks what the branches that end have read, and compacts the batch when half of it is idle."""
        batch = self._batch
        if batch is None:  # an error came before there were rows
            return
        for place in sorted(set(range(len(self._live))) - set(rows)):
            branch, path = self._live[place]
            if branch.finish == "step":  # the node can grow; its last token is read when it does
                path = path.grown((*branch.forced, *branch.tokens)[:-1])
            if branch.finish is not None:  # else it was interrupted: memory may have run out
                row = int(self._rows[place])
                states = batch.states_at(row, sum(len(ids) for _, ids in path.pieces))
                self.cache.park(path, partial(batch.piece, row), states)
        self._watch_memory()
        self._live, self._rows = [self._live[place] for place in rows], self._rows[list(rows)]
        if not rows:
            batch.close()
            self._batch = None
        elif 2 * len(rows) <= len(batch):
            self._batch = batch.select(self._rows.tolist())
            self._rows = np.arange(len(rows))

    def make_room(self) -> None:
        """Drops the rows and everything parked."""
        self._batch, self._live, self._rows = None, [], self._rows[:0]
        self.session.clear()
        self.cache.shrink(0)

    def release(self, root: int) -> None:
        """Drops what is parked for a tree, and with the last one the memory for rows."""
        self.cache.release(root)
        if not len(self.cache):
            self.session.clear()
        self._stats.cache_bytes = self.cache.bytes

    def _watch_memory(self) -> None:
        self._stats.cache_bytes = self.cache.bytes
        self._stats.evictions = self.cache.evictions
        live = self.session.spare_bytes + (0 if self._batch is None else self._batch.bytes)
        self._stats.peak_cache_bytes = max(self._stats.peak_cache_bytes, self.cache.bytes + live)


_TINY = 10_000_000  # weights below which a step takes longer for its calls than for the arithmetic of 256 rows


def check_counts(**counts: int | None) -> None:
    """Raises a ``ValueError`` for an option that is given and is no positive number."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give a positive number")


class ModelRunner:
    """Samples the steps of requests from one local model, for generators and verifiers.

    Attributes:
        model: The model; it is in evaluation mode while `generate` runs.
        branches: Opens the branches of requests.
        sampler: Draws tokens.
        processing: What changes the logits before.
        stats: Work that was really done.
        rows: Most branches that decode at a time.
    """

    def __init__(
        self,
        model: Any,
        branches: BranchFactory,
        sampler: TokenSampler,
        *,
        micro_batch: int | None = None,
        check_every: int | None = None,
        cache: str = "tree",
        max_cache_bytes: int | None = None,
        processing: LogitsProcessing | None = None,
        decoder: Callable[[GeneratorStats], Decoder] | None = None,
    ) -> None:
        """Checks how the model can be run.

        Args:
            model: A causal language model.
            branches: Opens the branches of requests.
            sampler: Draws tokens.
            micro_batch: Most rows decoded at a time (default 256, or 512 of a model of less than 10 million weights);
                halved when memory runs out.
            check_every: Tokens drawn between two looks at which steps have ended (default: 1 on a CPU, 8 elsewhere,
                where a look waits for the device).
            cache: ``"tree"`` reads shared prefixes once; ``"none"`` reads whole prefixes in every call.
            max_cache_bytes: Most keys and values kept between calls.
            processing: What changes the logits before a token is drawn.
            decoder: Makes what runs the batches, in place of what `cache` says; it is given the runner's `stats`.

        Raises:
            ValueError: If an option does not fit.
        """
        check_counts(micro_batch=micro_batch, check_every=check_every)
        self.model = model
        self.branches = branches
        self.sampler = sampler
        self.processing = processing
        self.stats = GeneratorStats()
        self.rows = micro_batch or (512 if sum(p.numel() for p in model.parameters()) < _TINY else 256)
        self.charges = Charges(model)
        self._lock = threading.Lock()
        self._plain = StatelessDecoder(model, self.stats) if decoder is None else decoder(self.stats)
        shared = None if decoder is not None else shared_prefixes(model, cache, max_cache_bytes)
        self._tree = None if shared is None else TreeDecoder(*shared, self.stats)
        # A state that has read beyond a step's end cannot be parked there.
        each = model.device.type == "cpu" or (shared is not None and shared[0].has_states)
        self._check_every = check_every or (1 if each else 8)

    @property
    def shares_prefixes(self) -> bool:
        """True if prefixes are read once (``cache="tree"``, and the model has passed the check)."""
        return self._tree is not None

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order.

        Raises:
            ValueError: If a prompt does not fit into the model's context, a node has no token ids, or logits processors
                leave a path without a token.
            SearchMemoryError: If not even one row fits into memory.
            FloatingPointError: If the model's logits hold NaN or infinity.
        """
        with self.open() as sampling:
            tickets = [sampling.submit(request) for request in requests]
            steps = {(ticket, index): step for ticket, index, step in sampling.collect_all()}
        return [[steps[ticket, index] for index in range(ticket.request.n)] for ticket in tickets]

    def traffic(self, requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]]) -> Traffic | None:
        """Bytes that sampling these steps moves, in one batch whose rows share prompts; ``None`` if not known."""
        return self.charges.traffic(row_groups(self.branches, requests, answers))

    def open(self) -> RunnerSampling:
        """A session; several can be open, whose rows are apart."""
        return RunnerSampling(self)

    def release(self, root: Node) -> None:
        """Lets go of the keys and values kept for a search that has ended."""
        with self._lock:
            for decoder in (self._plain, self._tree):
                if decoder is not None:
                    decoder.release(root.key)


class RunnerSampling(Sampling):
    """A session of a local model: branches are handed over as they end, and others take their rows.

    Nothing is on the model between two calls: its mode, its lock and what the caller has open are those of each call.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._tickets: dict[int, tuple[Ticket, Branch]] = {}  # of the branches that were not handed over, by `id`
        self._ended: list[Branch] = []
        tree, plain = runner._tree, runner._plain
        self._shared = None if tree is None else self._rows(tree)
        self._plain = self._rows(plain)
        self._heats: dict[int, Heat] = {}  # by the `id` of their races
        self._new: list[Branch] = []
        self._apart: list[Branch] = []  # for the plain rows, in which only branches that are alike run together

    def _rows(self, decoder: Decoder) -> Rows:
        runner = self._runner
        return Rows(
            decoder.another(), runner.sampler, runner.stats, runner._check_every, runner.processing, runner.model.device
        )

    def submit(self, request: GenerateRequest) -> Ticket:
        """Takes a request; its branches join at the next `collect`.

        Raises:
            ValueError: If the prompt does not fit into the model's context, the node has no token ids, or the request
                gives a temperature to a sampler that has none.
        """
        if request.temperature is not None:
            self._runner.sampler.at(request.temperature)
        ticket = Ticket(request)
        for branch in self._runner.branches.open(request):
            self._tickets[id(branch)] = ticket, branch
            # One that had no room for a token has ended.
            (self._new if branch.finish is None else self._ended).append(branch)
            # what a race takes back may have had thoughts, which were paid for
            if request.race is not None and branch.finish is None and branch.price == 1:
                self._heats.setdefault(id(request.race), Heat(request.race)).branches.append(branch)
        return ticket

    def _judged(self, ended: Sequence[Branch]) -> list[Branch]:
        """The ended branches that can be handed over; those of a race once its last one has ended."""
        over, heats = list[Branch](), dict[int, Heat]()
        for branch in ended:
            heat = self._heats.get(id(branch.request.race))
            if heat is None or branch.price > 1:
                over.append(branch)
                continue
            heats[id(heat.race)] = heat
            heat.ended.append(branch)
            if branch.finish != "budget" and heat.race.arrives(branch.step(lambda _: (0, 0))):
                heat.lengths.append(branch.request.ahead + len(branch.tokens))
        for key, heat in heats.items():
            line, before = heat.race.line(heat.lengths), sum(len(branch.tokens) for branch in heat.branches)
            is_over = len(heat.ended) == len(heat.branches)
            for branch in heat.branches:
                if line is not None and is_over:
                    cut(branch, line - branch.request.ahead)
                elif line is not None and branch.finish is None:
                    branch.limit = max(line - branch.request.ahead, 1)
            if is_over:
                del self._heats[key]
                over += heat.branches
                waste = before - sum(len(branch.tokens) for branch in heat.branches)
                self._runner.stats.decoded_tokens -= waste
                self._runner.stats.wasted_tokens += waste
        if heats:
            for rows in filter(None, (self._shared, self._plain)):
                rows.end_at_limits()
        return over

    @property
    def prefill_seconds(self) -> float:  # type: ignore[override]
        """Seconds in which prompts and paths were read."""
        return sum(rows.prefill_seconds for rows in (self._shared, self._plain) if rows is not None)

    def _assign(self) -> None:
        """Gives new branches to the shared rows, or sets them apart where the model's lengths are not covered."""
        tree = self._runner._tree
        shared, apart = list[Branch](), list[Branch]()
        for branch in self._new:
            fits = tree is not None and tree.session.covers(len(branch.prefix) + branch.most_tokens)
            (shared if fits else apart).append(branch)
        if self._shared is not None and shared:
            self._shared.submit(shared)
        self._apart += apart
        self._new = []

    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """Samples until at least one sample has ended; the samples that have.

        Raises:
            ValueError: If logits processors leave a path without a token.
            SearchMemoryError: If not even one row fits into memory.
            FloatingPointError: If the model's logits hold NaN or infinity.
        """
        return self._collected(lambda: bool(self._ended))

    def collect_all(self) -> list[tuple[Ticket, int, Step]]:
        """All samples that `collect` returns until none is left."""
        return self._collected(lambda: False)

    def _collected(self, enough: Callable[[], bool]) -> list[tuple[Ticket, int, Step]]:
        runner, started = self._runner, time.perf_counter()

        def run(size: int) -> None:
            while not enough() and (rows := self._next_rows()):
                rows.on_tokens = self.on_tokens
                self._ended += self._judged(rows.advance(size))

        def left() -> list[Branch]:
            return [branch for _, branch in self._tickets.values() if branch.finish is None]

        def describe(branch: Branch) -> str:
            return (
                f"{len(branch.prefix)} tokens read and up to {branch.most_tokens} to sample, {runner.model.dtype}; "
                "lower max_new_tokens or max_step_tokens, or load the model in a smaller dtype"
            )

        def make_room() -> None:
            for rows in filter(None, (self._shared, self._plain)):
                rows.interrupt()
                rows.decoder.make_room()

        with runner._lock, evaluating(runner.model), torch.inference_mode():
            self._assign()
            runner.rows = run_halving(run, runner.rows, left, describe, make_room)
        ended, self._ended = self._ended, []
        samples = []
        for branch in ended:
            ticket, _ = self._tickets.pop(id(branch))
            step = self._plain.decoder.finished(branch, branch.step(runner.charges.sample))
            samples.append((ticket, branch.index, step))
        report_tokens(runner.model, sampled=sum(step.generated_tokens for _, _, step in samples))
        runner.stats.seconds += time.perf_counter() - started
        return samples

    def _next_rows(self) -> Rows | None:
        """The rows that are to go on; ``None`` if no branch is left."""
        if self._shared:
            return self._shared
        decoder = self._plain.decoder
        if self._apart and (decoder.refills or not self._plain):
            alike = [self._apart]
            if isinstance(decoder, StatelessDecoder):
                alike = decoder.alike(self._apart)
            self._plain.submit(alike[0])
            self._apart = [branch for group in alike[1:] for branch in group]
        return self._plain or None

    def cancel(self, ticket: Ticket) -> None:
        """Ends the samples of a request and frees their rows; `collect` hands over what was drawn of them."""
        branches = [branch for given, branch in self._tickets.values() if given is ticket]
        given = {id(branch) for branch in branches}
        self._ended += self._judged(unbegun([branch for branch in (*self._new, *self._apart) if id(branch) in given]))
        self._new = [branch for branch in self._new if id(branch) not in given]
        self._apart = [branch for branch in self._apart if id(branch) not in given]
        with self._runner._lock, torch.inference_mode():
            for rows in filter(None, (self._shared, self._plain)):
                rows.cancel(branches)

    def close(self) -> None:
        """Drops all rows."""
        self._tickets, self._heats, self._ended, self._new, self._apart = {}, {}, [], [], []
        with self._runner._lock, torch.inference_mode():
            for rows in filter(None, (self._shared, self._plain)):
                rows.interrupt()
