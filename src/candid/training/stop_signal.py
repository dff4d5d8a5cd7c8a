"""A clean stop of training on SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_active: list[threading.Event] = []
"""Events of the open blocks, the outer ones first."""


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set an event on SIGINT or SIGTERM; a second SIGINT interrupts immediately.

    In nested blocks a signal sets the events of all of them, and a block that opens after a
    signal begins with its event set: a signal is not lost when the inner block ends for another
    reason.

    Signals can only be caught in the main thread; in another thread the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        for event in _active:
            event.set()

    if any(event.is_set() for event in _active):
        stop.set()
    _active.append(stop)

    previous = {
        number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        _active.remove(stop)
        for number, handler in previous.items():
            signal.signal(number, handler)
