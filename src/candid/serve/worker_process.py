"""One worker as its supervisor sees it: the process, the channel to it, and its state."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from candid.errors import ConfigError
from candid.serve.channel import Channel, ChannelClosedError, ChannelRequest
from candid.serve.child_process import start_module

MODULE: Final = "candid.serve.http.worker"


@dataclass(eq=False)
class WorkerProcess:
    """A running worker.

    Attributes:
        number: of the worker, from 1; its successor after a death has the same.
        versions: version of each model that it loads at its start.
        process: the operating system's.
        channel: to it.
        is_ready: whether it accepts connections.
        alive: last time at which its event loop was known to run, ``time.monotonic``.
        failure: message and exit code of the error that ended its start, or None.
        started: time of its start, ``time.monotonic``.
    """

    number: int
    process: subprocess.Popen[bytes]
    versions: Mapping[str, int] = field(default_factory=dict)
    channel: Channel = field(init=False, repr=False)
    is_ready: bool = False
    failure: tuple[str, int] | None = None
    started: float = field(default_factory=monotonic)
    alive: float = field(default_factory=monotonic)

    @classmethod
    def start(
        cls,
        number: int,
        *,
        listener: socket.socket,
        environment: Mapping[str, str],
        handle: Callable[[WorkerProcess, ChannelRequest], None],
    ) -> WorkerProcess:
        """Start a worker in a new interpreter; it waits for the notice ``start``.

        Args:
            number: of the worker.
            listener: socket that listens, which the worker inherits.
            environment: variables beside those of this process.
            handle: called with each of its requests.

        Raises:
            ConfigError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), listener.fileno())
        try:
            with theirs:
                process = start_module(
                    MODULE,
                    *map(str, descriptors),
                    environment=environment,
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                )
        except OSError as error:
            ours.close()
            raise ConfigError(f"a worker process cannot start: {error.strerror}") from None
        worker = cls(number, process)
        worker.channel = Channel(
            ours,
            lambda request: handle(worker, request),
            on_close=lambda: None,  # The end of the process is what counts.
            name=f"candid-channel-{number}",
        )
        worker.channel.start()
        return worker

    def notify(self, method: str, **params: Any) -> None:
        """Send a notice; end a worker that does not read."""
        try:
            self.channel.notify(method, **params)
        except ChannelClosedError:
            self.kill()

    def terminate(self) -> None:
        """Ask the worker to finish its requests and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the worker at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            self.process.send_signal(number)
