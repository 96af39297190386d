"""Requests to servers: what is worth asking again, how long to wait, and when to give up (standard library only)."""

from __future__ import annotations

import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias, TypeVar

from ._compat import require

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


ROWS = 256
"""Most inputs of one request."""


class JSONServer:
    """A server that answers JSON with JSON; may be used from several threads at a time.

    Attributes:
        base_url: Its address.
    """

    def __init__(self, base_url: str, api_key: str | None, patience: Patience) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f'base_url={base_url!r}: give the address of a server, such as "http://localhost:8000"')
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http: Any = require("httpx2", "remote")
        self._client = self._http.Client(base_url=self.base_url, headers=headers)
        weakref.finalize(self, self._client.close)
        self._patience = patience
        self._stopped = threading.Event()

    def __repr__(self) -> str:
        """The address; never the key."""
        return f"JSONServer({self.base_url!r})"

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to `body`.

        Raises:
            RemoteError: If the server refuses it, or gives no answer before the deadline.
        """
        try:
            return retrying(lambda seconds: self._send(path, body, seconds), self._patience, self._stopped)
        except RemoteError as error:
            raise RemoteError(f"{self.base_url}{path}: {error}", error.kind) from None

    def _send(self, path: str, body: dict[str, Any], seconds: float) -> Any:
        try:
            response = self._client.post(path, json=body, timeout=seconds)
        except self._http.TransportError as error:
            raise RemoteError(f"no answer: {type(error).__name__} {error}", "busy") from None
        if response.status_code != 200:
            raise error_of_status(response.status_code, response.text, response.headers)
        try:
            return response.json()
        except ValueError:  # no JSON, or not even text
            raise RemoteError(f"an answer that is not JSON: {response.text[:200]!r}", "broken") from None


def numbers(value: object) -> list[float]:
    """`value`, a number or a list of numbers, as a list.

    Raises:
        RemoteError: If it is something else, or one of them is not finite.
    """
    given: Sequence[object] = value if isinstance(value, list) else [value]
    known = all(isinstance(item, int | float) and abs(item) < math.inf for item in given)
    try:
        found = [float(item) for item in given] if known else []  # type: ignore[arg-type]
    except OverflowError:  # a whole number of hundreds of digits
        found = []
    if not found:
        raise RemoteError(f"the server sent {str(value)[:80]} where finite numbers should be")
    return found


def items(answer: object, count: int) -> list[dict[str, Any]]:
    """The `count` items of an answer's ``data``, in the order of the inputs.

    Raises:
        RemoteError: If they are not there.
    """
    data = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(data, list) or len(data) != count or not all(isinstance(item, dict) for item in data):
        raise RemoteError(f"the server sent no list of {count} items but {str(answer)[:200]}")
    places = [item.get("index", place) for place, item in enumerate(data)]
    if set(map(str, places)) != set(map(str, range(count))):
        raise RemoteError(f"the server numbered {count} items {str(places)[:200]}")
    by_place = dict(zip(map(int, places), data, strict=True))
    return [by_place[place] for place in range(count)]
