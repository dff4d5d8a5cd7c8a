"""A listening socket that several processes share: each accepts one connection at a time."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

RETRY_SECONDS: Final = 1.0
"""Pause after a connection that could not be accepted for lack of descriptors or memory."""
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SharedListener:
    """Accepts connections like a server of asyncio, which would take all that wait at once.

    One process would then have most connections, and the others little to do.

    Args:
        sock: socket that listens.
        factory: of the protocol of a connection.
    """

    def __init__(self, sock: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
        self._sock = sock
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_closed = False
        sock.setblocking(False)
        self._resume()

    def __repr__(self) -> str:
        return f"SharedListener({self._sock.getsockname()})"

    def close(self) -> None:
        """Accept no further connection."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._sock)

    async def wait_closed(self) -> None:
        """Return: ``close`` has no work left."""

    def _resume(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._sock.accept()
        except OSError as error:
            # Another process was faster, or the client has gone.
            if error.errno in EXHAUSTED:
                self._loop.remove_reader(self._sock)
                self._loop.call_later(RETRY_SECONDS, self._resume)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            connection.close()
