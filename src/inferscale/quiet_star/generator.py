"""`QuietSTaRGenerator`: steps sampled with a thought before every token, for any search strategy."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from inferscale.base import Generator
from inferscale.flops.hooks import closed_form
from inferscale.flops.spec import ModelSpec, UnknownArchitectureError, forward_flops
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import Branch, BranchFactory, Limits
from inferscale.runtime.decoding import Decoder, GeneratorStats, ModelRunner
from inferscale.runtime.loading import check_vocabulary, context_length, eos_ids
from inferscale.runtime.prefix_cache import PrefixCache, check_cache_options, default_cache_bytes
from inferscale.runtime.sampling import Confidence, Sampler
from inferscale.tree import Node, Step, branch_key

from .cache import CachedText, PrefixRows, Thought, check_cached, think_once
from .head import mean_of_thoughts, mix
from .model import QuietSTaR
from .thoughts import STRIDE, branch_numbers


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next token will stand.

    Attributes:
        step_tokens: Tokens sampled since the step began; 0 for its first.
        tokens: Tokens sampled in this request so far.
        entropy: Of the plain model's distribution (nats); ``None`` unless the rule needs it.
    """

    step_tokens: int
    tokens: int
    entropy: float | None = None


class ThinkingRule(ABC):
    """Decides before which tokens a thought is worth its cost."""

    @property
    def needs_entropy(self) -> bool:
        """Whether the plain prediction must be made first."""
        return False

    @abstractmethod
    def thinks(self, place: Place) -> bool:
        """Whether to think before the token at `place`."""


@dataclass(frozen=True)
class EveryToken(ThinkingRule):
    """Think before every token (the paper)."""

    def thinks(self, place: Place) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class StepStarts(ThinkingRule):
    """Think before the first tokens of every step alone.

    Attributes:
        tokens: How many.
    """

    tokens: int = 1

    def thinks(self, place: Place) -> bool:
        """Whether the step has fewer tokens than that."""
        return place.step_tokens < self.tokens


@dataclass(frozen=True)
class HighEntropy(ThinkingRule):
    """Think where the plain model is unsure.

    Attributes:
        nats: Least entropy of its prediction.
    """

    nats: float = 1.0

    @property
    def needs_entropy(self) -> bool:
        """It does."""
        return True

    def thinks(self, place: Place) -> bool:
        """Whether the entropy is as high as that."""
        return place.entropy is not None and place.entropy >= self.nats


@dataclass(frozen=True)
class Never(ThinkingRule):
    """Do not think: the plain model, for comparisons."""

    def thinks(self, place: Place) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Thinking:
    """How to think while sampling.

    Attributes:
        length: Sampled tokens of a thought.
        temperature: Of the thoughts; 0 takes the likeliest.
        num_thoughts: Thoughts before a token; their predictions are averaged.
        rule: Before which tokens.
    """

    length: int
    temperature: float = 1.0
    num_thoughts: int = 1
    rule: ThinkingRule = field(default_factory=EveryToken)

    def __post_init__(self) -> None:
        """Refuses settings that say nothing."""
        if self.length < 0 or self.length >= STRIDE:
            raise ValueError(f"thought_length={self.length}: give 0 to {STRIDE - 1} tokens")
        if self.num_thoughts < 1:
            raise ValueError(f"num_thoughts={self.num_thoughts}: give at least one (Never() turns thoughts off)")

    @property
    def tokens(self) -> int:
        """Most tokens fed for the thoughts before one visible token, start and end included."""
        return 0 if isinstance(self.rule, Never) else self.num_thoughts * (self.length + 2)


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """One thought, as recorded.

    Attributes:
        token_ids: Without start and end.
        logprob: Sum of the log-probabilities (nats).
        mixing_weight: Weight that it got.
    """

    token_ids: tuple[int, ...]
    logprob: float
    mixing_weight: float


@dataclass(slots=True)
class Trace:
    """What was thought for one branch.

    Attributes:
        branch: The branch.
        thought: For each visible token whether it was thought about.
        records: The thoughts before each visible token, if they are recorded; later tokens have none yet.
    """

    branch: Branch
    thought: list[bool] = field(default_factory=list)
    records: list[tuple[ThoughtRecord, ...]] = field(default_factory=list)

    def record(self, thoughts: Sequence[ThoughtRecord]) -> None:
        """Keeps the thoughts before the token that comes next."""
        self.records += [()] * (len(self.thought) - len(self.records))
        self.records.append(tuple(thoughts))

    def padded(self) -> tuple[tuple[ThoughtRecord, ...], ...]:
        """The records of every visible token, ``()`` where nothing was thought."""
        return tuple(self.records + [()] * (len(self.thought) - len(self.records)))


class ThoughtCharges:
    """Closed-form costs, convention ``causal``: every visible token pays for itself and the thoughts before the next.

    With context c (tokens before the newest one), a thought of T tokens reads T + 3 tokens in one causal chunk, runs
    the output head for the T sampled ones and for the mixed state, and the mixing head once::

        flops(c) = chunk(T + 3 tokens after c, T + 1 logits) + 6 d² + 2 d

    Attributes:
        spec: The constants of the closed form; ``None`` where there is none, and every charge is 0.
    """

    def __init__(self, quiet: QuietSTaR, thinking: Thinking) -> None:
        self.thinking = thinking
        self.mixing = quiet.head.flops
        self.spec: ModelSpec | None
        try:
            self.spec = closed_form(quiet.model)
        except UnknownArchitectureError:
            self.spec = None  # the generator inside has warned

    def token(self, context: int, thinks: bool = True, read: bool = True) -> int:
        """FLOPs of one visible token.

        Args:
            context: Tokens before the newest one.
            thinks: Whether it was thought about.
            read: Whether the newest token is charged here; a sibling may have paid for it.
        """
        if self.spec is None:
            return 0
        length, count = self.thinking.length, self.thinking.num_thoughts
        if not thinks:
            return forward_flops(self.spec, 1, context, logits=1).causal if read else 0
        newest = forward_flops(self.spec, int(read), context, logits=0).causal
        thought = forward_flops(self.spec, length + 2, context + 1, logits=length + 1).causal
        return newest + count * (thought + self.mixing)

    def sample(self, branch: Branch, thought: Sequence[bool]) -> tuple[int, int, int]:
        """Prompt tokens, thought tokens and FLOPs of one finished sample.

        As for a plain generator, the first draw from a node pays for what nothing has read yet (the prompt at the
        root, the node's last token elsewhere), and the first sample of a request for its forced text.

        Args:
            branch: The sample.
            thought: For each of its tokens whether it was thought about.
        """
        sampled, forced, path = len(branch.tokens), len(branch.forced), len(branch.path)
        if not sampled:
            return 0, 0, 0
        first_draw = branch.request.first + branch.index == 0
        unread = (1 if path else len(branch.prompt)) if first_draw else 0
        own = unread + (forced if branch.index == 0 else 0)
        prefix = len(branch.prefix)
        flops = 0
        if self.spec is not None and own > 1:
            flops += forward_flops(self.spec, own - 1, prefix - own, logits=0).causal
        for number, thinks in enumerate(thought[:sampled]):
            flops += self.token(prefix - 1 + number, thinks, read=number > 0 or own > 0)
        prompt_tokens = (len(branch.prompt) if first_draw and not path else 0) + (forced if branch.index == 0 else 0)
        return prompt_tokens, sum(thought[:sampled]) * self.thinking.tokens, flops


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
        self._prefixes: PrefixRows | None = None
        if max_cache_bytes and PrefixRows.serves(quiet.backbone):
            self._prefixes = PrefixRows(quiet.backbone, PrefixCache(max_cache_bytes), stats)

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits of the first token of each branch; equal prefixes are read once."""
        if not self._checked:
            check_cached(self.quiet)
            self._checked = True
        self._live = list(branches)
        self.traces.update({branch.key: Trace(branch) for branch in branches})
        self._text = self._read(branches) if self._prefixes is None else self._prefixes.open(branches)
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
        if self._prefixes is not None and self._text is not None:
            for row in sorted(set(range(len(self._live))) - set(rows)):
                self._prefixes.park(self._text, row, self._live[row])
        self._live = [self._live[row] for row in rows]
        if not rows:
            self._text = None
        elif self._text is not None:
            self._text.select(rows)

    def make_room(self) -> None:
        """Drops the rows and everything parked."""
        self._text = None
        if self._prefixes is not None:
            self._prefixes.clear()

    def release(self, root: int) -> None:
        """Drops what is parked for a tree."""
        if self._prefixes is not None:
            self._prefixes.release(root)

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


class QuietSTaRGenerator(Generator):
    """Samples steps from a model that thinks before it speaks; a drop-in for `HFGenerator` in every search.

    Thoughts are cropped from the cache and never part of a step: nodes hold visible text alone, and siblings share
    prefixes as ever. A visible token costs T + 1 passes and T + 3 token-forwards with the cache kept. Thoughts draw
    from streams of their own: the same seed gives the same tree, alone and in any batch, and an untrained wrapper gives
    the plain generator's tree.

    `Step.logprob` is under the mixed distribution, `Step.thought_tokens` counts T + 2 for every thought, `Step.flops`
    holds thoughts too; `max_step_tokens` and `max_new_tokens` count visible tokens.

    Attributes:
        quiet: The model.
        thinking: How it thinks.
        stats: What was really run, visible tokens alone.
    """

    def __init__(
        self,
        quiet: QuietSTaR,
        tokenizer: Any,
        *,
        thought_length: int | None = None,
        thought_temperature: float = 1.0,
        num_thoughts: int = 1,
        when: ThinkingRule | None = None,
        record_thoughts: bool = False,
        step_delimiter: str = "\n",
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        confidence: Confidence = "logprob",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        eos_token_id: int | list[int] | None = None,
        micro_batch: int | None = None,
        cache: Literal["tree", "none"] = "tree",
        max_cache_bytes: int | None = None,
    ) -> None:
        """Checks everything that can be checked before sampling.

        Args:
            quiet: The model.
            tokenizer: Its tokenizer.
            thought_length: Sampled tokens of a thought; by default those that the model was made for.
            thought_temperature: Of the thoughts; 0 takes the likeliest. Greedy requests think greedily too.
            num_thoughts: Thoughts before each token, whose predictions are averaged.
            when: Before which tokens to think; by default all.
            record_thoughts: Keep every thought, see `thoughts_of`.
            step_delimiter: Text that ends a step.
            max_step_tokens: A step is cut after this many visible tokens; the path can go on.
            max_new_tokens: Most visible tokens of a whole path, forced text included.
            temperature: Of the visible tokens; 0 takes the likeliest.
            top_p: Mass of the likeliest visible tokens that is kept.
            top_k: Number of the likeliest visible tokens that are kept; 0 keeps all.
            confidence: What `Step.confidence` is the token mean of; see `Sampler`.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template; by default if it has one.
            system_prompt: System turn of the chat.
            eos_token_id: Ids that end an answer; by default those of the model's generation config and the tokenizer.
            micro_batch: Most rows decoded at a time (default 256); halved when memory runs out.
            cache: ``"tree"`` keeps the keys and values of prompts and steps between calls; ``"none"`` reads whole
                prefixes in every call, as is done for models with windows or recurrent layers.
            max_cache_bytes: Most keys and values kept (default: 2 GiB on a CPU, a quarter of a GPU's memory).

        Raises:
            ValueError: If an option does not fit; the message says what to do.
        """
        length = quiet.thought_length if thought_length is None else thought_length
        self.thinking = Thinking(length, thought_temperature, num_thoughts, when or EveryToken())
        self.quiet = quiet
        self._record = record_thoughts
        self._records: dict[int, tuple[tuple[ThoughtRecord, ...], ...]] = {}
        check_cache_options(cache, max_cache_bytes)
        size = default_cache_bytes(quiet.model) if max_cache_bytes is None else max_cache_bytes
        self._cache_bytes = 0 if cache == "none" else size
        self._lock = threading.Lock()
        check_vocabulary(quiet.model, tokenizer)
        branches = BranchFactory(
            tokenizer,
            eos_ids(quiet.model, tokenizer, eos_token_id),
            self._with_room(Limits(max_step_tokens, max_new_tokens, context_length(quiet.model.config))),
            step_delimiter=step_delimiter,
            chat_template=chat_template,
            system_prompt=system_prompt,
        )
        sampler = Sampler(temperature, top_k, top_p, confidence)
        self._runner = ModelRunner(quiet.model, branches, sampler, micro_batch=micro_batch, decoder=self._make_decoder)
        self._charges = ThoughtCharges(quiet, self.thinking)

    def _make_decoder(self, stats: GeneratorStats) -> Decoder:
        self._decoder = ThinkingDecoder(self.quiet, self.thinking, stats, self._record, self._cache_bytes)
        return self._decoder

    def _with_room(self, limits: Limits) -> Limits:
        """Lengths that leave the model's context room for a thought after the last token."""
        if limits.context is None:
            return limits
        context = limits.context - self.thinking.length - 2
        if context < 2:
            raise ValueError(
                f"thoughts of {self.thinking.length + 2} tokens leave no text in a context of {limits.context}: "
                "lower thought_length"
            )
        return replace(limits, context=context)

    @property
    def model(self) -> QuietSTaR:
        """`quiet`, by the name that counters of FLOPs ask for."""
        return self.quiet

    @property
    def stats(self) -> GeneratorStats:
        """What was really run; visible tokens alone."""
        return self._runner.stats

    @property
    def passes(self) -> int:
        """Forwards of the model so far, a batch counting once."""
        return self._decoder.passes

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order; see the class for what a step holds."""
        decoder = self._decoder
        with self._lock:
            decoder.muted = {key for request in requests if self._too_poor(request) for key in _keys(request)}
            answers = self._runner.generate([self._visible(request) for request in requests])
            traces, decoder.traces = decoder.traces, {}
            if self._record:
                self._records |= {key: trace.padded() for key, trace in traces.items()}
        return [
            [self._charged(step, traces.get(key)) for key, step in zip(_keys(request), steps, strict=True)]
            for request, steps in zip(requests, answers, strict=True)
        ]

    def _charged(self, step: Step, trace: Trace | None) -> Step:
        """The step with the bill of its thoughts; one that had no room for a token costs nothing."""
        if trace is None:
            return step
        prompt_tokens, thought_tokens, flops = self._charges.sample(trace.branch, trace.thought)
        return replace(step, prompt_tokens=prompt_tokens, thought_tokens=thought_tokens, flops=flops)

    def thoughts_of(self, node: Node) -> tuple[tuple[ThoughtRecord, ...], ...]:
        """The thoughts before each sampled token of a node's step, ``()`` where there was none.

        A node of a later search with the same seed, prompt and path takes the place of an earlier one.

        Raises:
            ValueError: If thoughts are not recorded.
        """
        if not self._record:
            raise ValueError("thoughts are not kept: make the generator with record_thoughts=True")
        return self._records.get(node.key, ())

    def forget_thoughts(self) -> None:
        """Drops all recorded thoughts."""
        self._records.clear()

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have, thoughts included."""
        return self._runner.branches.max_sample_tokens(request) * (1 + self.thinking.tokens)

    def release(self, root: Node) -> None:
        """Forgets what was cached for a search that has ended; recorded thoughts stay."""
        with self._lock:
            self._decoder.release(root.key)

    def _too_poor(self, request: GenerateRequest) -> bool:
        """Whether the budget does not even hold one thought: such a sample does not think."""
        return request.max_tokens is not None and request.max_tokens < 1 + self.thinking.tokens

    def _visible(self, request: GenerateRequest) -> GenerateRequest:
        """The request with its cap in visible tokens, each with a thought."""
        if request.max_tokens is None or self._too_poor(request):
            return request
        return replace(request, max_tokens=request.max_tokens // (1 + self.thinking.tokens))


def _keys(request: GenerateRequest) -> list[int]:
    return [branch_key(request.node.key, request.first + index) for index in range(request.n)]
