"""Failures of other processes: the first one stands in the store, with its exit code and reason."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from candid.errors import CandidError, Interrupted

KEY: Final = "failure"
"""Key of the store with the first failure."""


class Store(Protocol):
    """The methods of a store of torch that failures need."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are there."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return a value."""
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


class PeerInterrupted(PeerError, Interrupted):
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
            return cls(rank, Interrupted.exit_code, "interrupted")
        if isinstance(error, SystemExit):
            return cls(rank, error.code if isinstance(error.code, int) else 1, "the process ended")
        message = " ".join(str(error).split()) or type(error).__name__
        return cls(rank, int(getattr(error, "exit_code", 1)), message)

    def error(self) -> PeerError:
        """Return the error that ends the other processes."""
        if self.exit_code == Interrupted.exit_code:
            return PeerInterrupted(self.message, self.exit_code)
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
        return None if failure.rank == self._rank else failure
