"""`QuietSTaRGenerator`: steps sampled with a thought before every token, for any search strategy."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from inferscale.base import Generator, Sampling, Traffic
from inferscale.flops.calibration import closed_form
from inferscale.flops.spec import ModelSpec, UnknownArchitectureError, forward_cost
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import Branch, BranchFactory, Limits
from inferscale.runtime.charges import row_groups
from inferscale.runtime.decoding import Decoder, GeneratorStats, ModelRunner
from inferscale.runtime.loading import check_vocabulary, context_length, eos_ids
from inferscale.runtime.prefix_cache import PrefixCache, branch_path, cache_bytes, check_cache_options
from inferscale.runtime.processing import LogitsProcessing
from inferscale.runtime.prompts import ControlTokens
from inferscale.runtime.sampling import Confidence, Sampler, TokenSampler, choose_sampler
from inferscale.runtime.text import StepDelimiter, checked_stops
from inferscale.tree import Node, Step

from .cache import CachedText, check_cached, think_once
from .head import mean_of_thoughts, mix
from .model import QuietSTaR
from .thoughts import STRIDE, branch_numbers
from .traffic import ThinkingRow, ThoughtTraffic


@dataclass(frozen=True, slots=True)
class TokenContext:
    """Place of the token that comes next, as a `ThinkingRule` sees it.

    Attributes:
        step_tokens: Tokens sampled since the step began; 0 for its first.
        tokens: Tokens sampled in this request so far.
        entropy: Of the plain model's distribution (nats); ``None`` unless the rule needs it.

    Example:
        >>> from inferscale.quiet_star import HighEntropy, StepStarts, TokenContext
        >>> here = TokenContext(step_tokens=5, tokens=17, entropy=1.8)  # where the model is unsure
        >>> StepStarts(3).thinks(here), HighEntropy(1.0).thinks(here)
        (False, True)
    """

    step_tokens: int
    tokens: int
    entropy: float | None = None


class ThinkingRule(ABC):
    """Rule for the tokens before which a thought is worth its cost.

    Attributes:
        needs_entropy: True if the plain prediction must be made first.

    Example:
        >>> from dataclasses import dataclass
        >>> from inferscale import RepeatedSampling, solve, zoo
        >>> from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator, ThinkingRule
        >>> @dataclass(frozen=True)
        ... class EveryOther(ThinkingRule):
        ...     def thinks(self, context):
        ...         return context.tokens % 2 == 0
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> quiet = QuietSTaR(model, thought_length=2)
        >>> generator = QuietSTaRGenerator(quiet, tokenizer, when=EveryOther(), max_new_tokens=4)
        >>> cost = solve(zoo.problems()[0], RepeatedSampling(1), generator).cost
        >>> cost.generated_tokens, cost.thought_tokens
        (4, 8)
    """

    needs_entropy: ClassVar[bool] = False

    @abstractmethod
    def thinks(self, context: TokenContext) -> bool:
        """Return True to think before the token at `context`."""


@dataclass(frozen=True)
class EveryToken(ThinkingRule):
    """A thought before every token, as in the paper (arXiv:2403.09629).

    Example:
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import EveryToken, QuietSTaR, QuietSTaRGenerator, TokenContext
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> quiet = QuietSTaR(model, thought_length=2)
        >>> generator = QuietSTaRGenerator(quiet, tokenizer, when=EveryToken(), max_new_tokens=4)  # also by default
        >>> EveryToken().thinks(TokenContext(step_tokens=3, tokens=9))
        True
    """

    def thinks(self, context: TokenContext) -> bool:
        """Return True, always."""
        return True


@dataclass(frozen=True)
class StepStarts(ThinkingRule):
    """A thought before the first tokens of every step alone.

    Attributes:
        tokens: How many.

    Example:
        >>> from inferscale.quiet_star import StepStarts, TokenContext
        >>> rule = StepStarts(tokens=2)
        >>> [rule.thinks(TokenContext(step_tokens=place, tokens=10 + place)) for place in range(4)]
        [True, True, False, False]
    """

    tokens: int = 1

    def thinks(self, context: TokenContext) -> bool:
        """Return True while the step has fewer tokens than that."""
        return context.step_tokens < self.tokens


@dataclass(frozen=True)
class HighEntropy(ThinkingRule):
    """A thought where the plain model is unsure.

    Attributes:
        nats: Least entropy of its prediction.

    Example:
        >>> from inferscale.quiet_star import HighEntropy, TokenContext
        >>> rule = HighEntropy(nats=1.0)
        >>> [rule.thinks(TokenContext(step_tokens=0, tokens=0, entropy=nats)) for nats in (0.1, 2.3)]
        [False, True]
    """

    nats: float = 1.0
    needs_entropy: ClassVar[bool] = True

    def thinks(self, context: TokenContext) -> bool:
        """Return True if the entropy is as high as that."""
        return context.entropy is not None and context.entropy >= self.nats


@dataclass(frozen=True)
class Never(ThinkingRule):
    """No thoughts: the plain model, for comparisons.

    Example:
        >>> from inferscale import RepeatedSampling, solve, zoo
        >>> from inferscale.quiet_star import EveryToken, Never, QuietSTaR, QuietSTaRGenerator
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> quiet, problem = QuietSTaR(model, thought_length=2), zoo.problems()[0]
        >>> for rule in (Never(), EveryToken()):
        ...     generator = QuietSTaRGenerator(quiet, tokenizer, when=rule, max_new_tokens=4)
        ...     print(rule, solve(problem, RepeatedSampling(1), generator).cost.thought_tokens)
        Never() 0
        EveryToken() 16
    """

    def thinks(self, context: TokenContext) -> bool:
        """Return False, always."""
        return False


@dataclass(frozen=True)
class ThoughtSettings:
    """Lengths, temperature and places of the thoughts of a generator.

    Attributes:
        length: Sampled tokens T of a thought.
        temperature: Of the thoughts; 0 takes the likeliest.
        num_thoughts: Thoughts before a token; their predictions are averaged.
        rule: Before which tokens.
    """

    length: int
    temperature: float = 1.0
    num_thoughts: int = 1
    rule: ThinkingRule = field(default_factory=EveryToken)

    def __post_init__(self) -> None:
        """Refuse settings that say nothing."""
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
    """Thoughts of one branch, token by token.

    Attributes:
        branch: The branch.
        thought: True for each visible token that was thought about.
        records: Thoughts before each visible token; ``()`` where there is none, or none is recorded.
    """

    branch: Branch
    thought: list[bool] = field(default_factory=list)
    records: list[tuple[ThoughtRecord, ...]] = field(default_factory=list)

    def charges(self, spec: ModelSpec | None, settings: ThoughtSettings, mixing: int) -> tuple[int, int, int]:
        """Return the prompt tokens, thought tokens and FLOPs of the finished sample, convention ``causal``.

        Every visible token pays for itself and the thoughts before the next. With context c (tokens before the newest
        one), a thought of T tokens runs T + 3 tokens in one causal chunk, the output head for the T sampled ones and
        for the mixed state, and the mixing head once::

            flops(c) = chunk(T + 3 tokens after c, T + 1 logits) + 6 d² + 2 d

        As for a plain generator, the first draw from a node pays for what nothing has read yet (the prompt at the root,
        the node's last token elsewhere), and the first sample of a request for its forced text.

        Args:
            spec: The constants of the closed form; ``None`` where there is none, and 0 FLOPs are charged.
            settings: Of the thoughts.
            mixing: FLOPs of the mixing head.
        """
        branch, length = self.branch, settings.length
        if not branch.tokens:
            return 0, 0, 0
        first_draw = branch.request.first + branch.index == branch.request.payer
        prompt = len(branch.prompt) if first_draw and not branch.path else 0
        forced = len(branch.forced) if branch.index == 0 else 0
        own = (prompt or int(first_draw)) + forced  # tokens of the prefix that are charged here
        newest = len(branch.prefix) - 1
        # all but the newest token are read without a look at their logits
        flops = forward_cost(spec, own - 1, newest + 1 - own, 0)
        for context, thinks in enumerate(self.thought, start=newest):
            read = int(context > newest or own > 0)  # else a sibling has paid for the newest token
            flops += forward_cost(spec, read, context, 0 if thinks else 1)
            if thinks and spec is not None:
                one = forward_cost(spec, length + 2, context + 1, length + 1) + mixing
                flops += settings.num_thoughts * one
        return prompt + forced, sum(self.thought) * settings.tokens, flops


class ThinkingDecoder(Decoder):
    """Decoder that thinks at the end of every row, mixes, and leaves the cache as if nothing had been thought.

    A thought is drawn from a stream of its own, so that the visible tokens' streams never shift: a branch draws with
    the same numbers whether it thinks or not.

    Attributes:
        quiet: The model.
        settings: Of the thoughts.
        passes: Forwards so far, those of decoders made by `another` included.
        records: Thoughts of finished branches by their keys, if they are to be kept.
    """

    def __init__(
        self,
        quiet: QuietSTaR,
        settings: ThoughtSettings,
        stats: GeneratorStats,
        record: bool = False,
        max_cache_bytes: int = 0,
    ) -> None:
        self.quiet = quiet
        self.settings = settings
        self.passes = 0
        self.records: dict[int, list[tuple[ThoughtRecord, ...]]] = {}
        self._stats = stats
        self._record = record
        self._sampler = Sampler(settings.temperature)
        try:
            self._spec: ModelSpec | None = closed_form(quiet.model)
        except UnknownArchitectureError:
            self._spec = None  # the runner warns
        self._checked = False
        self._first = self  # counts passes for all that are made of it
        self._traces: dict[int, Trace] = {}  # of branches that were not handed over, by their `id`
        self._live: list[Branch] = []
        self._text: CachedText | None = None
        # Keys cannot be moved out of a window that counts padding, nor out of a recurrent state.
        body = quiet.backbone
        self.refills = body.attention_only and body.window is None and body.takes_positions
        self._prefixes = PrefixCache(max_cache_bytes) if self.refills and max_cache_bytes else None

    def another(self) -> ThinkingDecoder:
        """Make a decoder without rows that parks keys and values, and records thoughts, in the same place."""
        other = copy.copy(self)
        other._traces, other._live, other._text = {}, [], None
        return other

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Compute logits of the first token of each branch; what branches share is read once, if it is not held."""
        if not self._first._checked:
            check_cached(self.quiet)
            self._first._checked = True
        prefixes = [branch.prefix[:-1] for branch in branches]  # the newest token is fed with the thought after it
        rows: dict[tuple[int, ...], int] = {}
        held: list[list[Tensor]] = []
        missing: list[tuple[int, ...]] = []
        for prefix, branch in zip(prefixes, branches, strict=True):
            if prefix not in rows:
                rows[prefix] = len(rows)
                held.append(self._held(branch, len(prefix)))
                missing.append(prefix[sum(part.shape[3] for part in held[-1]) :])
        text = CachedText.prefill(self.quiet.backbone, missing, held)
        text.select([rows[prefix] for prefix in prefixes])
        read = sum(map(len, missing))
        self._stats.prefill_tokens += read + len(branches)
        self._stats.reused_tokens += sum(map(len, prefixes)) - read
        self._traces.update({id(branch): Trace(branch) for branch in branches})
        newest = torch.tensor([branch.prefix[-1] for branch in branches], device=self.quiet.backbone.device)
        logits = self._logits(text, branches, newest)
        # the new rows stand behind those that decode
        self._text = text if self._text is None else CachedText.joined([self._text, text])
        self._live += branches
        return logits

    def _held(self, branch: Branch, most: int) -> list[Tensor]:
        """Keys and values that are held of the first `most` tokens of a branch's prefix, piece by piece."""
        if self._prefixes is None:
            return []
        path = branch_path(branch)
        prompt = self._prefixes.prompt(path)
        if prompt is None:
            return []
        pieces = self._prefixes.find(path, most - len(path.prompt))
        return [kv for kv in (prompt.kv, *(piece.kv for piece in pieces)) if kv is not None]

    def step(self, tokens: Tensor) -> Tensor:
        """Compute logits after one more token in each row."""
        if self._text is None:
            raise RuntimeError("start() comes before step()")
        return self._logits(self._text, self._live, tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these; what the others have read is parked."""
        if self._prefixes is not None and self._text is not None:
            for row in sorted(set(range(len(self._live))) - set(rows)):
                branch = self._live[row]
                path = branch_path(branch)
                if branch.finish == "step":  # the node can grow; its last token has not been read
                    path = path.grown((*branch.forced, *branch.tokens)[:-1])
                if branch.finish is not None:  # else interrupted: memory may have run out
                    self._prefixes.park(path, partial(self._text.cut, row), prompt=True)
            self._tell()
        self._live = [self._live[row] for row in rows]
        if not rows:
            self._text = None
        elif self._text is not None:
            self._text.select(rows)

    def finished(self, branch: Branch, step: Step) -> Step:
        """Return the step with its thoughts, and their price, on the bill."""
        trace = self._traces.pop(id(branch), None)
        if trace is None:  # it was not begun, and costs nothing
            return step
        if self._record:
            self.records[branch.key] = trace.records
        prompt, thought, flops = trace.charges(self._spec, self.settings, self.quiet.head.flops)
        return replace(step, prompt_tokens=prompt, thought_tokens=thought, flops=flops)

    def make_room(self) -> None:
        """Drop the rows and everything parked."""
        self._text, self._live = None, []
        if self._prefixes is not None:
            self._prefixes.shrink(0)
            self._tell()

    def release(self, root: int) -> None:
        """Drop what is parked for a tree."""
        if self._prefixes is not None:
            self._prefixes.release(root)
            self._tell()

    def _tell(self) -> None:
        """Bring the figures of what is held up to date."""
        if self._prefixes is not None:
            self._stats.cache_bytes = self._prefixes.bytes
            self._stats.evictions = self._prefixes.evictions

    def _logits(self, text: CachedText, live: Sequence[Branch], ids: Tensor) -> Tensor:
        """Logits of the next token of each row, `[rows, vocabulary]`, after the thoughts that its rule wants.

        Args:
            text: The rows.
            live: Their branches.
            ids: Their newest tokens, `[rows]`, which `text` has not read.
        """
        quiet, settings, passes = self.quiet, self.settings, text.passes
        newest = quiet.backbone.embed(ids[:, None])  # [rows, 1, hidden]
        traces = [self._traces[id(branch)] for branch in live]
        for trace in traces:
            trace.records.append(())
        wanted = [] if settings.rule.needs_entropy else self._wanted(live, [None] * len(live))
        if wanted and all(wanted) and settings.num_thoughts == 1 and text.can_roll_back:
            # All rows think on the cache itself, which then forgets the thought and keeps the newest token.
            logits = self._after_thoughts(text, newest, None, traces)
            text.rollback(settings.length + 2)
        else:
            base = text.feed(newest)[:, -1]  # [rows, hidden]
            logits = quiet.logits(base)
            if settings.rule.needs_entropy:
                logprobs = logits.float().log_softmax(dim=-1)
                wanted = self._wanted(live, (-(logprobs.exp() * logprobs).sum(dim=-1)).tolist())
            rows = [row for row, thinks in enumerate(wanted) if thinks]
            if rows:  # they think, each as often as asked, on a copy of their keys and values
                index = torch.tensor(rows, device=base.device)
                copies = index.repeat_interleave(settings.num_thoughts)
                fork, thinking = text.fork(copies), [traces[row] for row in rows]
                logits[index] = self._after_thoughts(fork, None, base[copies], thinking).to(logits.dtype)
                self._first.passes += fork.passes
        for trace, thinks in zip(traces, wanted, strict=True):
            trace.thought.append(thinks)
        self._first.passes += text.passes - passes
        return logits

    def _wanted(self, live: Sequence[Branch], entropies: Sequence[float | None]) -> list[bool]:
        """True for each branch that thinks before its next token."""
        return [
            not branch.is_muted
            and self.settings.rule.thinks(TokenContext(branch.step_tokens, len(branch.tokens), entropy))
            for branch, entropy in zip(live, entropies, strict=True)
        ]

    def _after_thoughts(
        self, text: CachedText, newest: Tensor | None, base: Tensor | None, traces: Sequence[Trace]
    ) -> Tensor:
        """Think at the end of `text` and mix: logits `[rows, vocabulary]`; the thought stays in the cache.

        Args:
            text: `num_thoughts` rows for each of `traces`.
            newest: Embeddings of their newest tokens, `[rows, 1, hidden]`, if `text` has not read them.
            base: Their plain states, `[rows * num_thoughts, hidden]`, if it has.
            traces: Of the rows that think.
        """
        quiet, count = self.quiet, self.settings.num_thoughts
        device, branches = quiet.backbone.device, [trace.branch for trace in traces]
        numbers = branch_numbers(branches, count, self.settings.length, device)
        flags = [branch.request.greedy for branch in branches]  # greedy requests think greedily too
        greedy = torch.tensor(flags, device=device).repeat_interleave(count) if any(flags) else None
        thought = think_once(quiet, text, newest, numbers, self._sampler, greedy)
        base = thought.before if base is None else base
        assert base is not None
        weight = quiet.head(base, thought.after)  # [rows * num_thoughts, 1]
        logits = quiet.logits(mix(base, thought.after, weight))
        if self._record:
            columns = (thought.tokens.tolist(), thought.logprobs.sum(dim=1).tolist(), weight[:, 0].tolist())
            records = [ThoughtRecord(tuple(ids), logprob, w) for ids, logprob, w in zip(*columns, strict=True)]
            for number, trace in enumerate(traces):
                trace.records[-1] = tuple(records[number * count : (number + 1) * count])
        return mean_of_thoughts(logits.unflatten(0, (len(traces), count)))


class QuietSTaRGenerator(Generator):
    """Generator of steps from a model that thinks before it speaks; a drop-in for `HFGenerator` in every search.

    Thoughts are cropped from the cache and never part of a step: nodes hold visible text alone, and siblings share
    prefixes as ever. A visible token costs T + 1 passes and T + 3 token-forwards with the cache kept. Thoughts draw
    from streams of their own: the same seed gives the same tree, alone and in any batch, and an untrained wrapper gives
    the plain generator's tree.

    `Step.logprob` is under the mixed distribution, `Step.thought_tokens` counts T + 2 for every thought, `Step.flops`
    holds thoughts too; `max_step_tokens` and `max_new_tokens` count visible tokens.

    Attributes:
        quiet: The model.
        settings: Of the thoughts.
        processing: What changes the logits of visible tokens.
        step_delimiter: What ends a step.
        stop: Texts that end the answer.
        stats: Counts of what was really run, visible tokens alone.
        thinking: The markers of thoughts in visible text that chat template or vocabulary show.

    Example:
        >>> from inferscale import RepeatedSampling, solve, zoo
        >>> from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> generator = QuietSTaRGenerator(QuietSTaR(model, thought_length=2), tokenizer, max_new_tokens=4)
        >>> result = solve(zoo.problems()[0], RepeatedSampling(2), generator)
        >>> result.cost.generated_tokens, result.cost.thought_tokens  # 2 + 2 tokens of thought for each
        (8, 32)
    """

    no_effect = frozenset({"micro_batch", "cache", "max_cache_bytes", "record_thoughts"})
    held_in: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "confidence"), "sampler"),
        **dict.fromkeys(("thought_length", "thought_temperature", "num_thoughts", "when"), "settings"),
        "chat_template": "takes_messages",
    }

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
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        sampler: TokenSampler | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logits_processor: Sequence[Any] = (),
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        confidence: Confidence = "logprob",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        eos_token_id: int | list[int] | None = None,
        micro_batch: int | None = None,
        cache: Literal["tree", "none"] = "tree",
        max_cache_bytes: int | None = None,
    ) -> None:
        """Check everything that can be checked before sampling.

        Args:
            quiet: The model.
            tokenizer: Its tokenizer.
            thought_length: Sampled tokens of a thought; by default those that the model was made for.
            thought_temperature: Of the thoughts; 0 takes the likeliest. Greedy requests think greedily too.
            num_thoughts: Thoughts before each token, whose predictions are averaged.
            when: Before which tokens to think; by default all.
            record_thoughts: Keep every thought, see `thoughts_of`.
            step_delimiter: Text, regular expression or function that ends a step; see `HFGenerator`.
            stop: Texts that end the answer, and are left out of it.
            max_step_tokens: A step is cut after this many visible tokens; the path can go on.
            max_new_tokens: Most visible tokens of a whole path, forced text included.
            sampler: Draws visible tokens: a `Sampler`, or a `TokenSampler` of your own, in place of the shortcuts
                `temperature`, `top_p`, `top_k`, `min_p` and `confidence`.
            temperature: Of the visible tokens; 0 takes the likeliest.
            top_p: Mass of the likeliest visible tokens that is kept.
            top_k: Number of the likeliest visible tokens that are kept; 0 keeps all.
            min_p: Visible tokens at least so many times as likely as the likeliest one are kept; 0 keeps all.
            repetition_penalty: Lowers the mixed logits of tokens that are in prompt or answer already.
            logits_processor: Processors of the mixed logits of visible tokens; see `HFGenerator`.
            prefix_allowed_tokens_fn: Gives the visible tokens that may come next; see `HFGenerator`.
            confidence: What `Step.confidence` is the token mean of; see `Sampler`.
            chat_template: Render problems with the tokenizer's chat template; by default if it has one.
            system_prompt: System turn of conversations that have none of their own.
            chat_template_kwargs: Variables of the chat template, such as ``{"enable_thinking": False}``; one that it
                never mentions is refused.
            tools: What the model may call, as JSON schemas or documented functions, for the chat template.
            control_tokens: What becomes of control tokens that a problem spells: ``"text"`` reads them as letters,
                ``"refuse"`` raises, ``"keep"`` lets them be tokens. By default ``"text"`` in chats, and ``"keep"`` in
                plain prompts, which may be chats that are rendered already.
            eos_token_id: Ids that end an answer; by default those of the model's generation config and the tokenizer.
            micro_batch: Most rows decoded at a time (default 256, or 512 of a model of less than 10 million weights);
                halved when memory runs out.
            cache: ``"tree"`` keeps the keys and values of prompts and steps between calls; ``"none"`` reads whole
                prefixes in every call, as is done for models with windows or recurrent layers.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory). Those of the rows that run come on top: `micro_batch`.

        Raises:
            TypeError: If `quiet` is not a `QuietSTaR`.
            ValueError: If an option does not fit; the message says what to do.
        """
        if not isinstance(quiet, QuietSTaR):
            raise TypeError(
                f"QuietSTaRGenerator(quiet, tokenizer) takes a QuietSTaR, not {type(quiet).__name__}: wrap a model "
                "with QuietSTaR(model), or load one with QuietSTaR.from_pretrained(...)"
            )
        length = quiet.thought_length if thought_length is None else thought_length
        self.settings = ThoughtSettings(length, thought_temperature, num_thoughts, when or EveryToken())
        self.quiet = quiet
        self._record = record_thoughts
        check_cache_options(cache, max_cache_bytes)
        size = cache_bytes(quiet.model, max_cache_bytes)
        self._cache_bytes = 0 if cache == "none" else size
        check_vocabulary(quiet.model, tokenizer)
        context = context_length(quiet.model.config)
        if context is not None:
            context -= length + 2  # room for a thought after the last token
            if context < 2:
                raise ValueError(
                    f"thoughts of {length + 2} tokens leave no text in a context of {context + length + 2}: "
                    "lower thought_length"
                )
        branches = BranchFactory(
            tokenizer,
            eos_ids(quiet.model, tokenizer, eos_token_id),
            Limits(max_step_tokens, max_new_tokens, context),
            step_delimiter=step_delimiter,
            stop=stop,
            chat_template=chat_template,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            control_tokens=control_tokens,
            price=1 + self.settings.tokens,
        )
        branches.text.check_delimiter()
        self.thinking = branches.thinking
        self.takes_messages = branches.prompts.chat
        self.sampler = choose_sampler(sampler, temperature, top_p, top_k, confidence, min_p)
        self.takes_temperature = self.sampler.has_temperature
        self.processing = LogitsProcessing(repetition_penalty, logits_processor, prefix_allowed_tokens_fn)
        self.step_delimiter = step_delimiter
        self.stop = checked_stops(stop)
        self._runner = ModelRunner(
            quiet.model,
            branches,
            self.sampler,
            micro_batch=micro_batch,
            processing=self.processing,
            decoder=self._make_decoder,
        )
        self._traffic = ThoughtTraffic(self._runner.charges, quiet)

    def _make_decoder(self, stats: GeneratorStats) -> Decoder:
        self._decoder = ThinkingDecoder(self.quiet, self.settings, stats, self._record, self._cache_bytes)
        return self._decoder

    @property
    def model(self) -> QuietSTaR:
        """Alias of `quiet`, by the name that counters of FLOPs ask for."""
        return self.quiet

    @property
    def stats(self) -> GeneratorStats:
        """Counts of what was really run; visible tokens alone."""
        return self._runner.stats

    @property
    def passes(self) -> int:
        """Forwards of the model so far, a batch counting once."""
        return self._decoder.passes

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Sample ``request.n`` steps for each request, in order; see the class for what a step holds."""
        return self._runner.generate(requests)

    def open(self) -> Sampling:
        """Open a session, as that of `HFGenerator`: branches come as they end, and others take their rows."""
        own = getattr(self.generate, "__func__", None) is QuietSTaRGenerator.generate
        return self._runner.open() if own else super().open()

    def traffic(self, requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]]) -> Traffic | None:
        """Return the bytes that sampling these steps moves, thoughts included; ``None`` if they are not known.

        They are not where thoughts go by entropies (`HighEntropy`), since a step does not say where it thought.
        """
        settings = self.settings
        if settings.rule.needs_entropy:
            return None
        rows = []
        groups = row_groups(self._runner.branches, requests, answers)
        for request, steps, group in zip(requests, answers, groups, strict=True):
            forced = len(self._runner.branches.ids(request)[1])
            unread = max(group.unread - 1, 0)  # the newest token is fed again by every row
            for step in steps:
                if step.generated_tokens:
                    rows.append(ThinkingRow(group.past - 1, unread, self._places(step, forced)))
                    unread = 0
        return self._traffic.sampling(rows, settings.length, settings.num_thoughts)

    def _places(self, step: Step, forced: int) -> list[bool]:
        """For each sampled token of a step whether there was a thought before it."""
        count, thoughts = int(step.generated_tokens), int(step.thought_tokens) // max(self.settings.tokens, 1)
        if thoughts in (0, count):
            return [thoughts > 0] * count
        ends = [max(end - forced, 0) for _, end in step.inner_ends]
        starts = [max((end for end in ends if end <= place), default=0) for place in range(count)]
        rule = self.settings.rule
        places = [rule.thinks(TokenContext(place - start, place)) for place, start in enumerate(starts)]
        # Behind a stop string's beginning a step does not say where inner steps ended: its last tokens stand for them.
        missing = thoughts - sum(places)
        for place in reversed(range(count)):
            if missing and places[place] != (missing > 0):
                places[place] = missing > 0
                missing += -1 if missing > 0 else 1
        return places

    def thoughts_of(self, node: Node) -> tuple[tuple[ThoughtRecord, ...], ...]:
        """Return the thoughts before each sampled token of a node's step, ``()`` where there was none.

        A node of a later search with the same seed, prompt and path takes the place of an earlier one.

        Raises:
            ValueError: If thoughts are not recorded.
        """
        if not self._record:
            raise ValueError("thoughts are not kept: make the generator with record_thoughts=True")
        return tuple(self._decoder.records.get(node.key, ()))

    def forget_thoughts(self) -> None:
        """Drop all recorded thoughts."""
        self._decoder.records.clear()

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """Return the most tokens that one sample of `request` can have, thoughts included."""
        return self._runner.branches.max_sample_tokens(request)

    def release(self, root: Node) -> None:
        """Forget what was cached for a search that has ended; recorded thoughts stay."""
        self._runner.release(root)
