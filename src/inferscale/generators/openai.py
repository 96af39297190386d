"""`OpenAIGenerator`: samples steps from any server that speaks OpenAI's protocol (no torch)."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import urlsplit

from inferscale._compat import require
from inferscale._http import Patience, RemoteError
from inferscale.base import Generator
from inferscale.flops.spec import ModelSpec, model_spec, sample_flops
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import Branch, Limits, forced_ids, open_branches
from inferscale.runtime.text import step_end
from inferscale.tree import FinishReason, Node, Step

from .openai_server import CONTINUE, Choice, Endpoint, Prefix, Reading, RemoteStats, Reply, Server, Stops, Support

_NODE_BITS = 0x3FFFFFFF
_ROUND = 0x9E3779B1  # spreads the seeds of the requests that one sample may take
_SEED_BITS = 0x7FFFFFFF


def sample_seed(node_key: int, draw: int) -> int:
    """The seed of the `draw`-th sample from a node.

    Siblings have consecutive seeds: a server that gives the i-th choice of a request the seed plus i draws the same
    samples in one request and in several. Seeds fit into 31 bits: every server takes them.
    """
    return (node_key & _NODE_BITS) + draw


def tokens_of(choices: Sequence[Choice], total: int, asked: int) -> list[int]:
    """Tokens of each choice of a request for at most `asked` tokens each, which add up to `total`.

    Ids tell, or log-probabilities; without them, choices cut by their length have what was asked for, and the rest is
    divided by the lengths of the texts.
    """
    if all(choice.token_ids is not None for choice in choices):
        return [len(choice.token_ids or ()) for choice in choices]
    if (known := [len(choice.logprobs or ()) for choice in choices]) and sum(known) == total:
        return known
    cut = [choice.finish == "length" for choice in choices]
    full = min(asked, total // sum(cut)) if any(cut) else 0
    weights = [0 if is_cut else len(choice.text) + 1 for choice, is_cut in zip(choices, cut, strict=True)]
    rest, whole = total - full * sum(cut), max(sum(weights), 1)
    ends = [rest * sum(weights[: place + 1]) // whole for place in range(len(weights))]
    starts = [0, *ends[:-1]]
    parts = [full if is_cut else end - start for start, end, is_cut in zip(starts, ends, cut, strict=True)]
    parts[0] += total - sum(parts)  # sampled beyond what was asked for, and paid for all the same
    return parts


class RemoteSample(ABC):
    """One sample of a request.

    Attributes:
        request: What was asked for.
        index: Which sample of the request this is.
        limits: Lengths.
        finish: Why sampling stopped; ``None`` while it goes on.
        error: Why the sample failed.
        read: Tokens of the prefix, as the server counts them; 0 before its first answer.
        sampled: Tokens that the server sampled.
    """

    def __init__(self, request: GenerateRequest, index: int, limits: Limits, room: int) -> None:
        self.request = request
        self.index = index
        self.limits = limits
        self.finish: FinishReason | None = None if room else "length"
        self.error: RemoteError | None = None
        self.read = 0
        self.sampled = 0
        self._room = room
        self._spent = 0
        self._rounds = 0
        self._most: int | None = None
        self._logprobs: list[float] | None = []

    @property
    def seed(self) -> int:
        """The seed of the next request."""
        seed = sample_seed(self.request.node.key, self.request.first + self.index)
        return (seed + self._rounds * _ROUND) & _SEED_BITS

    @property
    def left(self) -> int:
        """The most tokens that the next request may sample."""
        caps = [self._room, self.request.max_tokens, self.limits.step if self.request.until == "step" else None]
        left = min(cap for cap in caps if cap is not None) - self._spent
        return max(left if self._most is None else min(left, self._most), 1)

    @abstractmethod
    def prefix(self) -> Prefix:
        """What the next request continues."""

    @abstractmethod
    def _extend(self, choice: Choice, cut_short: bool) -> None:
        """Takes the text; sets `finish` if the sample has ended."""

    @abstractmethod
    def _made(self) -> Step:
        """The finished step, without its price."""

    @property
    @abstractmethod
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""

    def take(self, choice: Choice, tokens: int, read: int) -> None:
        """Takes an answer of `tokens` sampled tokens after a prefix of `read` tokens."""
        cut_short = tokens < self.left  # a sample that ends so by its length has met the end of the context
        self.read = self.read or read
        self.sampled += tokens
        self._spent += max(tokens, 1)
        self._rounds += 1
        known = None if choice.logprobs is None or len(choice.logprobs) != tokens else choice.logprobs
        self._logprobs = None if self._logprobs is None or known is None else [*self._logprobs, *known]
        if choice.finish == "filtered":
            self.fail(RemoteError("the server's content filter ended this sample"))
        else:
            self._extend(choice, cut_short)

    def fail(self, error: RemoteError) -> None:
        """Ends the sample with an error; one that asked for too many tokens may ask for fewer."""
        if error.kind == "too long" and self.left > 1:
            self._most = self.left // 2
        elif error.kind == "too long" and self._rounds:
            self.finish = "length"
        else:
            self.finish, self.error = "error", error

    def _reason_at_length(self, cut_short: bool) -> FinishReason | None:
        """Why a sample has ended that the server cut by its length."""
        if self._spent >= self._room or cut_short:
            return "length"
        if self.request.until == "step" and self._spent >= self.limits.step:
            return "step"
        if self.request.max_tokens is not None and self._spent >= self.request.max_tokens:
            return "budget"
        return None  # it was asked for fewer tokens than it may have, see `fail`

    def step(self, spec: ModelSpec | None, pays_node: bool, pays_forced: bool, plain: bool) -> Step:
        """The finished sample.

        Args:
            spec: The constants of the model's closed form, if known.
            pays_node: Whether it is charged with what nobody has read before: the prompt, or the node's last token.
            pays_forced: Whether it is charged with the forced text.
            plain: Whether tokens are drawn from the model's plain distribution, that of the log-probabilities.
        """
        if self.error is not None:
            flops = sample_flops(spec, self.read, 0, self.sampled)
            return Step(str(self.error), finish_reason="error", num_tokens=self.sampled, flops=flops)
        step = self._made()
        if not self.sampled:
            return step
        forced = self.forced_tokens if self.request.forced else 0
        prompt = self.read - forced if pays_node and self.request.node.step is None else 0
        unread = prompt if self.request.node.step is None else int(pays_node)
        paid_forced = forced if pays_forced else 0
        return replace(
            step,
            logprob=sum(self._logprobs) if self._logprobs is not None and plain else None,
            confidence=sum(self._logprobs) / len(self._logprobs) if self._logprobs else None,
            flops=sample_flops(spec, self.read, min(unread + paid_forced, self.read), self.sampled),
            prompt_tokens=prompt + paid_forced,
        )


@dataclass(frozen=True)
class Sampling:
    """What is asked of the server.

    Attributes:
        delimiter: Text that ends a step.
        temperature: Sampling temperature.
        top_p: Nucleus sampling.
        logprobs: Whether to ask for log-probabilities; ``None`` where the server returns them.
        seeds: Whether to send seeds.
    """

    delimiter: str
    temperature: float
    top_p: float
    logprobs: bool | None
    seeds: bool

    def is_greedy(self, request: GenerateRequest) -> bool:
        """Whether the likeliest tokens are taken."""
        return request.greedy or self.temperature == 0

    def is_plain(self, request: GenerateRequest) -> bool:
        """Whether tokens are drawn from the model's own distribution, which log-probabilities are read from."""
        return self.is_greedy(request) or (self.temperature == 1 and self.top_p == 1)


@dataclass(frozen=True)
class Asking:
    """Draws samples.

    Attributes:
        server: Takes the requests.
        support: What it supports.
        sampling: What is asked of it.
        reading: The tokenizer, if there is one.
        workers: Most requests at a time.
    """

    server: Server
    support: Support
    sampling: Sampling
    reading: Reading | None
    workers: int

    def draw(self, groups: Sequence[Sequence[RemoteSample]]) -> None:
        """Asks for the samples of each group, which continue one node.

        Raises:
            RemoteError: If the server takes no requests of this kind, whatever they hold.
        """
        jobs = [job for group in groups for job in self._jobs(group)]
        if not jobs:
            return
        stopped = threading.Event()
        pool = ThreadPoolExecutor(min(self.workers, len(jobs)), thread_name_prefix="inferscale-remote")
        try:
            for done in as_completed([pool.submit(self._complete, job, stopped) for job in jobs]):
                done.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _jobs(self, group: Sequence[RemoteSample]) -> list[list[RemoteSample]]:
        """Samples of one node, together where the server draws them as it would one by one."""
        if len(group) > 1 and not self.sampling.is_greedy(group[0].request) and self.support.many(self.sampling.seeds):
            return [list(group)]
        return [[sample] for sample in group]

    def _complete(self, samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
        """Asks until every sample has ended; those that do not end with the first answer go on alone."""
        if len(samples) > 1:
            self._ask(samples, stopped)
        for sample in samples:
            while sample.finish is None:
                self._ask([sample], stopped)

    def _ask(self, samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
        asked = samples[0].left
        try:
            reply = self.server.ask(self._fields(samples), stopped)
        except RemoteError as error:
            if error.kind == "denied" or stopped.is_set():
                raise
            for sample in samples:
                sample.fail(error)
            return
        choices = reply.choices[: len(samples)]
        read, counts = self._counts(samples[0], reply, choices, asked)
        for sample, choice, tokens in zip(samples, choices, counts, strict=False):
            sample.take(choice, tokens, read)
        self.server.count(samples=sum(sample.error is None for sample in samples[: len(choices)]))

    def _fields(self, samples: Sequence[RemoteSample]) -> dict[str, Any]:
        first, sampling, prefix = samples[0], self.sampling, samples[0].prefix()
        more: dict[str, Any] = {}
        if len(samples) > 1:
            more["n"] = len(samples)
        if first.request.until == "step":
            more["stop"] = [sampling.delimiter]
        if self.support.logprobs if sampling.logprobs is None else sampling.logprobs:
            more["logprobs"] = self.server.logprobs_field
        if prefix.ids is not None:
            more["return_token_ids"] = True
        if self.server.chat and prefix.answer:
            more.update(CONTINUE)
        if sampling.is_greedy(first.request):
            return self.server.fields(prefix, first.left, 0.0, **more)
        if sampling.seeds and self.support.seeds:
            more["seed"] = first.seed
        return self.server.fields(prefix, first.left, sampling.temperature, top_p=sampling.top_p, **more)

    def _counts(
        self, sample: RemoteSample, reply: Reply, choices: Sequence[Choice], asked: int
    ) -> tuple[int, list[int]]:
        """Tokens of the prefix and of each choice, by the server's word or the tokenizer's count."""
        read, total = reply.prompt_tokens, reply.generated_tokens
        if self.reading is not None:
            if not read:  # a prefix is never empty
                read = self.reading.count(sample.prefix())
            if total is None:
                total = sum(self.reading.count_sampled(choice) for choice in reply.choices)
        return read or 0, tokens_of(choices, total or 0, asked)


_BLANKS = 3


class TextSample(RemoteSample):
    """A sample of which only the text is known.

    Attributes:
        forced: Tokens of the forced text; ``None`` estimates them by their share of the characters.
    """

    def __init__(
        self,
        request: GenerateRequest,
        index: int,
        limits: Limits,
        delimiter: str,
        server_stops: Stops,
        forced: int | None,
    ) -> None:
        path = sum(step.generated_tokens for step in request.node.steps)
        super().__init__(request, index, limits, limits.room(0, path))
        self.forced = forced
        self._delimiter = delimiter
        self._server_stops = server_stops
        self._text = request.forced
        self._blanks = 0

    def prefix(self) -> Prefix:
        """Text of prompt, path, forced text and what was sampled so far."""
        node = self.request.node
        return Prefix(node.problem.prompt, node.text + self._text)

    @property
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""
        forced = self.forced
        if forced is None:
            node = self.request.node
            whole = len(node.problem.prompt) + len(node.text) + len(self.request.forced)
            forced = round(self.read * len(self.request.forced) / whole)
        return max(min(forced, self.read - 1), 0)

    def _extend(self, choice: Choice, cut_short: bool) -> None:
        self._text += choice.text
        stops = self.request.until == "step"
        if stops and self._cut(choice):
            self.finish = self._end_of_step
        elif choice.finish == "length":
            self.finish = self._reason_at_length(cut_short)
        elif stops and self._at_delimiter(choice):
            self._text += "" if self._delimiter in choice.text else self._delimiter
            self.finish = self._end_of_step if self._cut(choice) else None
        else:
            self._text = self._text if self._text.strip() else self.request.forced
            self.finish = "eos"

    @property
    def _end_of_step(self) -> FinishReason:
        return "length" if self._spent >= self._room else "step"

    def _cut(self, choice: Choice) -> bool:
        """Whether the text has come to the end of a step.

        What follows the delimiter belongs to its token where the server stopped there; what a server that overlooks
        stop strings sends beyond it is cut.
        """
        end = step_end(self._text, self._delimiter, len(self.request.forced))
        if 0 <= end < len(self._text) and not (self._server_stops == "kept" and choice.finish == "stop"):
            self._text, self._logprobs = self._text[:end], None
        return end >= 0

    def _at_delimiter(self, choice: Choice) -> bool:
        """Whether the delimiter ended the answer, and not the model.

        A server that takes the delimiter off and does not say what ended a sample leaves that open. A text is then a
        step: if the model had ended, it will end again. Nothing, several times in a row, is the end.
        """
        if self._delimiter in choice.text:
            return True
        if choice.tells_stop or self._server_stops != "hidden":
            return choice.stopped_by == self._delimiter
        self._blanks = 0 if choice.text.strip() else self._blanks + 1
        return self._blanks <= _BLANKS

    def _made(self) -> Step:
        reason: FinishReason = self.finish or "length"
        if reason in ("step", "length") and not self._text.strip():
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
        return Prefix("", ids=self._branch.prefix + tuple(self._branch.tokens))

    @property
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""
        return len(self._branch.forced)

    def _extend(self, choice: Choice, cut_short: bool) -> None:
        branch, ids = self._branch, choice.token_ids or ()
        for place, token in enumerate(ids, 1):
            if not branch.push(token, 0.0, 0.0):
                self._logprobs = self._logprobs if place == len(ids) else None  # what came after the step's end is cut
                break
        if branch.finish is None and choice.finish == "length":
            branch.finish = self._reason_at_length(cut_short)
        elif branch.finish is None and not self._at_delimiter(choice):
            branch.finish = "eos"
        self.finish = branch.finish

    def _at_delimiter(self, choice: Choice) -> bool:
        """Whether a delimiter ended the answer that ends no step, since nothing but white space stands before it."""
        text = self._branch.text
        if not choice.token_ids or self.request.until == "end":
            return False
        if choice.tells_stop:
            return choice.stopped_by == text.delimiter
        return text.delimiter in text.decode(choice.token_ids, final=True)

    def _made(self) -> Step:
        self._branch.finish = self.finish
        step = self._branch.step(lambda branch: (0, 0))
        return step if self.sampled == step.generated_tokens else replace(step, num_tokens=self.sampled)


def open_samples(request: GenerateRequest, asking: Asking, limits: Limits) -> list[RemoteSample]:
    """The samples of `request`, in order.

    Raises:
        ValueError: If the server cannot go on with what stands before them, or the node has no token ids.
    """
    node, reading, support = request.node, asking.reading, asking.support
    if reading is not None and _takes_ids(node, reading, asking):
        return [IdSample(branch) for branch in open_branches(request, reading.encode, reading.text, limits)]
    if (node.text or request.forced) and not support.continuing:
        raise ValueError(
            "this server's chat endpoint cannot go on with an answer that has begun: use "
            'endpoint="completions" (with tokenizer=... for the chat template), or a strategy of whole answers'
        )
    stops = support.stops if request.until == "step" else "hidden"
    forced = None if reading is None else len(forced_ids(request, reading.text))
    delimiter = asking.sampling.delimiter
    return [TextSample(request, index, limits, delimiter, stops, forced) for index in range(request.n)]


def _takes_ids(node: Node, reading: Reading, asking: Asking) -> bool:
    if asking.server.chat:
        return False
    takes = asking.support.ids(reading.encode(node.problem.prompt), reading.text.decode)
    if not takes and reading.chat:
        raise ValueError(
            "this server takes no token ids, so that the tokenizer's chat template cannot be used: choose "
            'endpoint="chat", or chat_template=False'
        )
    return takes


_OURS = frozenset({"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"}
                  | {"n", "seed", "stop", "logprobs", "return_token_ids", "stream"})  # fmt: skip
"""Fields that follow from what is asked for: another value would make something else of it."""


def check_address(base_url: str, endpoint: str) -> None:
    """Refuses what names no endpoint."""
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f'base_url={base_url!r}: give an address such as "http://localhost:8000/v1"')
    if endpoint not in get_args(Endpoint):
        raise ValueError(f'endpoint={endpoint!r}: choose "completions" or "chat"')


def check_sampling(delimiter: str, temperature: float, top_p: float, extra_body: Mapping[str, Any] | None) -> None:
    """Refuses what names no way of sampling."""
    if not delimiter:
        raise ValueError(f'step_delimiter={delimiter!r}: give the text that ends a step, for example "\\n"')
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: it cannot be negative or infinite")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: give a number above 0 and at most 1")
    if ours := sorted(_OURS & set(extra_body or ())):
        raise ValueError(f"extra_body holds {', '.join(ours)}: the generator sets these; use its options")


def address_of(base_url: str) -> str:
    """`base_url` without a user's name, password or query."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def client_of(base_url: str, key: str) -> Any:
    """A client of the ``openai`` package, which repeats nothing by itself.

    Raises:
        ImportError: If the package is missing.
    """
    openai: Any = require("openai", "openai")
    return openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0)


_ENOUGH_ALIKE = 4


class OpenAIGenerator(Generator):
    """Samples steps from a server that speaks OpenAI's protocol, such as vLLM, SGLang or llama.cpp.

    What a server supports beyond plain requests (several samples in one request, seeds, token ids, log-probabilities,
    how it treats stop strings) is tried once, when it is first needed, and only what works is sent.

    Given the model's tokenizer, and a server that takes and returns token ids, prompts are sent as ids and steps are
    those of `HFGenerator`, token by token: no prefix is encoded twice, and a server that caches prefixes finds them.
    Otherwise texts are sent, and steps hold no ids.

    A sample's seed derives from the node and the number of the draw, so on a server that keeps to its seeds results
    depend neither on the batch nor on the schedule.

    A request that fails is made again where that may help. A sample that fails for good becomes a failed leaf
    (``finish_reason="error"``, its text says why) and the search goes on; when nothing comes any more, or the key,
    address or model is wrong, `generate` raises, and a search with a journal can go on later.

    Attributes:
        stats: What was really asked, and the last error.
        temperature: Sampling temperature.
        limits: Lengths.
    """

    concurrent = True

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
        step_delimiter: str = "\n",
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
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
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template (completions endpoint);
                by default if it has one.
            system_prompt: System turn of the chat.
            step_delimiter: Text that ends a step.
            max_step_tokens: A step is cut after this many sampled tokens; the path can go on.
            max_new_tokens: Most tokens of a whole path, forced text included where ids are known.
            temperature: Sampling temperature; 0 takes the likeliest token.
            top_p: Nucleus sampling: mass of the likeliest tokens that is kept.
            logprobs: Whether to ask for log-probabilities; by default where the server returns them.
            seeds: Whether to send seeds. Without them a server that takes ``n`` is asked for all samples of a node at
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
        check_address(base_url, endpoint)
        check_sampling(step_delimiter, temperature, top_p, extra_body)
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency}: at least one request must be made at a time")
        if tokenizer is None and endpoint == "completions" and (chat_template or system_prompt):
            raise ValueError('chat_template and system_prompt need tokenizer=..., or endpoint="chat"')
        self.temperature = temperature
        self.limits = Limits(max_step_tokens, max_new_tokens, None)
        self._spec = None if config is None else model_spec(config)
        self._name = f"{address_of(base_url)!r}, {model!r}, endpoint={endpoint!r}"
        self._warned = threading.Event()
        self._plain = not extra_body  # further fields may well be filters
        reading = None
        if tokenizer is not None:
            system = system_prompt if endpoint == "completions" else None
            reading = Reading.of(tokenizer, step_delimiter, chat_template, system)
        key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        client = client_of(base_url, key)
        weakref.finalize(self, client.close)  # before its sockets are collected, which would warn
        server = Server(
            client,
            model,
            endpoint,
            system_prompt=system_prompt,
            patience=Patience(timeout, deadline),
            max_concurrency=max_concurrency,
            extra_body=extra_body or {},
            secrets=(key,) if key else (),
            needs_usage=tokenizer is None,
        )
        sampling = Sampling(step_delimiter, temperature, top_p, logprobs, seeds)
        self._asking = Asking(server, Support(server), sampling, reading, max_concurrency)

    @property
    def stats(self) -> RemoteStats:
        """What was really asked of the server."""
        return self._asking.server.stats

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
        support = self._asking.support
        support.contact(requests[0].node.problem.prompt)
        if self._asking.sampling.logprobs and not support.logprobs:
            raise ValueError(f"logprobs=True, but {self!r} returns no log-probabilities: leave it out, or ask another")
        before = self.stats.samples
        groups = [open_samples(request, self._asking, self.limits) for request in requests]
        waiting = [[sample for sample in group if sample.finish is None] for group in groups]
        self._asking.draw(waiting)
        self._check_alive([sample for group in waiting for sample in group], before)
        steps = [self._steps(request, group) for request, group in zip(requests, groups, strict=True)]
        self._warn_if_alike(requests, steps)
        return steps

    def _steps(self, request: GenerateRequest, group: Sequence[RemoteSample]) -> list[Step]:
        """The steps; the first that has not failed pays for what its siblings share."""
        payer = next((sample for sample in group if sample.error is None), None)
        plain = self._plain and self._asking.sampling.is_plain(request)
        return [
            sample.step(self._spec, sample is payer and request.first == 0, sample is payer, plain) for sample in group
        ]

    def _check_alive(self, asked: Sequence[RemoteSample], before: int) -> None:
        """Counts failures; raises if all samples have failed and there is no sign that others may come.

        A prefix that is too long says nothing about others. While other calls get samples, the server is alive.
        """
        errors = [sample.error for sample in asked if sample.error is not None]
        self._asking.server.count(failed_samples=len(errors))
        if len(errors) < len(asked):
            return
        samples = self.stats.samples
        lost = {"busy": samples == before, "broken": samples == before, "refused": samples == 0}
        for error in errors:
            if lost.get(error.kind, False):
                raise RemoteError(f"all {len(errors)} samples of {self!r} failed: {error}", error.kind)

    def _warn_if_alike(self, requests: Sequence[GenerateRequest], steps: Sequence[Sequence[Step]]) -> None:
        several = [
            [step.text for step in group]
            for request, group in zip(requests, steps, strict=True)
            if len(group) > 1 and not self._asking.sampling.is_greedy(request)
        ]
        alike = sum(map(len, several)) >= _ENOUGH_ALIKE and all(len(set(texts)) == 1 for texts in several)
        if alike and not self._warned.is_set() and not self._asking.support.samples:
            self._warned.set()
            warnings.warn(
                f"{self!r} gives the same text at any temperature: all samples of a node are alike "
                "(transformers serve needs do_sample in the model's generation config)",
                UserWarning,
                stacklevel=3,
            )
