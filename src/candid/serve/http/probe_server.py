"""The process that answers probes: health, readiness and metrics of a server under any load.

    python -P -m candid.serve.http.probe_server CHANNEL LISTENER

``CHANNEL`` and ``LISTENER`` are inherited descriptors: the socket pair to the server, and the
socket that listens. The server sends its status again and again, and health and readiness are
answered from the last one without waiting for the server. Metrics are those of the server when it
is asked. The process ends with the server. Needs the standard library and httptools alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from concurrent.futures import Future
from typing import Any, Final

import httptools

from candid.serve.channel import Channel, ChannelRequest
from candid.serve.errors import RequestError
from candid.serve.http.raw_answers import error_answer, raw_answer
from candid.serve.server_status import ServerStatus

MAX_CONNECTIONS: Final = 100
"""Open connections; with another one the oldest is closed."""
MAX_HEAD: Final = 65536
"""Bytes of the head of a request."""
HEAD_SECONDS: Final = 10.0
"""Time for the head of a request to arrive."""
METRICS_SECONDS: Final = 10.0
"""Time for the server to return its metrics."""
WRITE_SECONDS: Final = 10.0
"""Time for a client to read its answer."""
JSON: Final = "application/json"
METRICS_TYPE: Final = "text/plain; version=0.0.4"


class ProbeServer:
    """Answers to ``/healthz``, ``/readyz`` and ``/metrics``, one on each connection.

    Args:
        channel_socket: to the server.
    """

    def __init__(self, channel_socket: socket.socket) -> None:
        self._status = ServerStatus()
        self._channel = Channel(
            channel_socket, self._on_request, lambda: os._exit(0), name="candid-channel"
        )
        self._metrics: Future[Any] | None = None
        # In the order in which they were opened.
        self._open: dict[asyncio.Task[Any], None] = {}

    def __repr__(self) -> str:
        return f"ProbeServer({self._status})"

    async def run(self, listener: socket.socket) -> None:
        """Answer on a listening socket until the server ends."""
        self._channel.start()
        server = await asyncio.start_server(self._serve, sock=listener, limit=MAX_HEAD)
        await server.serve_forever()

    def _on_request(self, request: ChannelRequest) -> None:
        self._status.last_round = request.params["last_round"]
        self._status.not_ready = request.params["not_ready"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        # The client may go at any time, and its place may be needed.
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            writer.write(await self._answer(reader))
            async with asyncio.timeout(WRITE_SECONDS):
                await writer.drain()
        self._open.pop(task, None)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            method, path = await _read_request(reader)
            media_type, content = await self._content_of(path, method)
        except RequestError as error:
            return error_answer(error)
        answer = raw_answer(200, {"content-type": media_type}, content)
        return answer.removesuffix(content) if method == "HEAD" else answer

    async def _content_of(self, path: str, method: str) -> tuple[str, bytes]:
        if path not in ("/healthz", "/readyz", "/metrics"):
            raise RequestError("not_found", "this port answers /healthz, /readyz and /metrics only")
        if method not in ("GET", "HEAD"):
            raise RequestError("bad_method", "this address does not support this method")
        if path == "/metrics":
            return METRICS_TYPE, await self._read_metrics()
        if path == "/readyz":
            self._status.check_ready()
            return JSON, b'{"status":"ready"}'
        self._status.check_alive()
        return JSON, b'{"status":"alive"}'

    async def _read_metrics(self) -> bytes:
        # All who wait share one call, so that a server that hangs gets no more of them.
        if self._metrics is None or self._metrics.done():
            self._metrics = self._channel.begin("metrics")
        call = asyncio.shield(asyncio.wrap_future(self._metrics))
        try:
            async with asyncio.timeout(METRICS_SECONDS):
                text: str = await call
        except TimeoutError:
            raise RequestError(
                "timeout",
                f"the server has not returned its metrics within {METRICS_SECONDS:.0f} s",
                retry_after=1,
            ) from None
        return text.encode()


class _Request:
    """What the parser finds in the head of a request."""

    url = b""

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        self.url += url


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Return method and path of a request.

    Raises:
        RequestError: its head is malformed, too large or late.
    """
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        milliseconds = 1000 * HEAD_SECONDS
        raise RequestError(
            "slow_head", f"the head of the request took longer than {milliseconds:.0f} ms"
        ) from None
    except asyncio.LimitOverrunError:
        raise RequestError(
            "head_too_large", f"the head of a request has at most {MAX_HEAD} bytes"
        ) from None
    except asyncio.IncompleteReadError:
        raise ConnectionError from None  # The client has gone.
    request = _Request()
    parser = httptools.HttpRequestParser(request)
    try:
        with contextlib.suppress(httptools.HttpParserUpgrade):  # It is answered in HTTP/1.1.
            parser.feed_data(head)
        path = httptools.parse_url(request.url).path
    except httptools.HttpParserError:
        raise RequestError("bad_request", "this is not an HTTP/1.1 request") from None
    return parser.get_method().decode(), (path or b"").decode("ascii", "replace")


def main() -> None:
    """Answer probes on the descriptors in the arguments."""
    # The server handles the signals, and this process ends with it.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    asyncio.run(ProbeServer(channel).run(listener))


if __name__ == "__main__":
    main()
