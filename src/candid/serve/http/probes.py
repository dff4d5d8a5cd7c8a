"""Probes on a port and a thread of their own: health, readiness and metrics under any load.

The event loop of the server may be busy with a batch or with many requests. Probes on the port of
the server wait for it; those of this port do not.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import uvicorn
from pydantic_core import to_json

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.http.connections import Connections
from candid.serve.http.errors import body_of, headers_of, status_of
from candid.serve.http.middleware import HEADERS, Receive, Scope, Send
from candid.serve.http.protocol import uvicorn_config
from candid.serve.metrics import Metrics

STALLED_SECONDS: Final = 30.0
"""Seconds without a round of the server's event loop after which ``/healthz`` returns 503."""
MAX_CONNECTIONS: Final = 100
"""Connections of the port of the probes."""
JSON: Final = "application/json"
METRICS_TYPE: Final = "text/plain; version=0.0.4"


class ServerStatus:
    """Status of a server, as its probes report it.

    Args:
        clock: returns seconds.

    Attributes:
        not_ready: reason why no requests should be sent; None: the server is ready.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self.not_ready: str | None = "the server loads its models"

    def beat(self) -> None:
        """Note a round of the event loop of the server."""
        self._last = self._clock()

    def check_alive(self) -> None:
        """Check that the event loop of the server runs.

        Raises:
            RequestError: its last round was too long ago.
        """
        seconds = 0.0 if self._last is None else self._clock() - self._last
        if seconds > STALLED_SECONDS:
            raise RequestError(
                "not_ready", f"the server has not read a request for {seconds:.0f} seconds"
            )

    def check_ready(self) -> None:
        """Check that the server accepts requests.

        Raises:
            RequestError: it does not.
        """
        self.check_alive()
        if self.not_ready is not None:
            raise RequestError("not_ready", self.not_ready, retry_after=1)


class ProbeServer:
    """Server of ``/healthz``, ``/readyz`` and ``/metrics`` in a thread.

    Args:
        sock: bound socket; closed by ``stop``.
        status: of the server.
        to_text: returns the content of ``/metrics``.
    """

    def __init__(
        self, sock: socket.socket, status: ServerStatus, to_text: Callable[[], bytes]
    ) -> None:
        self._sock = sock
        self._status = status
        self._to_text = to_text
        # Counted apart: the metrics of the server are those of its own port.
        connections = Connections(ServeConfig(max_connections=MAX_CONNECTIONS), Metrics())
        self._server = _ProbeUvicorn(
            uvicorn_config(
                self._answer,
                connections,
                interface="asgi3",
                lifespan="off",
                timeout_graceful_shutdown=1,
            ),
            connections,
        )
        self._thread = threading.Thread(target=self._run, name="candid-probes", daemon=True)

    def __repr__(self) -> str:
        return f"ProbeServer({self.address})"

    @property
    def address(self) -> tuple[Any, ...]:
        """Address that it listens on, as the socket has it."""
        name: tuple[Any, ...] = self._sock.getsockname()
        return name

    def start(self) -> None:
        """Answer probes from now on."""
        self._sock.listen()
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the socket."""
        self._server.should_exit = True
        self._thread.join(5)
        self._sock.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._sock])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: a small ASGI application."""
        try:
            media_type, content = self._content_of(scope["path"], scope["method"])
            status, headers = 200, {"content-type": media_type}
        except RequestError as error:
            status, headers, content = status_of(error), headers_of(error), body_of(error)
        headers["content-length"] = str(len(content))
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": status, "headers": [*encoded, *HEADERS]}
        await send(start)
        await send({"type": "http.response.body", "body": content})

    def _content_of(self, path: str, method: str) -> tuple[str, bytes]:
        if path not in ("/healthz", "/readyz", "/metrics"):
            raise RequestError("not_found", "this port answers /healthz, /readyz and /metrics only")
        if method not in ("GET", "HEAD"):
            raise RequestError("bad_method", "this address does not support this method")
        if path == "/metrics":
            return METRICS_TYPE, self._to_text()
        if path == "/readyz":
            self._status.check_ready()
            return JSON, to_json({"status": "ready"})
        self._status.check_alive()
        return JSON, to_json({"status": "alive"})


class _ProbeUvicorn(uvicorn.Server):
    """uvicorn's server in a thread, without signals."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Close connections that are late."""
        self._connections.sweep()
        return await super().on_tick(counter)
