"""A server for a `Service`."""

from __future__ import annotations

from types import FrameType
from typing import Any

from inferscale._optional import require

from .service import LOOPBACK, Service


def make_app(service: Service) -> Any:
    """An ASGI application (Starlette's) that serves `service`, to be mounted or run by a server of your own.

    Searches begin with the first request. Where it is mounted nobody tells it of the server's end: searches that run
    then are lost.

    Raises:
        ImportError: If the packages of the extra ``serve`` are not there.
    """
    return _app(service).asgi()


def run_server(service: Service, host: str = "127.0.0.1", port: int = 8000, shutdown_seconds: int = 60) -> None:
    """Serves until it is told to end (SIGINT or SIGTERM): searches that run then go on, and new ones are refused.

    Args:
        service: What is served.
        host: Address to listen at.
        port: Port; 0 takes a free one, which the log tells.
        shutdown_seconds: Searches that have not ended after so long are cancelled.

    Raises:
        ValueError: If others than this machine could connect, and there is no API key.
        ImportError: If the packages of the extra ``serve`` are not there.
    """
    make_server(service, host, port, shutdown_seconds).run()


def make_server(service: Service, host: str, port: int, shutdown_seconds: int) -> Any:
    """The server that `run_server` runs (uvicorn's)."""
    check_host(host, service.api_key)
    uvicorn: Any = require("uvicorn", "serve")
    app = _app(service)

    class Server(uvicorn.Server):  # type: ignore[misc]
        """Refuses new searches as soon as it is told to end, also those of connections that are open."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.dispatcher.drain()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app.asgi(), host=host, port=port, timeout_graceful_shutdown=shutdown_seconds, server_header=False, ws="none",
        lifespan="on",
    )  # fmt: skip
    return Server(config)


def check_host(host: str, api_key: str | None) -> None:
    """Raises a `ValueError` where anybody could come in."""
    if api_key is None and host not in LOOPBACK:
        raise ValueError(
            f"{host} can be reached from other machines: set INFERSCALE_API_KEY to the key that clients must present, "
            "or listen at 127.0.0.1"
        )


def _app(service: Service) -> Any:
    for package in ("starlette", "prometheus_client"):
        require(package, "serve")
    from .app import App

    return App(service)
