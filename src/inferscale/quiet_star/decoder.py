"""Next-token logits after a thought, for the token loop that every generator shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inferscale.generators.branch import Branch
from inferscale.generators.decoder import Decoder, GeneratorStats
from inferscale.generators.kv_store import KVStore
from inferscale.generators.sampling import Sampler

from .cached import CachedText, Thought, check_cached, think_once
from .head import mix
from .model import QuietSTaR
from .parking import Parking
from .streams import branch_numbers
from .thinking import Thinking, ThoughtRecord, Trace
from .thoughts import mean_of_thoughts
from .when import Place


class ThinkingDecoder(Decoder):
    """Thinks at the end of every row, mixes, and leaves the cache as if nothing had been thought.

    A thought is drawn from a stream of its own, so that the visible tokens' streams never shift: a branch draws with
    the same numbers whether it thinks or not.

    Attributes:
        quiet: The model.
        thinking: How to think.
        traces: By the key of a branch, what was thought for it; taken out by who asked.
        muted: Keys of branches that do not think (no budget for it).
        passes: Forwards so far.
    """

    def __init__(
        self,
        quiet: QuietSTaR,
        thinking: Thinking,
        stats: GeneratorStats,
        record: bool = False,
        max_cache_bytes: int = 0,
    ) -> None:
        self.quiet = quiet
        self.thinking = thinking
        self.traces: dict[int, Trace] = {}
        self.muted: set[int] = set()
        self.passes = 0
        self._stats = stats
        self._record = record
        self._sampler = Sampler(thinking.temperature)
        self._checked = False
        self._live: list[Branch] = []
        self._text: CachedText | None = None
        self._newest = torch.empty(0)
        self._parking: Parking | None = None
        if max_cache_bytes and Parking.serves(quiet.backbone):
            self._parking = Parking(quiet.backbone, KVStore(max_cache_bytes), stats)

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch; equal prefixes are read once."""
        if not self._checked:
            check_cached(self.quiet)
            self._checked = True
        self._live = list(branches)
        self.traces.update({branch.key: Trace(branch) for branch in branches})
        self._text = self._read(branches) if self._parking is None else self._parking.open(branches)
        self._stats.prefill_tokens += len(branches)
        self._newest = torch.tensor([branch.prefix[-1] for branch in branches], device=self.quiet.backbone.device)
        return self._logits()

    def _read(self, branches: Sequence[Branch]) -> CachedText:
        """A row for each branch with all of its prefix but the newest token; equal prefixes are read once."""
        prefixes = [branch.prefix[:-1] for branch in branches]
        unique = list(dict.fromkeys(prefixes))
        text = CachedText.read(self.quiet.backbone, unique)
        row_of = {prefix: row for row, prefix in enumerate(unique)}
        text.select([row_of[prefix] for prefix in prefixes])
        read = sum(map(len, unique))
        self._stats.prefill_tokens += read
        self._stats.reused_tokens += sum(map(len, prefixes)) - read
        return text

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row."""
        self._newest = tokens
        return self._logits()

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these; what the others have read is parked."""
        if self._parking is not None and self._text is not None:
            for row in sorted(set(range(len(self._live))) - set(rows)):
                self._parking.park(self._text, row, self._live[row])
        self._live = [self._live[row] for row in rows]
        if not rows:
            self._text = None
        elif self._text is not None:
            self._text.select(rows)

    def make_room(self) -> None:
        """Drops the rows and everything parked."""
        self._text = None
        if self._parking is not None:
            self._parking.clear()

    def release(self, root: int) -> None:
        """Drops what is parked for a tree."""
        if self._parking is not None:
            self._parking.release(root)

    def _logits(self) -> Tensor:
        """Logits of the next token of each row, after the thoughts that its rule wants."""
        text = self._text
        if text is None:
            raise RuntimeError("start() comes before step()")
        before = text.passes
        newest = self.quiet.backbone.embed(self._newest[:, None])
        wanted = None if self.thinking.rule.needs_entropy else self._wanted()
        if wanted is not None and all(wanted) and self.thinking.num_thoughts == 1 and text.can_roll_back:
            logits = self._in_place(text, newest)
        else:
            base = text.feed(newest)[:, -1]
            logits = self.quiet.logits(base)
            wanted = self._wanted(_entropies(logits)) if wanted is None else wanted
            rows = [row for row, thinks in enumerate(wanted) if thinks]
            if rows:
                logits[torch.tensor(rows, device=logits.device)] = self._on_a_fork(text, base, rows).to(logits.dtype)
        for branch, thinks in zip(self._live, wanted, strict=True):
            self.traces[branch.key].thought.append(thinks)
        self.passes += text.passes - before
        return logits

    def _wanted(self, entropies: Sequence[float] | None = None) -> list[bool]:
        """Which rows think before their next token."""
        wanted = []
        for row, branch in enumerate(self._live):
            place = Place(branch.step_tokens, len(branch.tokens), None if entropies is None else entropies[row])
            wanted.append(branch.key not in self.muted and self.thinking.rule.thinks(place))
        return wanted

    def _in_place(self, text: CachedText, newest: Tensor) -> Tensor:
        """All rows think on the cache itself, which forgets the thought and keeps the newest token."""
        rows = list(range(len(self._live)))
        thought = think_once(self.quiet, text, newest, self._numbers(rows), self._sampler, self._greedy(rows))
        text.rollback(self.thinking.length + 2)
        assert thought.before is not None
        return self._mixed(thought.before, thought, rows)

    def _on_a_fork(self, text: CachedText, base: Tensor, rows: list[int]) -> Tensor:
        """Some rows think, each as often as asked, on a copy of their keys and values."""
        index = torch.tensor(rows, device=base.device).repeat_interleave(self.thinking.num_thoughts)
        fork = text.fork(index)
        numbers = self._numbers(rows)
        thought = think_once(self.quiet, fork, None, numbers, self._sampler, self._greedy(index.tolist()))
        self.passes += fork.passes
        return self._mixed(base[index], thought, rows)

    def _mixed(self, base: Tensor, thought: Thought, rows: list[int]) -> Tensor:
        """Logits of `rows`, the states after their thoughts mixed into `base`; thoughts are averaged and recorded."""
        weight = self.quiet.head(base, thought.after)
        logits = self.quiet.logits(mix(base, thought.after, weight)).unflatten(0, (len(rows), -1))  # type: ignore[no-untyped-call]
        if self._record:
            self._keep_records(thought, weight, rows)
        return mean_of_thoughts(logits)

    def _keep_records(self, thought: Thought, weight: Tensor, rows: list[int]) -> None:
        columns = zip(thought.tokens.tolist(), thought.logprobs.sum(dim=1).tolist(), weight[:, 0].tolist(), strict=True)
        records = [ThoughtRecord(tuple(ids), logprob, w) for ids, logprob, w in columns]
        count = self.thinking.num_thoughts
        for place, row in enumerate(rows):
            self.traces[self._live[row].key].record(records[place * count : (place + 1) * count])

    def _numbers(self, rows: list[int]) -> Tensor:
        """Uniform numbers `[rows * thoughts, T]`: one for each thought token, from the branch's thought streams."""
        branches = [self._live[row] for row in rows]
        return branch_numbers(branches, self.thinking.num_thoughts, self.thinking.length, self.quiet.backbone.device)

    def _greedy(self, rows: Sequence[int]) -> Tensor | None:
        """Which of `rows` take the likeliest tokens, bool `[rows]`; ``None`` if none does."""
        wanted = [self._live[row].request.greedy for row in rows]
        return torch.tensor(wanted, device=self.quiet.backbone.device) if any(wanted) else None


def _entropies(logits: Tensor) -> list[float]:
    """Entropy of each row's distribution, nats."""
    logprobs = logits.float().log_softmax(dim=-1)
    entropies: list[float] = (-(logprobs.exp() * logprobs).sum(dim=-1)).tolist()
    return entropies
