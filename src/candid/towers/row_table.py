"""Tables with a row per user, item or code, which training can update row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import torch
from torch import Tensor, nn


class RowTable(nn.Embedding):
    """A [num_rows, dim] table from which a step reads few rows; N(0, 0.02²), float32.

    Its gradient is as large as the table. After ``train_by_row`` it is a sparse tensor of the rows
    that were read, which needs a row-wise optimizer.

    Args:
        num_rows: V.
        dim: D.

    Attributes:
        rows_of: "item" or "user" if the rows are those of items or users, by id: a warm start
            copies them by source id. None: rows of something else, such as codes.
        first_row: row of id 0.
    """

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__(num_rows, dim)
        self.rows_of: Literal["item", "user"] | None = None
        self.first_row = 0
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

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids of any shape: [..., D], float32 or wider."""
        return _widen(super().forward(ids))

    def every_row(self) -> Tensor:
        """Return all rows, with a dense gradient: [V, D]; the table itself if it is float32."""
        return _widen(self.weight)


def row_tables(model: nn.Module) -> Iterator[tuple[str, RowTable]]:
    """Yield the row tables of a model by name; a shared table occurs once."""
    for name, module in model.named_modules():
        if isinstance(module, RowTable):
            yield name, module


def _widen(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype == torch.bfloat16 else vectors
