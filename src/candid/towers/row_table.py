"""Tables that grow with the users or the catalog, which training may update row by row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class RowTable(nn.Embedding):
    """A [num_rows, dim] table of which a step reads few rows; N(0, 0.02²), float32.

    Its gradient is as large as the table, until ``train_by_row``: from then on it is a sparse
    tensor of the rows that were read, which only a row-wise optimizer takes.

    Args:
        num_rows: V.
        dim: D.
    """

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__(num_rows, dim)
        nn.init.normal_(self.weight, std=0.02)

    def train_by_row(self, dtype: torch.dtype = torch.float32) -> None:
        """Hand over the gradients of the rows that are read, and keep the table in ``dtype``.

        Args:
            dtype: float32 or bfloat16. What is looked up is float32 either way.
        """
        self.sparse = True
        self.weight.data = self.weight.data.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids up, in whatever shape: [..., D], never narrower than float32."""
        return _widened(super().forward(ids))

    def every_row(self) -> Tensor:
        """All rows, with a gradient as large as the table: [V, D]; the table where float32."""
        return _widened(self.weight)


def row_tables(model: nn.Module) -> Iterator[tuple[str, RowTable]]:
    """The row tables of a model by name; one that is shared once."""
    for name, module in model.named_modules():
        if isinstance(module, RowTable):
            yield name, module


def _widened(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype == torch.bfloat16 else vectors
