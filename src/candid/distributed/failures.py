"""Failures of other processes: the first one stands in the store, with its exit code and reason."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from candid.errors import CandidError, Interrupted, exit_code_of

KEY: Final = "failure"
"""Key of the store with the first failure."""

READERS: Final = "readers"
"""Key of the store with the number of processes that have read it."""

READ_SECONDS: Final = 5.0
"""Longest time that the process with the store waits for them."""


class Store(Protocol):
    """The methods of a store of torch that failures need."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are there."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return a value."""
        ...

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number and return it."""
        ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Store ``desired`` if the value is still ``expected``; return the value afterwards."""
        ...


class PeerError(CandidError):
    """Another process of the training failed, and reports the reason.

    Args:
        message: one sentence.
        exit_code: that of the process that failed.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerInterrupted(Interrupted):
    """Another process was interrupted, and this one stops with it."""


class ProcessGroupError(CandidError):
    """The processes of a training cannot reach each other."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of one process.

    Attributes:
        rank: its number.
        exit_code: its exit code.
        message: one sentence.
    """

    rank: int
    exit_code: int
    message: str

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """Describe an error that ends the process ``rank``."""
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, Interrupted.exit_code, str(error) or "interrupted")
        if isinstance(error, SystemExit):
            return cls(rank, error.code if isinstance(error.code, int) else 1, "the process ended")
        message = " ".join(str(error).split()) or type(error).__name__
        return cls(rank, exit_code_of(error), message)

    def error(self) -> PeerError | PeerInterrupted:
        """Return the error that ends the other processes."""
        if self.exit_code == Interrupted.exit_code:
            return PeerInterrupted(self.message)
        return PeerError(f"process {self.rank} failed: {self.message}", self.exit_code)


class FailureBoard:
    """The place in the store where the first failure of a process stands.

    Args:
        store: of this training.
        rank: of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store: Store | None = store
        self._rank = rank
        self._has_read = False

    def close(self) -> None:
        """Read and write no more: the store does not answer."""
        self._store = None

    def publish(self, error: BaseException) -> bool:
        """Store the error of this process; return whether it is the first of all processes."""
        text = json.dumps(asdict(Failure.of(error, self._rank)))
        try:
            return self._store is None or self._store.compare_set(KEY, "", text) == text.encode()
        except RuntimeError:
            return True  # The store is gone: no other process can report it.

    def read(self) -> Failure | None:
        """Return the first failure of another process, None without one."""
        try:
            if self._store is None or not self._store.check([KEY]):
                return None
            failure = Failure(**json.loads(self._store.get(KEY)))
        except RuntimeError:
            self._store = None  # It is gone; every further read would write a warning.
            return None
        if failure.rank == self._rank:
            return None
        if not self._has_read:
            self._has_read = True
            self._store.add(READERS, 1)
        return failure

    def wait_for_readers(self, count: int, seconds: float = READ_SECONDS) -> None:
        """Wait until other processes have read the failure, for a process that holds the store.

        Args:
            count: number of other processes.
            seconds: longest wait.
        """
        until = time.monotonic() + seconds
        with suppress(RuntimeError):
            while self._store is not None and time.monotonic() < until:
                if self._store.add(READERS, 0) >= count:
                    return
                time.sleep(0.05)
