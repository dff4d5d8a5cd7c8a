"""Towers that look up an embedding for each user or item id."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.batches import Queries
from candid.towers.padded import PaddedContext, PaddedLookup
from candid.towers.protocol import (
    MAX_WIDTH,
    EncodeProgress,
    ItemTower,
    QueryTower,
    TowerConfig,
    TowerContext,
)
from candid.towers.row_table import RowTable


def embedding_table(num_rows: int, dim: int) -> nn.Embedding:
    """Return a [num_rows, dim] float32 table, N(0, 0.02²) as is usual for transformers."""
    table = nn.Embedding(num_rows, dim)
    nn.init.normal_(table.weight, std=0.02)
    return table


class UserEmbedding(QueryTower):
    """The query vector is the embedding of the user id, as in matrix factorisation.

    Args:
        num_users: U; ids are 0..U-1. An untrained user keeps its random initial vector.
        dim: D.
    """

    needs_history = False
    needs_user = True

    class Config(TowerConfig):
        """Settings of ``UserEmbedding``."""

        dim: int = Field(64, ge=1, le=MAX_WIDTH, description="width of the vectors")

        def build(self, context: TowerContext) -> UserEmbedding:
            """Build the tower for a dataset."""
            return UserEmbedding(context.num_users, dim=self.dim)

    def __init__(self, num_users: int, *, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = RowTable(num_users, dim, "user")

    def forward(self, queries: Queries) -> Tensor:
        """Look up the users: [B, D]."""
        vectors: Tensor = self.embedding(queries.user_ids)
        return vectors

    def to_padded(self, context: PaddedContext) -> PaddedLookup:
        """Return the table as a padded module."""
        table = self.embedding.every_row().detach()
        return PaddedLookup("user_id", table, table.new_full((self.dim,), torch.nan))


class ItemEmbedding(ItemTower):
    """The item vector is the embedding of the item id.

    Args:
        num_items: V; ids are 0..V-1.
        dim: D.
        initial_vectors: [V, D] float32 that training starts from; None for random ones.
    """

    class Config(TowerConfig):
        """Settings of ``ItemEmbedding``."""

        dim: int = Field(64, ge=1, le=MAX_WIDTH, description="width of the vectors")
        initial: Literal["random", "co_visits"] = Field(
            "random",
            description="vectors before the first step: random, or co_visits: factors of the "
            "pairs of items that occur near each other in histories",
        )

        def build(self, context: TowerContext) -> ItemEmbedding:
            """Build the tower for a dataset."""
            vectors = None
            if self.initial == "co_visits" and context.initial_item_vectors is not None:
                vectors = context.initial_item_vectors(self.dim)
            return ItemEmbedding(context.num_items, dim=self.dim, initial_vectors=vectors)

    def __init__(self, num_items: int, *, dim: int, initial_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.num_items = num_items
        self.dim = dim
        self.embedding = RowTable(num_items, dim, "item")
        if initial_vectors is not None:
            with torch.no_grad():
                self.embedding.weight.copy_(self.embedding.own_part(initial_vectors))

    @property
    def table(self) -> RowTable:
        """The table of item vectors."""
        return self.embedding

    @property
    def own_items(self) -> range | None:
        """Items of this process, if the table is sharded."""
        return self.embedding.rows if self.embedding.is_sharded else None

    def own_vectors(self) -> Tensor:
        """Return the rows of this process: [n, D]."""
        return self.embedding.own_rows()

    def forward(self, item_ids: Tensor) -> Tensor:
        """Look up the items: [n, D]."""
        vectors: Tensor = self.embedding(item_ids)
        return vectors

    def catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Return the table: [V, D]."""
        return self.embedding.every_row()
