"""The endpoints."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .answering import Answer
from .asking import Endpoint, read_ask
from .dispatcher import Dispatcher
from .errors import APIError
from .gate import check_client, read_json
from .jobs import BusyError, ClosedError, Job
from .metrics import Metrics
from .service import Service
from .waiting import cancel, failure_of, result_of, results_of

_GONE = 499
"""Status of a request whose client did not wait; nobody reads it but the metrics."""


class App:
    """Reads requests, hands their searches to the dispatcher, and writes the answers.

    Attributes:
        service: What is served.
        metrics: Counts.
        dispatcher: Runs the searches.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.metrics = service, Metrics()
        limits = service.limits
        self.dispatcher = Dispatcher(
            service.generator, service.reward_model, limits.max_active, limits.max_waiting, self.metrics.ended
        )
        self.metrics.watch(self.dispatcher)
        self._created = int(time.time())

    def asgi(self) -> Starlette:
        """The application."""
        routes = [
            Route("/healthz", self._healthz),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/chat/completions", partial(self._answer, "chat"), methods=["POST"]),
            Route("/v1/completions", partial(self._answer, "text"), methods=["POST"]),
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

    async def _healthz(self, request: Request) -> Response:
        """Whether searches are taken; open to everybody, for those who watch over the server."""
        ready = self.dispatcher.is_open
        return JSONResponse({"status": "ok" if ready else "shutting down"}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        check_client(request, self.service.api_key)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        check_client(request, self.service.api_key)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        check_client(request, self.service.api_key)
        if request.path_params["model"] != self.service.name:
            raise APIError(404, f"{self.service.name!r} is served, and no other model", code="model_not_found")
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {"id": self.service.name, "object": "model", "created": self._created, "owned_by": "inferscale"}

    # -- searches ------------------------------------------------------------------------------------------------

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        """The answer, or the first event of a stream of events."""
        answered = partial(self._answered, request.url.path, time.perf_counter())
        try:
            check_client(request, self.service.api_key)
            body = await read_json(request, self.service.limits.max_body_bytes)
            ask = read_ask(body, endpoint, self.service)
            jobs, answer = ask.jobs(), Answer(ask, self.service.name)
            self._submit(jobs)
            if ask.stream:
                events = self._events(answer, jobs, answered)
                return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            response: Response = _JSON(answer.whole(await results_of(request, jobs)))
        except APIError as error:
            response = _refusal(error)
        except ClientDisconnect:
            response = Response(status_code=_GONE)
        except BaseException:
            answered(500)
            raise
        answered(response.status_code)
        return response

    def _answered(self, path: str, started: float, status: int) -> None:
        self.metrics.answered(path, status, time.perf_counter() - started)

    def _submit(self, jobs: list[Job]) -> None:
        try:
            self.dispatcher.submit(jobs)
        except BusyError as error:
            raise APIError(
                429, f"{error}: try again in {error.retry_after} s", kind="rate_limit_error", code="too_many_searches",
                headers={"Retry-After": str(error.retry_after)},
            ) from None  # fmt: skip
        except ClosedError as error:
            raise failure_of(error) from None

    async def _events(self, answer: Answer, jobs: list[Job], answered: Callable[[int], None]) -> AsyncIterator[bytes]:
        """Progress while the searches run, each answer when it is there, then the bill if it is wanted."""
        futures = {asyncio.wrap_future(job.future): index for index, job in enumerate(jobs)}
        open_futures, status = set(futures), 500
        try:
            while open_futures:
                waiting = sorted(futures[future] for future in open_futures)
                yield _event(answer.progress({index: jobs[index].progress() for index in waiting}))
                wait = self.service.limits.progress_seconds
                done, open_futures = await asyncio.wait(open_futures, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    for event in answer.found(futures[future], result_of(future)):
                        yield _event(event)
            if answer.ask.include_usage:
                yield _event(answer.total([future.result() for future in futures]))
            yield b"data: [DONE]\n\n"
            status = 200
        except APIError as error:
            status = error.status
            yield _event(error.body())
        except (asyncio.CancelledError, GeneratorExit):
            status = _GONE
            raise
        finally:
            cancel(jobs, futures)
            answered(status)


class _JSON(JSONResponse):
    """A JSON body; half a character, which clients may send and models may write, becomes a question mark."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="replace")


def _refusal(error: APIError) -> Response:
    return _JSON(error.body(), error.status, headers=error.headers)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _JSON(body).body + b"\n\n"
