"""The retrieval model: a query tower and an item tower that meet in one dot product."""

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
from candid.towers.feature_tower import ItemFeatures
from candid.towers.protocol import (
    EncodeProgress,
    ItemTower,
    QueryTower,
    TowerComponent,
    TowerContext,
)
from candid.towers.transformer import CausalTransformer


class RetrievalModel(nn.Module):
    """Scores by the dot product of what the two ``encode`` methods return.

    Normalisation and temperature are folded into the vectors, so that losses, indexes,
    evaluation and serving all see plain inner products: the dot product *is* the logit.

    Args:
        query_tower: users to [B, D].
        item_tower: items to [n, D].
        similarity: "dot", or "cosine" (both sides scaled to unit length first).
        temperature: the similarity is divided by it.
        learn_temperature: train log(temperature) with the rest.

    Raises:
        ConfigError: the towers' widths differ, or the temperature is not positive.
    """

    def __init__(
        self,
        query_tower: QueryTower,
        item_tower: ItemTower,
        similarity: Literal["dot", "cosine"] = "dot",
        temperature: float = 1.0,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if query_tower.dim != item_tower.dim:
            raise ConfigError(
                f"model.query_tower has dim {query_tower.dim} and model.item_tower "
                f"{item_tower.dim}: a dot product needs them equal"
            )
        if temperature <= 0:
            raise ConfigError(f"model.temperature {temperature} must be positive")
        self.query_tower = query_tower
        self.item_tower = item_tower
        self.similarity = similarity
        log_temperature = torch.tensor(math.log(temperature))
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)

    @property
    def reads_history(self) -> bool:
        """Whether the answer depends on the history."""
        return self.query_tower.reads_history

    @property
    def needs_history(self) -> bool:
        """Whether a query without history has no answer."""
        return self.query_tower.needs_history

    @property
    def needs_user(self) -> bool:
        """Whether someone who is no user of the dataset has no answer."""
        return self.query_tower.needs_user

    @property
    def reads_user_features(self) -> bool:
        """Whether the answer depends on the features of the user."""
        return self.query_tower.reads_user_features

    @property
    def reads_context(self) -> bool:
        """Whether the answer depends on the moment of the question."""
        return self.query_tower.reads_context

    @property
    def reads_item_features(self) -> bool:
        """Whether the vectors of items depend on their features."""
        return self.item_tower.reads_features

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_temperature.device

    def encode_queries(self, queries: Queries) -> Tensor:
        """Encode queries, scaled so that a dot product with an item vector is a logit: [B, D]."""
        vectors: Tensor = self.query_tower(queries)
        if self.similarity == "cosine":
            vectors = F.normalize(vectors.float(), dim=-1)
        return vectors * torch.exp(-self.log_temperature)

    def encode_items(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D]."""
        return self._scaled(self.item_tower(item_ids))

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode every item, with gradient: [V, D].

        Args:
            progress: called with (items encoded, items in all) where the tower works in chunks,
                as one with features does without gradient; None: nobody is told.
        """
        return self._scaled(self.item_tower.catalog(progress))

    def encode_item_values(
        self, values: Mapping[str, Values], item_ids: Tensor | None = None
    ) -> Tensor:
        """Encode items by what is known of them, where the catalog has nothing or other: [n, D].

        Args:
            values: by feature name, as ``FeatureTable.encode`` gives them.
            item_ids: [n] int64, the items whose values these are now; None: new items.

        Raises:
            ConfigError: the item tower reads no features.
            DataError: a feature is missing.
        """
        if not isinstance(self.item_tower, ItemFeatures):
            raise ConfigError(
                "this model knows items by their ids alone: for new ones train it with "
                "model.item_tower = 'item_features'"
            )
        return self._scaled(self.item_tower.encode_values(values, item_ids))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors.float(), dim=-1) if self.similarity == "cosine" else vectors


class ModelConfig(ComponentConfig):
    """The two towers and how they meet."""

    query_tower: TowerComponent = Field(
        default_factory=CausalTransformer.Config, description="users to vectors"
    )
    item_tower: TowerComponent = Field(
        default_factory=ItemEmbedding.Config, description="items to vectors"
    )
    similarity: Literal["dot", "cosine"] = Field(
        "dot", description="inner product, or inner product of unit vectors"
    )
    temperature: float = Field(1.0, gt=0, description="the similarity is divided by it")
    learn_temperature: bool = Field(False, description="train the temperature with the rest")

    def build(self, context: TowerContext) -> RetrievalModel:
        """Make the model for a dataset.

        Args:
            context: the dataset; its ``item_tower`` is not read.

        Raises:
            ConfigError: a tower in the wrong place, or towers that do not fit together.
        """
        item_tower = self.item_tower.build(replace(context, item_tower=None))
        if not isinstance(item_tower, ItemTower):
            raise ConfigError("model.item_tower must be a tower over items, such as item_embedding")
        query_tower = self.query_tower.build(replace(context, item_tower=item_tower))
        if not isinstance(query_tower, QueryTower):
            raise ConfigError(
                "model.query_tower must be a tower over users, such as causal_transformer"
            )
        return RetrievalModel(
            query_tower, item_tower, self.similarity, self.temperature, self.learn_temperature
        )
