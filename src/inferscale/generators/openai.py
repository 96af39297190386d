"""`OpenAIGenerator`: samples steps from any server that speaks OpenAI's protocol (no torch)."""

from __future__ import annotations

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from inferscale._http import RemoteError, RetryPolicy, public_address
from inferscale.base import Generator, Rounds, Sampling
from inferscale.flops.spec import ModelSpec, model_spec, sample_flops
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import Branch, Limits
from inferscale.runtime.prompts import ControlTokens
from inferscale.runtime.text import StepDelimiter, checked_delimiter, checked_stops, step_end, stop_place
from inferscale.thinking import Thinking
from inferscale.tree import FinishReason, Step

from .openai_server import (
    CONTINUE,
    LOOK,
    Choice,
    Endpoint,
    OpenAIServer,
    Prefix,
    RemoteStats,
    ServerTokenizer,
    StopHandling,
)

_NODE_BITS = 0x3FFFFFFF
_ROUND = 0x9E3779B1  # spreads the seeds of the requests that one sample may take
_SEED_BITS = 0x7FFFFFFF
_MOST_BLANKS = 3  # empty texts in a row that a server which hides what ended them may send within an answer
_ENOUGH_ALIKE = 4  # samples that make one wonder whether the server samples at all


class RemoteSample(ABC):
    """One sample of a request, from its first token to the `Step` that it becomes.

    It may take several requests: where the server stopped too early, a further one goes on after what came.

    Attributes:
        request: What was asked for.
        index: Which sample of the request this is.
        limits: Lengths.
        finish: Why sampling stopped; ``None`` while it goes on.
        error: Why the sample failed.
        prefix_tokens: Tokens before the first sampled one, as the server counts them; 0 before its first answer.
        sampled: Tokens that the server sampled.
    """

    def __init__(self, request: GenerateRequest, index: int, limits: Limits, room: int) -> None:
        self.request = request
        self.index = index
        self.limits = limits
        self.finish: FinishReason | None = None if room else "length"
        self.error: RemoteError | None = None
        self.prefix_tokens = 0
        self.sampled = 0
        self._room = room
        self._spent = 0  # as `sampled`, but at least 1 for each answer, so that every sample ends
        self._rounds = 0
        self._most: int | None = None  # tokens that fitted into the context, or might
        self._cut_short = False  # the last answer ended by its length before it had what was asked for
        self._full = False  # and by the end of the context
        self._logprobs: list[float] | None = []  # None once they are not those of exactly the sampled tokens

    @property
    def came(self) -> bool:
        """True if the server has read the prefix and answered."""
        return self._rounds > 0

    @property
    def seed(self) -> int:
        """The seed of the next request.

        Siblings have consecutive seeds: a server that gives the i-th choice of a request the seed plus i draws the
        same samples in one request and in several. Seeds fit into 31 bits: every server takes them.
        """
        first = (self.request.node.key & _NODE_BITS) + self.request.first + self.index
        return (first + self._rounds * _ROUND) & _SEED_BITS

    @property
    def left(self) -> int:
        """The most tokens that the next request may sample."""
        caps = [self._room, self.request.max_tokens, self.limits.step if self.request.until == "step" else None]
        left = min(cap for cap in caps if cap is not None) - self._spent
        return max(left if self._most is None else min(left, self._most), 1)

    @abstractmethod
    def prefix(self) -> Prefix:
        """The prefix that the next request continues."""

    @abstractmethod
    def _extend(self, choice: Choice) -> None:
        """Takes the text; sets `finish` if the sample has ended."""

    @abstractmethod
    def _bare_step(self) -> Step:
        """The finished step, without its price."""

    @property
    @abstractmethod
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""

    def take(self, choice: Choice, tokens: int, prefix_tokens: int, counted: bool = True) -> None:
        """Takes a choice of `tokens` sampled tokens after a prefix of `prefix_tokens`.

        A sample that ends by its length before it has what it was asked for has met the end of the context. If nobody
        has `counted` its tokens, the next request tells: nothing comes any more.
        """
        self._cut_short = choice.finish == "length" and tokens < self.left
        self._full = self._cut_short and (counted or not (choice.text or choice.thoughts))
        self.prefix_tokens = self.prefix_tokens or prefix_tokens
        self.sampled += tokens
        self._spent += max(tokens, 1)
        self._rounds += 1
        # llama.cpp leaves the tokens of a stop string out: then the mean is known, and the sum is not.
        known = choice.logprobs if choice.text or choice.thoughts else choice.logprobs or ()
        if known is not None and (len(known) == tokens or (choice.finish == "stop" and len(known) < tokens)):
            self._logprobs = None if self._logprobs is None else [*self._logprobs, *known]
        else:
            self._logprobs = None
        if choice.finish == "filtered":
            self.fail(RemoteError("the server's content filter ended this sample"))
        else:
            self._extend(choice)

    def fail(self, error: RemoteError) -> None:
        """Ends the sample with an error; one that asked for too many tokens may ask for fewer."""
        if error.kind == "too long" and self._cut_short:
            self.finish = "length"
        elif error.kind == "too long" and self.left > 1:
            self._most = self.left // 2  # servers count what may come as part of the context
        elif error.kind == "too long" and self._rounds:
            self.finish = "length"
        else:
            self.finish, self.error = "error", error

    def _reason_at_length(self) -> FinishReason | None:
        """Reason for the end of a sample that the server cut by its length; ``None`` if it may have more tokens."""
        if self._spent >= self._room or self._full:
            return "length"
        if self.request.until == "step" and self._spent >= self.limits.step:
            return "step"
        if self.request.max_tokens is not None and self._spent >= self.request.max_tokens:
            return "budget"
        return None

    def step(self, spec: ModelSpec | None, pays_node: bool, pays_forced: bool, plain: bool) -> Step:
        """The finished sample.

        Args:
            spec: The constants of the model's closed form, if known.
            pays_node: True if it is charged with what nobody has read before: the prompt, or the node's last token.
            pays_forced: True if it is charged with the forced text.
            plain: True if tokens are drawn from the model's plain distribution, that of the log-probabilities.
        """
        if self.error is not None:  # it is charged with what came before it failed
            flops = sample_flops(spec, self.prefix_tokens, 0, self.sampled)
            return Step(str(self.error), finish_reason="error", num_tokens=self.sampled, flops=flops)
        step = self._bare_step()
        if not self._rounds:
            return step
        complete = self._logprobs is not None and len(self._logprobs) == self.sampled
        at_root = self.request.node.step is None
        forced = self.forced_tokens if self.request.forced else 0
        prompt = self.prefix_tokens - forced if pays_node and at_root else 0
        paid_forced = forced if pays_forced else 0
        unread = (prompt if at_root else int(pays_node)) + paid_forced
        return replace(
            step,
            logprob=sum(self._logprobs) if self._logprobs is not None and complete and plain else None,
            confidence=sum(self._logprobs) / len(self._logprobs) if self._logprobs else None,
            flops=sample_flops(spec, self.prefix_tokens, min(unread, self.prefix_tokens), self.sampled),
            prompt_tokens=prompt + paid_forced,
        )


class TextSample(RemoteSample):
    """A sample of which only the text is known."""

    def __init__(
        self,
        request: GenerateRequest,
        index: int,
        limits: Limits,
        delimiter: StepDelimiter,
        stops: tuple[str, ...],
        stop_handling: StopHandling,
        forced_tokens: int | None,
        encode: Callable[[Prefix], tuple[int, ...]] | None,
    ) -> None:
        """Starts with the forced text, whose tokens are estimated where no tokenizer has counted them.

        With `encode` prefixes are sent as ids.
        """
        path = sum(step.generated_tokens for step in request.node.steps)
        super().__init__(request, index, limits, limits.room(0, path))
        self._delimiter = delimiter
        self._stops = stops
        self._stop_handling = stop_handling
        self._forced_tokens = forced_tokens
        self._encode = encode
        self._text = request.forced
        self._blanks = 0

    def prefix(self) -> Prefix:
        """Text of prompt, path, forced text and what was sampled so far."""
        node = self.request.node
        prefix = Prefix(node.problem, node.text + self._text)
        return prefix if self._encode is None else replace(prefix, ids=self._encode(prefix))

    @property
    def forced_tokens(self) -> int:
        """Tokens of the forced text, counted or by their share of the characters; a prefix has at least one more."""
        forced = self._forced_tokens
        if forced is None:
            node = self.request.node
            whole = len(node.problem.prompt) + len(node.text) + len(self.request.forced)
            forced = round(self.prefix_tokens * len(self.request.forced) / whole)
        return max(min(forced, self.prefix_tokens - 1), 0)

    def _extend(self, choice: Choice) -> None:
        if choice.thoughts:
            node = self.request.node
            told = node.thinking if node.thinking is not None and node.thinking.end else Thinking()
            begun = node.problem.prefill + node.text + self._text
            *_, (inside, _, _) = told.pieces(begun)
            choice = replace(choice, text=choice.written(told, inside and bool(begun)))
        self._text += choice.text
        by_steps = self.request.until == "step"
        if self._cut_at_stop(choice) or (choice.stopped_by is not None and choice.stopped_by in self._stops):
            self.finish = "eos"
        elif by_steps and self._cut_at_step_end(choice):
            self.finish = self._reason_at_step_end
        elif choice.finish == "length":
            self.finish = self._reason_at_length()
        elif by_steps and self._ended_by_delimiter(choice):
            # With the delimiter put back, a text with something in it is a step; a blank one goes on while it may.
            if isinstance(self._delimiter, str) and self._delimiter not in choice.text:
                self._text += self._delimiter
            if self._cut_at_stop(choice):
                self.finish = "eos"
            elif self._cut_at_step_end(choice):
                self.finish = self._reason_at_step_end
            else:
                self.finish = self._reason_at_length()
        else:
            self._text = self._text if self._text.strip() else self.request.forced
            self.finish = "eos"

    @property
    def _reason_at_step_end(self) -> FinishReason:
        return "length" if self._spent >= self._room else "step"

    def _cut_at_stop(self, choice: Choice) -> bool:
        """True if the text holds a stop string, before the end of a step; it is cut there, and paid for.

        What stood before the first sampled character stays, as in `HFGenerator`.
        """
        node, forced = self.request.node, len(self.request.forced)
        before = node.problem.prefill + node.text
        end = step_end(self._text, self._delimiter, forced) if self.request.until == "step" else -1
        text = self._text if end < 0 else self._text[:end]
        place = stop_place(before + text, self._stops, len(before) + forced)
        if place >= 0:
            self._text = text[: max(place - len(before), forced)]
            if not (self._stop_handling == "kept" and choice.finish == "stop"):
                self._logprobs = None
        return place >= 0

    def _cut_at_step_end(self, choice: Choice) -> bool:
        """True if the text has come to the end of a step, beyond which it is cut.

        What follows the delimiter belongs to its token where the server stopped there; what a server that overlooks
        stop strings sends beyond it is cut, and paid for.
        """
        end = step_end(self._text, self._delimiter, len(self.request.forced))
        if 0 <= end < len(self._text) and not (self._stop_handling == "kept" and choice.finish == "stop"):
            self._text, self._logprobs = self._text[:end], None
        return end >= 0

    def _ended_by_delimiter(self, choice: Choice) -> bool:
        """True if the delimiter ended the choice, and not the model.

        A server that takes the delimiter off and does not say what ended a sample (OpenAI's own, llama.cpp) leaves
        that open. A text is then a step: if the model had ended, it will end again. Nothing, several times in a row,
        is the end.
        """
        if not isinstance(self._delimiter, str):
            return False  # no server knows of it
        if self._delimiter in choice.text:
            return True
        if choice.tells_stop or self._stop_handling != "hidden":
            return choice.stopped_by == self._delimiter
        self._blanks = 0 if choice.text.strip() else self._blanks + 1
        return self._blanks <= _MOST_BLANKS

    def _bare_step(self) -> Step:
        reason: FinishReason = self.finish or "length"
        if (reason == "length" or (reason == "step" and not self.sampled)) and not self._text.strip():
            reason = "empty"
        ends: list[int] = []
        start = 0
        while self.request.until == "end" and start < len(self._text):
            length = step_end(self._text[start:], self._delimiter, 0 if ends else len(self.request.forced))
            start = start + length if length >= 0 else len(self._text)
            ends.append(start)
        inner = tuple((end, 0) for end in ends) if len(ends) > 1 else ()
        return Step(self._text, finish_reason=reason, inner_ends=inner, num_tokens=self.sampled)


class IdSample(RemoteSample):
    """A sample whose ids are known: it is stepped as in `HFGenerator`, token by token."""

    def __init__(self, branch: Branch) -> None:
        super().__init__(branch.request, branch.index, branch.limits, branch.room)
        self._branch = branch

    def prefix(self) -> Prefix:
        """Ids of prompt, path, forced text and what was sampled so far."""
        return Prefix(None, ids=self._branch.prefix + tuple(self._branch.tokens))

    @property
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""
        return len(self._branch.forced)

    def _extend(self, choice: Choice) -> None:
        branch, ids = self._branch, choice.token_ids or ()
        for place, token in enumerate(ids, 1):
            if not branch.push(token, 0.0, 0.0):
                self._logprobs = self._logprobs if place == len(ids) else None  # what came after the step's end is cut
                break
        if branch.finish is None and choice.finish == "length":
            branch.finish = self._reason_at_length()
        elif branch.finish is None and not self._ended_by_delimiter(choice):
            branch.finish = "eos"
        self.finish = branch.finish

    def _ended_by_delimiter(self, choice: Choice) -> bool:
        """True if a delimiter ended the choice that ends no step, since nothing but white space stands before it."""
        text = self._branch.text
        if not choice.token_ids or self.request.until == "end" or not isinstance(text.delimiter, str):
            return False
        if choice.tells_stop:
            return choice.stopped_by == text.delimiter
        return text.delimiter in text.decode(choice.token_ids, final=True)

    def _bare_step(self) -> Step:
        self._branch.finish = self.finish
        step = self._branch.step(lambda branch: (0, 0))
        return step if self.sampled == step.generated_tokens else replace(step, num_tokens=self.sampled)


def tokens_per_choice(choices: Sequence[Choice], total: int, asked: int) -> list[int]:
    """Tokens of each choice of a request for at most `asked` tokens each, which add up to `total`.

    The protocol counts all choices of a request together. Ids tell the share of each, or log-probabilities; without
    them, choices cut by their length have what was asked for, and the rest is divided by the lengths of the texts.
    """
    if all(choice.token_ids is not None for choice in choices):
        return [len(choice.token_ids or ()) for choice in choices]
    if (known := [len(choice.logprobs or ()) for choice in choices]) and sum(known) == total:
        return known
    cut = [choice.finish == "length" for choice in choices]
    full = min(asked, total // sum(cut)) if any(cut) else 0
    sizes = [len(choice.thoughts + choice.text) + 1 for choice in choices]
    weights = [0 if is_cut else size for size, is_cut in zip(sizes, cut, strict=True)]
    rest, whole = total - full * sum(cut), max(sum(weights), 1)
    ends = [rest * sum(weights[: place + 1]) // whole for place in range(len(weights))]  # rounded sums add up
    starts = [0, *ends[:-1]]
    parts = [full if is_cut else end - start for start, end, is_cut in zip(starts, ends, cut, strict=True)]
    parts[0] += total - sum(parts)  # sampled beyond what was asked for, and paid for all the same
    return parts


@dataclass(frozen=True)
class SampleScheduler:
    """Draws samples: which of them share a request, what it asks for, and how its answer is divided among them.

    Attributes:
        server: Takes the requests.
        tokenizer: Counts and ids, if there is one.
        limits: Lengths.
        delimiter: What ends a step.
        stops: Texts that end an answer.
        temperature: Sampling temperature.
        filters: Further fields of requests that are not greedy.
        penalties: Further fields of all requests.
        logprobs: True asks for log-probabilities; ``None`` where the server returns them.
        seeds: True sends seeds, where the server takes them.
        workers: Most requests at a time.
    """

    server: OpenAIServer
    tokenizer: ServerTokenizer | None
    limits: Limits
    delimiter: StepDelimiter
    stops: tuple[str, ...]
    temperature: float
    filters: Mapping[str, float]
    penalties: Mapping[str, float]
    logprobs: bool | None
    seeds: bool
    workers: int

    def is_greedy(self, request: GenerateRequest) -> bool:
        """True if the likeliest tokens are taken."""
        return request.greedy or self.temperature_of(request) == 0

    def temperature_of(self, request: GenerateRequest) -> float:
        """The temperature that the request gives, or its generator's."""
        return self.temperature if request.temperature is None else request.temperature

    def is_plain(self, request: GenerateRequest) -> bool:
        """True if tokens are drawn from the distribution of the model's log-probabilities."""
        unfiltered = self.temperature_of(request) == 1 and self.filters == {"top_p": 1}
        return not self.penalties and (unfiltered or self.is_greedy(request))

    def open(self, request: GenerateRequest) -> list[RemoteSample]:
        """The samples of `request`, in order, none of them drawn yet.

        Raises:
            ValueError: If the server cannot go on with what stands before them, or the node has no token ids.
        """
        node, server, tokenizer, encode = request.node, self.server, self.tokenizer, None
        if tokenizer is not None and not server.chat:
            branches = tokenizer.branches
            handling = server.ids(branches.encode(node.problem), branches.text.bare)
            if handling == "returned":
                return [IdSample(branch) for branch in branches.open(request)]
            encode = tokenizer.ids if handling == "taken" else None
            if tokenizer.chat and encode is None:
                raise ValueError(
                    "this server takes no token ids, so that the tokenizer's chat template cannot be used: choose "
                    'endpoint="chat", or chat_template=False'
                )
        if (node.text or request.forced or node.problem.prefill) and not server.continues_answers():
            raise ValueError(
                "this server's chat endpoint cannot go on with an answer that has begun: use "
                'endpoint="completions" (with tokenizer=... for the chat template), or a strategy of whole answers'
            )
        stops = server.stop_handling() if request.until == "step" else "hidden"
        forced = None if tokenizer is None else tokenizer.count_text(request.forced)
        ends = (self.delimiter, (*self.stops, *request.stop), stops)
        return [TextSample(request, i, self.limits, *ends, forced, encode) for i in range(request.n)]

    def draw(self, groups: Sequence[Sequence[RemoteSample]]) -> None:
        """Asks for the samples of each group, which continue one node, until every one has ended.

        Samples of a node share a request where the server draws them as it would one by one. Those whose request is
        over are not waited for: they end with what earlier answers brought.

        Raises:
            RemoteError: If the server takes no requests of this kind, whatever they hold.
        """
        jobs: list[list[RemoteSample]] = []
        for group in groups:
            together = len(group) > 1 and not self.is_greedy(group[0].request) and self.server.takes_n(self.seeds)
            jobs += [list(group)] if together else [[sample] for sample in group]
        if not jobs:
            return

        def complete(samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
            if len(samples) > 1:
                self._ask(samples, stopped)
            for sample in samples:  # those that did not end with the first answer, or were left out of it, go on alone
                while sample.finish is None and not stopped.is_set():
                    self._ask([sample], stopped)

        pool = ThreadPoolExecutor(min(self.workers, len(jobs)), thread_name_prefix="inferscale-remote")
        events = [threading.Event() for _ in jobs]
        waiting = {pool.submit(complete, *work): work for work in zip(jobs, events, strict=True)}
        try:
            while waiting:
                done, _ = wait(waiting, LOOK, FIRST_COMPLETED)
                for future in done:
                    del waiting[future]
                    if not future.cancelled():
                        future.result()
                for future, (samples, stopped) in waiting.items():
                    if samples[0].request.is_over:
                        stopped.set()
                        future.cancel()  # if it has not begun
        finally:
            # After an error or an interrupt nobody waits: requests under way are called off, pauses end now.
            for stopped in events:
                stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
        for samples in jobs:
            for sample in samples:
                sample.finish = sample.finish or "budget"

    def _body(self, samples: Sequence[RemoteSample], prefix: Prefix) -> dict[str, Any]:
        """The request for samples that continue the same prefix, with nothing in it that the server does not serve."""
        first, server = samples[0], self.server
        more: dict[str, Any] = {}
        if len(samples) > 1:
            more["n"] = len(samples)
        stops = [self.delimiter] if first.request.until == "step" and isinstance(self.delimiter, str) else []
        # Where it cannot be told whether the delimiter or a stop string has ended a text, samples look for the latter.
        by_ids = isinstance(first, IdSample)
        if first.request.until == "end" or by_ids or server.names_stops():
            stops += (*self.stops, *first.request.stop)
        if stops:
            more["stop"] = stops
        more |= self.penalties
        if server.returns_logprobs() if self.logprobs is None else self.logprobs:
            more["logprobs"] = server.logprobs_field
        if by_ids:
            more["return_token_ids"] = True
        if server.chat and prefix.goes_on:
            more.update(CONTINUE)
        temperature = 0.0
        if not self.is_greedy(first.request):
            temperature = self.temperature_of(first.request)
            more |= self.filters
            if self.seeds and server.takes_seeds():
                more["seed"] = first.seed
        return server.body(prefix, first.left, temperature, **more)

    def _ask(self, samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
        """Gives each sample what one request for all of them brings."""
        prefix, asked = samples[0].prefix(), samples[0].left
        try:
            reply = self.server.ask(self._body(samples, prefix), stopped)
        except RemoteError as error:
            if error.kind == "denied":
                raise
            if stopped.is_set():
                return
            for sample in samples:
                sample.fail(error)
            return
        prefix_tokens, total = reply.prompt_tokens, reply.generated_tokens
        counted = total is not None and self.server.counts()
        if self.tokenizer is not None:
            prefix_tokens = prefix_tokens or self.tokenizer.count(prefix)  # a prefix is never empty
            if not counted:
                total = sum(map(self.tokenizer.count_sampled, reply.choices))
        elif not counted:
            total = max(total or 0, sum(len(choice.logprobs or ()) for choice in reply.choices))
        counts = tokens_per_choice(reply.choices, total or 0, asked)
        samples[0].sampled += sum(counts[len(samples) :])  # choices beyond those asked for are left, but paid for
        served = samples[: len(counts)]  # the others stay open, and ask again
        for sample, choice, tokens in zip(served, reply.choices, counts, strict=False):
            sample.take(choice, tokens, prefix_tokens or 0, counted or choice.token_ids is not None)
        self.server.count(samples=sum(sample.error is None for sample in served))


class OpenAIGenerator(Generator):
    """Samples steps from a server that speaks OpenAI's protocol, such as vLLM, SGLang or llama.cpp.

    What a server supports beyond plain requests (several samples in one request, seeds, token ids, log-probabilities,
    how it treats stop strings) is tried once, when it is first needed, and only what works is sent.

    Given the model's tokenizer, and a server that takes and returns token ids, prompts are sent as ids and steps are
    those of `HFGenerator`, token by token: no prefix is encoded twice, and a server that caches prefixes finds them.
    A server that takes ids and returns text (llama.cpp) is sent ids. Otherwise texts are sent. Where texts come, steps
    hold no ids.

    A sample's seed derives from the node and the number of the draw, so on a server that keeps to its seeds results
    depend neither on the batch nor on the order of requests.

    Thoughts that a chat endpoint reports apart (``reasoning_content``, ``reasoning``) stand before the answer, between
    the markers of the search's `Thinking`, ``<think>`` and ``</think>`` by default.

    A request that fails is made again where that may help. A sample that fails for good becomes a failed leaf
    (``finish_reason="error"``, its text says why) and the search goes on; when nothing comes any more, or the key,
    address or model is wrong, `generate` raises, and a search with a journal can go on later.

    Attributes:
        stats: What was really asked, and the last error.
        temperature: Sampling temperature.
        step_delimiter: What ends a step.
        stop: Texts that end the answer.
        min_p: Filter.
        repetition_penalty: Penalty.
        limits: Lengths.
    """

    concurrent = True
    takes_temperature = True

    no_effect = frozenset({"base_url", "api_key", "max_concurrency", "timeout", "deadline"})
    held_in: ClassVar[Mapping[str, str]] = {"config": "_spec"}

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        endpoint: Endpoint = "completions",
        api_key: str | None = None,
        tokenizer: Any = None,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logprobs: bool | None = None,
        seeds: bool = True,
        config: Any = None,
        max_concurrency: int = 32,
        timeout: float = 300.0,
        deadline: float = 900.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the options; the server is first asked when the first samples are.

        Args:
            base_url: Where the server is, mostly with ``/v1`` at the end.
            model: The model's name on the server.
            endpoint: ``"completions"`` goes on with a text; ``"chat"`` answers a user turn by the server's own chat
                template, and goes on with an answer only where the server knows how (vLLM, SGLang).
            api_key: The key; by default that in the environment variable ``OPENAI_API_KEY``, if there is one.
            tokenizer: The model's tokenizer, or a folder or hub id to load it from: makes prompts ids, and counts
                tokens where the server does not.
            chat_template: True renders problems with the tokenizer's chat template (completions endpoint), a prompt as
                the user's turn; by default if it has one.
            system_prompt: System turn of conversations that have none of their own.
            chat_template_kwargs: Variables of the chat template, such as ``{"enable_thinking": False}``, for the
                tokenizer's, which must mention them, or for the server's (vLLM, SGLang).
            tools: What the model may call, as JSON schemas or documented functions. A call that a chat endpoint
                reports apart becomes the text of the answer, one JSON object a line.
            control_tokens: What becomes of control tokens that a problem spells: ``"text"`` reads them as letters (with
                a space in each where the server tokenises), ``"refuse"`` raises, ``"keep"`` lets them be tokens. By
                default ``"text"`` in chats, and ``"keep"`` in plain prompts, which may be chats that are rendered
                already. Without `tokenizer` they are not known, and are sent as they are.
            step_delimiter: Text that ends a step, or, as for `HFGenerator`, a regular expression or a function of text.
                A server cannot stop at those: steps are sampled to `max_step_tokens`, cut, and paid for.
            stop: Texts that end the answer, and are left out of it; see `HFGenerator`. They are sent to the server,
                but for single steps of text from a server that does not name what ended them: there they are looked for
                in what came.
            max_step_tokens: A step is cut after this many sampled tokens; the path can go on.
            max_new_tokens: Most tokens of a whole path, forced text included where ids are known.
            temperature: Sampling temperature; 0 takes the likeliest token.
            top_p: Nucleus sampling: mass of the likeliest tokens that is kept.
            min_p: Tokens at least so many times as likely as the likeliest one are kept; 0 keeps all. No part of
                OpenAI's protocol (vLLM, SGLang and llama.cpp take it): a server on which it has no effect is refused.
            repetition_penalty: Lowers the logits of tokens that are in prompt or answer already; likewise (vLLM,
                SGLang).
            logprobs: True asks for log-probabilities, and raises where the server returns none; False does not ask; by
                default they are asked for where the server returns them.
            seeds: True sends seeds. Without them a server that takes ``n`` is asked for all samples of a node at
                once, whatever its rule for seeds, and results cannot be repeated.
            config: The model's transformers configuration, its dictionary or a `ModelSpec`: FLOPs are computed from
                it, and are 0 without it.
            max_concurrency: Most requests at a time.
            timeout: Longest silence of the server during one request, seconds.
            deadline: Longest time for a request and all its repetitions, seconds; at most 30 for the very first one.
            extra_body: Further fields for every request, such as ``{"top_k": 20}``; none that the options set.

        Raises:
            ImportError: If the ``openai`` package is missing.
            TypeError: If `config` is no configuration.
            ValueError: If an option is bad.
            UnknownArchitectureError: If `config` has no closed form.
        """
        checked_delimiter(step_delimiter)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature}: it cannot be negative or infinite")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: give a number above 0 and at most 1")
        if not 0 <= min_p <= 1:
            raise ValueError(f"min_p={min_p}: give a number from 0 (keep every token) to 1")
        if not 0 < repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={repetition_penalty}: give a positive number (1 penalises nothing)")
        chat_options = {
            "system_prompt": system_prompt, "chat_template_kwargs": chat_template_kwargs, "tools": tools
        }  # fmt: skip
        given = [name for name, value in {"chat_template": chat_template, **chat_options}.items() if value]
        if tokenizer is None and endpoint == "completions" and given:
            raise ValueError(f'{" and ".join(given)} need tokenizer=..., or endpoint="chat"')
        if tokenizer is None and control_tokens not in (None, "keep"):
            raise ValueError(f'control_tokens="{control_tokens}" needs tokenizer=..., to know which tokens those are')
        self.temperature = temperature
        self.step_delimiter = step_delimiter
        self.stop = checked_stops(stop)
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.limits = Limits(max_step_tokens, max_new_tokens, None)
        self._spec = None if config is None else model_spec(config)
        reads = None
        if tokenizer is not None:
            reads = ServerTokenizer(
                tokenizer,
                self.limits,
                step_delimiter=step_delimiter,
                stop=stop,
                chat_template=chat_template,
                control_tokens=control_tokens,
                in_chat=endpoint == "chat",
                **chat_options,
            )
        server = OpenAIServer(
            base_url,
            model,
            endpoint,
            api_key=api_key,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            written=(lambda data, role: data) if reads is None else reads.written,
            retry=RetryPolicy(timeout, deadline),
            max_concurrency=max_concurrency,
            extra_body=extra_body,
            needs_usage=tokenizer is None,
        )
        # A chat endpoint renders by its own template, and may keep thoughts to itself: there the text tells.
        self.thinking = reads.branches.thinking if reads is not None and endpoint == "completions" else None
        self.takes_messages = endpoint == "chat" or (reads is not None and reads.chat)
        self._scheduler = SampleScheduler(
            server,
            reads,
            self.limits,
            step_delimiter,
            self.stop,
            temperature,
            {"top_p": top_p} | ({"min_p": min_p} if min_p else {}),
            {} if repetition_penalty == 1 else {"repetition_penalty": repetition_penalty},
            logprobs,
            seeds,
            max_concurrency,
        )
        self._counts_itself = reads is not None
        self._may_be_filtered = bool(extra_body)  # by fields that this class does not know
        self._name = f"{public_address(base_url)!r}, {model!r}, endpoint={endpoint!r}"
        self._warned = threading.Event()

    @property
    def stats(self) -> RemoteStats:
        """Counts of requests, retries, samples and probes, and the last error."""
        return self._scheduler.server.stats

    def __repr__(self) -> str:
        """Address, model and endpoint."""
        return f"OpenAIGenerator({self._name})"

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have."""
        room = self.limits.room(0, sum(step.generated_tokens for step in request.node.steps))
        return max(min(room, self.limits.step) if request.until == "step" else room, 1)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order.

        A step's `confidence` is the mean log-probability of its tokens as the server reports them; `logprob`, their
        sum, is known only where tokens are drawn from that distribution (temperature 1 and no filters, or greedily).

        Raises:
            RemoteError: If no sample came and none can be hoped for: the message says why.
            ValueError: If the server cannot do what is asked for.
        """
        if not requests:
            return []
        scheduler, server = self._scheduler, self._scheduler.server
        chats = [request.node.problem for request in requests if request.node.problem.messages is not None]
        if chats and not self.takes_messages:
            raise ValueError(
                f"the problem {chats[0].prompt[:80]!r} is a conversation, and this server is sent text: choose "
                'endpoint="chat", or pass tokenizer=... with a chat template to a server that takes ids'
            )
        server.contact(requests[0].node.problem)
        if scheduler.logprobs and not server.returns_logprobs():
            raise ValueError(f"logprobs=True, but {self!r} returns no log-probabilities: leave it out, or ask another")
        if not (server.counts() or self._counts_itself or server.returns_logprobs()):
            raise ValueError(
                f"{self!r} counts other tokens than it samples, and returns no log-probabilities: pass tokenizer=..."
            )
        server.check_fields({*scheduler.filters, *scheduler.penalties})
        before = self.stats.samples
        groups = [scheduler.open(request) for request in requests]
        drawn = [[sample for sample in group if sample.finish is None] for group in groups]
        scheduler.draw(drawn)
        self._check_alive([sample for group in drawn for sample in group], before)
        steps: list[list[Step]] = []
        for request, group in zip(requests, groups, strict=True):
            # The first sample that came pays for what its siblings share.
            payer = next((sample for sample in group if sample.error is None and sample.came), None)
            plain = scheduler.is_plain(request) and not self._may_be_filtered
            first = request.first == request.payer
            steps.append([s.step(self._spec, s is payer and first, s is payer, plain) for s in group])
        self._warn_if_alike(requests, steps)
        return steps

    def open(self) -> Sampling:
        """A session that asks for all that was submitted in one round, over `max_concurrency` connections."""
        return Rounds(self)

    def _check_alive(self, asked: Sequence[RemoteSample], before: int) -> None:
        """Counts failures; raises if all samples have failed and there is no sign that others may come.

        A prefix that is too long says nothing about others. While other calls get samples, the server is alive.
        """
        errors = [sample.error for sample in asked if sample.error is not None]
        self._scheduler.server.count(failed_samples=len(errors))
        if len(errors) < len(asked):
            return
        samples = self.stats.samples
        lost = {"busy": samples == before, "broken": samples == before, "refused": samples == 0}
        for error in errors:
            if lost.get(error.kind, False):
                raise RemoteError(f"all {len(errors)} samples of {self!r} failed: {error}", error.kind)

    def _warn_if_alike(self, requests: Sequence[GenerateRequest], steps: Sequence[Sequence[Step]]) -> None:
        several = [
            [step.text for step in group if step.finish_reason != "budget"]
            for request, group in zip(requests, steps, strict=True)
            if len(group) > 1 and not self._scheduler.is_greedy(request)
        ]
        alike = sum(map(len, several)) >= _ENOUGH_ALIKE and all(len(set(texts)) == 1 for texts in several)
        if alike and not self._warned.is_set() and not self._scheduler.server.samples():
            self._warned.set()
            warnings.warn(
                f"{self!r} gives the same text at any temperature: all samples of a node are alike "
                "(transformers serve needs do_sample in the model's generation config)",
                UserWarning,
                stacklevel=3,
            )
