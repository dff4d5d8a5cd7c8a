"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter(
            "candid_requests", "Requests answered", ["route", "method", "status"], registry=here
        )
        self.seconds = Histogram(
            "candid_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=here
        )
        self.in_flight = Gauge(
            "candid_requests_in_flight", "Requests being answered", registry=here
        )
        self.refused = Counter(
            "candid_refused", "Requests refused for want of room or time", ["reason"], registry=here
        )
        self.batch_size = Histogram(
            "candid_batch_size", "Queries answered together", ["lane"], buckets=SIZES, registry=here
        )
        self.batch_seconds = Histogram(
            "candid_batch_seconds",
            "Time to encode and search a batch",
            ["lane"],
            buckets=SECONDS,
            registry=here,
        )
        self.waited = Histogram(
            "candid_wait_seconds",
            "Time a query waits for its batch",
            ["lane"],
            buckets=SECONDS,
            registry=here,
        )
        self.reloads = Counter(
            "candid_reloads", "Reloads of a model", ["model", "result"], registry=here
        )
        self.generation = Gauge(
            "candid_generation", "Generation of a model that answers", ["model"], registry=here
        )
        self.items = Gauge(
            "candid_items", "Items that may be recommended", ["model"], registry=here
        )

    def text(self) -> bytes:
        """All of them, as ``/metrics`` gives them."""
        return generate_latest(self.registry)
