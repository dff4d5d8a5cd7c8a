"""A query tower over the context: hour, weekday, time since the last interaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from candid.batches import Queries
from candid.errors import ConfigError
from candid.features import Values
from candid.towers.feature_encoder import FeatureMixing, MixingTowerConfig
from candid.towers.padded import PaddedContext
from candid.towers.padded_features import PaddedContextFeatures
from candid.towers.protocol import QueryTower, TowerContext


class ContextFeatures(QueryTower):
    """The query vector is computed from context features; used with others in a ``joined`` tower.

    Args:
        values: by feature name; only their form is read.
        dim: D.
        settings: the other arguments of ``FeatureMixing``.
    """

    needs_history = False
    reads_context = True

    class Config(MixingTowerConfig):
        """Settings of ``ContextFeatures``."""

        def build(self, context: TowerContext) -> ContextFeatures:
            """Build the tower.

            Raises:
                ConfigError: the recipe has no context features.
            """
            if context.context_features is None:
                raise ConfigError(
                    "the tower 'context_features' has no features; add a section "
                    "[features.context.NAME] for each to the recipe"
                )
            return ContextFeatures(context.context_features.values, **self.model_dump())

    def __init__(self, values: Mapping[str, Values], *, dim: int, **settings: Any) -> None:
        super().__init__()
        self.dim = dim
        self.mixing = FeatureMixing(values, dim=dim, **settings)

    def forward(self, queries: Queries) -> Tensor:
        """Encode the context of B queries: [B, D].

        Raises:
            ConfigError: the queries have no context.
            DataError: a feature is missing.
        """
        if queries.context is None:
            raise ConfigError(
                "the tower 'context_features' needs a context; pass context=, such as "
                "run.features.context_for(dataset)"
            )
        return self.mixing.mix(self.mixing.fields(queries.context))

    def to_padded(self, context: PaddedContext) -> PaddedContextFeatures:
        """Return the encoder of padded context features."""
        return PaddedContextFeatures(self.mixing, context.features["context"])
