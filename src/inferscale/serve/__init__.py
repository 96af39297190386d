"""Searches behind an OpenAI-compatible endpoint (extra ``serve``).

``inferscale serve --model policy-s --reward prm-s --strategy rebase`` by command; in Python a `Service` is run by
`run_server`, or turned into an ASGI application by `make_app`.
"""

from typing import Any

from inferscale._compat import require

from .service import Limits, Service

__all__ = ["Limits", "Service", "make_app", "run_server"]


def make_app(service: Service) -> Any:
    """Return an ASGI application (Starlette's) that serves `service`, to be mounted or run by a server of your own.

    Searches begin with the first request. Where it is mounted nobody tells it of the server's end: searches that run
    then are lost.

    Raises:
        ImportError: If the packages of the extra ``serve`` are not there.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.serve import Service, make_app
        >>> from starlette.testclient import TestClient  # in place of a server such as uvicorn
        >>> app = make_app(Service(isc.testing.ToyGenerator(), name="toy"))
        >>> with TestClient(app, base_url="http://127.0.0.1") as client:
        ...     reply = client.post("/v1/completions", json={"model": "toy", "prompt": "How many?"}).json()
        >>> reply["choices"][0]["text"].splitlines()[-1]
        'The answer is 1'
    """
    for package in ("starlette", "prometheus_client"):
        require(package, "serve")
    from .app import App

    return App(service).asgi()


def run_server(service: Service, host: str = "127.0.0.1", port: int = 8000, shutdown_seconds: int = 60) -> None:
    """Serve until told to end (SIGINT or SIGTERM): searches that run then go on, and new ones are refused.

    Args:
        service: The models, and limits.
        host: Address to listen at.
        port: Port; 0 takes a free one, which the log tells.
        shutdown_seconds: Searches that have not ended after so long are cancelled.

    Raises:
        ValueError: If others than this machine could connect, and there is no API key.
        ImportError: If the packages of the extra ``serve`` are not there.

    Example:
        Needs the extra ``serve``, and returns when it is told to end::

            from inferscale import serve, zoo

            generator = isc.HFGenerator(*zoo.load("policy-s"))
            serve.run_server(serve.Service(generator, name="policy-s", strategy="sampling", width=8), port=8000)
    """
    for package in ("uvicorn", "starlette", "prometheus_client"):
        require(package, "serve")
    from .app import make_server

    make_server(service, host, port, shutdown_seconds).run()
