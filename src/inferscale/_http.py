"""Requests to servers over HTTP: which failures may pass, how long to wait for that, and when to give up (no torch)."""

from __future__ import annotations

import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from ._compat import require

T = TypeVar("T")
Kind: TypeAlias = Literal["busy", "broken", "refused", "too long", "denied"]
"""The meaning of a failure for the next request.

``"busy"``: overloaded, restarting or out of reach; asked again until the deadline. ``"broken"``: an answer that makes
no sense, or an internal error; asked again a few times. ``"refused"``: this request will never be served.
``"too long"``: the prompt does not fit into the model's context. ``"denied"``: no request will be served (key, address,
model).
"""

FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 30.0
BROKEN_RETRIES = 3

_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
_DENIED = {
    401: "check api_key, or the environment variable that holds it",
    403: "check what this key may do",
    404: "check base_url and the model's name",
    405: "check base_url: nothing there takes this kind of request",
}
_JITTER = random.Random()  # of its own: pauses must not move anybody's random numbers


class RemoteError(RuntimeError):
    """A server did not do what it was asked.

    Attributes:
        kind: What this means for other requests; see `Kind`.
        retry_after: Seconds that the server asked to wait.

    Example:
        Needs a server; with a journal the same call goes on once it is back::

            try:
                results = isc.solve_batch(problems, isc.RepeatedSampling(16), generator, journal="run.jsonl")
            except isc.RemoteError as error:
                print(error.kind, error)  # "busy no connection to the server: ..."
                results = error.partial  # what was found until then
    """

    def __init__(self, message: str, kind: Kind = "refused", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Repetition of requests that failed in a way that may pass.

    It stands in place of the retries of the clients themselves, which count attempts: a server that restarts needs
    minutes, an answer that cannot be read is no failure to them, and their pauses cannot be interrupted.

    Attributes:
        timeout: Longest silence of the server during one attempt, seconds.
        deadline: Longest time for a request and all its repetitions, seconds.
    """

    timeout: float = 300.0
    deadline: float = 900.0

    def __post_init__(self) -> None:
        """Refuses times that are not positive."""
        for name, value in (("timeout", self.timeout), ("deadline", self.deadline)):
            if not value > 0:
                raise ValueError(f"{name}={value!r}: give seconds, more than 0")

    def run(
        self,
        send: Callable[[float], T],
        stopped: threading.Event | None = None,
        on_retry: Callable[[RemoteError], None] = lambda error: None,
    ) -> T:
        """The answer of `send`, called again after failures that may pass.

        Args:
            send: Makes one attempt within the seconds that it is given, or raises a `RemoteError`.
            stopped: Ends the pauses early.
            on_retry: Called with every failure that another attempt follows.

        Raises:
            RemoteError: The last failure, with the number of attempts.
        """
        stopped = stopped or threading.Event()
        end = time.monotonic() + self.deadline
        attempts = 0
        while True:
            try:
                return send(max(min(self.timeout, end - time.monotonic()), 0.001))
            except RemoteError as error:
                attempts += 1
                may_pass = error.kind == "busy" or (error.kind == "broken" and attempts <= BROKEN_RETRIES)
                # Exponential, and drawn from [1/2, 1] of it, so that many clients do not come back together.
                pause = min(FIRST_PAUSE * 2.0 ** min(attempts - 1, 16), LONGEST_PAUSE) * _JITTER.uniform(0.5, 1.0)
                pause = max(pause, error.retry_after or 0.0)
                # A pause that ends after the deadline would only delay the bad news.
                if not may_pass or stopped.is_set() or time.monotonic() + pause >= end:
                    said = str(error) if attempts == 1 else f"{error} (after {attempts} attempts)"
                    raise RemoteError(said, error.kind, error.retry_after) from None
                on_retry(error)
                if stopped.wait(pause):
                    raise


def error_of_status(status: int, message: str, headers: Mapping[str, str], code: object = None) -> RemoteError:
    """The failure that an answer with an error status stands for.

    Args:
        status: The HTTP status.
        message: What the server said.
        headers: The answer's headers, of which ``retry-after`` matters.
        code: The error code of an OpenAI-shaped body.
    """
    said = f"status {status}: {message[:500]}"
    # OpenAI answers 429 to an account without money as to one that is too fast; only the code tells them apart.
    if code == "insufficient_quota" or status in _DENIED:
        return RemoteError(f"{said} ({_DENIED.get(status, 'the account has no quota left')})", "denied")
    if status in _BUSY:
        return RemoteError(said, "busy", retry_after_seconds(headers.get("retry-after")))
    if status >= 500 and status != 501:  # 501 Not Implemented will not change
        return RemoteError(said, "broken", retry_after_seconds(headers.get("retry-after")))
    # A full context: OpenAI has a code for it ("context_length_exceeded"), others have words, such as vLLM ("maximum
    # context length is"), SGLang ("longer than the model's context length"), llama.cpp ("available context size").
    words = f"{message} {code}".lower()
    too_long = "context" in words and any(word in words for word in ("length", "exceed", "maximum", "size", "long"))
    return RemoteError(said, "too long" if too_long or status == 413 else "refused")


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait, a number or a date; ``None`` if it is neither."""
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


def finite_floats(values: object) -> list[float] | None:
    """A list of numbers out of JSON as floats; ``None`` if it is something else, or one of them is not finite."""
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def public_address(base_url: str) -> str:
    """`base_url` without a user's name, password or query, which may be shown."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class JSONServer:
    """A server that answers JSON with JSON; may be used from several threads at a time.

    Attributes:
        address: Where it is, without a user's name or password.
    """

    def __init__(self, base_url: str, api_key: str | None, retry: RetryPolicy) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f'base_url={base_url!r}: give the address of a server, such as "http://localhost:8000"')
        base_url = base_url.rstrip("/").removesuffix("/v1")
        self.address = public_address(base_url)
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http: Any = require("httpx2", "remote")
        self._client = self._http.Client(base_url=base_url, headers=headers)
        weakref.finalize(self, self._client.close)
        self._retry = retry

    def get(self, path: str) -> Any:
        """The server's answer there, or ``None`` if it says nothing within seconds: for what may be known or not."""
        try:
            response = self._client.get(path, timeout=min(self._retry.timeout, 5.0))
            return response.json() if response.status_code == 200 else None
        except (self._http.RequestError, ValueError, RecursionError):
            return None

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to `body`.

        Raises:
            RemoteError: If the server refuses it, or gives no answer before the deadline.
        """

        def send(seconds: float) -> Any:
            try:
                response = self._client.post(path, json=body, timeout=seconds)
            except self._http.TransportError as error:
                raise RemoteError(f"no answer: {type(error).__name__} {error}", "busy") from None
            except self._http.RequestError as error:  # an answer that cannot be unpacked, or that leads in circles
                raise RemoteError(f"no answer: {type(error).__name__} {error}", "broken") from None
            if response.status_code != 200:
                raise error_of_status(response.status_code, response.text, response.headers)
            try:
                return response.json()
            except (ValueError, RecursionError):  # no JSON, not even text, or a thousand brackets
                raise RemoteError(f"an answer that is not JSON: {response.text[:200]!r}", "broken") from None

        try:
            return self._retry.run(send)
        except RemoteError as error:
            raise RemoteError(f"{self.address}{path}: {error}", error.kind) from None
