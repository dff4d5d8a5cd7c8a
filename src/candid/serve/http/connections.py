"""Connections of a server: their number, their limits of time, and a log line where one is closed.

A connection waits for a request until its head is complete. Where there is no place for a new
connection, the one that has waited longest is closed, so that connections without a request take no
place from others.
"""

from __future__ import annotations

import logging
import resource
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from candid.errors import ConfigError
from candid.serve.config import ServeConfig
from candid.serve.logs import log_event
from candid.serve.metrics import Metrics

RESERVED_DESCRIPTORS: Final = 200
"""File descriptors that are left to models, indexes, logs and new connections being refused."""
DEFAULT_CONNECTIONS: Final = 10_000
"""Connections by default, where there are descriptors for more: one needs about 10 KB of memory."""
LOG_SECONDS: Final = 10.0
"""Seconds between two log lines about closed connections."""


class Connection(Protocol):
    """A connection that can be closed while it waits for a request."""

    def close_idle(self) -> None:
        """Close the connection: there is no place for it."""

    def refuse_slow_head(self) -> None:
        """Close the connection: the head of its request has not arrived in time."""


class Connections:
    """The open connections of a server, in the order in which they began to wait for a request.

    Args:
        config: limits.
        metrics: of the server.
        clock: returns seconds.
    """

    def __init__(
        self, config: ServeConfig, metrics: Metrics, clock: Callable[[], float] = monotonic
    ) -> None:
        self.config = config
        self._metrics = metrics
        self._clock = clock
        self._limit = config.max_connections or DEFAULT_CONNECTIONS
        self._count = 0
        # By connection: the time since which it waits. A dict keeps the order of insertion.
        self._waiting: dict[Connection, float] = {}
        # Those of them whose head must be complete in time: new ones, and begun heads.
        self._heads: dict[Connection, float] = {}
        self._closed: Counter[str] = Counter()
        self._logged = -LOG_SECONDS

    def __repr__(self) -> str:
        return f"Connections({self._count} of {self._limit}, {len(self._waiting)} waiting)"

    def add(self, connection: Connection) -> bool:
        """Count a new connection; return whether there is a place for it.

        The connection that has waited longest for a request is closed if all places are taken.
        """
        self._count += 1
        self._metrics.connections.set(self._count)
        if self._count > self._limit:
            self.count_closed("limit")
            if not self._waiting:
                return False
            oldest = next(iter(self._waiting))
            self.end_wait(oldest)
            oldest.close_idle()
        self.begin_head(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._count -= 1
        self._metrics.connections.set(self._count)
        self.end_wait(connection)

    def begin_wait(self, connection: Connection) -> None:
        """Note that a connection waits for its next request."""
        self._waiting[connection] = self._clock()

    def begin_head(self, connection: Connection) -> None:
        """Note that the head of a request must be complete in time."""
        if connection not in self._heads:
            now = self._clock()
            self._heads[connection] = now
            self._waiting.setdefault(connection, now)

    def end_wait(self, connection: Connection) -> None:
        """Note that the head of a request is complete."""
        self._waiting.pop(connection, None)
        self._heads.pop(connection, None)

    def sweep(self) -> None:
        """Close connections whose head is late; called several times per second."""
        now = self._clock()
        limit = self.config.head_timeout_ms / 1000
        late = []
        for connection, since in self._heads.items():
            if now - since < limit:
                break
            late.append(connection)
        for connection in late:
            self.end_wait(connection)
            connection.refuse_slow_head()
        if self._closed and now - self._logged >= LOG_SECONDS:
            self._log(now)

    def count_closed(self, reason: str) -> None:
        """Count a connection that the server closes, in the metrics and the next log line."""
        self._metrics.connections_closed.labels(reason).inc()
        self._closed[reason] += 1

    def _log(self, now: float) -> None:
        log_event(
            "connections closed", logging.WARNING, reasons=dict(self._closed), open=self._count
        )
        self._closed.clear()
        self._logged = now


def with_connection_limit(config: ServeConfig) -> ServeConfig:
    """Raise the limit of descriptors of the process, and return a config with ``max_connections``.

    Raises:
        ConfigError: ``max_connections`` needs more descriptors than the process may open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Without the right to do so the soft limit stays, and the number below fits it.
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    available = max(1, soft - RESERVED_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY:
        available = DEFAULT_CONNECTIONS
    if config.max_connections is None:
        number = min(DEFAULT_CONNECTIONS, available)
        return config.model_copy(update={"max_connections": number})
    if soft != resource.RLIM_INFINITY and config.max_connections > available:
        raise ConfigError(
            f"max_connections = {config.max_connections} needs "
            f"{config.max_connections + RESERVED_DESCRIPTORS} file descriptors and this process "
            f"may open {soft}; raise the limit (ulimit -n, LimitNOFILE) or set max_connections to "
            f"at most {available}"
        )
    return config
