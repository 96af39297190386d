"""Samples on their way: from a request to branches, the tokens drawn so far, and the ends of their steps (no torch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from inferscale.flow import GenerateRequest
from inferscale.tree import FinishReason, Problem, Step, branch_key

from .prompts import ControlTokens, PromptFormat
from .text import StepDelimiter, TokenText, stop_place


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in tokens.

    Attributes:
        step: Most sampled tokens of one step.
        path: Most tokens of a whole path, prompt left out, forced text included.
        context: Most tokens that the model can read, prompt included; ``None`` if there is no bound.
    """

    step: int
    path: int
    context: int | None

    def __post_init__(self) -> None:
        """Refuses lengths that leave no room."""
        for name, value in (("max_step_tokens", self.step), ("max_new_tokens", self.path)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r}: give a positive whole number")

    def room(self, prompt: int, path: int) -> int:
        """Number of tokens that can still be sampled after `prompt` and `path` tokens."""
        left = self.path - path
        return max(left if self.context is None else min(left, self.context - prompt - path), 0)


@dataclass(slots=True)
class Branch:
    """A sample of a request, from its first token to the `Step` that it becomes.

    Attributes:
        request: The request.
        index: Place among the samples of the request.
        key: The 64-bit key of its random stream.
        prompt: Ids of the prompt.
        path: Ids sampled before, along the path.
        forced: Ids of the forced text.
        text: Text and step ends of ids.
        limits: Lengths.
        price: Tokens that a budget is charged with for each sampled one, thoughts before it included.
        tokens: Ids sampled so far.
        finish: Why sampling stopped; ``None`` while it goes on.
        logprob: Sum of the tokens' log-probabilities.
        model_logprob: The same under the model's own distribution; NaN if it is not known.
        confidence: Sum of the tokens' confidences.
        room: The most tokens that the path's length and the context allow.
        limit: The most that its race allows, while that is not known ``None``.
        drawn: In a race, the columns of `TokenBuffer` of what was drawn, once it has ended.
    """

    request: GenerateRequest
    index: int
    key: int
    prompt: tuple[int, ...]
    path: tuple[int, ...]
    forced: tuple[int, ...]
    text: TokenText
    limits: Limits
    price: int = 1
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    logprob: float = 0.0
    confidence: float = 0.0
    model_logprob: float = 0.0
    limit: int | None = None
    drawn: Any = None
    room: int = field(init=False)
    # Where inner steps end: characters of the text, and tokens, forced ones included. And the text up to the newest.
    _ends: list[tuple[int, int]] = field(default_factory=list)
    _ended_text: str = ""
    _start: int = -1  # characters of the decoded path and forced ids, once they are known
    _cut: int | None = None  # characters of the text that stand before a stop string

    def __post_init__(self) -> None:
        """Ends at once when there is no room for a single token."""
        self.room = self.limits.room(len(self.prompt), len(self.path) + len(self.forced))
        if self.room < 1:
            self.finish = "length"

    @property
    def prefix(self) -> tuple[int, ...]:
        """All ids before the first sampled one."""
        return self.prompt + self.path + self.forced

    @property
    def step_tokens(self) -> int:
        """Tokens sampled since the last step ended."""
        return len(self.tokens) - (max(self._ends[-1][1] - len(self.forced), 0) if self._ends else 0)

    @property
    def is_muted(self) -> bool:
        """True if what the request may cost does not do for one token with thoughts: all of it goes into plain ones."""
        return self.request.max_tokens is not None and self.request.max_tokens < self.price

    @property
    def cap(self) -> int | None:
        """The most tokens that request and race allow; ``None`` if they set no bound."""
        cap = self.request.max_tokens
        cap = cap if cap is None or self.is_muted else cap // self.price
        return min((bound for bound in (cap, self.limit) if bound is not None), default=None)

    @property
    def most_tokens(self) -> int:
        """The most tokens that can still come."""
        caps = [self.room, self.limits.step if self.request.until == "step" else None, self.cap]
        return min(cap for cap in caps if cap is not None) - len(self.tokens)

    @property
    def due(self) -> int:
        """Number of sampled tokens at which length alone ends a step, or the branch."""
        full = len(self.tokens) - self.step_tokens + self.limits.step
        cap = self.cap
        return min(full, self.room) if cap is None else min(full, self.room, cap)

    def restart(self) -> None:
        """Forgets what was sampled; the same tokens come again from the same stream."""
        self.tokens, self._ends, self.finish = [], [], None
        self.logprob = self.confidence = self.model_logprob = 0.0
        self._cut = None

    def push(self, token: int, logprob: float, confidence: float, model_logprob: float = math.nan) -> bool:
        """Takes the next token; returns True if sampling goes on."""
        return self.take([token], [logprob], [confidence], [model_logprob])

    def take(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        confidences: Sequence[float],
        model_logprobs: Sequence[float],
    ) -> bool:
        """Takes the next tokens, of which the last alone may end something; returns True if sampling goes on."""
        self.tokens += tokens
        self.logprob = math.fsum((self.logprob, *logprobs))
        self.confidence = math.fsum((self.confidence, *confidences))
        self.model_logprob = math.fsum((self.model_logprob, *model_logprobs))
        token, cap = tokens[-1], self.cap
        full = self.step_tokens >= self.limits.step
        text = None  # of most tokens, which can end nothing, it is not needed
        if token not in self.text.eos_ids and (full or self.text.may_end(np.array([token]))[0]):
            text = self._decode(final=False)
        if token in self.text.eos_ids or (text is not None and self._ends_at_stop(text)):
            self.finish = "eos"
        elif len(self.tokens) >= self.room:
            self.finish = "length"
        elif text is not None and self._ends_step(text, full) and self.request.until == "step":
            self.finish = "step"
        elif cap is not None and len(self.tokens) >= cap:
            self.finish = "budget"
        return self.finish is None

    def _ends_step(self, text: str, full: bool) -> bool:
        """True if a step ends after the last token, by its delimiter or because it is full; its end is kept."""
        start = self._ends[-1][0] if self._ends else 0
        if full or self.text.has_step_end(text[start:], 0 if self._ends else len(self.request.forced)):
            self._ends.append((len(text), len(self.forced) + len(self.tokens)))
            self._ended_text = text
            return True
        return False

    def _ends_at_stop(self, text: str) -> bool:
        """True if the last token completes a stop string, which may begin before the first sampled token.

        What stands before the first sampled token stays: the answer's given beginning, text of earlier steps, and
        forced text.
        """
        if not self.text.stops:
            return False
        before = self.request.node.problem.prefill + self.request.node.text
        place = stop_place(before + text, self.text.stops, len(before) + len(self.request.forced))
        if place >= 0:
            self._cut = max(place - len(before), len(self.request.forced))
        return place >= 0

    def _decode(self, final: bool, count: int | None = None) -> str:
        """The forced text, and what the sampled ids, or the first `count`, add to the text of path and forced ids."""
        thinking = self.request.node.thinking
        text = self.text.decode((*self.path, *self.forced, *self.tokens[:count]), final, thinking)
        if self._start < 0:
            self._start = len(self.text.decode(self.path + self.forced, False, thinking))
        return self.request.forced + text[self._start :]

    def step(self, charge: Callable[[Branch], tuple[int, int]]) -> Step:
        """The finished sample.

        Args:
            charge: Gives the prompt tokens and the FLOPs that this sample is charged with.
        """
        if self.finish is None:
            raise RuntimeError("a branch that is still sampling has no step yet")
        text, reason = self._ended_text if self.finish == "step" else self._decode(final=True), self.finish
        ids = self.forced + tuple(self.tokens)
        # White space alone is a step like any other, which the next one goes on from.
        if (reason == "length" or (reason == "step" and not self.tokens)) and not text.strip():
            text, reason = self._decode(final=True), "empty"
        # The last inner step ends with the text, whether or not its delimiter came; ids of a stop string are behind it.
        ends, end = self._ends, (len(text), len(ids))
        if self._cut is not None:
            text = text[: self._cut]
            end = (len(text), len(self.forced) + self._tokens_of_text())
            ends = [each for each in ends if each[0] < end[0]]
        ends = [*(each for each in ends if each[1] < end[1]), end]
        prompt_tokens, flops = charge(self)
        return Step(
            text=text,
            token_ids=ids,
            logprob=self.logprob,
            confidence=self.confidence / len(self.tokens) if self.tokens else None,
            finish_reason=reason,
            inner_ends=tuple(ends) if len(ends) > 1 or end[1] < len(ids) else (),
            flops=flops,
            prompt_tokens=prompt_tokens,
            num_tokens=len(self.tokens) if self.forced else None,
            model_logprob=None if math.isnan(self.model_logprob) else self.model_logprob,
        )

    def _tokens_of_text(self) -> int:
        """The least number of sampled tokens whose text holds all that stands before the stop string."""
        count = len(self.tokens)
        while count and len(self._decode(final=False, count=count - 1)) >= (self._cut or 0):
            count -= 1
        return count


class BranchFactory:
    """Opens the branches of requests: one tokenizer, one way to write prompts, one set of lengths.

    Attributes:
        tokenizer: The tokenizer.
        limits: Lengths.
        text: Text and step ends of ids.
        prompts: Plain, or the turns of a chat.
        thinking: The markers of thoughts that chat template or vocabulary show.
        encode: From a problem to its ids.
        price: Tokens that a budget is charged with for each sampled one, thoughts before it included.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: Iterable[int],
        limits: Limits,
        *,
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        price: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        self.price = price
        self.prompts = PromptFormat.choose(
            tokenizer,
            chat_template,
            system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            control_tokens=control_tokens,
        )
        self.thinking = self.prompts.thinking()
        self.text = TokenText(tokenizer, step_delimiter, eos_ids, self.thinking, stop)
        self.encode: Callable[[Problem | str], tuple[int, ...]] = lru_cache(maxsize=4096)(self.prompts.encode)

    def open(self, request: GenerateRequest) -> list[Branch]:
        """A branch for each sample of `request`, in order.

        Raises:
            ValueError: If the prompt does not fit into the model's context, or a step of the path has text without ids.
        """
        prompt, forced = self.ids(request)
        node = request.node
        if any(step.text and not step.token_ids for step in node.steps):
            raise ValueError(
                f"{node!r} holds text without token ids (another generator's?): it cannot be continued token by token"
            )
        keys = [branch_key(node.key, request.first + index) for index in range(request.n)]
        text = self.text.stopping_at(request.stop) if request.stop else self.text
        return [
            Branch(request, index, key, prompt, node.token_ids, forced, text, self.limits, self.price)
            for index, key in enumerate(keys)
        ]

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can cost, its own `max_tokens` left out.

        Raises:
            ValueError: If the prompt does not fit into the model's context.
        """
        prompt, forced = self.ids(request)
        room = self.limits.room(len(prompt), len(request.node.token_ids) + len(forced))
        return max(min(room, self.limits.step) if request.until == "step" else room, 1) * self.price

    def ids(self, request: GenerateRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of the prompt, and of the forced text on its own."""
        problem, context = request.node.problem, self.limits.context
        if problem.messages is not None and not self.prompts.chat:
            raise ValueError(
                f"the problem {problem.prompt[:80]!r} is a conversation, and no chat template is used: set "
                "tokenizer.chat_template, or give its text, Problem(problem.prompt)"
            )
        ids = self.encode(problem)
        if context is not None and len(ids) >= context:
            raise ValueError(
                f"the prompt {problem.prompt[:80]!r} has {len(ids)} tokens and the model reads {context}: "
                "there is no room for an answer; shorten it"
            )
        thinking = request.node.thinking or self.thinking
        marks = (thinking.forced_end, thinking.start) if thinking else ()
        return ids, self.prompts.forced(request.forced, marks) if request.forced else ()


def side_by_side(branches: Sequence[Branch]) -> list[Branch]:
    """The branches with those of a problem, and of a node, together: each in the place of its first."""
    roots: dict[int, int] = {}
    nodes: dict[int, int] = {}
    for branch in branches:
        node = branch.request.node
        roots.setdefault(id(node.root), len(roots))
        nodes.setdefault(id(node), len(nodes))
    return sorted(branches, key=lambda b: (roots[id(b.request.node.root)], nodes[id(b.request.node)]))
