"""Status of a server, as its probes report it: whether it is ready, and whether it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from candid.serve.errors import RequestError

STALLED_SECONDS: Final = 30.0
"""Seconds without a round of the server's event loop after which the server is not alive."""


class ServerStatus:
    """Status of a server. The process that answers its probes has a copy.

    Args:
        clock: returns seconds, the same in all processes of this machine.

    Attributes:
        last_round: time of the last round of the server's event loop; None: models are loaded.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._not_ready: str | None = "the server loads its models"
        self._has_changed = threading.Event()
        self.last_round: float | None = None

    def __repr__(self) -> str:
        return f"ServerStatus(not_ready={self._not_ready!r}, last_round={self.last_round})"

    @property
    def not_ready(self) -> str | None:
        """Reason why no requests should be sent; None: the server is ready."""
        return self._not_ready

    @not_ready.setter
    def not_ready(self, reason: str | None) -> None:
        self._not_ready = reason
        self._has_changed.set()

    def beat(self) -> None:
        """Note a round of the event loop of the server."""
        self.last_round = self._clock()

    def wait_for_change(self, seconds: float) -> None:
        """Wait until ``not_ready`` is set, but no longer than ``seconds``."""
        self._has_changed.wait(seconds)
        self._has_changed.clear()

    def check_alive(self) -> None:
        """Check that the event loop of the server runs.

        Raises:
            RequestError: its last round was too long ago.
        """
        seconds = 0.0 if self.last_round is None else self._clock() - self.last_round
        if seconds > STALLED_SECONDS:
            raise RequestError(
                "not_ready", f"the server has not read a request for {seconds:.0f} seconds"
            )

    def check_ready(self) -> None:
        """Check that the server accepts requests.

        Raises:
            RequestError: it does not.
        """
        self.check_alive()
        if self.not_ready is not None:
            raise RequestError("not_ready", self.not_ready, retry_after=1)
