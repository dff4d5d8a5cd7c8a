"""What a tower is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from candid.batches import Queries


class QueryTower(nn.Module, ABC):
    """Users to vectors.

    Attributes:
        dim: D, the width of the output.
    """

    dim: int

    @abstractmethod
    def forward(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D] float32."""


class ItemTower(nn.Module, ABC):
    """Items to vectors.

    Attributes:
        dim: D, the width of the output.
        num_items: V; ids are 0..V-1.
    """

    dim: int
    num_items: int

    @abstractmethod
    def forward(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D] float32."""

    @abstractmethod
    def catalog(self) -> Tensor:
        """Encode every item, with gradient: [V, D] float32."""
