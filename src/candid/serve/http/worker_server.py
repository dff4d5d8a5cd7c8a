"""The server of a worker: it begins to listen when the supervisor has agreed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from time import sleep
from typing import Any, Final

from candid.serve.channel import Channel, ChannelClosedError
from candid.serve.http.process import Server
from candid.serve.http.shared_listener import SharedListener

ALIVE_SECONDS: Final = 1.0
"""Pause between two messages that the event loop runs."""


class WorkerServer(Server):
    """A server on a socket that it shares with other processes.

    Attributes:
        channel: to the supervisor.
        identities: of the files of the loaded models, by name.
    """

    channel: Channel
    identities: Mapping[str, str]
    _loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and listen as soon as no update and no reload can be missed."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        if not self.started or not sockets:
            return
        # The answer comes after all updates that are on their way.
        await asyncio.to_thread(self.channel.call, "sync")
        identities = dict(self.identities)
        if not await asyncio.to_thread(self.channel.call, "ready", identities=identities):
            self.should_exit = True  # It does not serve what the other workers serve.
            return
        threading.Thread(target=self._report_alive, args=(self._loop,), daemon=True).start()
        self._service.metrics.workers.set(1)
        self.servers = [SharedListener(sock, self._protocol) for sock in sockets]  # type: ignore[misc]
        self._status.not_ready = None

    def stop_soon(self) -> None:
        """Accept no further connection, finish open requests and end; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.handle_exit, 0, None)

    def _report_alive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell the supervisor again and again that the event loop runs."""
        while True:
            sleep(ALIVE_SECONDS)
            has_run = threading.Event()
            try:
                loop.call_soon_threadsafe(has_run.set)
                has_run.wait()
                # A call: a supervisor that does not read gets no further message.
                self.channel.call("alive")
            except (RuntimeError, ChannelClosedError):
                return  # The loop or the supervisor has ended.

    def _protocol(self) -> Any:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=self._loop,
        )
