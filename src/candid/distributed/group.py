"""The process group of a training: sums, gathers and broadcasts, which one process skips."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from candid.distributed.failures import (
    FailureBoard,
    PeerError,
    PeerInterrupted,
    ProcessGroupError,
)
from candid.distributed.traffic import Traffic
from candid.distributed.watchdog import Watchdog
from candid.errors import ConfigError

TIMEOUT_SECONDS: Final = 300.0
"""Default of the longest wait for other processes: more than a checkpoint of many gigabytes takes,
less than anyone wants to pay for idle machines."""

REASON_SECONDS: Final = 2.0
"""Seconds to wait for the reason of a lost connection, which the process that failed stores."""

# torch 2.13 has new names for both, and warns of the old ones.
_all_gather: Final[Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Final[Any] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Group:
    """The processes of one training; without arguments, this process alone.

    Every method is a collective: all processes must call it, in the same order. With one process
    each returns its input and sends nothing.

    Args:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its machine.
        timeout_seconds: longest wait for other processes.
        board: where the first failure of a process stands; None: it is not known.
        process_group: of torch; None: the default one.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        local_rank: number of this process on its machine.
        traffic: counters of messages and bytes.

    Example:
        >>> import torch
        >>> from candid.distributed import Group
        >>> group = Group()
        >>> group.is_main, group.sum(torch.tensor([2.0]))
        (True, tensor([2.]))
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        local_rank: int = 0,
        timeout_seconds: float = TIMEOUT_SECONDS,
        board: FailureBoard | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.traffic = Traffic()
        self._board = board
        self._group = process_group
        self._watchdog: Watchdog | None = None
        if world_size > 1:
            read_failure = None if board is None else board.read
            self._watchdog = Watchdog(timeout_seconds, read_failure)

    def __repr__(self) -> str:
        return f"Group(rank={self.rank}, world_size={self.world_size})"

    @property
    def is_main(self) -> bool:
        """Whether this process alone writes files: rank 0."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether this process trains alone."""
        return self.world_size == 1

    @contextmanager
    def collective(self, name: str, num_bytes: int) -> Iterator[None]:
        """Count, watch and report the collectives of torch inside the block.

        Args:
            name: noun of the message if it hangs, and name of the counter.
            num_bytes: bytes of the tensors that this process passes to them.

        Raises:
            PeerError: another process failed and reported why.
            PeerInterrupted: another process was interrupted.
            ProcessGroupError: the connection was lost, or the timeout passed.
        """
        self.traffic.add(name, num_bytes)
        if self._watchdog is not None:
            self._watchdog.begin(name)
        try:
            yield
        except RuntimeError as error:
            raise self._reason_of(error) from error
        finally:
            if self._watchdog is not None:
                self._watchdog.finish()

    def sum_(self, tensor: Tensor, name: str = "sum") -> Tensor:
        """Add a tensor over all processes, in place; a result is the same on all of them.

        Args:
            tensor: of any shape, the same on every process, on any device.
            name: of the counter.
        """
        return self._reduce_(tensor, dist.ReduceOp.SUM, name)

    def sum(self, tensor: Tensor, name: str = "sum") -> Tensor:
        """Return the sum of a tensor over all processes, without gradient."""
        return tensor if self.is_single else self.sum_(tensor.detach().clone(), name)

    def largest(self, values: Sequence[float], name: str = "control") -> list[float]:
        """Return the largest of each number over all processes, by the CPU."""
        if self.is_single:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        numbers: list[float] = self._reduce_(tensor, dist.ReduceOp.MAX, name).tolist()
        return numbers

    def gather_counts(self, counts: Sequence[int], name: str = "control") -> list[list[int]]:
        """Return some integers of every process, in the order of ranks."""
        if self.is_single:
            return [list(counts)]
        own = torch.tensor(counts, dtype=torch.int64)
        rows: list[list[int]] = self._gather_equal(own[None], name).tolist()
        return rows

    def gather_rows(
        self, rows: Tensor, counts: Sequence[int] | None = None, name: str = "gather"
    ) -> Tensor:
        """Concatenate the rows of all processes, in the order of ranks, without gradient.

        Args:
            rows: [n, ...], n may differ between processes.
            counts: n of every process, if known; None: they are exchanged first.
            name: of the counter.

        Returns:
            [sum of n, ...].
        """
        if self.is_single:
            return rows.detach()
        if counts is None:
            counts = [count for (count,) in self.gather_counts([len(rows)])]
        most = max(counts)
        if len(rows) != counts[self.rank]:
            raise ValueError(f"{len(rows)} rows on process {self.rank}, but counts {counts}")
        if most == 0:
            return rows.detach()
        gathered = self._gather_equal(padded(rows.detach(), most), name)
        if all(count == most for count in counts):
            return gathered
        parts = gathered.split(most)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def scatter_sum(self, rows: Tensor, counts: Sequence[int], name: str = "scatter") -> Tensor:
        """Add the rows of all processes and return those that belong to this one.

        The adjoint of ``gather_rows``.

        Args:
            rows: [sum of counts, ...], the same shape on every process.
            counts: rows of every process.
            name: of the counter.

        Returns:
            [counts[rank], ...].
        """
        if self.is_single or max(counts) == 0:
            return rows
        most = max(counts)
        parts = [padded(part, most) for part in rows.split(list(counts))]
        wire = self._on_wire(torch.cat(parts))
        own = wire.new_empty((most, *rows.shape[1:]))
        with self.collective(name, wire.nbytes):
            _reduce_scatter(own, wire, group=self._group)
        return own[: counts[self.rank]].to(rows.device)

    def exchange_rows(
        self, rows: Tensor, sent: Sequence[int], received: Sequence[int], name: str = "exchange"
    ) -> Tensor:
        """Send rows to each process: the first ``sent[0]`` to process 0, and so on.

        Args:
            rows: [sum of sent, ...].
            sent: rows for each process, this one included.
            received: rows from each process; ``sent`` of the others decides it.
            name: of the counter, which counts the bytes for other processes.

        Returns:
            [sum of received, ...], in the order of ranks.
        """
        if self.is_single:
            return rows
        wire = self._on_wire(rows).contiguous()
        result = wire.new_empty((sum(received), *rows.shape[1:]))
        num_others = len(rows) - sent[self.rank]
        with self.collective(name, num_others * rows.shape[1:].numel() * rows.element_size()):
            dist.all_to_all_single(result, wire, list(received), list(sent), group=self._group)
        return result.to(rows.device)

    def broadcast_(self, tensors: Sequence[Tensor], name: str = "broadcast") -> None:
        """Overwrite tensors, of the same shapes everywhere, with those of rank 0."""
        if self.is_single:
            return
        for tensor in tensors:
            values = tensor.detach()
            wire = self._on_wire(values).contiguous()
            with self.collective(name, wire.nbytes):
                dist.broadcast(wire, src=0, group=self._group)
            if wire is not values:
                values.copy_(wire)

    def broadcast_json(self, value: Any) -> Any:
        """Return the value of rank 0, plain JSON; those of the others are ignored."""
        if self.is_single:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        size = int(self.largest([len(text)], "broadcast")[0])
        data = torch.zeros(size, dtype=torch.uint8)
        if self.is_main:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.broadcast_([data])
        return json.loads(bytes(data.tolist()))

    def check_same(self, values: Mapping[str, str]) -> None:
        """Refuse to train where the processes read other data or settings.

        Args:
            values: short texts by name, such as fingerprints.

        Raises:
            ConfigError: a value differs between processes; names it.
        """
        if self.is_single:
            return
        main = self.broadcast_json(dict(values))
        # All processes take part, so that all of them stop, and name the same values.
        flags = self.largest([main.get(name) != value for name, value in values.items()])
        differs = [name for name, flag in zip(values, flags, strict=True) if flag]
        if differs:
            raise ConfigError(
                f"the processes do not have the same input ({', '.join(differs)}): give all of "
                "them the same recipe, dataset, folder of the run and version of candid"
            )

    def barrier(self) -> None:
        """Wait for all processes."""
        self.largest([0.0], "barrier")

    def close(self) -> None:
        """Stop watching; the group is not used afterwards."""
        if self._watchdog is not None:
            self._watchdog.close()

    def _reduce_(self, tensor: Tensor, operation: Any, name: str) -> Tensor:
        if self.is_single:
            return tensor
        wire = self._on_wire(tensor).contiguous()
        with self.collective(name, wire.nbytes):
            dist.all_reduce(wire, operation, group=self._group)
        return tensor if wire is tensor else tensor.copy_(wire)

    def _gather_equal(self, rows: Tensor, name: str) -> Tensor:
        wire = self._on_wire(rows).contiguous()
        gathered = wire.new_empty((self.world_size * len(rows), *rows.shape[1:]))
        with self.collective(name, wire.nbytes):
            _all_gather(gathered, wire, group=self._group)
        return gathered.to(rows.device)

    def _on_wire(self, tensor: Tensor) -> Tensor:
        """Return the tensor on a device whose collectives the group supports."""
        if tensor.device.type == "cpu" or "nccl" in str(_backends(self._group)):
            return tensor
        return tensor.cpu()

    def _reason_of(self, error: RuntimeError) -> PeerError | PeerInterrupted | ProcessGroupError:
        until = time.monotonic() + REASON_SECONDS
        while self._board is not None:
            failure = self._board.read()
            if failure is not None:
                return failure.error()
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        return ProcessGroupError(
            f"process {self.rank} lost the connection to the other processes "
            f"({short_reason(error)}): one of them ended or cannot be reached; continue with "
            "--resume"
        )


def padded(rows: Tensor, size: int) -> Tensor:
    """Return rows [n, ...] with zeros after them: [size, ...]."""
    if len(rows) == size:
        return rows
    return torch.cat([rows, rows.new_zeros((size - len(rows), *rows.shape[1:]))])


def short_reason(error: Exception) -> str:
    """Return the first sentence of an error of torch, without the place in its source."""
    first = (str(error).splitlines() or [""])[0]
    first = re.sub(r"^\[[^\]]*:\d+\] ", "", first)
    return re.split(r"\.(?:\s|$)", first)[0] or type(error).__name__


def _backends(group: dist.ProcessGroup | None) -> str:
    return str(dist.get_backend_config(group))
