"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .dispatcher import Dispatcher
from .jobs import Job


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
        """Reads the gauges from the dispatcher."""
        self._active.set_function(lambda: dispatcher.num_active)
        self._waiting.set_function(lambda: dispatcher.num_waiting)

    def ended(self, job: Job, outcome: str) -> None:
        """Counts a search."""
        self._searches.labels(outcome).inc()
        cost = job.cost
        for kind in ("prompt", "generated", "thought", "scored"):
            self._tokens.labels(kind).inc(getattr(cost, f"{kind}_tokens"))
        for part in ("generator", "reward"):
            self._flops.labels(part).inc(getattr(cost, f"{part}_flops"))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
