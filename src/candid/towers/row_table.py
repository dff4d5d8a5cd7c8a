"""Tables with a row per user, item or code, which training can update row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import torch
from torch import Tensor, nn

from candid.distributed import Group
from candid.distributed.exchange import ShardedRows
from candid.errors import ConfigError


class RowTable(nn.Embedding):
    """A [num_rows, dim] table from which a step reads few rows; N(0, 0.02²), float32.

    Its gradient is as large as the table. After ``train_by_row`` it is a sparse tensor of the rows
    that were read, which needs a row-wise optimizer. After ``shard`` each process holds a range of
    the rows, and every look-up is a collective of all processes.

    Args:
        num_rows: V.
        dim: D.

    Attributes:
        rows_of: "item" or "user" if the rows are those of items or users, by id: a warm start
            copies them by source id. None: rows of something else, such as codes.
        first_row: row of id 0.
        shards: the exchange with the other processes; None where ``weight`` has every row.
    """

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__(num_rows, dim)
        self.rows_of: Literal["item", "user"] | None = None
        self.first_row = 0
        self.shards: ShardedRows | None = None
        nn.init.normal_(self.weight, std=0.02)

    def of(self, rows_of: Literal["item", "user"], first_row: int = 0) -> Self:
        """Declare that the rows from ``first_row`` on are those of items or of users, by id."""
        self.rows_of, self.first_row = rows_of, first_row
        return self

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
        """Return all rows, with a dense gradient: [V, D]; the table itself if it is float32.

        Raises:
            ConfigError: the table is sharded over several processes.
        """
        if len(self.rows) < self.num_embeddings:
            raise ConfigError(
                f"the {self.num_embeddings:,} rows of a table are sharded, and no process holds "
                "all of them: set training.tables without 'sharded_', or use a sampler and a loss "
                "that read items by id"
            )
        return _widen(self.weight)

    def own_rows(self) -> Tensor:
        """Return the rows of this process, without gradient: [len(rows), D], float32 or wider."""
        return _widen(self.weight.detach())


def row_tables(model: nn.Module) -> Iterator[tuple[str, RowTable]]:
    """Yield the row tables of a model by name; a shared table occurs once."""
    for name, module in model.named_modules():
        if isinstance(module, RowTable):
            yield name, module


def sharded_tables(model: nn.Module) -> dict[str, RowTable]:
    """Return the sharded tables of a model, by the first name of their parameter."""
    by_id = {id(table.weight): table for _, table in row_tables(model) if table.shards is not None}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if id(p) in by_id}


def _widen(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype == torch.bfloat16 else vectors
