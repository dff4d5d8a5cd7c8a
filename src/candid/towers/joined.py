"""Several query towers as one: history, features and id of a user in the same query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.batches import Queries
from candid.errors import ConfigError
from candid.towers.padded import PaddedContext, PaddedJoined
from candid.towers.perceptron import Activation, Hidden, Perceptron
from candid.towers.protocol import QueryTower, TowerComponent, TowerConfig, TowerContext


class Joined(QueryTower):
    """The vectors of several query towers, side by side, through a perceptron.

    Its linear path begins as the sum of those parts whose width is D: a history tower that is
    tied to the item tower keeps the items' own axes from the first step on.

    Args:
        towers: the parts, of any widths.
        dim: D.
        hidden: widths of the hidden layers; empty for a linear map.
        activation: of the hidden layers.
        dropout: after each hidden layer.

    Raises:
        ConfigError: no part, or one that is not a tower over users.
    """

    class Config(TowerConfig):
        """Settings of ``Joined``."""

        towers: tuple[TowerComponent, ...] = Field(
            min_length=1, description="the query towers to join, each a table with its type"
        )
        dim: int = Field(64, ge=1, description="width of the query")
        hidden: Hidden = Field(
            (), description="widths of the perceptron's hidden layers; [] for a linear map"
        )
        activation: Activation = Field("gelu", description="of the hidden layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")

        def build(self, context: TowerContext) -> Joined:
            """Make every part, and the tower, for a dataset."""
            parts = []
            for config in self.towers:
                part = config.build(context)
                if not isinstance(part, QueryTower):
                    raise ConfigError(
                        "query_tower.towers must hold towers over users, such as user_features"
                    )
                parts.append(part)
            return Joined(parts, **self.model_dump(exclude={"towers"}))

    def __init__(
        self,
        towers: Sequence[QueryTower],
        *,
        dim: int,
        hidden: tuple[int, ...] = (),
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not towers:
            raise ConfigError("a joined query tower needs at least one tower in 'towers'")
        self.dim = dim
        self.reads_history = any(tower.reads_history for tower in towers)
        self.needs_history = any(tower.needs_history for tower in towers)
        self.needs_user = any(tower.needs_user for tower in towers)
        self.reads_user_features = any(tower.reads_user_features for tower in towers)
        self.reads_context = any(tower.reads_context for tower in towers)
        self.towers = nn.ModuleList(towers)
        widths = [tower.dim for tower in towers]
        self.perceptron = Perceptron(sum(widths), hidden, dim, activation, dropout)
        with torch.no_grad():
            for block in self.perceptron.linear.weight.split(widths, dim=1):
                if block.shape[1] == dim:
                    nn.init.eye_(block)

    def forward(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D]."""
        parts = torch.cat([tower(queries) for tower in self.towers], dim=1)
        vectors: Tensor = self.perceptron(parts)
        return vectors

    def to_padded(self, context: PaddedContext) -> PaddedJoined:
        """Join the padded modules of the parts; see ``QueryTower.to_padded``."""
        parts = [tower.to_padded(context) for tower in self.towers if isinstance(tower, QueryTower)]
        return PaddedJoined(parts, self.perceptron)
