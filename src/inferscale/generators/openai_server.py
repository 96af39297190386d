"""A server that speaks OpenAI's protocol: its replies, checked, and what it supports beyond plain requests (no torch).

Servers differ, and many overlook fields that they do not know instead of refusing them. So `OpenAIServer` tries each
thing once, when it is first needed, with a few tokens after the first problem's prompt; what is refused, or has no
effect, is not sent again.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from inferscale._compat import require
from inferscale._http import RemoteError, RetryPolicy, error_of_status, finite_floats
from inferscale.runtime.branch import BranchFactory, Limits
from inferscale.runtime.prompts import ControlTokens, refuse_control_tokens, tool_schemas
from inferscale.runtime.text import StepDelimiter
from inferscale.thinking import Thinking
from inferscale.tree import Problem

T = TypeVar("T")

Endpoint: TypeAlias = Literal["completions", "chat"]

StopHandling: TypeAlias = Literal["kept", "ignored", "hidden"]
"""The text of a sample holds the stop string that ended it, goes on after it, or ends before it."""

IdHandling: TypeAlias = Literal["none", "taken", "returned"]
"""Prompts must be text; they may be ids, and samples are text; or both are ids."""

LOOK = 0.05  # seconds between two looks at whether an answer is still waited for
PROBED = 8  # tokens
FIRST_CONTACT = 30.0  # seconds: a wrong address should not look like a busy server for a quarter of an hour
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}  # vLLM, SGLang: the last turn goes on

_OURS = frozenset({"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"}
                  | {"n", "seed", "stop", "logprobs", "return_token_ids", "stream"}
                  | {"min_p", "repetition_penalty"})  # fmt: skip
"""Fields that follow from what is asked for: another value would make something else of it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled continuation.

    Attributes:
        text: Its text.
        thoughts: Thoughts that a chat reports apart from its text (``reasoning_content`` or ``reasoning``).
        finish: ``"stop"`` (end of sequence or a stop string), ``"length"`` or ``"filtered"``.
        token_ids: Its ids, or ``None``.
        logprobs: Log-probability of each token (nats), or ``None``.
        stopped_by: The stop string that ended it; ``None`` for an end of sequence. Meaningful if `tells_stop`.
        tells_stop: True if the server says what ended it.
    """

    text: str
    finish: Literal["stop", "length", "filtered"]
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    stopped_by: str | None = None
    tells_stop: bool = False
    thoughts: str = ""

    def written(self, thinking: Thinking, inside: bool = False) -> str:
        """Text that the model wrote: thoughts between their markers, then the text.

        Args:
            thinking: The markers.
            inside: True if the thoughts go on with those of an answer that has begun.
        """
        if not self.thoughts:
            return self.text
        begun = ("" if inside else thinking.start) + self.thoughts
        return begun + thinking.forced_end + self.text if self.text else begun


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        choices: Continuations, in their order.
        prompt_tokens: Tokens of the prompt, or ``None``.
        generated_tokens: Tokens sampled for all choices together, or ``None``.
        cached_tokens: Of the prompt's, those that the server had in its cache; 0 if it does not say.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int | None
    generated_tokens: int | None
    cached_tokens: int = 0


def parse_reply(body: str) -> Reply:
    """The reply in a JSON body of either endpoint.

    Raises:
        RemoteError: If it makes no sense (``"broken"``); the message shows what came.
    """

    def broken(what: str) -> RemoteError:
        return RemoteError(f"the server sent {what}: {body[:200]!r}", "broken")

    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise broken("an answer that is not JSON") from None
    if not isinstance(data, dict) or data.get("error"):  # proxies wrap errors of what is behind them in a 200
        raise broken("an error in place of an answer")
    found = data.get("choices")
    if not isinstance(found, list) or not found or not all(isinstance(choice, dict) for choice in found):
        raise broken("an answer without choices")
    if all(isinstance(choice.get("index"), int) for choice in found):  # the protocol promises no order
        found = sorted(found, key=lambda choice: choice["index"])
    choices = []
    for choice in found:
        reason = choice.get("finish_reason")
        if reason in ("abort", "error"):  # vLLM and SGLang when they drop a request under way
            raise broken(f"a sample that it gave up ({reason})")
        message = choice.get("message")  # chat; a refusal has no content
        text = _message_text(message) if isinstance(message, dict) else choice.get("text")
        if not isinstance(text, str):
            raise broken("a choice without text")
        ids = choice.get("token_ids")
        logprobs = choice.get("logprobs")
        numbers = None
        if isinstance(logprobs, dict):
            numbers = logprobs.get("token_logprobs")  # completions
            if numbers is None and isinstance(logprobs.get("content"), list):  # chat
                numbers = [token.get("logprob") if isinstance(token, dict) else None for token in logprobs["content"]]
        known = finite_floats(numbers)
        stop = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM and SGLang; an id for an end of sequence
        choices.append(
            Choice(
                text=text,
                finish="length" if reason == "length" else "filtered" if reason == "content_filter" else "stop",
                token_ids=tuple(ids) if isinstance(ids, list) and all(map(_is_count, ids)) else None,
                logprobs=None if known is None else tuple(known),
                stopped_by=stop if isinstance(stop, str) else None,
                tells_stop="stop_reason" in choice or "matched_stop" in choice,
                thoughts=_thoughts(message) if isinstance(message, dict) else "",
            )
        )
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt, generated = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    # OpenAI's, vLLM's and SGLang's place, or DeepSeek's
    cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("prompt_cache_hit_tokens")
    prompt, generated, cached = (count if _is_count(count) else None for count in (prompt, generated, cached))
    return Reply(tuple(choices), prompt, generated, min(cached or 0, prompt or 0))


def _message_text(message: Mapping[str, Any]) -> Any:
    """The text of a chat's answer; calls of tools, which stand apart from it, are lines of JSON after it."""
    text, calls = message.get("content") or "", message.get("tool_calls")
    if not isinstance(calls, list) or not isinstance(text, str):
        return text
    made = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    return "\n".join([text] * bool(text) + [json.dumps(call, ensure_ascii=False) for call in made])


def _thoughts(message: Mapping[str, Any]) -> str:
    """Thoughts of a chat's answer that stand apart from it: DeepSeek's and SGLang's field, or vLLM's."""
    told = message.get("reasoning_content") or message.get("reasoning")
    return told if isinstance(told, str) else ""


def _is_count(value: object) -> bool:
    """True for a whole number that is not negative: an id, or a number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _said(reply: Reply) -> str:
    return reply.choices[0].thoughts + reply.choices[0].text


def _least_tokens(choice: Choice) -> int:
    """The fewest tokens that a choice of a probe can have."""
    if choice.finish == "length":
        return PROBED
    return max(len(choice.token_ids or ()), len(choice.logprobs or ()), int(bool(choice.text or choice.thoughts)))


@dataclass(frozen=True, slots=True)
class Prefix:
    """The start of a sample: a prompt and the answer begun after it, as text or as ids.

    Attributes:
        problem: The problem; ``None`` where `ids` say all.
        answer: The answer so far after what the problem had begun, forced text included.
        ids: Both as token ids; ``None`` sends text.
    """

    problem: Problem | None
    answer: str = ""
    ids: tuple[int, ...] | None = None

    @property
    def goes_on(self) -> bool:
        """True if an answer has begun."""
        return bool(self.answer) or (self.problem is not None and bool(self.problem.prefill))


@dataclass
class RemoteStats:
    """Counts of what was really asked of a server, probes included.

    Attributes:
        requests: Requests answered or given up.
        retries: Repetitions of failed requests.
        samples: Samples that came.
        failed_samples: Samples that did not.
        probe_tokens: Tokens sampled to find out what the server supports; no problem is charged for them.
        last_error: What the last failure said.
    """

    requests: int = 0
    retries: int = 0
    samples: int = 0
    failed_samples: int = 0
    probe_tokens: int = 0
    last_error: str | None = None


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop that holds the connections of a process, in a thread; a fork has none of it, and makes its own.

    Requests wait in threads, but a thread that waits for a socket cannot be called off; a task can, and its connection
    is closed then, which tells the server that nobody waits.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="inferscale-connections", daemon=True).start()
    return loop


def _start(work: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(work, _event_loop(os.getpid()))


class OpenAIServer:
    """A server, asked from several threads, at most a given number of requests at a time.

    Attributes:
        chat: True if the chat endpoint is asked.
        stats: What was asked.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        endpoint: Endpoint,
        *,
        api_key: str | None,
        system_prompt: str | None,
        chat_template_kwargs: Mapping[str, Any] | None,
        tools: Sequence[Any] | None,
        written: Callable[[Any, str], Any],
        retry: RetryPolicy,
        max_concurrency: int,
        extra_body: Mapping[str, Any] | None,
        needs_usage: bool,
    ) -> None:
        """Checks what names the server and its requests; see `OpenAIGenerator` for the arguments.

        `written` makes of a turn and its role, of a plain text and ``"prompt"``, or of what the model has answered and
        ``"answer"``, what is sent.

        Raises:
            ImportError: If the ``openai`` package is missing.
            ValueError: If an argument is bad.
        """
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f'base_url={base_url!r}: give an address such as "http://localhost:8000/v1"')
        if endpoint not in get_args(Endpoint):
            raise ValueError(f'endpoint={endpoint!r}: choose "completions" or "chat"')
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency}: at least one request must be made at a time")
        if ours := sorted(_OURS & set(extra_body or ())):
            raise ValueError(f"extra_body holds {', '.join(ours)}: the generator sets these; use its options")
        self._openai: Any = require("openai", "openai")
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        # The client gives connections, authentication and its errors; `RetryPolicy` alone repeats requests.
        client = self._openai.AsyncOpenAI(base_url=base_url, api_key=self._key or "none", max_retries=0)
        weakref.finalize(self, lambda: _start(client.close()))  # before its sockets are collected, which would warn
        self.chat = endpoint == "chat"
        self.stats = RemoteStats()
        self._create = (client.chat.completions if self.chat else client.completions).with_raw_response.create
        self._list = client.models.with_raw_response.list
        self._model = model
        self._system_prompt = system_prompt
        self._retry = retry
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._extra_body = dict(extra_body or {})
        if self.chat:
            given = {"chat_template_kwargs": chat_template_kwargs, "tools": tools and tool_schemas(tools)}
            given = {name: value for name, value in given.items() if value}
            if twice := sorted(given.keys() & self._extra_body):
                raise ValueError(f"extra_body holds {twice[0]}, which is given as an option too: give it once")
            self._extra_body |= given
        self._written = written
        self._needs_usage = needs_usage
        self._counting = threading.Lock()
        self._length_field = "max_tokens"
        self._probing = threading.RLock()  # held while the server is tried: everybody needs what comes out
        self._known: dict[str, Any] = {}
        self._probe_prefix = Prefix(None)

    def body(self, prefix: Prefix, max_tokens: int, temperature: float, **more: Any) -> dict[str, Any]:
        """The body of a request, without the model; fields that are ``None`` are left out."""
        body: dict[str, Any] = {self._length_field: max_tokens, "temperature": temperature, **more}
        if self.chat:
            body["messages"] = self._turns(prefix)
        elif prefix.ids is not None:
            body["prompt"] = list(prefix.ids)
        else:
            body["prompt"] = "" if prefix.problem is None else self._written(prefix.problem.prompt, "prompt")
            body["prompt"] += self._written(prefix.answer, "answer")
        return {name: value for name, value in body.items() if value is not None}

    def _turns(self, prefix: Prefix) -> list[dict[str, Any]]:
        """The conversation, the system's turn first and the assistant's begun one last."""
        turns = [] if prefix.problem is None else prefix.problem.turns
        if self._system_prompt is not None and all(turn["role"] != "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": self._system_prompt})
        turns = [{**self._written(turn, turn["role"]), "role": turn["role"]} for turn in turns]
        if prefix.answer:
            begun = turns.pop()["content"] if prefix.problem is not None and prefix.problem.prefill else ""
            turns.append({"role": "assistant", "content": begun + self._written(prefix.answer, "answer")})
        return turns

    @property
    def logprobs_field(self) -> bool | int:
        """The value of ``logprobs`` that asks for the log-probability of each sampled token."""
        return True if self.chat else 1

    def ask(
        self, body: Mapping[str, Any], stopped: threading.Event | None = None, retry: RetryPolicy | None = None
    ) -> Reply:
        """The server's reply to `body`.

        Args:
            body: The request.
            stopped: Ends it: the connection is closed.
            retry: Other times than usual.

        Raises:
            RemoteError: If there is none; the key is not in its message, though servers like to repeat it.
        """
        stopped = stopped or threading.Event()
        prompt = {name: body[name] for name in ("prompt", "messages") if name in body}
        fields = {name: value for name, value in body.items() if name not in prompt} | self._extra_body

        def hidden(text: str) -> str:
            return text.replace(self._key, "***") if self._key else text

        def attempt(seconds: float) -> Reply:
            try:
                # Fields travel in extra_body, so that the client's own list of them does not matter; and the raw
                # response is parsed here, because its types check nothing.
                work = _start(self._create(model=self._model, timeout=seconds, extra_body=fields, **prompt))
                while not wait([work], LOOK).done:
                    if stopped.is_set() and work.cancel():
                        raise RemoteError("nobody waits for the answer any more", "busy")
                reply = parse_reply(work.result().text)
            except self._openai.APITimeoutError:
                raise RemoteError(f"the server was silent for {seconds:.3g} s", "busy") from None
            except self._openai.APIConnectionError as error:
                said = hidden(f"no connection to the server: {error.__cause__ or error}")
                raise RemoteError(said, "busy") from None
            except self._openai.APIStatusError as error:
                told = error.body
                if isinstance(told, dict):  # OpenAI and vLLM have a "message", FastAPI a "detail"
                    told = told.get("message") or told.get("detail")
                said = hidden(error.message if told is None else str(told))
                raise error_of_status(error.status_code, said, error.response.headers, error.code) from None
            except self._openai.OpenAIError as error:
                raise RemoteError(hidden(f"{type(error).__name__}: {error}"), "broken") from None
            except RemoteError as error:
                raise RemoteError(hidden(str(error)), error.kind) from None
            if "return_token_ids" in body and any(choice.token_ids is None for choice in reply.choices):
                raise RemoteError("the server left out the token ids that it was asked for", "broken")
            if self._needs_usage and None in (reply.prompt_tokens, reply.generated_tokens):
                raise RemoteError(
                    "the server does not say how many tokens it used: pass tokenizer=... to count", "broken"
                )
            return reply

        def count_retry(error: RemoteError) -> None:
            self.count(retries=1, last_error=str(error))

        while not self._slots.acquire(timeout=LOOK):
            if stopped.is_set():
                raise RemoteError("nobody waits for the answer any more", "busy")
        try:
            return (retry or self._retry).run(attempt, stopped, count_retry)
        except RemoteError as error:
            self.count(last_error=str(error))
            raise
        finally:
            self._slots.release()
            self.count(requests=1)

    def count(self, last_error: str | None = None, **numbers: int) -> None:
        """Adds to `stats`."""
        with self._counting:
            self.stats.last_error = last_error or self.stats.last_error
            for name, number in numbers.items():
                setattr(self.stats, name, getattr(self.stats, name) + number)

    # -- what it supports ----------------------------------------------------------------------------------------------

    def contact(self, problem: Problem) -> Reply:
        """The reply to a first, plain, greedy request, made once; later probes go on from the same prompt.

        It is the beginning of what the user said last. A server that lists its models and not this one, and answers
        all the same (llama.cpp), is warned of.

        Raises:
            RemoteError: If the server cannot be reached within `FIRST_CONTACT` seconds, or refuses the request.
        """

        def first_reply() -> Reply:
            said = [turn["content"] for turn in problem.turns if turn["role"] == "user"]
            self._probe_prefix = Prefix(Problem(said[-1][:64]))
            retry = replace(self._retry, deadline=min(self._retry.deadline, FIRST_CONTACT))
            try:
                reply = self._probe(PROBED, retry=retry)
            except RemoteError as error:
                if not self.chat or error.kind != "refused":
                    raise
                self._length_field = "max_completion_tokens"  # newer models of OpenAI take no other name
                reply = self._probe(PROBED, retry=retry)
            names = self._models()
            if names and self._model not in names:
                warnings.warn(
                    f"the server does not list the model {self._model!r}, and answers all the same, perhaps with "
                    f"another one: it has {', '.join(map(repr, names[:5]))}",
                    UserWarning,
                    stacklevel=2,
                )
            return reply

        return self._once("contact", first_reply)

    def is_alive(self) -> bool:
        """True if a plain request is answered now."""
        try:
            self._probe(1, retry=replace(self._retry, deadline=min(self._retry.deadline, FIRST_CONTACT)))
        except RemoteError:
            return False
        return True

    def _models(self) -> list[str]:
        """Names and aliases of the models that the server lists; none if it lists none."""
        try:
            listed = json.loads(_start(self._list(timeout=FIRST_CONTACT)).result().text).get("data")
            return [
                name
                for model in listed
                for name in (model["id"], *(model.get("aliases") or ()))
                if isinstance(name, str)
            ]
        except (self._openai.OpenAIError, ValueError, AttributeError, TypeError, KeyError):
            return []

    def counts(self) -> bool:
        """True unless the first reply, cut after so many tokens, was said to have fewer or more."""
        reply: Reply = self._known["contact"]
        return reply.generated_tokens in (None, PROBED) or reply.choices[0].finish != "length"

    def takes_seeds(self) -> bool:
        """True if a request may hold a seed; one that has no effect cannot be told from one that has."""
        return self._once("seeds", lambda: self._served(1, seed=1) is not None)

    def samples(self) -> bool:
        """True if a high temperature makes two texts differ."""

        def differ() -> bool:
            replies = [self._served(16, temperature=2.0) for _ in range(2)]
            return len({_said(reply) for reply in replies if reply is not None}) != 1

        return self._once("samples", differ)

    def takes_n(self, seeded: bool) -> bool:
        """True if one request with ``n`` gives, and counts, what one request for each sample does.

        The i-th choice of a seeded request must be that of a request with the seed plus i (vLLM's rule); where equal
        seeds do not give equal texts, or none are sent, any ``n`` choices will do. The tokens of all choices must be on
        the bill: llama.cpp's counts those of the first alone.
        """

        def same() -> bool:
            send_seeds = seeded and self.takes_seeds()

            def drawn(n: int | None, seed: int) -> Reply | None:
                return self._served(PROBED, temperature=1.5, n=n, seed=seed if send_seeds else None)

            together = drawn(2, 1)
            if together is None or len(together.choices) != 2:  # transformers serve overlooks n, and sends one choice
                return False
            told = together.generated_tokens
            if told is not None and told < sum(map(_least_tokens, together.choices)):
                return False
            alone = [drawn(None, seed) for seed in (1, 2)] if send_seeds else []
            if None in alone or not send_seeds:
                return not send_seeds
            singles = [reply for reply in alone if reply is not None]
            texts = [_said(reply) for reply in singles]
            if [choice.thoughts + choice.text for choice in together.choices] == texts:
                counts = [reply.generated_tokens for reply in singles]
                return None in counts or told == sum(count or 0 for count in counts)
            again = drawn(None, 1)
            return again is not None and _said(again) != texts[0]  # no seed has an effect

        return self._once("n", same)

    def stop_handling(self) -> StopHandling:
        """The place of a stop string in the text of a server that does not name the one that ended it.

        A character in the middle of the first reply, where it stands for the first time, serves as the stop string of
        the same greedy request: the text must end before it, with it, or go on as before. With none, or where the
        server names stop strings, nothing can be or need be told: ``"hidden"``.
        """

        def compare() -> StopHandling:
            first: Choice = self._known["contact"].choices[0]
            stop = next((c for i, c in enumerate(first.text[:-1]) if i == first.text.find(c) > 0 and c.strip()), None)
            if first.tells_stop or first.thoughts or stop is None:
                return "hidden"
            reply = self._served(PROBED, stop=[stop])
            if reply is None or stop not in reply.choices[0].text:
                return "hidden"
            return "ignored" if reply.choices[0].text == first.text else "kept"

        return self._once("stop handling", compare)

    def names_stops(self) -> bool:
        """True if the server says what ended a text."""
        first: Choice = self._known["contact"].choices[0]
        return first.tells_stop

    def check_fields(self, names: Collection[str]) -> None:
        """Raises a ``ValueError`` if a field that is no part of the protocol has no effect, or is refused."""
        for name, has_effect in (("min_p", self._takes_min_p), ("repetition_penalty", self._takes_penalties)):
            if name in names and not self._once(name, has_effect):
                raise ValueError(f"{name} has no effect on this server (vLLM and SGLang take it): leave it out")

    def _takes_min_p(self) -> bool:
        """True if at its greatest a high temperature gives the likeliest text, twice."""
        replies = [self._served(PROBED, temperature=2.0, min_p=1.0) for _ in range(2)]
        likeliest = _said(self._known["contact"])
        return all(reply is not None and _said(reply) == likeliest for reply in replies)

    def _takes_penalties(self) -> bool:
        """True if the likeliest text changes where repeated tokens are made unlikely, or all others are."""
        replies = [self._served(PROBED, repetition_penalty=penalty) for penalty in (2.0, 0.01)]
        likeliest = _said(self._known["contact"])
        return any(reply is not None and _said(reply) != likeliest for reply in replies)

    def returns_logprobs(self) -> bool:
        """True if log-probabilities of the sampled tokens are returned."""

        def there() -> bool:
            reply = self._served(1, logprobs=self.logprobs_field)
            return reply is not None and reply.choices[0].logprobs is not None

        return self._once("logprobs", there)

    def ids(self, prompt: tuple[int, ...], decode: Callable[[Sequence[int]], str]) -> IdHandling:
        """Whether prompts may be ids, such as `prompt`, and whether the ids of the sampled tokens are returned.

        Raises:
            ValueError: If `decode` makes another text of these ids than the server does.
        """
        prefix = Prefix(None, ids=prompt[:16])

        def visible(text: str) -> str:
            """`text` without what decoders treat differently: white space, and characters that are not complete."""
            return "".join(text.replace("\ufffd", "").split())

        def compare() -> IdHandling:
            both = self._served(PROBED, prefix, return_token_ids=True)
            reply = both or self._served(PROBED, prefix)  # llama.cpp takes ids and returns text
            # A list of numbers may be taken for so many prompts, or for text.
            if reply is None or len(reply.choices) != 1 or reply.prompt_tokens not in (None, len(prompt[:16])):
                return "none"
            if both is None:
                return "taken" if reply.prompt_tokens is not None else "none"  # only the count says how they were read
            choice = both.choices[0]
            theirs, ours = visible(choice.text), visible(decode(choice.token_ids or ()))
            if not theirs.startswith(ours) and not ours.startswith(theirs):
                raise ValueError(
                    f"the tokenizer reads {ours!r} where the server wrote {theirs!r}: pass the model's own"
                )
            return "returned"

        return self._once("ids", compare)

    def continues_answers(self) -> bool:
        """True if a begun answer is gone on with: always, but for chats that open another turn.

        A server that overlooks the fields reads the same prompt with and without them: one that ends the turn of the
        assistant and opens a new one. Where they work, the prompt is shorter.
        """

        def shorter() -> bool:
            begun = replace(self._probe_prefix, answer="So")
            further, anew = self._served(1, begun, **CONTINUE), self._served(1, begun)
            if further is None or anew is None:
                return further is not None
            return (further.prompt_tokens or 0) < (anew.prompt_tokens or 0)

        return not self.chat or self._once("continues", shorter)

    def _once(self, name: str, find: Callable[[], T]) -> T:
        with self._probing:
            if name not in self._known:
                self._known[name] = find()
            known: T = self._known[name]
            return known

    def _probe(
        self,
        max_tokens: int,
        prefix: Prefix | None = None,
        temperature: float = 0.0,
        retry: RetryPolicy | None = None,
        **fields: Any,
    ) -> Reply:
        reply = self.ask(self.body(prefix or self._probe_prefix, max_tokens, temperature, **fields), retry=retry)
        told = reply.generated_tokens or 0
        if len(reply.choices) > 1:  # llama.cpp counts those of the first choice alone
            told = max(told, sum(map(_least_tokens, reply.choices)))
        self.count(probe_tokens=told)
        return reply

    def _served(self, max_tokens: int, prefix: Prefix | None = None, **options: Any) -> Reply | None:
        """The reply to a probe; ``None`` if it is not served.

        A busy server says nothing about what it supports: then the call fails, and the next one tries again.
        """
        try:
            return self._probe(max_tokens, prefix, **options)
        except RemoteError as error:
            if error.kind in ("busy", "denied"):
                raise
            return None


class ServerTokenizer:
    """The tokenizer of the model on a server: prompts as ids, steps of ids, and counts where the server gives none.

    Attributes:
        branches: Opens the samples of a request as ids.
        chat: True if prompts go through the tokenizer's chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        limits: Limits,
        *,
        step_delimiter: StepDelimiter,
        stop: str | Sequence[str],
        chat_template: bool | None,
        control_tokens: ControlTokens | None,
        in_chat: bool,
        **chat_options: Any,
    ) -> None:
        """Takes a tokenizer, or a folder or hub id to load it from; the options are those of `OpenAIGenerator`.

        With `in_chat` the server renders: `chat_options` then go to it alone if the tokenizer has no chat template.
        """
        if isinstance(tokenizer, str | os.PathLike):
            from inferscale.runtime.loading import load_tokenizer

            tokenizer = load_tokenizer(tokenizer, tokenizer)
        if in_chat and (chat_template is False or not getattr(tokenizer, "chat_template", None)):
            chat_options = {}
        end = tokenizer.eos_token_id
        self.branches = BranchFactory(
            tokenizer,
            () if end is None else (end,),
            limits,
            step_delimiter=step_delimiter,
            stop=stop,
            chat_template=chat_template,
            control_tokens=control_tokens,
            **chat_options,
        )
        self.chat = self.branches.prompts.chat
        self._control_tokens = control_tokens
        self._in_chat = in_chat

    def written(self, text: Any, role: str) -> Any:
        """The text or turn that is sent to a server which tokenises it: a control token in it has a space inside.

        Plain prompts (role ``"prompt"``) keep their control tokens by default. One that begins with what the
        tokenizer adds to every text, as a rendered chat does, is sent without it: the server adds it once more.

        Raises:
            ValueError: If a control token in it is to be refused.
        """
        plain, encoder = role == "prompt", self.branches.prompts.text
        policy = self._control_tokens or ("text" if self._in_chat else "keep")
        if role == "answer":  # nobody's input: it is never refused
            return text if policy == "keep" else encoder.spaced(text, "assistant")
        if policy == "refuse":
            where = "the prompt" if plain else f"the {role} turn"
            refuse_control_tokens(encoder.spelled(text, role), where)
        if policy == "text":
            return encoder.spaced(text, role)
        ids, tokenizer = encoder.added()[0], encoder.tokenizer
        if not plain or not ids:
            return text
        alone = ids == (getattr(tokenizer, "bos_token_id", None),)
        return text.removeprefix(tokenizer.bos_token if alone else tokenizer.decode(ids, skip_special_tokens=False))

    def ids(self, prefix: Prefix) -> tuple[int, ...]:
        """Ids of a prefix: those of the problem, then those of the answer as one text."""
        problem = () if prefix.problem is None else self.branches.encode(prefix.problem)
        return (*problem, *self.branches.text.encode_plain(prefix.answer)) if prefix.answer else problem

    def count(self, prefix: Prefix) -> int:
        """Tokens of a prefix."""
        return len(self.ids(prefix) if prefix.ids is None else prefix.ids)

    def count_text(self, text: str) -> int:
        """Tokens of a text on its own."""
        return len(self.branches.text.encode_plain(text)) if text else 0

    def count_sampled(self, choice: Choice) -> int:
        """Tokens of a sample; what ended it counts too where its text does not show it, as one token if unknown."""
        delimiter, text = self.branches.text.delimiter, choice.written(Thinking())
        if choice.finish != "stop" or (isinstance(delimiter, str) and delimiter in text):
            return self.count_text(text)
        return self.count_text(text) + max(self.count_text(choice.stopped_by or ""), 1)
