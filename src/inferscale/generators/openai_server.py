"""An OpenAI-compatible server: what it supports, how it is asked, and its replies, checked (no torch)."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias, TypeVar

from inferscale._http import Patience, RemoteError, error_of_status, retrying
from inferscale.runtime.prompts import PromptFormat
from inferscale.runtime.text import TokenText


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled continuation.

    Attributes:
        text: Its text.
        finish: ``"stop"`` (end of sequence or a stop string), ``"length"`` or ``"filtered"``.
        token_ids: Its ids, or ``None``.
        logprobs: Log-probability of each token (nats), or ``None``.
        stopped_by: The stop string that ended it; ``None`` for an end of sequence. Meaningful if `tells_stop`.
        tells_stop: Whether the server says what ended it.
    """

    text: str
    finish: Literal["stop", "length", "filtered"]
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    stopped_by: str | None = None
    tells_stop: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        choices: Continuations, in their order.
        prompt_tokens: Tokens of the prompt, or ``None``.
        generated_tokens: Tokens sampled for all choices together, or ``None``.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int | None
    generated_tokens: int | None


def read_reply(body: str) -> Reply:
    """The reply in a JSON body of either endpoint.

    Raises:
        RemoteError: If it cannot be read (``"broken"``); the message shows what came.
    """
    try:
        data = json.loads(body)
    except ValueError:
        raise _broken("an answer that is not JSON", body) from None
    if not isinstance(data, dict) or data.get("error"):
        raise _broken("an error in place of an answer", body)
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise _broken("an answer without choices", body)
    if all(isinstance(choice.get("index"), int) for choice in choices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        tuple(_choice(choice, body) for choice in choices),
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _broken(what: str, body: str) -> RemoteError:
    return RemoteError(f"the server sent {what}: {body[:200]!r}", "broken")


def _choice(choice: Mapping[str, Any], body: str) -> Choice:
    reason = choice.get("finish_reason")
    if reason in ("abort", "error"):
        raise _broken(f"a sample that it gave up ({reason})", body)
    stop = choice.get("stop_reason", choice.get("matched_stop"))
    return Choice(
        text=_text(choice, body),
        finish="length" if reason == "length" else "filtered" if reason == "content_filter" else "stop",
        token_ids=_ids(choice.get("token_ids")),
        logprobs=_logprobs(choice.get("logprobs")),
        stopped_by=stop if isinstance(stop, str) else None,
        tells_stop="stop_reason" in choice or "matched_stop" in choice,
    )


def _text(choice: Mapping[str, Any], body: str) -> str:
    message = choice.get("message")
    text = (message.get("content") or "") if isinstance(message, dict) else choice.get("text")
    if not isinstance(text, str):
        raise _broken("a choice without text", body)
    return text


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or any(_count(token) is None for token in value):
        return None
    return tuple(value)


def _logprobs(value: object) -> tuple[float, ...] | None:
    """Log-probabilities in the form of either endpoint; ``None`` unless every token has a finite one."""
    if not isinstance(value, dict):
        return None
    numbers = value.get("token_logprobs")
    if numbers is None and isinstance(value.get("content"), list):
        numbers = [token.get("logprob") if isinstance(token, dict) else None for token in value["content"]]
    if not isinstance(numbers, list) or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return None
    return tuple(float(number) for number in numbers)


Endpoint: TypeAlias = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a sample continues: a prompt and the answer begun after it, as text or as ids.

    Attributes:
        prompt: The problem's prompt.
        answer: The answer so far, forced text included.
        ids: Both as token ids; ``None`` sends text.
    """

    prompt: str
    answer: str = ""
    ids: tuple[int, ...] | None = None


@dataclass
class RemoteStats:
    """What was really asked of a server, probes included.

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


class Server:
    """Sends requests, at most a given number at a time, and again where that may help.

    Attributes:
        chat: Whether the chat endpoint is used.
        patience: How long to wait.
        length_field: What the most tokens of a sample are called.
        stats: What was asked.
    """

    def __init__(
        self,
        client: Any,
        model: str,
        endpoint: Endpoint,
        *,
        system_prompt: str | None,
        patience: Patience,
        max_concurrency: int,
        extra_body: Mapping[str, Any],
        secrets: tuple[str, ...],
        needs_usage: bool,
    ) -> None:
        self.chat = endpoint == "chat"
        self.stats = RemoteStats()
        self._resource = client.chat.completions if self.chat else client.completions
        self._model = model
        self._system_prompt = system_prompt
        self.patience = patience
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._extra_body = dict(extra_body)
        self._secrets = secrets
        self._needs_usage = needs_usage
        self._counting = threading.Lock()
        self.length_field = "max_tokens"

    def fields(self, prefix: Prefix, max_tokens: int, temperature: float, **more: Any) -> dict[str, Any]:
        """The body of a request, without the model; fields that are ``None`` are left out."""
        body: dict[str, Any] = {self.length_field: max_tokens, "temperature": temperature, **more}
        if self.chat:
            body["messages"] = self._messages(prefix)
        else:
            body["prompt"] = prefix.prompt + prefix.answer if prefix.ids is None else list(prefix.ids)
        return {name: value for name, value in body.items() if value is not None}

    def _messages(self, prefix: Prefix) -> list[dict[str, str]]:
        turns = [("system", self._system_prompt), ("user", prefix.prompt), ("assistant", prefix.answer)]
        return [{"role": role, "content": content} for role, content in turns if content]

    def ask(
        self, fields: Mapping[str, Any], stopped: threading.Event | None = None, patience: Patience | None = None
    ) -> Reply:
        """The server's answer.

        Raises:
            RemoteError: If there is none.
        """
        with self._slots:
            try:
                waiting = stopped or threading.Event()
                return retrying(partial(self._attempt, fields), patience or self.patience, waiting, self._retried)
            except RemoteError as error:
                self.count(last_error=str(error))
                raise
            finally:
                self.count(requests=1)

    def _attempt(self, fields: Mapping[str, Any], seconds: float) -> Reply:
        import openai

        given = {name: fields[name] for name in ("prompt", "messages") if name in fields}
        rest = {name: value for name, value in fields.items() if name not in given}
        try:
            response = self._resource.with_raw_response.create(
                model=self._model, timeout=seconds, extra_body={**rest, **self._extra_body}, **given
            )
            reply = read_reply(response.text)
        except openai.APITimeoutError:
            raise RemoteError(f"the server was silent for {seconds:.3g} s", "busy") from None
        except openai.APIConnectionError as error:
            raise RemoteError(self._clean(f"no connection to the server: {error.__cause__ or error}"), "busy") from None
        except openai.APIStatusError as error:
            message = self._clean(_message(error.body) or error.message)
            raise error_of_status(error.status_code, message, error.response.headers, error.code) from None
        except openai.OpenAIError as error:
            raise RemoteError(self._clean(f"{type(error).__name__}: {error}"), "broken") from None
        except RemoteError as error:
            raise RemoteError(self._clean(str(error)), error.kind) from None
        if "return_token_ids" in fields and any(choice.token_ids is None for choice in reply.choices):
            raise RemoteError("the server left out the token ids that it was asked for", "broken")
        if self._needs_usage and None in (reply.prompt_tokens, reply.generated_tokens):
            raise RemoteError("the server does not say how many tokens it used: pass tokenizer=... to count", "broken")
        return reply

    def _clean(self, text: str) -> str:
        """`text` without the key, which servers like to repeat."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _retried(self, error: RemoteError) -> None:
        self.count(retries=1, last_error=str(error))

    def count(self, last_error: str | None = None, **numbers: int) -> None:
        """Adds to `stats`."""
        with self._counting:
            self.stats.last_error = last_error or self.stats.last_error
            for name, number in numbers.items():
                setattr(self.stats, name, getattr(self.stats, name) + number)

    @property
    def logprobs_field(self) -> bool | int:
        """What asks for the log-probability of each sampled token."""
        return True if self.chat else 1


def _message(body: object) -> str | None:
    """What the body of an error says."""
    if isinstance(body, dict):
        said = body.get("message") or body.get("detail")
        return None if said is None else str(said)
    return body if isinstance(body, str) else None


T = TypeVar("T")

Stops: TypeAlias = Literal["kept", "ignored", "hidden"]
"""Whether the text of a sample holds the stop string that ended it, goes on after it, or ends before it."""

FIRST_CONTACT = 30.0  # seconds: a wrong address should not look like a busy server for a quarter of an hour
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
_CHARACTERS = 64
_IDS = 16


class Support:
    """What a server supports beyond plain requests.

    Each thing is tried once, when it is first needed, with the first problem's prompt; what is refused or has no
    effect is not sent again.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.RLock()
        self._known: dict[str, Any] = {}
        self._prefix = Prefix("")

    def contact(self, prompt: str) -> Reply:
        """The answer to a first, plain request, made once.

        Raises:
            RemoteError: If the server cannot be reached within `FIRST_CONTACT` seconds, or refuses the request.
        """
        return self._once("contact", partial(self._first_reply, prompt))

    def _first_reply(self, prompt: str) -> Reply:
        self._prefix = Prefix(prompt[:_CHARACTERS])
        patience = replace(self._server.patience, deadline=min(self._server.patience.deadline, FIRST_CONTACT))
        try:
            return self._ask(8, patience=patience)
        except RemoteError as error:
            if not self._server.chat or error.kind != "refused":
                raise
            self._server.length_field = "max_completion_tokens"  # what newer models of OpenAI ask for
            return self._ask(8, patience=patience)

    @property
    def seeds(self) -> bool:
        """Whether a request may hold a seed."""
        return self._once("seeds", lambda: self._served(1, seed=1) is not None)

    @property
    def samples(self) -> bool:
        """Whether a high temperature makes two texts differ."""
        return self._once("samples", self._find_samples)

    def _find_samples(self) -> bool:
        replies = [self._served(16, temperature=2.0) for _ in range(2)]
        return len({reply.choices[0].text for reply in replies if reply is not None}) != 1

    def many(self, seeded: bool) -> bool:
        """Whether one request with ``n`` gives what one request for each sample gives.

        The i-th choice of a seeded request must be that of a request with the seed plus i (vLLM's rule); where equal
        seeds do not give equal texts, or none are sent, any ``n`` choices will do.
        """
        return self._once("many", lambda: self._find_many(seeded and self.seeds))

    def _find_many(self, seeded: bool) -> bool:
        def texts(n: int | None, seed: int) -> list[str]:
            reply = self._served(8, temperature=1.5, n=n, seed=seed if seeded else None)
            return [] if reply is None else [choice.text for choice in reply.choices]

        together = texts(2, 1)
        if len(together) != 2 or not seeded:
            return len(together) == 2
        alone = texts(None, 1)
        return together == alone + texts(None, 2) or alone != texts(None, 1)

    @property
    def stops(self) -> Stops:
        """What a server that does not name the stop string does with it."""
        return self._once("stops", self._find_stops)

    def _find_stops(self) -> Stops:
        first = self._known["contact"].choices[0]
        stop = next((c for i, c in enumerate(first.text[:-1]) if i == first.text.find(c) > 0 and c.strip()), None)
        if first.tells_stop or stop is None:
            return "hidden"
        reply = self._served(8, stop=[stop])
        if reply is None or stop not in reply.choices[0].text:
            return "hidden"
        return "ignored" if reply.choices[0].text == first.text else "kept"

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities of the sampled tokens are returned."""
        return self._once("logprobs", self._find_logprobs)

    def _find_logprobs(self) -> bool:
        reply = self._served(1, logprobs=self._server.logprobs_field)
        return reply is not None and reply.choices[0].logprobs is not None

    def ids(self, prompt: tuple[int, ...], decode: Callable[[Sequence[int], bool], str]) -> bool:
        """Whether prompts may be ids, such as `prompt`, and the ids of the sampled tokens are returned.

        Raises:
            ValueError: If `decode` makes another text of these ids than the server does.
        """
        return self._once("ids", partial(self._find_ids, prompt[:_IDS], decode))

    def _find_ids(self, prompt: tuple[int, ...], decode: Callable[[Sequence[int], bool], str]) -> bool:
        reply = self._served(8, Prefix("", ids=prompt), return_token_ids=True)
        if reply is None or reply.prompt_tokens not in (None, len(prompt)):  # read as so many prompts
            return False
        choice = reply.choices[0]
        theirs, ours = (_visible(text) for text in (choice.text, decode(choice.token_ids or (), True)))
        if not theirs.startswith(ours) and not ours.startswith(theirs):
            raise ValueError(f"the tokenizer reads {ours!r} where the server wrote {theirs!r}: pass the model's own")
        return True

    @property
    def continuing(self) -> bool:
        """Whether a begun answer is gone on with: always, but for chats that open another turn."""
        return not self._server.chat or self._once("continuing", self._find_continuing)

    def _find_continuing(self) -> bool:
        begun = replace(self._prefix, answer="So")
        further, anew = self._served(1, begun, **CONTINUE), self._served(1, begun)
        if further is None or anew is None:
            return further is not None
        # A server that overlooks the fields reads the same prompt in both: the end of the turn, and a new one.
        return (further.prompt_tokens or 0) < (anew.prompt_tokens or 0)

    def _once(self, name: str, find: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._known:
                self._known[name] = find()
            known: T = self._known[name]
            return known

    def _ask(
        self,
        max_tokens: int,
        prefix: Prefix | None = None,
        temperature: float = 0.0,
        patience: Patience | None = None,
        **fields: Any,
    ) -> Reply:
        body = self._server.fields(prefix or self._prefix, max_tokens, temperature, **fields)
        reply = self._server.ask(body, patience=patience)
        self._server.count(probe_tokens=reply.generated_tokens or 0)
        return reply

    def _served(self, max_tokens: int, prefix: Prefix | None = None, **options: Any) -> Reply | None:
        """The answer to a probe; ``None`` if it is not served."""
        try:
            return self._ask(max_tokens, prefix, **options)
        except RemoteError as error:
            if error.kind in ("busy", "denied"):
                raise
            return None


def _visible(text: str) -> str:
    """`text` without what decoders treat differently: white space, and characters that are not complete."""
    return "".join(text.replace("\ufffd", "").split())


@dataclass(frozen=True)
class Reading:
    """What a tokenizer is needed for.

    Attributes:
        text: Text of ids, step ends.
        chat: Whether prompts go through its chat template.
        encode: Ids of a prompt.
    """

    text: TokenText
    chat: bool
    encode: Callable[[str], tuple[int, ...]]

    @classmethod
    def of(cls, tokenizer: Any, delimiter: str, chat_template: bool | None, system_prompt: str | None) -> Reading:
        """By a tokenizer, or a folder or hub id to load it from."""
        if isinstance(tokenizer, str | os.PathLike):
            from inferscale.runtime.loading import load_tokenizer

            tokenizer = load_tokenizer(tokenizer, tokenizer)
        end = tokenizer.eos_token_id
        text = TokenText(tokenizer, delimiter, () if end is None else (end,))
        prompts = PromptFormat.choose(tokenizer, chat_template, system_prompt)
        return cls(text, prompts.chat, lru_cache(maxsize=4096)(prompts.encode))

    def count(self, prefix: Prefix) -> int:
        """Tokens of a prefix."""
        if prefix.ids is not None:
            return len(prefix.ids)
        answer = self.text.encode_plain(prefix.answer) if prefix.answer else []
        return len(self.encode(prefix.prompt)) + len(answer)

    def count_sampled(self, choice: Choice) -> int:
        """Tokens of a sample; a stop string or an end of sequence that its text does not show counts as one."""
        unseen = choice.finish == "stop" and self.text.delimiter not in choice.text
        return len(self.text.encode_plain(choice.text)) + unseen
