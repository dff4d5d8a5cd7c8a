"""Towers, which encode users and items as vectors, and the retrieval model of two towers.

name                 side    vector
causal_transformer   query   state of a transformer after the most recent interaction
user_embedding       query   embedding of the user id
user_features        query   features of the user through a perceptron, combined with the id
context_features     query   features of the context through a perceptron
joined               query   vectors of several query towers, concatenated, through a perceptron
item_embedding       item    embedding of the item id
item_features        item    features of the item through a perceptron, combined with the id

The feature towers read ``TowerContext.item_features`` and ``user_features``, so that they can
encode new items and users. ``context_features`` reads ``Queries.context``.
"""

from candid.towers.context_tower import ContextFeatures
from candid.towers.embedding import ItemEmbedding, UserEmbedding
from candid.towers.feature_tower import ItemFeatures, UserFeatures
from candid.towers.fields import code_tables
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
from candid.towers.row_table import (
    RowTable,
    num_parameters,
    row_tables,
    sharded_from_start,
    sharded_tables,
)
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
    "code_tables",
    "feature_input",
    "merge_inputs",
    "num_parameters",
    "row_tables",
    "sharded_from_start",
    "sharded_tables",
]
