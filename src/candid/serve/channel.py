"""Messages between two processes of a server, over a socket pair.

A message is a length (4 bytes, big-endian) and a JSON object. A request has ``id``, ``method`` and
``params``; its answer has the same ``id`` and either ``result`` or ``error``. A request without an
id is a notice, which has no answer. Both sides send requests. Messages arrive in the order in
which they were sent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from candid.serve.errors import RequestError

LENGTH: Final = struct.Struct(">I")
SEND_SECONDS: Final = 30
"""Longest time that a message may wait for a process that does not read."""


class ChannelClosedError(Exception):
    """The other process has ended, or does not read."""


@dataclass(frozen=True)
class ChannelRequest:
    """A request of the other process; exactly one of ``answer`` and ``fail`` is called.

    Attributes:
        method: name of the request.
        params: by name.
    """

    method: str
    params: Mapping[str, Any]
    _id: int | None
    _channel: Channel

    def answer(self, result: Any = None) -> None:
        """Send the result, a JSON value; without effect for a notice or a closed channel."""
        self._send({"result": result})

    def fail(self, error: RequestError) -> None:
        """Send an error, which ``call`` raises in the other process."""
        content = {
            "code": error.code,
            "message": error.message,
            "field": error.field,
            "retry_after": error.retry_after,
        }
        self._send({"error": content})

    def _send(self, content: dict[str, Any]) -> None:
        if self._id is not None:
            with contextlib.suppress(ChannelClosedError):
                self._channel.send({"id": self._id, **content})


class Channel:
    """One end of a channel. All methods may be called from any thread.

    Args:
        sock: connected; the channel closes it.
        handle: called with each request, in a thread of the channel, in the order of arrival: it
            must not wait for an answer of the same channel.
        on_close: called in that thread when the other end has closed.
        name: of the thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        handle: Callable[[ChannelRequest], None],
        on_close: Callable[[], None],
        *,
        name: str,
    ) -> None:
        self._sock = sock
        self._sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_SECONDS, 0)
        )
        self._handle = handle
        self._on_close = on_close
        self._send_lock = threading.Lock()
        self._calls_lock = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._ids = itertools.count(1)
        self._is_closed = False
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)

    def __repr__(self) -> str:
        return f"Channel({self._thread.name!r})"

    def start(self) -> None:
        """Begin to read messages."""
        self._thread.start()

    def notify(self, method: str, **params: Any) -> None:
        """Send a notice.

        Raises:
            ChannelClosedError: the other end is closed.
        """
        self.send({"method": method, "params": params})

    def begin(self, method: str, **params: Any) -> Future[Any]:
        """Send a request; return the future of its result.

        The future raises RequestError if the other process refuses, and ChannelClosedError if it
        ends or does not read.
        """
        future: Future[Any] = Future()
        number = next(self._ids)
        with self._calls_lock:
            if self._is_closed:
                future.set_exception(ChannelClosedError())
                return future
            self._calls[number] = future
        try:
            self.send({"id": number, "method": method, "params": params})
        except ChannelClosedError as error:
            self._finish(number, error=error)
        return future

    def call(self, method: str, **params: Any) -> Any:
        """Send a request and wait for its result; raises like the future of ``begin``."""
        return self.begin(method, **params).result()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message as it is.

        Raises:
            ChannelClosedError: the other end is closed, or does not read.
        """
        content = json.dumps(message, ensure_ascii=False).encode()
        with self._send_lock:
            try:
                self._sock.sendall(LENGTH.pack(len(content)) + content)
            except OSError as error:
                # A part may have been sent, so nothing can follow.
                self.close()
                raise ChannelClosedError(str(error)) from None

    def close(self) -> None:
        """Close this end; open calls fail."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        with self._sock, self._sock.makefile("rb") as stream:
            while (message := _receive(stream)) is not None:
                if "method" in message:
                    number = message.get("id")
                    request = ChannelRequest(message["method"], message["params"], number, self)
                    self._handle(request)
                elif "error" in message:
                    self._finish(message["id"], error=RequestError(**message["error"]))
                else:
                    self._finish(message["id"], message["result"])
            with self._calls_lock:
                self._is_closed = True
                numbers = list(self._calls)
            for number in numbers:
                self._finish(number, error=ChannelClosedError())
        self._on_close()

    def _finish(self, number: int, result: Any = None, error: Exception | None = None) -> None:
        with self._calls_lock:
            future = self._calls.pop(number, None)
        if future is None:
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _receive(stream: Any) -> dict[str, Any] | None:
    """Return the next message; None at the end, also in the middle of a message."""
    try:
        head = stream.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return None
        [length] = LENGTH.unpack(head)
        content = stream.read(length)
    except OSError:
        return None
    return json.loads(content) if len(content) == length else None
