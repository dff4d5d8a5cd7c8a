"""The retrieval model: a query tower, an item tower and their dot product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from candid.batches import Queries
from candid.component import ComponentConfig
from candid.errors import ConfigError
from candid.features import Values
from candid.towers.embedding import ItemEmbedding
from candid.towers.protocol import (
    EncodeProgress,
    ItemTower,
    QueryTower,
    TowerComponent,
    TowerContext,
)
from candid.towers.row_noise import rows_of
from candid.towers.row_table import row_tables
from candid.towers.transformer import CausalTransformer


class RetrievalModel(nn.Module):
    """Two towers; the score of an item is the dot product of query and item vector.

    The vectors include normalisation and temperature, so that losses, indexes, evaluation and
    serving all use plain inner products: the dot product is the logit.

    Args:
        query_tower: encodes queries as [B, D].
        item_tower: encodes items as [n, D].
        similarity: "dot", or "cosine" (both sides scaled to unit length first).
        temperature: divisor of the similarity.
        learn_temperature: whether to train log(temperature).

    Raises:
        ConfigError: the widths of the towers differ, or the temperature is not positive.
    """

    def __init__(
        self,
        query_tower: QueryTower,
        item_tower: ItemTower,
        *,
        similarity: Literal["dot", "cosine"],
        temperature: float,
        learn_temperature: bool,
    ) -> None:
        super().__init__()
        if query_tower.dim != item_tower.dim:
            raise ConfigError(
                f"model.query_tower.dim {query_tower.dim} must equal model.item_tower.dim "
                f"{item_tower.dim}; set both to one value"
            )
        if temperature <= 0:
            raise ConfigError(f"model.temperature must be positive, got {temperature}")
        self.query_tower = query_tower
        self.item_tower = item_tower
        self.similarity = similarity
        log_temperature = torch.tensor(math.log(temperature))
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)

    def extra_repr(self) -> str:
        """Return the settings."""
        temperature = float(self.log_temperature.detach().exp())
        return f"similarity={self.similarity!r}, temperature={temperature:g}"

    @property
    def reads_history(self) -> bool:
        """Whether the query vector depends on the history."""
        return self.query_tower.reads_history

    @property
    def reads_times(self) -> bool:
        """Whether the query vector depends on the times of the interactions of the history."""
        return self.query_tower.reads_times

    @property
    def reads_query_gap(self) -> bool:
        """Whether the query vector depends on the time from the last interaction to the query."""
        return self.query_tower.reads_query_gap

    @property
    def needs_history(self) -> bool:
        """Whether a query without history cannot be encoded."""
        return self.query_tower.needs_history

    @property
    def needs_user(self) -> bool:
        """Whether a user outside the dataset cannot be encoded."""
        return self.query_tower.needs_user

    @property
    def reads_user_features(self) -> bool:
        """Whether the query vector depends on the features of the user."""
        return self.query_tower.reads_user_features

    @property
    def reads_context(self) -> bool:
        """Whether the query vector depends on the context."""
        return self.query_tower.reads_context

    @property
    def reads_item_features(self) -> bool:
        """Whether item vectors depend on the features of the items."""
        return self.item_tower.reads_features

    @property
    def is_sharded(self) -> bool:
        """Whether processes hold parts of a table, so that all of them encode at the same time."""
        return any(table.is_sharded for _, table in row_tables(self))

    @property
    def own_items(self) -> range | None:
        """Items whose vectors ``encode_own_items`` returns on this process; None: not sharded."""
        return self.item_tower.own_items

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.log_temperature.device

    def encode_queries(self, queries: Queries) -> Tensor:
        """Encode queries so that their dot product with an item vector is a logit: [B, D]."""
        with rows_of(queries.row_numbers):
            vectors: Tensor = self.query_tower(queries)
        if self.similarity == "cosine":
            vectors = _unit(vectors)
        return vectors * torch.exp(-self.log_temperature)

    def encode_items(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D]."""
        return self._normalize(self.item_tower(item_ids))

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode every item, with gradient: [V, D].

        Args:
            progress: called with (items encoded, total items) by towers that work in chunks, as
                those with features do without gradient.
        """
        return self._normalize(self.item_tower.catalog(progress))

    def encode_own_items(self) -> Tensor:
        """Encode ``own_items``, with gradient: [n, D].

        Raises:
            ConfigError: the item tower holds all items.
        """
        return self._normalize(self.item_tower.own_vectors())

    def encode_item_values(
        self, values: Mapping[str, Values], item_ids: Tensor | None = None
    ) -> Tensor:
        """Encode new items, or items with new feature values: [n, D].

        Args:
            values: by feature name, from ``FeatureTable.encode``.
            item_ids: [n] int64, items that have these values now; None: new items.

        Raises:
            ConfigError: the item tower reads no features.
            DataError: a feature is missing.
        """
        return self._normalize(self.item_tower.encode_values(values, item_ids))

    def _normalize(self, vectors: Tensor) -> Tensor:
        return _unit(vectors) if self.similarity == "cosine" else vectors


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors to unit length, in float32 at least."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


class ModelConfig(ComponentConfig):
    """The two towers and their similarity."""

    query_tower: TowerComponent = Field(
        default_factory=CausalTransformer.Config, description="encoder of queries"
    )
    item_tower: TowerComponent = Field(
        default_factory=ItemEmbedding.Config, description="encoder of items"
    )
    similarity: Literal["dot", "cosine"] = Field(
        "dot", description="inner product, or inner product of unit vectors"
    )
    temperature: float = Field(1.0, gt=0, description="divisor of the similarity")
    learn_temperature: bool = Field(False, description="train the temperature")

    def build(self, context: TowerContext) -> RetrievalModel:
        """Build the model for a dataset.

        Args:
            context: properties of the dataset; ``item_tower`` is ignored.

        Raises:
            ConfigError: a tower of the wrong side, or towers that do not fit together.
        """
        item_tower = self.item_tower.build(replace(context, item_tower=None))
        if not isinstance(item_tower, ItemTower):
            raise ConfigError("model.item_tower must be an item tower, such as item_embedding")
        query_tower = self.query_tower.build(replace(context, item_tower=item_tower))
        if not isinstance(query_tower, QueryTower):
            raise ConfigError("model.query_tower must be a query tower, such as causal_transformer")
        return RetrievalModel(
            query_tower,
            item_tower,
            similarity=self.similarity,
            temperature=self.temperature,
            learn_temperature=self.learn_temperature,
        )
