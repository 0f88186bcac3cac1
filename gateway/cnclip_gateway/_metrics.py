"""What is counted, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One gateway's counters.

    Attributes:
        under_way: Requests that are being answered.
        held: Bytes that requests hold.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of each a line more, which nobody reads
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cnclip_gateway_requests", "Requests answered", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "cnclip_gateway_request_seconds",
            "From a request's headers to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._items = Counter("cnclip_gateway_items", "Items encoded", ["kind"], registry=self._registry)
        self.under_way = Gauge(
            "cnclip_gateway_requests_under_way", "Requests that are being answered", registry=self._registry
        )
        self.held = Gauge("cnclip_gateway_held_bytes", "Bytes that requests hold", registry=self._registry)
        for kind in ("image", "text"):
            self._items.labels(kind)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def encoded(self, items: Iterable[object]) -> None:
        """Counts items that were encoded: texts, and pictures, which are all others."""
        kinds = ["text" if isinstance(one, str) else "image" for one in items]
        for kind in ("image", "text"):
            self._items.labels(kind).inc(kinds.count(kind))

    def text(self) -> bytes:
        """Returns all of it as Prometheus reads it."""
        return generate_latest(self._registry)
