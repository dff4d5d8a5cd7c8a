"""HTTP on one connection: uvicorn's protocol with limits of size and time for everything it reads.

uvicorn accepts a head of any size for any time, buffers pipelined requests without a bound, and
waits without a bound for a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from candid.serve.errors import RequestError
from candid.serve.http.connections import Connections
from candid.serve.http.middleware import ON_DISCONNECT
from candid.serve.http.raw_answers import error_answer

MAX_HEADERS: Final = 256
"""Header lines of a request."""
MAX_PIPELINED: Final = 64
"""Requests of one connection that wait for the answer of an earlier one."""
LINGER_SECONDS: Final = 2.0
"""Time after a refusal in which the rest of the request is read and dropped. A connection that is
closed with unread data is reset, and the client may lose the answer."""
BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})
H2C: Final = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class LimitedProtocol(HttpToolsProtocol):
    """One connection of the server.

    Attributes:
        all_connections: all connections of the server and their limits; set by ``protocol_class``.
    """

    all_connections: Connections

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # Bytes of the head, or of the frame of a chunk, since the last progress of the parser.
        self._unread = 0
        self._has_progress = False
        self._is_in_body = False
        self._is_head_begun = False
        self._is_lingering = False
        self._refusal: RequestError | None = None
        self._dropped_body = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._on_disconnect: Callable[[], None] | None = None
        self._answer_transport: _AnswerTransport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place among the connections, or refuse the connection."""
        super().connection_made(transport)
        self._answer_transport = _AnswerTransport(self)
        if not self.all_connections.add(self):
            self._is_lingering = True
            error = RequestError("overloaded", "the server has no place for another connection")
            transport.write(error_answer(error))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place, and cancel the request whose client has gone."""
        self.all_connections.remove(self)
        self._unset_keepalive_if_required()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self._is_answering and self._on_disconnect is not None:
            self._on_disconnect()
        self._on_disconnect = None
        self.pipeline.clear()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        """Whether a request has been read whose answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def close_idle(self) -> None:
        """Close the connection: it waits for a request, and there is no place for it."""
        self._close()

    def refuse_slow_head(self) -> None:
        """Close the connection: the head of its request has not arrived in time."""
        if self._is_answering:
            return  # The wait for the next head begins after the answer.
        if not self._unread and not self._is_head_begun:
            self.all_connections.count_closed("no_request")
            self._close()  # An answer without a request would only confuse the client.
            return
        limit = self.all_connections.config.head_timeout_ms
        self._refuse(
            RequestError("slow_head", f"the head of the request took longer than {limit:.0f} ms")
        )

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, in pieces that no head may exceed."""
        if self._is_lingering:
            return
        limit = self.all_connections.config.max_head
        position = 0
        # A piece never exceeds what may still be read without progress.
        while position < len(data) and not self._is_lingering and self._refusal is None:
            piece = data[position : position + limit - self._unread]
            position += len(piece)
            is_start = not (self._is_in_body or self._unread or self._is_head_begun)
            self._parse(_without_h2c(piece) if is_start else piece)
            if self._has_progress:
                self._unread = 0
            else:
                self._unread += len(piece)
                if self._unread >= limit and self._refusal is None:
                    self._refuse(
                        RequestError(
                            "head_too_large", f"the head of a request has at most {limit} bytes"
                        )
                    )
        if self._is_head_pending and not self._is_answering and not self._is_lingering:
            self.all_connections.begin_head(self)

    @property
    def _is_head_pending(self) -> bool:
        return not self._is_in_body and (self._unread > 0 or self._is_head_begun)

    def _parse(self, data: bytes) -> None:
        self._has_progress = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here: answer in HTTP/1.1 and drop what follows.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, RequestError):
                cause = RequestError("bad_request", "this is not an HTTP/1.1 request")
            self._refuse(cause)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._is_head_begun = True
        cast(dict[str, Any], self.scope)[ON_DISCONNECT] = self._set_on_disconnect

    def _set_on_disconnect(self, function: Callable[[], None]) -> None:
        self._on_disconnect = function

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; refuse too many, and ignore those after the body."""
        if self._is_in_body:
            return  # A trailer: the request is being answered already.
        if len(self.headers) >= MAX_HEADERS:
            raise RequestError("head_too_large", f"a request has at most {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the task of the request."""
        if self._is_lingering:
            raise RequestError("bad_request", "the connection is being closed")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise RequestError(
                "bad_request", f"at most {MAX_PIPELINED} requests may wait for earlier answers"
            )
        if self.parser.should_upgrade() and any(name in BODY_HEADERS for name, _ in self.headers):
            # The parser ends such a request after its head.
            raise RequestError("bad_request", "send a request with a body without Upgrade")
        if not self.url.startswith((b"/", b"*")):
            self._use_host_of_url()
        self._has_progress = True
        self._is_head_begun = False
        self._is_in_body = True
        self._dropped_body = 0
        self.all_connections.end_wait(self)
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, self._answer_transport)

    def _use_host_of_url(self) -> None:
        """Replace the Host header by the host of an absolute URL (RFC 9112, section 3.2.2)."""
        url = httptools.parse_url(self.url)
        host = url.host if url.port is None else b"%s:%d" % (url.host, url.port)
        self.headers[:] = [(n, host if n == b"host" else value) for n, value in self.headers]

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on, or drop it after an early answer."""
        self._has_progress = True
        if self.cycle.response_complete:
            # The answer came before the body was read; a body of any size would be read for ever.
            self._dropped_body += len(body)
            if self._dropped_body > self.all_connections.config.max_body:
                self._linger()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._has_progress = True
        self._is_in_body = False
        super().on_message_complete()
        if self.cycle.response_complete and not self._is_lingering:
            self._cancel_timer()
            self._wait_for_request()

    def on_response_complete(self) -> None:
        """Wait for the next request, or end the connection."""
        self._on_disconnect = None
        if self._is_lingering:
            return
        super().on_response_complete()
        if self.transport.is_closing() or self._is_answering_next():
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._is_in_body:
            # Keep the connection if the rest of the body is small and arrives soon.
            self._set_timer(self.all_connections.config.body_timeout_ms / 1000, self._linger)
        else:
            self._wait_for_request()

    def _is_answering_next(self) -> bool:
        """Whether a pipelined request follows; the next ones are not read before its answer."""
        if self._is_answering and self.pipeline:
            self.flow.pause_reading()
        return self._is_answering

    def _wait_for_request(self) -> None:
        if self._is_head_pending:
            self.all_connections.begin_head(self)
            return
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        self.all_connections.begin_wait(self)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that had no further request in time."""
        self._close()

    def pause_writing(self) -> None:
        """Begin the time in which the client must read its answer."""
        super().pause_writing()
        seconds = self.all_connections.config.write_timeout_ms / 1000
        self._write_timer = self.loop.call_later(seconds, self._abort_slow_reader)

    def resume_writing(self) -> None:
        """End the time in which the client must read its answer."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _abort_slow_reader(self) -> None:
        self.all_connections.count_closed("slow_reader")
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with the common error body."""
        self._refuse(RequestError("bad_request", "this is not an HTTP/1.1 request"))

    def _refuse(self, error: RequestError) -> None:
        """Answer with an error and close the connection, after the answers of earlier requests."""
        if self._is_lingering or self.transport.is_closing():
            return
        if self._is_answering and not self._is_in_body:
            self._refusal = error
            self.flow.pause_reading()
            return
        self.all_connections.count_closed(error.code)
        if self._is_answering:
            # The body of the last request is malformed. Its route must not answer as well.
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(error_answer(error))
        self._linger()

    def _linger(self) -> None:
        """Close the connection for writing, and drop what still arrives for a moment."""
        self._is_lingering = True
        self._unset_keepalive_if_required()
        self.all_connections.end_wait(self)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_timer(LINGER_SECONDS, self.transport.abort)

    def close_after_answer(self) -> None:
        """Close the connection after an answer with ``connection: close``."""
        if self._is_in_body:
            self._linger()
        else:
            self._close()

    def _close(self) -> None:
        """Close the connection; a client that does not read the answer cannot keep it open."""
        if self.transport.is_closing():
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._set_timer(
                self.all_connections.config.write_timeout_ms / 1000, self._abort_slow_reader
            )

    def _set_timer(self, seconds: float, function: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, function)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _AnswerTransport:
    """The transport of one answer: its end is decided by the connection."""

    __slots__ = ("close", "get_extra_info", "is_closing", "write")

    def __init__(self, protocol: LimitedProtocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.get_extra_info = protocol.transport.get_extra_info
        self.close = protocol.close_after_answer


def protocol_class(connections: Connections) -> type[LimitedProtocol]:
    """Return the protocol of the connections of one server."""
    return type("BoundProtocol", (LimitedProtocol,), {"all_connections": connections})


def uvicorn_config(app: Any, connections: Connections, **settings: Any) -> uvicorn.Config:
    """Return the settings of uvicorn that all ports share.

    Args:
        app: ASGI application.
        connections: of the port, with their limits.
        settings: further ones of ``uvicorn.Config``.
    """
    return uvicorn.Config(
        app,
        http=protocol_class(connections),
        ws="none",
        # The log and the headers are those of candid.
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **settings,
    )


def _without_h2c(data: bytes) -> bytes:
    """Remove the offer of HTTP/2 from a head at the start of ``data``.

    Java's HttpClient and ``curl --http2`` send it with every request, bodies included; the parser
    would drop the body.
    """
    if b"h2c" not in data:
        return data
    end = data.find(b"\r\n\r\n") + 2
    return H2C.sub(b"", data[:end]) + data[end:]
