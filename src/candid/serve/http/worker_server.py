"""The server of a worker: it begins to listen when the supervisor has agreed."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from candid.serve.channel import Channel
from candid.serve.http.process import Server
from candid.serve.http.shared_listener import SharedListener


class WorkerServer(Server):
    """A server on a socket that it shares with other processes.

    Attributes:
        channel: to the supervisor.
    """

    channel: Channel
    _loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and listen as soon as no update and no reload can be missed."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        if not self.started or not sockets:
            return
        # The answer comes after all updates that are on their way.
        await asyncio.to_thread(self.channel.call, "sync")
        if not await asyncio.to_thread(self.channel.call, "ready"):
            self.should_exit = True  # A newer version was published meanwhile.
            return
        self.servers = [SharedListener(sock, self._protocol) for sock in sockets]  # type: ignore[misc]
        self._status.not_ready = None

    def stop_soon(self) -> None:
        """Accept no further connection, finish open requests and end; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.handle_exit, 0, None)

    def _protocol(self) -> Any:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=self._loop,
        )
