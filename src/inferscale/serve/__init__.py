"""Searches behind an OpenAI-compatible endpoint (extra ``serve``).

``inferscale serve --model policy-s --reward prm-s --strategy rebase`` by command; in Python a `Service` is run by
`run_server`, or turned into an ASGI application by `make_app`.
"""

from .service import Limits, Service, make_app, run_server

__all__ = ["Limits", "Service", "make_app", "run_server"]
