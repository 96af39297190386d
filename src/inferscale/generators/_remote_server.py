"""An OpenAI-compatible server: how it is asked, and what was asked of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from ._remote_replies import Reply, read_reply
from ._remote_retry import Patience, RemoteError, error_of_status, retrying

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
