"""Opening and closing of the process group, and the report of errors to the other processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from candid.distributed.environment import Environment
from candid.distributed.failures import (
    READ_SECONDS,
    FailureBoard,
    PeerError,
    PeerInterrupted,
    ProcessGroupError,
)
from candid.distributed.group import REASON_SECONDS, TIMEOUT_SECONDS, Group, short_reason
from candid.distributed.heartbeat import Heartbeat, wait_for_value, within
from candid.distributed.start import agree_on_start, ended_by_sigterm
from candid.distributed.watchdog import Watchdog

CONNECT_SECONDS: Final = 600.0
"""Longest wait for the store, which the launcher or rank 0 opens, and for the other processes."""

STORE_SECONDS: Final = 10.0
"""Longest wait for the store when this process ends."""

LEAVE_WAIT: Final = 0.01
"""Seconds between two looks for the processes that have left."""

LEFT: Final = "left"
"""Key of the number of processes that have ended their work without an error."""

T = TypeVar("T")

_dist: Any = dist
"""torch.distributed with the names that it does not export to type checkers."""


@dataclass(slots=True)
class _Connection:
    """The store of the processes.

    Attributes:
        environment: place of this process.
        store: of torch, with the keys of this use.
        board: for failures.
        heartbeat: of this process.
        num_waits: calls of ``on_main`` and ``collect`` so far.
    """

    environment: Environment
    store: Any
    board: FailureBoard
    heartbeat: Heartbeat
    num_waits: int = 0

    @property
    def holds_store(self) -> bool:
        """Whether the store ends with this process; that of torchrun is in its agent."""
        uses_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return self.environment.rank == 0 and not uses_agent

    def next_key(self) -> str:
        """Return a new key, the same on all processes that call it as often."""
        self.num_waits += 1
        return f"done-{self.num_waits}"

    def wait_for(self, key: str, rank: int, timeout_seconds: float) -> Any:
        """Return the JSON value that another process stores, or raise the failure of one."""
        return json.loads(wait_for_value(self.store, self.board, key, rank, timeout_seconds))

    def publish(self, error: BaseException) -> bool:
        """Store the error of this process; return whether it is the first of all processes."""
        return within(STORE_SECONDS, lambda: self.board.publish(error), True)

    def leave(self) -> None:
        """Count this process as done; one that holds the store first waits for the others."""
        within(STORE_SECONDS, self._leave, None)

    def _leave(self) -> None:
        with suppress(RuntimeError):  # The store is gone: no process waits for this one.
            self.store.add(LEFT, 1)
            until = time.monotonic() + READ_SECONDS
            while self.holds_store and time.monotonic() < until:
                if self.store.add(LEFT, 0) >= self.environment.world_size:
                    return
                time.sleep(LEAVE_WAIT)


_store: Any = None
_start = ""
"""Prefix of all keys of this start."""
_uses = 0
_connection: _Connection | None = None
_group: Group | None = None


def current_group() -> Group:
    """Return the open group of this process; without one, this process alone."""
    return Group() if _group is None else _group


@contextmanager
def connected() -> Iterator[None]:
    """Report an error of the block to the other processes; theirs end too.

    A process without others runs the block only. The first process that fails raises its error;
    the others raise ``PeerError`` or ``PeerInterrupted`` with the same exit code. Blocks can be
    nested.

    Raises:
        ConfigError: the environment of the launcher is incomplete.
        ProcessGroupError: the store cannot be reached.
        PeerError: another process failed first.
        PeerInterrupted: another process was interrupted first.
    """
    global _connection
    if _connection is not None or dist.is_initialized():
        yield
        return
    environment = Environment.read()
    if environment is None:
        yield
        return
    _connection = connection = _connect(environment)
    has_failed, read_seconds = True, READ_SECONDS
    try:
        yield
        has_failed = False
    except (PeerError, PeerInterrupted):
        raise
    except BaseException as error:
        if isinstance(error, ProcessGroupError):
            # Some of the others will never read it; the rest look for it no longer than this.
            read_seconds = REASON_SECONDS
        if connection.publish(error):
            raise
        failure = connection.board.read()
        if failure is None:
            raise
        raise failure.error() from error
    finally:
        if has_failed and connection.holds_store:
            connection.board.wait_for_readers(environment.world_size - 1, read_seconds)
        elif not has_failed:
            connection.leave()
        connection.heartbeat.close()
        _connection = None


def on_main(function: Callable[[], T], timeout_seconds: float = TIMEOUT_SECONDS) -> T:
    """Call a function on rank 0; the others wait for it, however long it takes, while rank 0 lives.

    For work such as the preparation of data, inside ``connected``. Without other processes it is
    called at once. A thread of each process shows that it lives; a call that holds the lock of the
    interpreter for longer than the timeout ends the wait.

    Args:
        function: returns a plain JSON value, or None.
        timeout_seconds: longest time without a sign of life of rank 0.

    Returns:
        the value of rank 0, on every process.

    Raises:
        PeerError: rank 0 failed.
        PeerInterrupted: rank 0 was interrupted.
        ProcessGroupError: rank 0 gave no sign of life, or the store cannot be reached.
    """
    if _connection is None:
        return function()
    key = _connection.next_key()
    if _connection.environment.rank == 0:
        value = function()
        _connection.store.set(key, json.dumps(value))
        return value
    result: T = _connection.wait_for(key, 0, timeout_seconds)
    return result


def collect(value: T, timeout_seconds: float = TIMEOUT_SECONDS) -> list[T]:
    """Wait for all processes, however long they take while they live; return a value of each.

    Args:
        value: plain JSON, or None.
        timeout_seconds: as for ``on_main``.

    Returns:
        the values in the order of ranks; without other processes only this one.

    Raises:
        PeerError: another process failed.
        PeerInterrupted: another process was interrupted.
        ProcessGroupError: another process gave no sign of life, or the store cannot be reached.
    """
    if _connection is None:
        return [value]
    key, environment = _connection.next_key(), _connection.environment
    _connection.store.set(f"{key}-{environment.rank}", json.dumps(value))
    return [
        _connection.wait_for(f"{key}-{rank}", rank, timeout_seconds)
        for rank in range(environment.world_size)
    ]


def current_environment() -> Environment | None:
    """Return the place of this process inside ``connected``; None: it works alone."""
    return None if _connection is None else _connection.environment


def use_own_device() -> None:
    """Make the CUDA device of this process the current one, if each process has its own."""
    if _connection is not None and _has_own_device(_connection.environment):
        torch.cuda.set_device(_connection.environment.local_rank)


def is_main() -> bool:
    """Return whether this process reports to people: rank 0, or no launcher at all."""
    environment = Environment.read()
    return environment is None or environment.rank == 0


@contextmanager
def open_group(timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Group]:
    """Open the process group of the launcher for a block; inside another block, return its group.

    The backend is gloo for tensors on the CPU and NCCL for those on CUDA devices, one process for
    each device. A process without ``RANK`` and ``WORLD_SIZE`` trains alone. A default group that
    the program has initialised already is used.

    Args:
        timeout_seconds: longest wait for other processes in one collective.

    Raises:
        ConfigError: the environment of the launcher is incomplete.
        ProcessGroupError: the other processes cannot be reached.
        PeerError: another process failed.
        PeerInterrupted: another process was interrupted.
    """
    global _group
    if _group is not None:
        yield _group
        return
    with ExitStack() as closers:
        closers.enter_context(connected())
        group = _open(timeout_seconds, closers)
        _group = group
        try:
            yield group
        except (PeerError, PeerInterrupted):
            raise
        except BaseException as error:
            if _connection is not None:
                # Before the group is closed, in which the others wait.
                _connection.publish(error)
            raise
        finally:
            _group = None
            group.close()


def _open(timeout_seconds: float, closers: ExitStack) -> Group:
    timeout = timedelta(seconds=timeout_seconds)
    if _connection is None:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return Group()
        process_group = None
        if "gloo" not in str(dist.get_backend_config()):
            # Small messages go through the CPU.
            process_group = dist.new_group(backend="cpu:gloo,cuda:nccl", timeout=timeout)
            closers.callback(dist.destroy_process_group, process_group)
        return Group(
            dist.get_rank(),
            dist.get_world_size(),
            local_rank=dist.get_node_local_rank(dist.get_rank()),
            timeout_seconds=timeout_seconds,
            process_group=process_group,
        )
    environment = _connection.environment
    use_own_device()
    # It reads the store, which may not answer.
    watchdog = Watchdog(timeout_seconds, None)
    watchdog.begin("the opening of the process group")
    try:
        dist.init_process_group(
            _backend(environment),
            store=_dist.PrefixStore("group", _connection.store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
        )
    except RuntimeError as error:
        raise ProcessGroupError(
            f"process {environment.rank} cannot reach the other processes "
            f"({short_reason(error)}): check the network and that all of them were started"
        ) from error
    finally:
        watchdog.close()
    closers.push(_close)
    return Group(
        environment.rank,
        environment.world_size,
        local_rank=environment.local_rank,
        timeout_seconds=timeout_seconds,
        board=_connection.board,
    )


def _connect(environment: Environment) -> _Connection:
    global _store, _start, _uses
    rank, world_size = environment.rank, environment.world_size
    if _store is None:
        try:
            with ended_by_sigterm():
                store, _, _ = next(
                    iter(_dist.rendezvous("env://", timeout=timedelta(seconds=CONNECT_SECONDS)))
                )
            _start = agree_on_start(store, rank, world_size, CONNECT_SECONDS)
        except (RuntimeError, ValueError) as error:
            raise ProcessGroupError(
                f"process {rank} cannot reach the store of its launcher at "
                f"MASTER_ADDR and MASTER_PORT ({short_reason(error)}): check both"
            ) from error
        _store = store
    # Each use has keys of its own: a process may train several models, one after the other.
    _uses += 1
    prefix = f"candid-{_start}-{_uses}"
    store = _dist.PrefixStore(prefix, _store)
    # Threads read through a connection of its own, while another call may wait.
    other = _dist.PrefixStore(prefix, _clone(_store))
    board, heartbeat = FailureBoard(other, rank), Heartbeat(other, rank)
    return _Connection(environment, store, board, heartbeat)


def _clone(store: Any) -> Any:
    clone = getattr(store, "clone", None)  # torch 2.6 has none
    return store if clone is None else clone()


def _has_own_device(environment: Environment) -> bool:
    """Whether each process of this machine has a CUDA device of its own."""
    if not torch.cuda.is_available():
        return False
    return environment.local_world_size <= torch.cuda.device_count()


def _backend(environment: Environment) -> str:
    is_nccl = _has_own_device(environment) and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if is_nccl else "gloo"


def _close(kind: type[BaseException] | None, *error: object) -> None:
    """Close the group; after an error, NCCL would wait for messages of the other processes."""
    if kind is not None and "nccl" in str(dist.get_backend_config()):
        return
    with suppress(RuntimeError):
        dist.destroy_process_group()
