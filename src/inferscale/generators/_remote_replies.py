"""What a server answered, checked before anything is made of it (standard library only)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ._remote_retry import RemoteError


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
