"""Towers turn users and items into vectors; the retrieval model joins two of them.

name                 side    a vector is
causal_transformer   query   the state of a transformer after the most recent interaction
user_embedding       query   a free vector of the user
item_embedding       item    a free vector of the item
"""

from candid.towers.embedding import ItemEmbedding, UserEmbedding
from candid.towers.model import ModelConfig, RetrievalModel
from candid.towers.protocol import ItemTower, QueryTower, TowerConfig, TowerContext
from candid.towers.transformer import CausalTransformer

TOWERS: dict[str, type[QueryTower | ItemTower]] = {
    "causal_transformer": CausalTransformer,
    "item_embedding": ItemEmbedding,
    "user_embedding": UserEmbedding,
}

__all__ = [
    "TOWERS",
    "CausalTransformer",
    "ItemEmbedding",
    "ItemTower",
    "ModelConfig",
    "QueryTower",
    "RetrievalModel",
    "TowerConfig",
    "TowerContext",
    "UserEmbedding",
]
