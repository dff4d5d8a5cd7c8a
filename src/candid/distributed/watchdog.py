"""Watchdog: ends a process that waits for the others longer than the timeout allows."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from candid.distributed.failures import Failure

MARGIN: Final = 3.0
"""Seconds beyond the timeout, within which the library itself should have given up."""

GRACE: Final = 10.0
"""Seconds that this process has to end by itself after another one has failed."""

INTERVAL: Final = 0.5
"""Seconds between two checks."""


class Watchdog:
    """Threads that end this process where it cannot end by itself.

    A collective that waits for a process behind a cut network does not return, and no signal
    handler of Python runs meanwhile. Two threads watch: one the time, the other the store, whose
    reads may block as well.

    Args:
        timeout_seconds: longest time of one collective.
        read_failure: returns the first failure of another process; None: there is no store.
        end: called with a sentence and an exit code; None: write it to stderr and exit.
    """

    def __init__(
        self,
        timeout_seconds: float,
        read_failure: Callable[[], Failure | None] | None,
        end: Callable[[str, int], None] | None = None,
    ) -> None:
        self._timeout = timeout_seconds
        self._read_failure = read_failure
        self._end = _exit if end is None else end
        self._running: tuple[str, float] | None = None
        self._closed = threading.Event()
        threads = [self._watch_time, *([] if read_failure is None else [self._watch_failures])]
        for watch in threads:
            threading.Thread(target=watch, name="candid-watchdog", daemon=True).start()

    def begin(self, name: str) -> None:
        """A collective begins."""
        self._running = name, time.monotonic()

    def finish(self) -> None:
        """The collective ended."""
        self._running = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def closed(self, seconds: float) -> bool:
        """Wait for ``close``, at most some seconds; return whether it was called."""
        return self._closed.wait(seconds)

    def _watch_time(self) -> None:
        while not self._closed.wait(INTERVAL):
            running = self._running
            if running is None:
                continue
            name, began = running
            seconds = time.monotonic() - began
            if seconds > self._timeout + MARGIN:
                self._end(
                    f"{name} has waited {seconds:,.0f} s for the other processes, more than "
                    f"training.timeout_seconds = {self._timeout:g} allows: check the network and "
                    "the other machines, then continue with --resume",
                    1,
                )

    def _watch_failures(self) -> None:
        assert self._read_failure is not None
        while not self._closed.wait(INTERVAL):
            failure = self._read_failure()
            if failure is not None:
                if not self._closed.wait(GRACE):
                    self._end(str(failure.error()), failure.exit_code)
                return


def _exit(sentence: str, code: int) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    sys.stderr.flush()
    os._exit(code)
