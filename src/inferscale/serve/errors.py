"""What is told to a client when a request is not served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class APIError(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status.
        headers: HTTP headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._details = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> dict[str, Any]:
        """The answer in the shape that OpenAI's clients read."""
        return {"error": self._details}


def bad_field(name: str, message: str) -> APIError:
    """The error for a field of the request that does not fit."""
    return APIError(400, f"{name}: {message}", param=name)
