"""`OpenAIGenerator`: samples steps from any server that speaks OpenAI's protocol (no torch)."""

from __future__ import annotations

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from inferscale._http import RemoteError, RetryPolicy, public_address
from inferscale.base import Generator, Sampling, Ticket, came
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
_MANY = 64  # requests after which one looks


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
        self.sent = self.cached = 0  # prompt tokens of its requests, and those that the server had in its cache
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
            return Step(
                str(self.error), finish_reason="error", num_tokens=self.sampled, flops=flops, sent_tokens=self.sent,
                cached_tokens=self.cached,
            )  # fmt: skip
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
            sent_tokens=self.sent,
            cached_tokens=self.cached,
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

    def jobs(self, samples: Sequence[RemoteSample]) -> list[list[RemoteSample]]:
        """Samples of one node in groups that share a request, where the server draws them as it would one by one."""
        together = len(samples) > 1 and not self.is_greedy(samples[0].request) and self.server.takes_n(self.seeds)
        return [list(samples)] if together else [[sample] for sample in samples]

    def complete(self, samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
        """Asks for samples that share a request until every one has ended, or nobody waits.

        Raises:
            RemoteError: If the server takes no requests of this kind, whatever they hold.
        """
        if len(samples) > 1 and not stopped.is_set():
            self._ask(samples, stopped)
        for sample in samples:  # those that did not end with the first answer, or were left out of it, go on alone
            while sample.finish is None and not stopped.is_set():
                self._ask([sample], stopped)

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
        samples[0].sent += prefix_tokens or 0
        samples[0].cached += reply.cached_tokens
        served = samples[: len(counts)]  # the others stay open, and ask again
        for sample, choice, tokens in zip(served, reply.choices, counts, strict=False):
            sample.take(choice, tokens, prefix_tokens or 0, counted or choice.token_ids is not None)
        self.server.count(samples=sum(sample.error is None for sample in served))


@dataclass(eq=False)
class _Asked:
    """The samples of a request that a session was given.

    Attributes:
        ticket: The request.
        samples: Its samples, in order.
        before: Number of samples that the server had given when it was first asked for these.
        ended: Places of samples that have ended.
        steps: Steps that were handed over, by their places.
        payer: The first sample that came, once it is known: it is charged for what its siblings share.
    """

    ticket: Ticket
    samples: list[RemoteSample]
    before: int
    ended: set[int] = field(default_factory=set)
    steps: dict[int, Step] = field(default_factory=dict)
    payer: RemoteSample | None = None

    def knows_payer(self, held_back: Container[RemoteSample]) -> bool:
        """True if it is known who is the payer, or that there will be none: nobody pays before an earlier one has."""
        for place, sample in enumerate(self.samples):
            if self.payer is not None:
                return True
            if place not in self.ended or sample in held_back:
                return False
            if sample.error is None and sample.came:
                self.payer = sample
        return True


@dataclass(eq=False)
class _Job:
    """Samples of `asked` that share a request to the server, at first; it is called off by `stopped`."""

    asked: _Asked
    samples: Sequence[RemoteSample]
    stopped: threading.Event = field(default_factory=threading.Event)


class ServerSampling(Sampling):
    """A session of a server: samples are handed over as they come, over so many connections at a time.

    A failure is held back while it may be the server's end: until another sample comes, or, when nothing else is under
    way, the server answers a plain request. Else `collect` raises; when it is called again, the server is asked again.
    """

    def __init__(self, generator: OpenAIGenerator) -> None:
        self._generator, self._scheduler, self._server = generator, generator._scheduler, generator._scheduler.server
        self._pool = ThreadPoolExecutor(self._scheduler.workers, thread_name_prefix="inferscale-remote")
        self._asked: dict[Ticket, _Asked] = {}  # those of which not all was handed over
        self._new: list[_Job] = []  # of each request, all samples that are to be asked for
        self._calls: dict[Future[None], _Job] = {}
        self._failed: dict[RemoteSample, int] = {}  # failures, and how many samples had come then
        self._cancelled: list[tuple[Ticket, int, Step]] = []
        self._whole: list[_Asked] = []  # handed over, and not looked at whether all samples are alike
        self._halted = False

    @property
    def calls(self) -> Collection[Future[Any]]:
        """What is under way, or waits for a connection."""
        return self._calls

    def submit(self, request: GenerateRequest) -> Ticket:
        """Takes a request; what the server supports is tried, if nobody has.

        Raises:
            RemoteError: If the server cannot be reached.
            ValueError: If it cannot do what is asked for.
        """
        self._generator._check(request)
        asked = _Asked(Ticket(request), self._scheduler.open(request), self._server.stats.samples)
        self._asked[asked.ticket] = asked
        self._new.append(_Job(asked, asked.samples))
        return asked.ticket

    def begin(self) -> None:
        """Sends what was submitted; what is under way for searches that are over is called off."""
        while self._new:
            asked, samples = self._new[0].asked, self._new[0].samples
            drawn = [sample for sample in samples if sample.finish is None]  # else there is no room for a token
            jobs = [_Job(asked, together) for together in self._scheduler.jobs(drawn)]
            asked.ended |= {sample.index for sample in samples} - {sample.index for sample in drawn}
            del self._new[0]
            for job in jobs:
                self._calls[self._pool.submit(self._scheduler.complete, job.samples, job.stopped)] = job
        for call, job in self._calls.items():
            if job.asked.ticket.request.is_over:
                job.stopped.set()
                call.cancel()  # if it has not begun

    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """Waits for samples; those that came are handed over before an error that came with them is raised.

        Raises:
            RemoteError: If no sample came and none can be hoped for: the message says why.
        """
        while True:
            if not self._halted:
                self.begin()
            for call in [call for call in self._calls if call.done() and (call.cancelled() or came(call))]:
                self._take(self._calls.pop(call))
            ended = self._settled()
            if ended or self._halted or not self._asked:
                return ended
            failed = next((call for call in self._calls if call.done()), None)
            if failed is not None:
                job = self._calls.pop(failed)
                self._ask_again([sample.index for sample in job.samples], job.asked)
                failed.result()
            wait(self._calls, LOOK, FIRST_COMPLETED)

    def _take(self, job: _Job) -> None:
        """Takes samples that have ended, or were left by what called their request off."""
        for sample in job.samples:
            sample.finish = sample.finish or "budget"
            job.asked.ended.add(sample.index)
            if sample.error is not None:
                self._server.count(failed_samples=1)
                self._failed[sample] = self._server.stats.samples

    def _settled(self) -> list[tuple[Ticket, int, Step]]:
        """What can be handed over: samples whose bill is known, and failures that are not held back."""
        ended, self._cancelled = self._cancelled, []
        held_back = {sample for sample in self._failed if self._may_be_the_end(sample)}
        for asked in list(self._asked.values()):
            request, knows_payer = asked.ticket.request, asked.knows_payer(held_back)
            for place in sorted(asked.ended - asked.steps.keys()) if knows_payer else ():
                sample = asked.samples[place]
                if sample not in held_back:
                    self._failed.pop(sample, None)
                    asked.steps[place] = self._generator._step(sample, sample is asked.payer)
                    ended.append((asked.ticket, place, asked.steps[place]))
            if len(asked.steps) == request.n:
                del self._asked[asked.ticket]
                self._whole.append(asked)
        if not self._calls or len(self._whole) > _MANY:
            self._generator._warn_if_alike(
                [(asked.ticket.request, list(asked.steps.values())) for asked in self._whole]
            )
            self._whole = []
        if not ended and not self._calls and not self._halted and self._failed:
            self._decide()
            return self._settled()
        return ended

    def _may_be_the_end(self, sample: RemoteSample) -> bool:
        """True for a failure after which no sample came yet; a prefix that is too long says nothing about others."""
        kind, samples = sample.error.kind if sample.error is not None else "", self._server.stats.samples
        if sample.request.is_over:
            return False
        return samples == 0 if kind == "refused" else kind in ("busy", "broken") and samples == self._failed[sample]

    def _decide(self) -> None:
        """Nothing is under way, and all that is left has failed: it is handed over, or raised to be asked for again."""
        left = [(asked, sample) for asked in self._asked.values() for sample in asked.samples if sample in self._failed]
        samples = self._server.stats.samples
        # what came meanwhile may have come before the server died
        if any(asked.before < samples for asked, _ in left) and self._server.is_alive():
            self._failed.clear()
            return
        for asked in {asked.ticket: asked for asked, _ in left}.values():
            self._ask_again([sample.index for other, sample in left if other is asked], asked)
        error = left[0][1].error or RemoteError("it is not known why")
        raise RemoteError(f"all {len(left)} samples of {self._generator!r} failed: {error}", error.kind)

    def _ask_again(self, places: Sequence[int], asked: _Asked) -> None:
        """Puts samples that failed back, as if they had never been asked for."""
        fresh = self._scheduler.open(asked.ticket.request)
        for place in places:
            self._failed.pop(asked.samples[place], None)
            asked.samples[place] = fresh[place]
            asked.ended.discard(place)
        self._new.append(_Job(asked, [fresh[place] for place in places]))

    def cancel(self, ticket: Ticket) -> None:
        """Calls the requests for samples off."""
        asked = self._asked.pop(ticket, None)
        if asked is None:
            return
        self._new = [job for job in self._new if job.asked is not asked]
        for call in [call for call, job in self._calls.items() if job.asked is asked]:
            self._calls.pop(call).stopped.set()
            call.cancel()
        self._cancelled += [
            (ticket, place, Step("", finish_reason="budget"))
            for place in range(ticket.request.n)
            if place not in asked.steps
        ]

    def halt(self) -> None:
        """Asks for nothing more."""
        self._halted = True
        self._new = []
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Calls everything off."""
        self.halt()
        for job in self._calls.values():
            job.stopped.set()
        self._calls, self._asked, self._failed, self._cancelled = {}, {}, {}, []


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

    Example:
        Needs a server, such as ``vllm serve Qwen/Qwen2.5-1.5B-Instruct``::

            name = "Qwen/Qwen2.5-1.5B-Instruct"
            generator = isc.OpenAIGenerator("http://localhost:8000/v1", name, tokenizer=name, temperature=0.7)
            results = isc.solve_batch(problems, isc.RepeatedSampling(16), generator)
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
            reads.branches.text.check_delimiter()
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
        with ServerSampling(self) as sampling:
            tickets = [sampling.submit(request) for request in requests]
            steps: dict[tuple[Ticket, int], Step] = {}
            while ended := sampling.collect():
                steps |= {(ticket, place): step for ticket, place, step in ended}
        return [[steps[ticket, place] for place in range(ticket.request.n)] for ticket in tickets]

    def open(self) -> Sampling:
        """A session that hands samples over as they come; a `generate` of a subclass is served in calls of it."""
        own = getattr(self.generate, "__func__", None) is OpenAIGenerator.generate
        return ServerSampling(self) if own else super().open()

    def _check(self, request: GenerateRequest) -> None:
        """Tries the server, if nobody has; raises an error if it cannot do what is asked for."""
        scheduler, server, problem = self._scheduler, self._scheduler.server, request.node.problem
        if problem.messages is not None and not self.takes_messages:
            raise ValueError(
                f"the problem {problem.prompt[:80]!r} is a conversation, and this server is sent text: choose "
                'endpoint="chat", or pass tokenizer=... with a chat template to a server that takes ids'
            )
        server.contact(problem)
        if scheduler.logprobs and not server.returns_logprobs():
            raise ValueError(f"logprobs=True, but {self!r} returns no log-probabilities: leave it out, or ask another")
        if not (server.counts() or self._counts_itself or server.returns_logprobs()):
            raise ValueError(
                f"{self!r} counts other tokens than it samples, and returns no log-probabilities: pass tokenizer=..."
            )
        server.check_fields({*scheduler.filters, *scheduler.penalties})

    def _step(self, sample: RemoteSample, pays: bool) -> Step:
        """The step of a sample that has ended, which may pay for what its siblings share."""
        request, plain = sample.request, self._scheduler.is_plain(sample.request) and not self._may_be_filtered
        return sample.step(self._spec, pays and request.first == request.payer, pays, plain)

    def _warn_if_alike(self, answers: Sequence[tuple[GenerateRequest, Sequence[Step]]]) -> None:
        several = [
            [step.text for step in steps if step.finish_reason != "budget"]
            for request, steps in answers
            if len(steps) > 1 and not self._scheduler.is_greedy(request)
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
