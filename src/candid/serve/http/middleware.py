"""Middleware around all routes: access rules, rate limit, capacity, metrics, log, and errors.

A plain ASGI application; it buffers neither requests nor responses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from time import perf_counter
from typing import Any, Final

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, internal_error
from candid.serve.http.access import AccessRules
from candid.serve.http.errors import body_of, headers_of, status_of
from candid.serve.http.rate_limits import TokenBuckets
from candid.serve.http.raw_answers import HEADERS
from candid.serve.logs import error_fields, log_event
from candid.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ON_DISCONNECT: Final = "candid.on_disconnect"
"""Key of the scope: a function that registers what to call when the client has gone."""
PUBLIC_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/"})
"""Paths without a key: they contain no data of users or items; the page asks for a key itself."""
UNLIMITED_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are answered at any load."""
QUERY_PATHS: Final = {
    "/v1/recommend": False,
    "/v1/recommend/batch": False,
    "/v1/similar": True,
}
"""Paths whose requests wait in a queue, and whether all of them are slow; they are refused before
their body is read where the queue has no capacity."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
PAGE_HEADERS: Final = (
    *HEADERS,
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
        b"form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of the page and its files: the page loads from and calls this server only, cannot turn
text into HTML, and cannot be shown inside another page."""
CLIENT_GONE: Final = 499
"""Status in log and metrics of a request whose client closed the connection before the answer."""


WARN_SECONDS: Final = 10.0
"""Seconds between two warnings about refused requests."""


class RequestMiddleware:
    """Middleware that checks, counts and logs every request.

    Args:
        routes: the application with the routes.
        config: limits.
        access: keys, host names and proxies.
        metrics: of the server.
        check_capacity: called with whether a query is slow; raises RequestError if its queue has
            no capacity. None: queries are refused by their queue only.
    """

    def __init__(
        self,
        routes: Application,
        *,
        config: ServeConfig,
        access: AccessRules,
        metrics: Metrics,
        check_capacity: Callable[[bool], None] | None = None,
    ) -> None:
        self._routes = routes
        self._config = config
        self._access = access
        self._metrics = metrics
        self._check_capacity = check_capacity
        self._in_flight = 0
        self._num_refused = 0
        self._warned = -WARN_SECONDS
        self._buckets: TokenBuckets | None = None
        if config.rate is not None:
            self._buckets = TokenBuckets(
                rate=config.rate, burst=config.burst, max_clients=config.max_clients
            )

    def __repr__(self) -> str:
        return f"RequestMiddleware(access={self._access}, buckets={self._buckets})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._routes(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        started, response = perf_counter(), _Response(send, scope)
        self._in_flight += 1
        self._metrics.in_flight.inc()
        _cancel_if_gone(scope, response)
        if scope["method"] == "HEAD":
            # The server sends the headers of GET and leaves out the body.
            scope = {**scope, "method": "GET"}
        try:
            self._check(scope)
            await self._routes(scope, receive, response)
        except RequestError as error:
            await response.send_error(error)
        except asyncio.CancelledError:
            if not response.is_gone:
                raise
            response.status = CLIENT_GONE
            self._metrics.refused.labels("client_gone").inc()
        except Exception as error:
            # The outermost boundary: unexpected errors get the common error body as well.
            log_event("failed", logging.ERROR, route=_route(scope), **error_fields(error))
            await response.send_error(internal_error())
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.dec()
            self._record(scope, response.status, perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Check host, capacity, rate and key of a request; raises RequestError."""
        path = scope["path"]
        if path in UNLIMITED_PATHS:
            return
        headers = scope["headers"]
        self._access.hosts.check(_host(scope, headers))
        if self._in_flight > self._config.max_requests:
            self._metrics.refused.labels("requests").inc()
            raise RequestError(
                "overloaded",
                f"{self._in_flight} requests are in flight; try again later",
                retry_after=1,
            )
        if self._buckets is not None:
            # By address, not by key: the key is not checked yet, and clients can invent keys.
            peer = scope.get("client")
            client = "" if peer is None else self._access.proxies.client_of(peer[0], headers)
            wait = self._buckets.take(client)
            if wait:
                self._metrics.refused.labels("rate").inc()
                raise RequestError(
                    "too_many_requests",
                    f"more than {self._config.rate:g} requests per second; try again later",
                    retry_after=wait,
                )
        if path in PUBLIC_PATHS or path.startswith("/static/"):
            return
        self._access.keys.check(_key(headers), _needs_admin(scope))
        is_slow = QUERY_PATHS.get(path)
        if is_slow is not None and self._check_capacity is not None:
            self._check_capacity(is_slow)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log an answered request."""
        route, method = _route(scope), _method(scope)
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if status == 503:
            self._warn_of_refusals()
        # Probes come every second and would fill the log.
        if route in UNLIMITED_PATHS or not self._config.log_requests:
            return
        # A line above INFO is written at once, which costs more than a refusal under overload.
        level = logging.WARNING if status >= 500 and status != 503 else logging.INFO
        ms = round(seconds * 1000, 2)
        log_event("request", level, route=route, method=method, status=status, ms=ms)

    def _warn_of_refusals(self) -> None:
        """Log the number of refused requests, at most once in some seconds."""
        self._num_refused += 1
        now = perf_counter()
        if now - self._warned >= WARN_SECONDS:
            log_event("overloaded", logging.WARNING, refused=self._num_refused)
            self._num_refused, self._warned = 0, now


class _Response:
    """A ``send`` that records the status of the response and adds the common headers.

    Attributes:
        status: of the response; 0: none has been sent.
        is_gone: whether the client closed the connection before the answer.
    """

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        path = scope["path"]
        self._headers = PAGE_HEADERS if path == "/" or path.startswith("/static/") else HEADERS
        self.status = 0
        self.is_gone = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message["headers"]}
            message = {
                **message,
                "headers": [
                    *message["headers"],
                    *(header for header in self._headers if header[0] not in present),
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


def _cancel_if_gone(scope: Scope, response: _Response) -> None:
    """Cancel the task of a request as soon as its client closes the connection.

    Item updates and reloads are completed: their effect does not depend on the answer.
    """
    register = scope.get(ON_DISCONNECT)
    if register is None or _needs_admin(scope):
        return
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        response.is_gone = True
        task.cancel()

    register(cancel)


def _needs_admin(scope: Scope) -> bool:
    """Whether a request changes something."""
    return scope["method"] in ("PUT", "DELETE", "PATCH") or scope["path"].startswith("/v1/admin/")


def _host(scope: Scope, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the Host header of a request.

    Raises:
        RequestError: there are several, or HTTP/1.1 without one.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and scope.get("http_version") == "1.1"):
        raise RequestError("bad_request", "a request needs exactly one Host header")
    return hosts[0] if hosts else b""


def _route(scope: Scope) -> str:
    """Return the pattern of the route, never the path itself, which may contain ids."""
    route = scope.get("route")
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
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
