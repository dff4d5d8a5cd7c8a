"""Start of several processes: they find each other in a store with keys of earlier starts."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from candid.distributed.failures import ProcessGroupError
from candid.distributed.heartbeat import FIRST_WAIT, LAST_WAIT, within

START: Final = "candid-start"
"""Prefix of the keys."""


class StartStore(Protocol):
    """The methods of a store of torch that a start needs."""

    def set(self, key: str, value: str, /) -> None:
        """Store a value."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are there."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return a value."""
        ...


def agree_on_start(store: StartStore, rank: int, world_size: int, seconds: float) -> str:
    """Return a text that the processes of this start share, and no earlier start had.

    The store of torchrun stays when torchrun starts its processes again, and so do the keys of
    processes that were killed. The number of restarts does not tell starts apart: each machine
    counts its own. So each process stores a new text; rank 0 answers it with its own text and
    waits until the others have read that. It answers texts of earlier starts too, in vain.

    Args:
        store: the same for all processes.
        rank: of this process.
        world_size: number of processes.
        seconds: longest wait for the others.

    Raises:
        ProcessGroupError: another process did not come in time, or the store does not answer.
        RuntimeError: the store is gone.
    """
    outcome = within(seconds + LAST_WAIT, lambda: _outcome(store, rank, world_size, seconds), None)
    if outcome is None:
        raise ProcessGroupError(
            f"the store of the processes has not answered for {seconds:,.0f} s: check the network "
            "and the machine of MASTER_ADDR, then start the command again"
        )
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process at once in the block, where no handler of Python can run.

    A process whose launcher was killed gets this signal, and its store is gone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    if before is None:
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outcome(
    store: StartStore, rank: int, world_size: int, seconds: float
) -> str | ProcessGroupError | RuntimeError:
    """Return the text that the processes share, or the error."""
    text = uuid.uuid4().hex
    try:
        if rank == 0:
            return _answer(store, text, world_size, seconds)
        return _ask(store, text, rank, seconds)
    except (ProcessGroupError, RuntimeError) as error:
        return error


def _ask(store: StartStore, text: str, rank: int, seconds: float) -> str:
    store.set(f"{START}-{rank}", text)
    for _ in _looks(seconds):
        if store.check([f"{START}-{text}"]):
            answer = store.get(f"{START}-{text}").decode()
            store.set(f"{START}-{answer}-{rank}", "read")
            return answer
    raise _missing(rank, [0], seconds)


def _answer(store: StartStore, text: str, world_size: int, seconds: float) -> str:
    missing = set(range(1, world_size))
    answered: set[str] = set()
    for _ in _looks(seconds):
        for rank in sorted(missing):
            if store.check([f"{START}-{text}-{rank}"]):
                missing.remove(rank)
            elif store.check([f"{START}-{rank}"]):
                asked = store.get(f"{START}-{rank}").decode()
                if asked not in answered:
                    store.set(f"{START}-{asked}", text)
                    answered.add(asked)
        if not missing:
            return text
    raise _missing(0, missing, seconds)


def _looks(seconds: float) -> Iterator[None]:
    """Yield until the time has passed, with growing waits between."""
    until, wait = time.monotonic() + seconds, FIRST_WAIT
    while time.monotonic() < until:
        yield
        time.sleep(wait)
        wait = min(2 * wait, LAST_WAIT)


def _missing(rank: int, others: Collection[int], seconds: float) -> ProcessGroupError:
    numbers = ", ".join(map(str, sorted(others)[:10]))
    return ProcessGroupError(
        f"process {rank} has waited {seconds:,.0f} s for the start of process {numbers}: check "
        "that all were started; if machines may leave and return, start torchrun with "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    )
