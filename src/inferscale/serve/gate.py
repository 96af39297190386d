"""Who may come in, and with how much."""

from __future__ import annotations

import hmac
import json
import re
from typing import Any

from starlette.requests import Request

from .errors import APIError
from .service import LOOPBACK

_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/?#@\[\]]+))(?::[0-9]*)?")


def check_client(request: Request, api_key: str | None) -> None:
    """Refuses clients without the key; without a key, those that did not come by this machine's own name.

    A web page that had its own name resolved to this machine (DNS rebinding) still sends that name.

    Raises:
        APIError: If the client may not come in.
    """
    if api_key is None:
        host = request.headers.get("host", "")
        if _name_of(host) not in LOOPBACK:
            raise APIError(403, f"the host {host[:80]!r} is not served without an API key", kind="permission_error")
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        raise APIError(
            401, "no valid API key: send it as 'Authorization: Bearer ...'", kind="authentication_error",
            code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


def _name_of(host: str) -> str | None:
    """The name or address in a Host header; ``None`` if it is none, which ``request.url`` would pass over."""
    found = _HOST.fullmatch(host)
    return None if found is None else (found["address"] or found["name"]).lower()


async def read_json(request: Request, most: int) -> Any:
    """The body, which must say that it is JSON: a web page cannot send that here without being asked first.

    Raises:
        APIError: If it is something else, or larger than `most` bytes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise APIError(415, f"the body is {kind[:80] or 'untyped'}: send it as Content-Type: application/json")
    too_large = APIError(413, f"the body has more than {most:,} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise too_large
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise APIError(400, "the body is not JSON") from None
