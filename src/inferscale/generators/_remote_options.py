"""Options for asking a server, checked before it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args
from urllib.parse import urlsplit

from inferscale._optional import require

from ._remote_server import Endpoint

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
