"""Asking a server again: what is worth it, how long to wait, when to give up (standard library only)."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias, TypeVar

T = TypeVar("T")
Kind: TypeAlias = Literal["busy", "broken", "refused", "too long", "denied"]
"""What a failure means.

``"busy"``: overloaded, restarting or out of reach; asked again until the deadline. ``"broken"``: an answer that cannot
be read, or an internal error; asked again a few times. ``"refused"``: this request will never be served.
``"too long"``: the prompt does not fit into the model's context. ``"denied"``: no request will be served (key, address,
model).
"""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
BROKEN_RETRIES = 3

_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
_DENIED = {
    401: "check api_key, or the environment variable that holds it",
    403: "check what this key may do",
    404: "check base_url and the model's name",
    405: "check base_url: nothing there takes this kind of request",
}
_JITTER = random.Random()


class RemoteError(RuntimeError):
    """A server did not do what it was asked.

    Attributes:
        kind: What this means for other requests; see `Kind`.
        retry_after: Seconds that the server asked to wait.
    """

    def __init__(self, message: str, kind: Kind = "refused", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        timeout: For one answer: the longest silence of the server.
        deadline: For an answer and all repetitions of its request.
    """

    timeout: float = 300.0
    deadline: float = 900.0

    def __post_init__(self) -> None:
        """Refuses times that are not positive."""
        for name, value in (("timeout", self.timeout), ("deadline", self.deadline)):
            if not value > 0:
                raise ValueError(f"{name}={value!r}: give seconds, more than 0")


def retrying(
    send: Callable[[float], T],
    patience: Patience,
    stopped: threading.Event,
    on_retry: Callable[[RemoteError], None] = lambda error: None,
) -> T:
    """The answer of `send`, called again after failures that may pass.

    Args:
        send: Makes one attempt within the seconds that it is given, or raises a `RemoteError`.
        patience: How long to go on.
        stopped: Ends the waiting early.
        on_retry: Told of every failure that is followed by another attempt.

    Raises:
        RemoteError: The last failure, with the number of attempts.
    """
    end = time.monotonic() + patience.deadline
    attempt = 0
    while True:
        try:
            return send(max(min(patience.timeout, end - time.monotonic()), 0.001))
        except RemoteError as error:
            pause = _pause(error, attempt)
            if pause is None or stopped.is_set() or time.monotonic() + pause >= end:
                raise _after(error, attempt + 1) from None
            on_retry(error)
            if stopped.wait(pause):
                raise
        attempt += 1


def _pause(error: RemoteError, attempt: int) -> float | None:
    """Seconds to wait after attempt number `attempt`, counted from 0; ``None`` gives up."""
    if error.kind not in ("busy", "broken") or (error.kind == "broken" and attempt >= BROKEN_RETRIES):
        return None
    backoff = min(FIRST_PAUSE * 2.0 ** min(attempt, 16), LONGEST_PAUSE) * _JITTER.uniform(0.5, 1.0)
    return max(backoff, error.retry_after or 0.0)


def _after(error: RemoteError, attempts: int) -> RemoteError:
    return error if attempts == 1 else RemoteError(f"{error} (after {attempts} attempts)", error.kind)


def error_of_status(status: int, message: str, headers: Mapping[str, str], code: object = None) -> RemoteError:
    """What an answer with an error status means.

    Args:
        status: The HTTP status.
        message: What the server said.
        headers: The answer's headers; ``retry-after`` is read.
        code: The error code of an OpenAI-shaped body.
    """
    said = f"status {status}: {message[:500]}"
    if code == "insufficient_quota" or status in _DENIED:
        return RemoteError(f"{said} ({_DENIED.get(status, 'the account has no quota left')})", "denied")
    if status in _BUSY:
        return RemoteError(said, "busy", retry_after_seconds(headers.get("retry-after")))
    if status >= 500 and status != 501:
        return RemoteError(said, "broken", retry_after_seconds(headers.get("retry-after")))
    words = f"{message} {code}".lower()
    too_long = "context" in words and any(word in words for word in ("length", "exceed", "maximum", "size", "long"))
    return RemoteError(said, "too long" if too_long or status == 413 else "refused")


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait, a number or a date; ``None`` if it says neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
