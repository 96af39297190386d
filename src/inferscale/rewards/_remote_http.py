"""Posting JSON to a reward server: retries, and answers checked before anything is made of them."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from inferscale._optional import require
from inferscale.generators._remote_retry import Patience, RemoteError, error_of_status, retrying

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
