"""`QuietSTaRGenerator`: steps sampled with a thought before every token, for any search strategy."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from inferscale.base import Generator
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.generators.branch import Limits
from inferscale.generators.decoder import Decoder, GeneratorStats
from inferscale.generators.kv_store import check_cache_options, default_cache_bytes
from inferscale.tree import Node, Step, branch_key

from .charges import ThoughtCharges
from .decoder import ThinkingDecoder
from .model import QuietSTaR
from .thinking import Thinking, ThoughtRecord, Trace
from .when import EveryToken, ThinkingRule


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
        cache: Literal["tree", "none"] = "tree",
        max_cache_bytes: int | None = None,
        **options: Any,
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
            cache: ``"tree"`` keeps the keys and values of prompts and steps between calls; ``"none"`` reads whole
                prefixes in every call, as is done for models with windows or recurrent layers.
            max_cache_bytes: Most keys and values kept (default: 2 GiB on a CPU, a quarter of a GPU's memory).
            options: Of `HFGenerator`: lengths, temperature and filters of the visible tokens, chat template, ...

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
        self._inner = HFGenerator(quiet.model, tokenizer, decoder=self._make_decoder, **options)
        self._inner.limits = self._with_room(self._inner.limits)
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
        return self._inner.stats

    @property
    def passes(self) -> int:
        """Forwards of the model so far, a batch counting once."""
        return self._decoder.passes

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order; see the class for what a step holds."""
        decoder = self._decoder
        with self._lock:
            decoder.muted = {key for request in requests if self._too_poor(request) for key in _keys(request)}
            answers = self._inner.generate([self._visible(request) for request in requests])
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
        return self._inner.max_sample_tokens(request) * (1 + self.thinking.tokens)

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
