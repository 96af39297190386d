"""Waiting for searches, for as long as their client does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request

from inferscale.result import SearchResult

from .errors import APIError
from .jobs import ClosedError, Job, UnreadablePromptError


async def results_of(request: Request, jobs: list[Job]) -> list[SearchResult]:
    """The results; searches whose client has gone are cancelled.

    Raises:
        APIError: If one failed.
        ClientDisconnect: If the client has gone.
    """
    futures = [asyncio.wrap_future(job.future) for job in jobs]
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        left: set[asyncio.Future[Any]] = {*futures}
        while left:
            done, _ = await asyncio.wait({*left, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                raise ClientDisconnect
            for future in done:
                result_of(future)
            left -= done
        return [future.result() for future in futures]
    finally:
        gone.cancel()
        cancel(jobs, futures)


def result_of(future: asyncio.Future[Any]) -> SearchResult:
    """The result of a search that has ended.

    Raises:
        APIError: If it failed.
    """
    error = future.exception()
    if error is not None:
        raise failure_of(error) from error
    return cast(SearchResult, future.result())


def failure_of(error: BaseException) -> APIError:
    """What a client is told of a search that failed."""
    if isinstance(error, UnreadablePromptError):
        return APIError(400, str(error), code="context_length_exceeded", param="prompt")
    if isinstance(error, ClosedError):
        return APIError(503, str(error), kind="server_error", code="shutting_down", headers={"Retry-After": "10"})
    return APIError(500, f"the search failed: {error}", kind="server_error", code="search_failed")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def cancel(jobs: Iterable[Job], futures: Iterable[asyncio.Future[Any]]) -> None:
    """Ends the searches that nobody waits for any more."""
    for job, future in zip(jobs, futures, strict=True):
        job.future.cancel()
        future.cancel()
        if not future.cancelled():
            future.exception()  # seen: asyncio warns of errors that nobody looked at
