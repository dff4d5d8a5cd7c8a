"""A query tower that joins several: history, features and id of a user in one query vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.batches import Queries
from candid.errors import ConfigError
from candid.towers.padded import PaddedContext, PaddedJoined
from candid.towers.perceptron import Activation, Hidden, Perceptron
from candid.towers.protocol import MAX_WIDTH, QueryTower, TowerComponent, TowerConfig, TowerContext


class Joined(QueryTower):
    """The vectors of several query towers, concatenated, through a perceptron.

    Its linear path is initialised to the sum of the towers of width D: a history tower that is
    tied to the item tower keeps the axes of the item vectors from the first step.

    Args:
        towers: query towers of any widths.
        dim: D.
        hidden: widths of the hidden layers; empty for a linear map.
        activation: of the hidden layers.
        dropout: after each hidden layer.

    Raises:
        ConfigError: there is no tower.
    """

    class Config(TowerConfig):
        """Settings of ``Joined``."""

        towers: tuple[TowerComponent, ...] = Field(
            min_length=1, description="query towers to join, each a table with its type"
        )
        dim: int = Field(64, ge=1, le=MAX_WIDTH, description="width of the query vector")
        hidden: Hidden = Field(
            (), description="widths of the hidden layers of the perceptron; []: a linear map"
        )
        activation: Activation = Field("gelu", description="of the hidden layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")

        def build(self, context: TowerContext) -> Joined:
            """Build the towers, and the joined tower, for a dataset."""
            towers = []
            for config in self.towers:
                tower = config.build(context)
                if not isinstance(tower, QueryTower):
                    raise ConfigError(
                        "query_tower.towers must be query towers, such as user_features"
                    )
                towers.append(tower)
            return Joined(towers, **self.model_dump(exclude={"towers"}))

    def __init__(
        self,
        towers: Sequence[QueryTower],
        *,
        dim: int,
        hidden: tuple[int, ...],
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__()
        if not towers:
            raise ConfigError("query_tower.towers is empty; name at least one query tower")
        self.dim = dim
        self.reads_history = any(tower.reads_history for tower in towers)
        self.reads_times = any(tower.reads_times for tower in towers)
        self.reads_query_gap = any(tower.reads_query_gap for tower in towers)
        self.needs_history = any(tower.needs_history for tower in towers)
        self.needs_user = any(tower.needs_user for tower in towers)
        self.reads_user_features = any(tower.reads_user_features for tower in towers)
        self.reads_context = any(tower.reads_context for tower in towers)
        self.towers = nn.ModuleList(towers)
        widths = [tower.dim for tower in towers]
        self.perceptron = Perceptron(
            sum(widths), dim=dim, hidden=hidden, activation=activation, dropout=dropout
        )
        with torch.no_grad():
            for block in self.perceptron.linear.weight.split(widths, dim=1):
                if block.shape[1] == dim:
                    nn.init.eye_(block)

    def forward(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D]."""
        vectors: Tensor = self.perceptron(torch.cat([t(queries) for t in self.towers], dim=1))
        return vectors

    def to_padded(self, context: PaddedContext) -> PaddedJoined:
        """Return the padded modules of the towers, joined."""
        modules = [t.to_padded(context) for t in self.towers if isinstance(t, QueryTower)]
        return PaddedJoined(modules, self.perceptron)
