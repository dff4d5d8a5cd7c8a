"""Tables with a row per user, item or code, which training can update row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, Self

import torch
from torch import Tensor, nn

from candid.distributed import Group
from candid.distributed.exchange import ShardedRows
from candid.errors import ConfigError

_sharding: ContextVar[Group | None] = ContextVar("sharding", default=None)

CHUNK_ROWS: Final = 1 << 16
"""Rows of a sharded table that are sampled at once; a multiple of 16."""


@contextmanager
def sharded_from_start(group: Group | None) -> Iterator[None]:
    """Build the tables of users and items inside the block with the rows of this process only.

    They have the initial numbers of whole tables, which are sampled in chunks: each process samples
    all rows, and holds its own.

    Args:
        group: the processes; None: tables are built whole.
    """
    token = _sharding.set(group)
    try:
        yield
    finally:
        _sharding.reset(token)


class RowTable(nn.Embedding):
    """A [num_rows, dim] table from which a step reads few rows; N(0, 0.02²), float32.

    Its gradient is as large as the table. After ``train_by_row`` it is a sparse tensor of the rows
    that were read, which needs a row-wise optimizer. After ``shard`` each process holds a range of
    the rows, and every look-up is a collective of all processes.

    Args:
        num_rows: V.
        dim: D.
        rows_of: "item" or "user" if the rows from ``first_row`` on are those of items or users, by
            id: a warm start copies them by source id, and they can be sharded. None: rows of
            something else, such as codes.
        first_row: row of id 0.

    Attributes:
        rows_of: as given.
        first_row: as given.
        shards: the exchange with the other processes; None where ``weight`` has every row.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        rows_of: Literal["item", "user"] | None = None,
        first_row: int = 0,
    ) -> None:
        group = None if rows_of is None else _sharding.get()
        if group is None:
            super().__init__(num_rows, dim)
        else:
            super().__init__(num_rows, dim, device="meta")
        self.rows_of, self.first_row = rows_of, first_row
        self.shards: ShardedRows | None = None
        if group is None:
            nn.init.normal_(self.weight, std=0.02)
        else:
            self.shards = ShardedRows(num_rows, group)
            # The random numbers of the other case, in which torch fills a new table as well.
            _normal_rows(num_rows, dim, range(0), std=1.0)
            self.weight = nn.Parameter(_normal_rows(num_rows, dim, self.rows, std=0.02))

    @torch.no_grad()
    def set_row(self, row: int, value: float) -> None:
        """Set all numbers of a row, on the process that has it."""
        if row in self.rows:
            self.weight[row - self.rows.start] = value

    def train_by_row(self, dtype: torch.dtype = torch.float32) -> None:
        """Make the gradient sparse and store the table in ``dtype``.

        Args:
            dtype: float32 or bfloat16; ``forward`` returns float32 in both cases.
        """
        self.sparse = True
        self.weight.data = self.weight.data.to(dtype)

    def return_sparse_gradients(self) -> None:
        """Make the gradient of each look-up a sparse tensor; ``ModelOptimizer`` adds them up."""
        self.sparse = True

    def reset_parameters(self) -> None:
        """Fill a new table, unless it has no memory yet: torch loads its compiler for that."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def shard(self, group: Group | None = None) -> Self:
        """Keep the rows of this process only; ``num_embeddings`` stays that of the whole table.

        Gradients are then not in ``weight.grad``: ``shards.collect(weight)`` returns them.

        Args:
            group: the processes; None: the open group, or this process alone.
        """
        shards = ShardedRows(self.num_embeddings, group)
        rows = shards.exchange.rows
        if len(rows) < self.num_embeddings:
            # A copy, so that the memory of the other rows is freed.
            self.weight.data = self.weight.data[rows.start : rows.stop].clone()
        self.shards = shards
        return self

    @property
    def rows(self) -> range:
        """The rows that ``weight`` has: all of them, or those of this process."""
        return range(self.num_embeddings) if self.shards is None else self.shards.exchange.rows

    @property
    def is_sharded(self) -> bool:
        """Whether other processes hold rows of the table, so that a look-up is a collective."""
        return self.shards is not None and not self.shards.exchange.group.is_single

    def own_part(self, values: Tensor) -> Tensor:
        """Return the rows of this process of values for every row, such as a stored table.

        Args:
            values: [V, ...]; those of another length, such as the rows of this process, are
                returned as they are.
        """
        if len(values) != self.num_embeddings:
            return values
        return values[self.rows.start : self.rows.stop]

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids of any shape: [..., D], float32 or wider.

        Raises:
            DataError: a process asks a sharded table for a row that it does not have.
        """
        if self.shards is not None:
            return self.shards.look_up(self.weight, ids)
        return _widen(super().forward(ids))

    def every_row(self) -> Tensor:
        """Return all rows, with a gradient for each: [V, D]; the table itself if it is float32.

        Raises:
            ConfigError: the table is sharded over several processes.
        """
        if self.is_sharded:
            raise ConfigError(
                f"the {self.num_embeddings:,} rows of a table are sharded, and no process holds "
                "all of them: set training.tables without 'sharded_', or use a sampler and a loss "
                "that read items by id"
            )
        return self.own_rows()

    def own_rows(self) -> Tensor:
        """Return the rows of this process, each with a gradient: [n, D], float32 or wider."""
        return _widen(self.weight) if self.shards is None else self.shards.own_rows(self.weight)


def _normal_rows(num_rows: int, dim: int, rows: range, *, std: float) -> Tensor:
    """Return some rows of what ``nn.init.normal_`` samples for a whole table, in chunks.

    torch samples normal numbers in blocks of 16, and the last 16 once more where the size is no
    multiple of 16: chunks of a multiple of 16 numbers, the last one longer than 16, have the same.
    """
    result = torch.empty(len(rows), dim)
    starts = list(range(0, max(num_rows - 15, 1), CHUNK_ROWS))
    for begin, stop in zip(starts, [*starts[1:], num_rows], strict=True):
        chunk = torch.empty(stop - begin, dim)
        nn.init.normal_(chunk, std=std)
        first, last = max(begin, rows.start), min(stop, rows.stop)
        if first < last:
            result[first - rows.start : last - rows.start] = chunk[first - begin : last - begin]
    return result


def row_tables(model: nn.Module) -> Iterator[tuple[str, RowTable]]:
    """Yield the row tables of a model by name; a shared table occurs once."""
    for name, module in model.named_modules():
        if isinstance(module, RowTable):
            yield name, module


def sharded_tables(model: nn.Module) -> dict[str, RowTable]:
    """Return the sharded tables of a model, by the first name of their parameter."""
    by_id = {id(table.weight): table for _, table in row_tables(model) if table.shards is not None}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if id(p) in by_id}


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model, those of sharded tables over all processes."""
    sharded = sharded_tables(model)
    return sum(
        sharded[name].num_embeddings * sharded[name].embedding_dim
        if name in sharded
        else parameter.numel()
        for name, parameter in model.named_parameters()
    )


def _widen(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype == torch.bfloat16 else vectors
