"""Probes on a port of their own, answered by a process of their own under any load.

The server may be busy with a batch or with many requests, and a thread of it would wait for
Python's lock. Probes on the port of the server wait for it; those of this port do not.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
from collections.abc import Callable
from time import sleep
from typing import Any, Final

from candid.errors import ConfigError
from candid.serve.channel import Channel, ChannelClosedError, ChannelRequest
from candid.serve.child_process import exit_reason, start_module
from candid.serve.errors import internal_error
from candid.serve.logs import error_fields, log_event
from candid.serve.server_status import ServerStatus

MODULE: Final = "candid.serve.http.probe_server"
REPORT_SECONDS: Final = 1.0
"""Pause between two messages with the status of the server, unless it changes."""
RESTART_SECONDS: Final = 1.0
"""Pause before a process that has ended is started again."""


class ProbeProcess:
    """The process that answers ``/healthz``, ``/readyz`` and ``/metrics``, as the server sees it.

    Args:
        sock: socket that listens; closed by ``stop``.
        status: of the server, sent to the process each second and at each change.
        to_text: returns the content of ``/metrics``.
    """

    def __init__(
        self, sock: socket.socket, status: ServerStatus, to_text: Callable[[], bytes]
    ) -> None:
        self._sock = sock
        self._status = status
        self._to_text = to_text
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"ProbeProcess({self.address})"

    @property
    def address(self) -> tuple[Any, ...]:
        """Address that it listens on, as the socket has it."""
        name: tuple[Any, ...] = self._sock.getsockname()
        return name

    def start(self) -> None:
        """Start the process, and start it again whenever it ends before ``stop``.

        Raises:
            ConfigError: it cannot be started.
        """
        try:
            started = self._start()
        except OSError as error:
            raise ConfigError(
                f"the process that answers probes cannot start ({error.strerror}); leave "
                "--probe-port out: --port answers probes too"
            ) from None
        self._thread = threading.Thread(
            target=self._run, args=started, name="candid-probes", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the process and close the socket."""
        self._is_stopping = True
        self._status.not_ready = "the server is shutting down"  # Wakes the thread.
        if self._thread is not None:
            self._thread.join()
        self._sock.close()

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self._sock.fileno())
        with theirs:
            try:
                process = start_module(
                    MODULE,
                    *map(str, descriptors),
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                )
            except OSError:
                ours.close()
                raise
        channel = Channel(ours, self._on_request, lambda: None, name="candid-probe-channel")
        channel.start()
        return process, channel

    def _run(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        while True:
            with contextlib.suppress(ChannelClosedError):
                self._report(channel)
            channel.close()
            process.kill()
            reason = exit_reason(process.wait())
            while True:
                if self._is_stopping:
                    return
                log_event("probe process ended", logging.ERROR, reason=reason)
                sleep(RESTART_SECONDS)
                try:
                    process, channel = self._start()
                    break
                except OSError as error:
                    reason = f"it cannot start ({error.strerror})"

    def _report(self, channel: Channel) -> None:
        """Send the status until ``stop``."""
        status = self._status
        while not self._is_stopping:
            channel.notify("status", not_ready=status.not_ready, last_round=status.last_round)
            status.wait_for_change(REPORT_SECONDS)

    def _on_request(self, request: ChannelRequest) -> None:
        """Return the metrics."""
        try:
            request.answer(self._to_text().decode())
        except Exception as error:  # The thread of the channel must answer the next request.
            log_event("failed", logging.ERROR, **error_fields(error))
            request.fail(internal_error())
