"""The exchange of rows of a table whose ranges are on several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor

from candid.distributed.connection import current_group
from candid.distributed.group import Group
from candid.errors import DataError

TRAFFIC: Final = "exchange"
"""Name of the counters of ``Group.traffic``."""

BAD_IDS: Final = -1
"""Sent instead of a number of ids by a process that asks for a row outside the table."""


@dataclass(frozen=True)
class RowRanges:
    """The ranges of rows of a table, one for each process, equal to within one row.

    Ranges are contiguous and not dealt round robin: ids that are sorted once are then sorted by
    process too, a checkpoint names a range by two numbers, and other ranges are read from it as
    slices. A process asks for a row at most once in an exchange, and ids follow the order of the
    source ids: popular rows gather on one process only if source ids are sorted by popularity.

    Args:
        num_rows: V, rows of the table.
        num_ranks: W.

    Example:
        >>> RowRanges(10, 4).of(1)
        range(2, 5)
    """

    num_rows: int
    num_ranks: int

    @property
    def starts(self) -> list[int]:
        """First row of each process and, at the end, the number of rows: W + 1 numbers."""
        return [rank * self.num_rows // self.num_ranks for rank in range(self.num_ranks + 1)]

    def of(self, rank: int) -> range:
        """Return the rows of a process."""
        begin, stop = (step * self.num_rows // self.num_ranks for step in (rank, rank + 1))
        return range(begin, stop)


class RowExchange:
    """Reads rows from the processes that own them, and sends gradients to these processes.

    Every method is a collective: all processes of the group call it, in the same order, also one
    that has no id. With one process nothing is sent.

    What a process sends is counted in ``Group.traffic``. With n distinct ids of other processes,
    m ids that these ask of it, W processes, D columns and b bytes per number, ``fetch`` sends
    8 (W - 1) + 8 n + m · D · b bytes, and ``deliver`` 8 (W - 1) + 8 n + n · D · b. Each of them is
    three exchanges: numbers of ids, ids, rows.

    Args:
        num_rows: V, rows of the whole table.
        group: the processes; None: the open group, or this process alone.

    Attributes:
        group: the processes.
        ranges: the rows of each process.
        rows: the rows of this process.
    """

    def __init__(self, num_rows: int, group: Group | None = None) -> None:
        self.group = current_group() if group is None else group
        self.ranges = RowRanges(num_rows, self.group.world_size)
        self.rows = self.ranges.of(self.group.rank)

    def __repr__(self) -> str:
        return f"RowExchange(rank={self.group.rank}, rows={self.rows.start}:{self.rows.stop})"

    def fetch(self, table: Tensor, ids: Tensor) -> Tensor:
        """Read rows of the table: [n, D], of the dtype of the table.

        Args:
            table: [rows of this process, D].
            ids: [n] int64, distinct and ascending, rows of the whole table; n may be 0 and may
                differ between processes.

        Raises:
            DataError: a process asks for a row outside the table; raised on every process.
        """
        sent, received = self._counts(ids)
        wanted = self._send(ids, sent, received)
        found = table.index_select(0, wanted - self.rows.start)
        return self._send(found, received, sent)

    def deliver(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Send rows, such as gradients, to the processes that own them.

        Args:
            ids: [n] int64, distinct and ascending, rows of the whole table.
            rows: [n, D].

        Returns:
            [m] int64, rows counted from the first one of this process, and what each received,
            [m, D]. An id that several processes sent occurs once for each, in the order of ranks: a
            sum in this order does not depend on which message arrives first.

        Raises:
            DataError: as for ``fetch``.
        """
        sent, received = self._counts(ids)
        local = self._send(ids, sent, received) - self.rows.start
        return local, self._send(rows, sent, received)

    def _counts(self, ids: Tensor) -> tuple[list[int], list[int]]:
        """Return how many ids go to each process, and how many come from it.

        The sizes of messages are numbers of the host, so this synchronises an accelerator once.
        """
        edges = torch.tensor(self.ranges.starts, device=ids.device)
        positions = torch.searchsorted(ids, edges)
        outside = (positions[0] > 0) | (positions[-1] < len(ids))
        sent = positions.diff().masked_fill(outside, BAD_IDS)
        ones = [1] * self.ranges.num_ranks
        received = self.group.exchange_rows(sent, ones, ones, TRAFFIC)
        both: list[list[int]] = torch.stack([sent, received]).tolist()
        if BAD_IDS in both[1]:
            bad_ranks = ", ".join(str(r) for r, count in enumerate(both[1]) if count == BAD_IDS)
            raise DataError(
                f"process {bad_ranks} asked for a row outside the table: ids must be 0 to "
                f"{self.ranges.num_rows - 1}"
            )
        return both[0], both[1]

    def _send(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send the first ``sent[0]`` rows to process 0, and so on; return what arrives, by rank."""
        return self.group.exchange_rows(values, sent, received, TRAFFIC)


class ShardedRows:
    """A table of which each process holds a range of rows, with look-ups and sparse gradients.

    ``look_up`` fetches the distinct rows of a call. Its backward pass sends nothing: it keeps the
    gradients of the fetched rows. ``collect`` then sends those of all look-ups of a step at once,
    so that processes need not run their backward passes in the same order, and a row that several
    look-ups read is sent once. ``own_rows`` reads the rows of this process, and sends nothing.

    Args:
        num_rows: V, rows of the whole table.
        group: the processes; None: the open group, or this process alone.

    Attributes:
        exchange: the exchange with the other processes.

    Example:
        >>> rows = ShardedRows(5)
        >>> table = torch.arange(10.0).view(5, 2).requires_grad_()
        >>> rows.look_up(table, torch.tensor([4, 4, 0])).sum().backward()
        >>> rows.collect(table).to_dense()[4]
        tensor([2., 2.])
    """

    def __init__(self, num_rows: int, group: Group | None = None) -> None:
        self.exchange = RowExchange(num_rows, group)
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._own_gradients: list[Tensor] = []

    def look_up(self, table: Tensor, ids: Tensor) -> Tensor:
        """Read rows by id, on every process at the same time: [..., D], float32 or wider.

        Args:
            table: [rows of this process, D].
            ids: int64 of any shape, also empty; rows of the whole table.

        Raises:
            DataError: a process asks for a row outside the table; raised on every process.
        """
        distinct, inverse = torch.unique(ids, return_inverse=True)
        fetch = cast(Callable[..., Tensor], _FetchedRows.apply)
        rows = fetch(table, distinct, self)
        # Not indexing: its backward sorts the ids.
        return torch.nn.functional.embedding(inverse, rows)

    def own_rows(self, table: Tensor) -> Tensor:
        """Read all rows of this process, without copying those that are float32 or wider.

        Args:
            table: [rows of this process, D].

        Returns:
            [rows of this process, D], float32 or wider.
        """
        read = cast(Callable[..., Tensor], _OwnRows.apply)
        return read(table, self)

    def collect(self, table: Tensor) -> Tensor:
        """Send the gradients since the last call to the owners; return those of the own rows.

        A collective: a process without a look-up calls it too.

        Args:
            table: [rows of this process, D].

        Returns:
            a sparse tensor [rows of this process, D], not coalesced, float32 or wider; after
            ``own_rows``, where every row has a gradient, a dense one.
        """
        gradients, self._gradients = self._gradients, []
        wide = torch.promote_types(table.dtype, torch.float32)
        no_ids = torch.empty(0, dtype=torch.int64, device=table.device)
        no_rows = torch.empty(0, table.shape[1], dtype=wide, device=table.device)
        ids = torch.cat([no_ids, *(ids for ids, _ in gradients)])
        rows = torch.cat([no_rows, *(rows for _, rows in gradients)])
        if len(gradients) > 1:
            ids, position = torch.unique(ids, return_inverse=True)
            rows = rows.new_zeros(len(ids), rows.shape[1]).index_add_(0, position, rows)
        local, values = self.exchange.deliver(ids, rows)
        own, self._own_gradients = self._own_gradients, []
        if own:
            return sum(own[1:], own[0]).index_add(0, local, values)
        return torch.sparse_coo_tensor(
            local[None], values, (len(table), table.shape[1]), check_invariants=False
        )

    def drop(self) -> None:
        """Forget the gradients since the last ``collect``."""
        self._gradients.clear()
        self._own_gradients.clear()


class _FetchedRows(torch.autograd.Function):
    """Fetched rows, float32 or wider; their gradient is kept for ``ShardedRows.collect``."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, rows: ShardedRows) -> Tensor:
        ctx.ids, ctx.rows = ids, rows
        fetched = rows.exchange.fetch(table, ids)
        return fetched.to(torch.promote_types(fetched.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.rows._gradients.append((ctx.ids, gradient))
        return None, None, None


class _OwnRows(torch.autograd.Function):
    """The own rows, float32 or wider; their gradient is kept for ``ShardedRows.collect``."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: ShardedRows) -> Tensor:
        ctx.rows = rows
        return table.view_as(table).to(torch.promote_types(table.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        ctx.rows._own_gradients.append(gradient)
        return None, None
