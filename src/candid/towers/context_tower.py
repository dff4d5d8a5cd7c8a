"""A query tower over the moment of the question: hour, weekday, time since the last interaction."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from candid.batches import Queries
from candid.errors import ConfigError
from candid.features import Values
from candid.towers.feature_encoder import START_SCALE, MixingTowerConfig
from candid.towers.fields import FieldEncoder
from candid.towers.interaction import FieldMixer, Interaction
from candid.towers.perceptron import Activation, Perceptron
from candid.towers.protocol import QueryTower, TowerContext


class ContextFeatures(QueryTower):
    """A query is what the moment says of it; beside a history in a ``joined`` tower.

    Args:
        values: by feature name; only their form is read.
        dim: D.
        field_dim: d, width of one field.
        unknown_rate: see ``FieldEncoder``.
        interaction: see ``FieldMixer``, as for the three that follow.
        cross_layers: of "cross".
        attention_layers: of "attention".
        attention_heads: of "attention".
        hidden: see ``Perceptron``, as for the two that follow.
        activation: of the hidden layers.
        dropout: after each activation.
    """

    needs_history = False

    class Config(MixingTowerConfig):
        """Settings of ``ContextFeatures``."""

        def build(self, context: TowerContext) -> ContextFeatures:
            """Make the tower.

            Raises:
                ConfigError: the recipe has no context features.
            """
            if context.context_features is None:
                raise ConfigError(
                    "the tower 'context_features' has no features to read: add a section "
                    "[features.context.NAME] for each to the recipe"
                )
            return ContextFeatures(context.context_features.values, **self.model_dump())

    def __init__(
        self,
        values: Mapping[str, Values],
        *,
        dim: int,
        field_dim: int = 32,
        unknown_rate: float = 0.0,
        interaction: Interaction = "none",
        cross_layers: int = 2,
        attention_layers: int = 1,
        attention_heads: int = 2,
        hidden: tuple[int, ...] = (128,),
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.fields = FieldEncoder(values, field_dim, unknown_rate)
        self.mixer = FieldMixer(
            len(values),
            field_dim,
            interaction,
            cross_layers=cross_layers,
            attention_layers=attention_layers,
            attention_heads=attention_heads,
        )
        self.perceptron = Perceptron(
            self.mixer.width, hidden, dim, activation, dropout, scale=START_SCALE
        )

    def forward(self, queries: Queries) -> Tensor:
        """Encode the moments: [B, D].

        Raises:
            ConfigError: the queries have no context.
            DataError: a feature is missing.
        """
        if queries.context is None:
            raise ConfigError(
                "the tower 'context_features' was asked without a moment: pass context=, such as "
                "run.features.context_of(dataset), to evaluate or recommend"
            )
        vectors: Tensor = self.perceptron(self.mixer(self.fields(queries.context)))
        return vectors
