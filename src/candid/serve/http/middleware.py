"""Middleware around all routes: keys, rate limit, capacity, metrics, log, and unexpected errors.

A plain ASGI application; it buffers neither requests nor responses.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from hashlib import sha256
from time import perf_counter
from typing import Any, Final

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, internal_error
from candid.serve.http.errors import body_of, headers_of, status_of
from candid.serve.http.rate_limits import TokenBuckets
from candid.serve.logs import error_fields, log_event
from candid.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/"})
"""Paths without a key: they contain no data of users or items; the page asks for a key itself."""
UNLIMITED_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are answered at any load."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)
"""Headers of every response, unless a route sets its own."""


@dataclass(frozen=True)
class ApiKeys:
    """Keys of clients.

    Attributes:
        read: for queries; empty: queries need no key.
        admin: for item updates and reloads, and for queries too; empty: updates and reloads are
            refused.
    """

    read: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ApiKeys({len(self.read)} read, {len(self.admin)} admin)"

    def check(self, key: str | None, needs_admin: bool) -> None:
        """Check the key of a request in constant time.

        Raises:
            RequestError: a key is missing or wrong.
        """
        if needs_admin and not self.admin:
            raise RequestError(
                "needs_key",
                "item updates and reloads need a server that was started with an admin key",
            )
        required = self.admin if needs_admin else self.read
        if not required:
            return
        if key is None:
            raise RequestError(
                "no_key",
                "this server needs a key; send it as Authorization: Bearer KEY or X-API-Key: KEY",
            )
        accepted = self.admin if needs_admin else (*self.read, *self.admin)
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Compare all of them, so that the time does not reveal which one matches.
        matches = [hmac.compare_digest(digest, sha256(k.encode()).digest()) for k in accepted]
        if not any(matches):
            raise RequestError("wrong_key", "the server does not accept this key for this request")


class RequestMiddleware:
    """Middleware that checks, counts and logs every request.

    Args:
        routes: the application with the routes.
        config: limits.
        keys: of clients.
        metrics: of the server.
    """

    def __init__(
        self,
        routes: Application,
        *,
        config: ServeConfig,
        keys: ApiKeys,
        metrics: Metrics,
    ) -> None:
        self._routes = routes
        self._config = config
        self._keys = keys
        self._metrics = metrics
        self._in_flight = 0
        self._buckets: TokenBuckets | None = None
        if config.rate is not None:
            self._buckets = TokenBuckets(
                rate=config.rate, burst=config.burst, max_clients=config.max_clients
            )

    def __repr__(self) -> str:
        return f"RequestMiddleware(keys={self._keys}, buckets={self._buckets})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._routes(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        started, response = perf_counter(), _Response(send)
        self._in_flight += 1
        self._metrics.in_flight.inc()
        try:
            self._check(scope)
            await self._routes(scope, receive, response)
        except RequestError as error:
            await response.send_error(error)
        except Exception as error:
            # The outermost boundary: unexpected errors get the common error body as well.
            log_event("failed", logging.ERROR, route=_route(scope), **error_fields(error))
            await response.send_error(internal_error())
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.dec()
            self._record(scope, response.status, perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Check capacity, rate and key of a request; raises RequestError."""
        path = scope["path"]
        if path in UNLIMITED_PATHS:
            return
        if self._in_flight > self._config.max_requests:
            self._metrics.refused.labels("requests").inc()
            raise RequestError(
                "overloaded",
                f"{self._in_flight} requests are in flight; try again later",
                retry_after=1,
            )
        if self._buckets is not None:
            # By address, not by key: the key is not checked yet, and clients can invent keys.
            client = scope.get("client")
            wait = self._buckets.take("" if client is None else str(client[0]))
            if wait:
                self._metrics.refused.labels("rate").inc()
                raise RequestError(
                    "too_many_requests",
                    f"more than {self._config.rate:g} requests per second; try again later",
                    retry_after=wait,
                )
        if path in PUBLIC_PATHS or path.startswith("/static/"):
            return
        needs_admin = path.startswith("/v1/admin/") or scope["method"] in ("PUT", "DELETE", "PATCH")
        self._keys.check(_key(scope["headers"]), needs_admin)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log an answered request."""
        route, method = _route(scope), _method(scope)
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        # Probes come every second and would fill the log.
        if route in UNLIMITED_PATHS or not self._config.log_requests:
            return
        level = logging.WARNING if status >= 500 else logging.INFO
        ms = round(seconds * 1000, 2)
        log_event("request", level, route=route, method=method, status=status, ms=ms)


class _Response:
    """A ``send`` that records the status of the response and adds the common headers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message["headers"]}
            message = {
                **message,
                "headers": [
                    *message["headers"],
                    *(header for header in HEADERS if header[0] not in present),
                ],
            }
        await self._send(message)

    async def send_error(self, error: RequestError) -> None:
        if self.status:
            return  # The response has begun: its status cannot change any more.
        body = body_of(error)
        headers = headers_of(error) | {"content-length": str(len(body))}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": status_of(error), "headers": encoded})
        await self({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """Return the pattern of the route, never the path itself, which may contain ids."""
    path = getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        return path
    return scope["path"] if scope["path"] in PUBLIC_PATHS else "other"


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def _key(headers: list[tuple[bytes, bytes]]) -> str | None:
    values: Mapping[bytes, bytes] = dict(headers)
    authorization = values.get(b"authorization", b"")
    if authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip().decode("utf-8", "surrogateescape")
    key = values.get(b"x-api-key")
    return None if key is None else key.decode("utf-8", "surrogateescape")
