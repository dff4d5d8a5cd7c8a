"""Towers turn users and items into vectors; the retrieval model joins two of them.

name                 side    a vector is
causal_transformer   query   the state of a transformer after the most recent interaction
user_embedding       query   a free vector of the user
user_features        query   the user's features through a perceptron, and what the id adds
context_features     query   features of the question's moment through a perceptron
joined               query   several of these side by side, through a perceptron
item_embedding       item    a free vector of the item
item_features        item    the item's features through a perceptron, and what the id adds

The feature towers read ``TowerContext.item_features`` and ``user_features``; they know items
and users that training never saw. ``context_features`` reads ``Queries.context``.
"""

from candid.towers.context_tower import ContextFeatures
from candid.towers.embedding import ItemEmbedding, UserEmbedding
from candid.towers.feature_tower import ItemFeatures, UserFeatures
from candid.towers.joined import Joined
from candid.towers.model import ModelConfig, RetrievalModel
from candid.towers.padded import (
    PADDING,
    NamedTensors,
    PaddedContext,
    PaddedInput,
    PaddedLookup,
    PaddedModule,
    feature_input,
    merge_inputs,
)
from candid.towers.protocol import (
    EncodeProgress,
    ItemTower,
    QueryTower,
    TowerComponent,
    TowerConfig,
    TowerContext,
)
from candid.towers.registry import TOWERS
from candid.towers.row_table import RowTable, row_tables
from candid.towers.transformer import CausalTransformer

__all__ = [
    "PADDING",
    "TOWERS",
    "CausalTransformer",
    "ContextFeatures",
    "EncodeProgress",
    "ItemEmbedding",
    "ItemFeatures",
    "ItemTower",
    "Joined",
    "ModelConfig",
    "NamedTensors",
    "PaddedContext",
    "PaddedInput",
    "PaddedLookup",
    "PaddedModule",
    "QueryTower",
    "RetrievalModel",
    "RowTable",
    "TowerComponent",
    "TowerConfig",
    "TowerContext",
    "UserEmbedding",
    "UserFeatures",
    "feature_input",
    "merge_inputs",
    "row_tables",
]
