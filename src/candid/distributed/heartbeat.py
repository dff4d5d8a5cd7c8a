"""Heartbeats: signs of life of the processes in their store, and waits that end without them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from candid.distributed.failures import FailureBoard, ProcessGroupError, Store
from candid.distributed.watchdog import MARGIN

INTERVAL: Final = 1.0
"""Seconds between two heartbeats of a process."""

FIRST_WAIT, LAST_WAIT = 0.01, 0.5
"""Seconds between two looks for the end of work of another process: twice as many each time."""

T = TypeVar("T")


class Heartbeat:
    """A thread that counts up a number in the store while this process works.

    A stopped process, one behind a cut network and one of a lost machine do not count. Neither does
    a process in one call that holds the lock of the interpreter.

    Args:
        store: of the processes.
        rank: of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._key = store, _key(rank)
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="candid-heartbeat", daemon=True).start()

    def close(self) -> None:
        """Stop counting."""
        self._closed.set()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # The store is gone, which the waits report.
            while not self._closed.is_set():
                self._store.add(self._key, 1)
                self._closed.wait(INTERVAL)


def wait_for_value(
    store: Store, board: FailureBoard, key: str, rank: int, timeout_seconds: float
) -> bytes:
    """Wait for a value that another process stores, as long as that process lives.

    Args:
        store: of the processes, which another thread reads: it may not answer.
        board: for failures.
        key: of the value.
        rank: of the other process.
        timeout_seconds: longest time without a heartbeat of it.

    Raises:
        PeerError: a process failed.
        PeerInterrupted: a process was interrupted.
        ProcessGroupError: there was no heartbeat, or the store is gone or does not answer.
    """
    wait = _Wait(store, board, key, rank)
    threading.Thread(target=wait.look, name="candid-wait", daemon=True).start()
    allowed = timeout_seconds + MARGIN
    while not wait.done.wait(LAST_WAIT):
        now = time.monotonic()
        if now - wait.beaten <= allowed:
            continue
        wait.done.set()
        if now - wait.answered > allowed / 2:
            # No count arrives from a store that does not answer.
            board.close()
            raise ProcessGroupError(
                f"the store of the processes has not answered for {now - wait.answered:,.0f} s: "
                "check the network and the machine of MASTER_ADDR, then start the command again"
            )
        raise ProcessGroupError(
            f"process {rank} has given no sign of life for {now - wait.beaten:,.0f} s, and "
            f"{timeout_seconds:g} s are allowed (training.timeout_seconds): check its machine, "
            "then start the command again"
        )
    return wait.result()


class _Wait:
    """Looks for a value until it is there or ``done`` is set.

    Attributes:
        done: set at the end of the wait.
        answered: when the store has answered last.
        beaten: when the other process has counted last, or this wait began.
    """

    def __init__(self, store: Store, board: FailureBoard, key: str, rank: int) -> None:
        self._store, self._board, self._key, self._rank = store, board, key, rank
        self._value: bytes | None = None
        self._error: BaseException | None = None
        self.done = threading.Event()
        self.answered = self.beaten = time.monotonic()

    def look(self) -> None:
        """Read the store until the end of the wait."""
        try:
            self._look()
        except RuntimeError as error:
            self._error = ProcessGroupError(
                "this process lost the connection to the store of the processes: process 0 or its "
                "launcher ended; start the command again"
            )
            self._error.__cause__ = error
        self.done.set()

    def result(self) -> bytes:
        """Return the value, or raise what ended the wait instead."""
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value

    def _look(self) -> None:
        seconds, beats = FIRST_WAIT, -1
        while not self.done.is_set():
            if self._store.check([self._key]):
                self._value = self._store.get(self._key)
                return
            failure = self._board.read()
            if failure is not None:
                self._error = failure.error()
                return
            count = self._store.add(_key(self._rank), 0)
            self.answered = time.monotonic()
            if count != beats:
                beats, self.beaten = count, self.answered
            self.done.wait(seconds)
            seconds = min(2 * seconds, LAST_WAIT)


def within(seconds: float, function: Callable[[], T], otherwise: T) -> T:
    """Call a function that may not return, such as one that reads a store.

    Args:
        seconds: longest wait for it; afterwards its thread is left to itself.
        function: raises nothing.
        otherwise: returned if it takes longer.
    """
    results: list[T] = []
    thread = threading.Thread(
        target=lambda: results.append(function()), name="candid-call", daemon=True
    )
    thread.start()
    thread.join(seconds)
    return results[0] if results else otherwise


def _key(rank: int) -> str:
    return f"heartbeat-{rank}"
