"""The endpoints: authentication, waiting for searches, and the server that runs them."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from inferscale._compat import require
from inferscale.engine import SearchResult

from .dispatcher import BusyError, ClosedError, Dispatcher, Job, UnreadablePromptError
from .page import HEADERS, make_page
from .schema import APIError, CompletionRequest, Endpoint, Reply
from .service import LOOPBACK, Service, check_host

_FAREWELL = 5
"""Seconds in which clients are told that their searches were ended, when the server ends."""

GONE = 499
"""Status of a request whose client did not wait; nobody reads it but the metrics."""

# The name or address in a Host header, which `request.url` would pass over where it is none.
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/?#@\[\]]+))(?::[0-9]*)?")


def authenticate(request: Request, api_key: str | None) -> None:
    """Refuse clients without the key; without a key, those that did not come by this machine's own name.

    A web page that had its own name resolved to this machine (DNS rebinding) still sends that name.

    Raises:
        APIError: If the client may not come in.
    """
    if api_key is None:
        host = request.headers.get("host", "")
        found = _HOST.fullmatch(host)
        if found is None or (found["address"] or found["name"]).lower() not in LOOPBACK:
            raise APIError(403, f"the host {host[:80]!r} is not served without an API key", kind="permission_error")
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        raise APIError(
            401, "no valid API key: send it as 'Authorization: Bearer ...'", kind="authentication_error",
            code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


async def load_json(request: Request, most: int) -> Any:
    """Return the body, which must say that it is JSON: a web page cannot send that here without being asked first.

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


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = place = CollectorRegistry()
        self._requests = Counter("inferscale_requests", "Requests answered.", ["path", "status"], registry=place)
        self._seconds = Histogram(
            "inferscale_request_seconds", "From a request to the end of its answer.", ["path"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600), registry=place,
        )  # fmt: skip
        self._searches = Counter("inferscale_searches", "Searches ended.", ["outcome"], registry=place)
        self._tokens = Counter(
            "inferscale_tokens", "Tokens read or sampled by searches that ended.", ["kind"], registry=place
        )
        self._flops = Counter("inferscale_flops", "FLOPs of searches that ended.", ["part"], registry=place)
        self._active = Gauge("inferscale_searches_active", "Searches that have begun.", registry=place)
        self._waiting = Gauge("inferscale_searches_waiting", "Searches that wait for a place.", registry=place)

    def watch(self, dispatcher: Dispatcher) -> None:
        """Take the gauges from the dispatcher."""
        self._active.set_function(lambda: dispatcher.num_active)
        self._waiting.set_function(lambda: dispatcher.num_waiting)

    def ended(self, job: Job, outcome: str) -> None:
        """Count a search."""
        self._searches.labels(outcome).inc()
        cost = job.cost
        for kind in ("prompt", "generated", "thought", "scored"):
            self._tokens.labels(kind).inc(getattr(cost, f"{kind}_tokens"))
        for part in ("generator", "reward"):
            self._flops.labels(part).inc(getattr(cost, f"{part}_flops"))

    def answered(self, path: str, started: float, status: int) -> None:
        """Count a request that came at `started`, on the clock of `time.perf_counter`."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class App:
    """Takes requests, hands their searches to the dispatcher, and sends the replies.

    Attributes:
        service: The models, and limits.
        metrics: Counts.
        dispatcher: Runs the searches.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.metrics = service, Metrics()
        limits = service.limits
        self.dispatcher = Dispatcher(service.make_solver(), limits.max_active, limits.max_waiting, self.metrics.ended)
        self.metrics.watch(self.dispatcher)
        card = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "inferscale"}
        self._card: dict[str, Any] = {**card, "name": service.name}  # the last for Open WebUI

    def asgi(self) -> Starlette:
        """The application."""
        routes = [
            Route("/", self._page),
            Route("/healthz", self._healthz),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/chat/completions", partial(self._completions, "chat"), methods=["POST"]),
            Route("/v1/completions", partial(self._completions, "text"), methods=["POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Any], Response]] = {
            APIError: lambda request, error: _refusal(error),
            HTTPException: lambda request, error: _refusal(APIError(error.status_code, error.detail)),
            500: lambda request, error: _refusal(APIError(500, "the server failed", kind="server_error")),
        }
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.dispatcher.start()
        yield
        await asyncio.to_thread(self.dispatcher.close)

    # -- what costs nothing --------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        """A page that asks for an answer and shows the search; it holds no secret, so that no key is asked for."""
        service = self.service
        if service.api_key is None:
            authenticate(request, None)
        page = make_page(service.name, service.strategy, service.generator.takes_messages, service.api_key is not None)
        return HTMLResponse(page, headers=HEADERS)

    async def _healthz(self, request: Request) -> Response:
        """Says if searches are taken; open to everybody, for those who watch over the server."""
        ready = self.dispatcher.is_open
        return JSONResponse({"status": "ok" if ready else "shutting down"}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        authenticate(request, self.service.api_key)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        authenticate(request, self.service.api_key)
        return JSONResponse({"object": "list", "data": [self._card]})

    async def _model(self, request: Request) -> Response:
        authenticate(request, self.service.api_key)
        if request.path_params["model"] != self.service.name:
            raise APIError(404, f"{self.service.name!r} is served, and no other model", code="model_not_found")
        return JSONResponse(self._card)

    # -- searches ------------------------------------------------------------------------------------------------

    async def _completions(self, endpoint: Endpoint, request: Request) -> Response:
        """The reply, or the first event of a stream of events."""
        answered = partial(self.metrics.answered, request.url.path, time.perf_counter())
        try:
            authenticate(request, self.service.api_key)
            body = await load_json(request, self.service.limits.max_body_bytes)
            asked = CompletionRequest.parse(body, endpoint, self.service)
            jobs, reply = asked.jobs(), Reply(asked, self.service.name)
            try:
                self.dispatcher.submit(jobs)
            except BusyError as error:
                raise APIError(
                    429, f"{error}: try again in {error.retry_after} s", kind="rate_limit_error",
                    code="too_many_searches", headers={"Retry-After": str(error.retry_after)},
                ) from None  # fmt: skip
            except ClosedError as error:
                raise _failure(error) from None
            if asked.stream:
                events = self._events(reply, jobs, answered)
                return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            response: Response = _JSON(reply.whole(await _results(request.receive, jobs)))
        except APIError as error:
            response = _refusal(error)
        except ClientDisconnect:
            response = Response(status_code=GONE)
        except BaseException:
            answered(500)
            raise
        answered(response.status_code)
        return response

    async def _events(self, reply: Reply, jobs: list[Job], answered: Callable[[int], None]) -> AsyncIterator[bytes]:
        """Progress while the searches run, each answer when it is there, then the bill if it is wanted."""
        futures = {asyncio.wrap_future(job.future): index for index, job in enumerate(jobs)}
        open_futures, status = set(futures), 500
        try:
            while open_futures:
                waiting = sorted(futures[future] for future in open_futures)
                yield _event(reply.progress({index: jobs[index].progress() for index in waiting}))
                seconds = self.service.limits.progress_seconds
                done, open_futures = await asyncio.wait(
                    open_futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                for future in done:
                    for event in reply.found(futures[future], _result(future)):
                        yield _event(event)
            if reply.request.include_usage:
                yield _event(reply.total([future.result() for future in futures]))
            yield _DONE
            status = 200
        except APIError as error:
            status = error.status
            yield _event(error.body())
            if status == 503:  # nothing has failed: clients may read on to the end that they know
                yield _DONE
        except (asyncio.CancelledError, GeneratorExit):
            status = GONE
            raise
        finally:
            _cancel(jobs, futures)
            answered(status)


async def _results(receive: Callable[[], Awaitable[Any]], jobs: list[Job]) -> list[SearchResult]:
    """The results; when one fails or the client goes, the searches that are left are cancelled.

    Raises:
        APIError: If one failed.
        ClientDisconnect: If the client has gone.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    futures = [asyncio.wrap_future(job.future) for job in jobs]
    gone = asyncio.ensure_future(disconnected())
    try:
        left: set[asyncio.Future[Any]] = {*futures}
        while left:
            done, _ = await asyncio.wait({*left, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                raise ClientDisconnect
            for future in done:
                _result(future)
            left -= done
        return [future.result() for future in futures]
    finally:
        gone.cancel()
        _cancel(jobs, futures)


def _result(future: asyncio.Future[SearchResult]) -> SearchResult:
    """The result of a search that has ended; an `APIError` if it failed."""
    error = future.exception()
    if error is not None:
        raise _failure(error) from error
    return future.result()


def _failure(error: BaseException) -> APIError:
    """The error that a client is sent for a search that failed."""
    if isinstance(error, UnreadablePromptError):
        return APIError(400, str(error), code="context_length_exceeded", param="prompt")
    if isinstance(error, ClosedError):
        return APIError(503, str(error), kind="server_error", code="shutting_down", headers={"Retry-After": "10"})
    return APIError(500, f"the search failed: {error}", kind="server_error", code="search_failed")


def _cancel(jobs: Iterable[Job], futures: Iterable[asyncio.Future[Any]]) -> None:
    """End the searches that nobody waits for any more."""
    for job, future in zip(jobs, futures, strict=True):
        job.future.cancel()
        future.cancel()
        if not future.cancelled():
            future.exception()  # seen: asyncio warns of errors that nobody looked at


class _JSON(JSONResponse):
    """A JSON body; half a character, which clients may send and models may write, becomes a question mark."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="replace")


def _refusal(error: APIError) -> Response:
    return _JSON(error.body(), error.status, headers=error.headers)


_DONE = b"data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _JSON(body).body + b"\n\n"


def make_server(service: Service, host: str, port: int, shutdown_seconds: int) -> Any:
    """The server that `inferscale.serve.run_server` runs (uvicorn's).

    Raises:
        ValueError: If others than this machine could connect, and there is no API key.
    """
    check_host(host, service.api_key)
    uvicorn: Any = require("uvicorn", "serve")
    app = App(service)

    class Server(uvicorn.Server):  # type: ignore[misc]
        """Refuses new searches as soon as it is told to end, also those of connections that are open."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.dispatcher.drain()
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: Any = None) -> None:
            """Has clients told, when their searches get no more time, before uvicorn cuts their connections."""
            end = asyncio.get_running_loop().call_later(shutdown_seconds, app.dispatcher.abandon)
            try:
                await super().shutdown(sockets)
            finally:
                end.cancel()

    config = uvicorn.Config(
        app.asgi(), host=host, port=port, timeout_graceful_shutdown=shutdown_seconds + _FAREWELL, server_header=False,
        ws="none", lifespan="on",
    )  # fmt: skip
    return Server(config)
