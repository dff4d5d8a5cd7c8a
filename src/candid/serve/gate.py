"""What every request passes: key, rate, room, metrics, log, and the last word on errors.

A plain ASGI application around the routes: nothing of a request or response is held back.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from hashlib import sha256
from time import perf_counter
from typing import Any

from candid.serve.config import ServeConfig
from candid.serve.limits import TokenBuckets
from candid.serve.logs import fault, tell
from candid.serve.metrics import Metrics
from candid.serve.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/"})
"""Paths that need no key: they tell nothing about users or items, and the page asks for one."""
ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are answered however busy the server is."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class Keys:
    """Who may ask, and who may change.

    Attributes:
        read: keys for questions; none: everybody may ask.
        admin: keys for changes of items and reloads, and for questions too; none: nobody may.
    """

    read: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def check(self, key: str | None, is_change: bool) -> None:
        """Refuse a request without the right key; the time it takes tells nothing of the keys.

        Raises:
            Problem: no key, or another.
        """
        if is_change and not self.admin:
            raise Problem("needs_key", "changes need a server that was started with an admin key")
        needed = self.admin if is_change else self.read
        if not needed:
            return
        if key is None:
            raise Problem(
                "no_key", "this needs a key: send it as Authorization: Bearer KEY or X-API-Key: KEY"
            )
        known = self.admin if is_change else (*self.read, *self.admin)
        given = sha256(key.encode("utf-8", "surrogateescape")).digest()
        # All are compared: which of them fits must not show either.
        matches = [hmac.compare_digest(given, sha256(k.encode()).digest()) for k in known]
        if not any(matches):
            raise Problem("wrong_key", "this key is not one of the server's for such requests")


class Gate:
    """Stands before the routes.

    Args:
        routes: the application behind.
        config: limits.
        keys: who may ask.
        metrics: told of every request.
    """

    def __init__(
        self,
        routes: Application,
        *,
        config: ServeConfig,
        keys: Keys,
        metrics: Metrics,
    ) -> None:
        self._routes = routes
        self._config = config
        self._keys = keys
        self._metrics = metrics
        self._in_flight = 0
        self._buckets = (
            None
            if config.rate is None
            else TokenBuckets(config.rate, config.burst, config.max_clients)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._routes(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        started, seen = perf_counter(), _Seen(send)
        self._in_flight += 1
        self._metrics.in_flight.inc()
        try:
            self._admit(scope)
            await self._routes(scope, receive, seen)
        except Problem as problem:
            await seen.fail(problem)
        except Exception as error:
            # The outermost boundary: whatever nobody foresaw is one form of error too.
            tell("failed", logging.ERROR, route=_route(scope), **fault(error))
            await seen.fail(Problem("internal", "the server failed; its log says where"))
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.dec()
            self._note(scope, seen.status, perf_counter() - started)

    def _admit(self, scope: Scope) -> None:
        path = scope["path"]
        if path in ALWAYS:
            return
        if self._in_flight > self._config.max_requests:
            self._metrics.refused.labels("requests").inc()
            raise Problem(
                "overloaded",
                f"{self._in_flight} requests are in flight: try again in a moment",
                retry_after=1,
            )
        headers = scope["headers"]
        key = _key(headers)
        client = scope.get("client")
        if self._buckets is not None:
            # By address, not by a key that nobody has checked yet: keys can be made up.
            wait = self._buckets.take("" if client is None else str(client[0]))
            if wait:
                self._metrics.refused.labels("rate").inc()
                raise Problem(
                    "too_many_requests",
                    f"more than {self._config.rate:g} requests a second: wait a moment",
                    retry_after=wait,
                )
        if path in OPEN or path.startswith("/static/"):
            return
        is_change = path.startswith("/v1/admin/") or scope["method"] in ("PUT", "DELETE", "PATCH")
        self._keys.check(key, is_change)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = _route(scope), _method(scope)
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        # Probes ask every second, and say nothing new.
        if route in ALWAYS or not self._config.log_requests:
            return
        level = logging.WARNING if status >= 500 else logging.INFO
        ms = round(seconds * 1000, 2)
        tell("request", level, route=route, method=method, status=status, ms=ms)


class _Seen:
    """Passes an answer on, notes its status and adds the headers that all have."""

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

    async def fail(self, problem: Problem) -> None:
        if self.status:
            return  # An answer has begun: all that is left is to end it.
        body = problem.body()
        headers = problem.headers() | {"content-length": str(len(body))}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """The route's pattern, never the path itself: that may hold ids."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    if isinstance(path, str):
        return path
    return scope["path"] if scope["path"] in OPEN else "other"


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    return scope["method"] if scope["method"] in known else "other"


def _key(headers: list[tuple[bytes, bytes]]) -> str | None:
    found: Mapping[bytes, bytes] = dict(headers)
    bearer = found.get(b"authorization", b"")
    if bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip().decode("utf-8", "surrogateescape")
    key = found.get(b"x-api-key")
    return None if key is None else key.decode("utf-8", "surrogateescape")
