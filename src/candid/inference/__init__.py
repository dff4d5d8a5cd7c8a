"""Inference: queries from histories and attributes of users, and items recommended for them.

queries          single queries and their packing
user_queries     queries of many users of a dataset, and the items that they have seen
query_set        many queries of one dataset, encoded in batches
tie_order        the order of equal scores: popularity, then a hash of the id
recommend        search over the item vectors; recommendations with source ids and titles
item_subset      exact search over a part of the catalog
log_partition    the log partition function of the softmax over all items
two_tower_model  the interface of a model of vectors
score_rows       search over rows of scores, for models without vectors
scoring_model    the interface of a model that scores the whole catalog

Evaluation, ``Run``, the command line and the server all use this package.
"""

from candid.inference.item_subset import ItemSubset
from candid.inference.log_partition import log_partition
from candid.inference.queries import (
    EncodeAttributes,
    RecommendQuery,
    encode_queries,
    now_microseconds,
    pack_queries,
    query_for_history,
    query_for_user,
)
from candid.inference.query_set import QuerySet, query_set
from candid.inference.recommend import DEFAULT_K, NewItems, recommend, whole_k
from candid.inference.recommendations import Recommendations
from candid.inference.score_rows import ScoreRows, score_batch_size, score_rows
from candid.inference.scoring_model import ScoringModel, accepts_histories, scores_catalog
from candid.inference.tie_order import (
    FirstSearchWithLogPartition,
    Searchable,
    SearchableWithLogPartition,
    search_with_tie_order,
    tie_ranks,
)
from candid.inference.two_tower_model import (
    ShardedModel,
    StageProgress,
    TwoTowerModel,
    encode_catalog,
    inference_mode,
    is_sharded,
)
from candid.inference.user_queries import held_out_queries, queries_for_users, seen_items

__all__ = [
    "DEFAULT_K",
    "EncodeAttributes",
    "FirstSearchWithLogPartition",
    "ItemSubset",
    "NewItems",
    "QuerySet",
    "RecommendQuery",
    "Recommendations",
    "ScoreRows",
    "ScoringModel",
    "Searchable",
    "SearchableWithLogPartition",
    "ShardedModel",
    "StageProgress",
    "TwoTowerModel",
    "accepts_histories",
    "encode_catalog",
    "encode_queries",
    "held_out_queries",
    "inference_mode",
    "is_sharded",
    "log_partition",
    "now_microseconds",
    "pack_queries",
    "queries_for_users",
    "query_for_history",
    "query_for_user",
    "query_set",
    "recommend",
    "score_batch_size",
    "score_rows",
    "scores_catalog",
    "search_with_tie_order",
    "seen_items",
    "tie_ranks",
    "whole_k",
]
