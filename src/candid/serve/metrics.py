"""Counters of the server in the Prometheus format."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "candid_requests",
            "Requests answered",
            ["route", "method", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "candid_request_seconds",
            "Time to answer a request",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("candid_requests_in_flight", "Requests in flight", registry=registry)
        self.connections = Gauge("candid_connections", "Open connections", registry=registry)
        self.connections_closed = Counter(
            "candid_connections_closed",
            "Connections closed by the server before or without an answer",
            ["reason"],
            registry=registry,
        )
        self.refused = Counter(
            "candid_refused",
            "Requests refused for lack of capacity or time",
            ["reason"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "candid_batch_size", "Queries of a batch", ["queue"], buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "candid_batch_seconds",
            "Time to encode and search a batch",
            ["queue"],
            buckets=SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "candid_wait_seconds",
            "Time a query waits in its queue",
            ["queue"],
            buckets=SECONDS,
            registry=registry,
        )
        self.reloads = Counter(
            "candid_reloads", "Reloads of a model", ["model", "result"], registry=registry
        )
        self.model_version = Gauge(
            "candid_model_version", "Version of a model in use", ["model"], registry=registry
        )
        self.items = Gauge(
            "candid_items", "Items that can be recommended", ["model"], registry=registry
        )

    def to_text(self) -> bytes:
        """Return all counters as ``/metrics`` serves them."""
        return generate_latest(self.registry)
