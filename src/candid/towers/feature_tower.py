"""Towers that read features, and so can encode new items and users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from candid.batches import Queries
from candid.features import Values
from candid.towers.feature_encoder import FeatureEncoder, FeatureTowerConfig, require_features
from candid.towers.padded import PADDING, PaddedContext, PaddedLookup, PaddedModule
from candid.towers.padded_features import PaddedFeatureEncoder
from candid.towers.protocol import EncodeProgress, ItemTower, QueryTower, TowerContext


class ItemFeatures(ItemTower):
    """The item vector is computed from features and id.

    Args:
        values: by feature name, V items each.
        is_trained: [V] bool, whether an item is ever a training target; None: all are.
        dim: D.
        settings: the other arguments of ``FeatureEncoder``.
    """

    reads_features = True

    class Config(FeatureTowerConfig):
        """Settings of ``ItemFeatures``."""

        def build(self, context: TowerContext) -> ItemFeatures:
            """Build the tower for a dataset.

            Raises:
                ConfigError: the recipe has no item features.
            """
            table = require_features(
                context.item_features, context.num_items, side="item", tower="item_features"
            )
            return ItemFeatures(table.values, context.item_is_trained, **self.model_dump())

    def __init__(
        self,
        values: Mapping[str, Values],
        is_trained: Tensor | None = None,
        *,
        dim: int,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.encoder = FeatureEncoder(values, is_trained, dim=dim, side="item", **settings)
        self.num_items = self.encoder.num_rows

    def forward(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64, each distinct item once: [n, D]."""
        vectors: Tensor = self.encoder(item_ids)
        return vectors

    def catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode every item: [V, D]; in chunks without gradient."""
        return self.encoder.every_row(progress)

    def encode_values(self, values: Mapping[str, Values], item_ids: Tensor | None = None) -> Tensor:
        """Encode new items, or items with new feature values: [n, D].

        Args:
            values: by feature name, from ``FeatureTable.encode``.
            item_ids: [n] int64, items that have these values now; None: new items.

        Raises:
            DataError: a feature is missing.
        """
        return self.encoder.encode_values(values, item_ids)

    def to_padded(self, context: PaddedContext) -> PaddedFeatureEncoder:
        """Return the encoder of padded item features."""
        return PaddedFeatureEncoder(self.encoder, "item", context.features["item"])


class UserFeatures(QueryTower):
    """The query vector is computed from features and id of the user.

    An unknown user (id -1) has the unknown code, an empty bag or zeros in every feature, and the
    unknown id.

    Args:
        values: by feature name, U users each.
        is_trained: [U] bool, whether training has a row of a user; None: all have one.
        dim: D.
        settings: the other arguments of ``FeatureEncoder``.
    """

    needs_history = False
    reads_user_features = True

    class Config(FeatureTowerConfig):
        """Settings of ``UserFeatures``."""

        def build(self, context: TowerContext) -> UserFeatures:
            """Build the tower for a dataset.

            Raises:
                ConfigError: the recipe has no user features.
            """
            table = require_features(
                context.user_features, context.num_users, side="user", tower="user_features"
            )
            return UserFeatures(table.values, context.user_is_trained, **self.model_dump())

    def __init__(
        self,
        values: Mapping[str, Values],
        is_trained: Tensor | None = None,
        *,
        dim: int,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.encoder = FeatureEncoder(values, is_trained, dim=dim, side="user", **settings)

    def forward(self, queries: Queries) -> Tensor:
        """Encode users, each distinct user once, or given user features: [B, D].

        Raises:
            DataError: a user feature is missing.
        """
        if queries.user_features is not None:
            return self.encode_values(queries.user_features)
        vectors: Tensor = self.encoder(queries.user_ids)
        return vectors

    def encode_values(self, values: Mapping[str, Values]) -> Tensor:
        """Encode users outside the dataset: [n, D].

        Args:
            values: by feature name, from ``FeatureTable.encode``.

        Raises:
            DataError: a feature is missing.
        """
        return self.encoder.encode_values(values)

    def to_padded(self, context: PaddedContext) -> PaddedModule:
        """Return a look-up by user id, or the encoder of padded user features."""
        if context.users_by == "features":
            return PaddedFeatureEncoder(self.encoder, "user", context.features["user"])
        with torch.no_grad():
            unknown = self.encoder(torch.tensor([PADDING]))[0]
            return PaddedLookup("user_id", self.encoder.every_row(), unknown)
