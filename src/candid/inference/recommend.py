"""Top-k recommendation for users of a dataset and for given histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from candid.batches import Ints, Queries, offsets_of
from candid.data import PreparedDataset
from candid.errors import ConfigError, UnknownNameError
from candid.features import Context, Values
from candid.index import ExactIndex, Exclusions, Index
from candid.inference.item_subset import ItemSubset
from candid.inference.log_partition import log_partition
from candid.inference.queries import (
    RecommendQuery,
    now_microseconds,
    pack_queries,
    queries_for_users,
    query_for_history,
    seen_items,
)
from candid.inference.recommendations import Recommendations
from candid.inference.two_tower_model import (
    StageProgress,
    TwoTowerModel,
    encode_catalog,
    inference_mode,
)

BATCH_SIZE = 512
"""Queries encoded at once."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NewItems:
    """Items that the dataset does not have and that can be recommended beside its own.

    Attributes:
        items: n rows; ``source_id`` of the type of the dataset's and, where the dataset has
            titles, ``title``.
        item_vectors: [n, D] float32, such as ``RetrievalModel.encode_item_values`` returns.
    """

    items: pl.DataFrame
    item_vectors: Tensor


def recommend(
    model: TwoTowerModel,
    dataset: PreparedDataset,
    *,
    user_ids: Sequence[int] | Ints | None = None,
    histories: Sequence[Sequence[int]] | None = None,
    k: int,
    max_length: int,
    filter_seen: bool = True,
    is_allowed: Bools | None = None,
    index: Index | None = None,
    item_vectors: Tensor | None = None,
    context: Context | None = None,
    time: int | None = None,
    event_type: str | None = None,
    user_features: Mapping[str, Values] | None = None,
    new_items: NewItems | None = None,
    with_probabilities: bool = False,
    progress: StageProgress | None = None,
) -> Recommendations:
    """Recommend to users of the dataset, or to anonymous users with given histories.

    Args:
        model: encodes queries and items; runs in inference mode.
        dataset: the dataset that the model was trained on.
        user_ids: [B]; the whole history of each user in the dataset is used, held-out part
            included.
        histories: item ids of each of B histories, earliest first; instead of ``user_ids``. A
            history may be empty if the model can encode a query without one.
        k: recommendations per query.
        max_length: longest history that the model reads; the most recent part is kept.
        filter_seen: leave out the items of the whole history; where interactions have event
            types, only items of target event types. All items of a given history are left out,
            because its event types are unknown.
        is_allowed: [V] bool, items that may be recommended, searched exactly; None: all items.
        index: over the item vectors; None: exact search.
        item_vectors: [V, D] float32, from ``encode_catalog``; None: encoded here.
        context: encodes the context of queries; None for a model that reads no context.
        time: time of the queries, microseconds since 1970-01-01 UTC; None: now.
        event_type: event type to predict, part of the context; None: any.
        user_features: features of the B anonymous users, by name; None: none are known.
        new_items: items to recommend beside the catalog, with ids from V on.
        with_probabilities: also compute the softmax probability of each recommended item.
        progress: called with (stage, done, total) while items and queries are encoded.

    Raises:
        ConfigError: k is larger than the catalog; an id is not in the dataset; a history is
            empty and the model needs one; histories for a model that only knows users; neither
            or both of ``user_ids`` and ``histories``; user features beside users, or of another
            number than B; no item is allowed; new items that repeat the catalog; an index over
            another number of items.
        ArtifactError: the vectors of the model are not finite.
    """
    if event_type is not None and event_type not in dataset.event_type_names:
        raise UnknownNameError("event_type", event_type, dataset.event_type_names)
    time = now_microseconds() if time is None else time
    users: _Users | _Histories
    if user_ids is not None and histories is None:
        users = _Users(dataset, np.asarray(user_ids, dtype=np.int64))
    elif histories is not None and user_ids is None:
        users = _Histories(dataset, histories, max_length, time, event_type, user_features)
    else:
        raise ConfigError("give either users or histories to recommend to")
    items = _with_new_items(dataset.items, new_items)
    if not 1 <= k <= items.height:
        raise ConfigError(f"k {k} must be between 1 and the {items.height} items of the catalog")
    if user_ids is not None and user_features is not None:
        raise ConfigError(
            "user features describe anonymous users: give histories (possibly empty), not users"
        )
    users.check(model)
    num_queries = len(users)
    item_ids = np.full((num_queries, k), -1, dtype=np.int64)
    scores = np.full((num_queries, k), -np.inf, dtype=np.float32)
    probabilities = np.zeros((num_queries, k)) if with_probabilities else None
    with inference_mode(model):
        vectors = encode_catalog(model, progress) if item_vectors is None else item_vectors
        if new_items is not None:
            vectors = torch.cat([vectors, new_items.item_vectors.to(vectors)])
        search = _searcher(vectors, items.height, is_allowed, index)
        num_found = min(k, search.num_items)
        for begin in range(0, num_queries, BATCH_SIZE):
            rows = slice(begin, min(begin + BATCH_SIZE, num_queries))
            queries = users.queries(rows, max_length, context, time, event_type)
            query = model.encode_queries(queries.to(vectors.device)).float()
            seen = None
            if filter_seen:
                seen = users.seen(rows)
                seen = Exclusions(seen.item_ids.to(vectors.device), seen.offsets.to(vectors.device))
            found = search.search(query, num_found, seen)
            item_ids[rows, :num_found] = found.item_ids.cpu().numpy()
            scores[rows, :num_found] = found.scores.cpu().numpy()
            if probabilities is not None:
                log_z = log_partition(query, vectors.float())[:, None].cpu().numpy()
                probabilities[rows] = np.exp(np.minimum(scores[rows].astype(float) - log_z, 0.0))
            if progress is not None:
                progress("encoding queries", rows.stop, num_queries)
    return Recommendations(
        item_ids, scores, users.user_ids, dataset.users, items, probabilities=probabilities
    )


class _Users:
    """B users of the dataset with their whole histories."""

    def __init__(self, dataset: PreparedDataset, user_ids: Ints) -> None:
        _check_ids("user", user_ids, dataset.num_users)
        self._dataset = dataset
        self.user_ids: Ints | None = user_ids
        self._ids = user_ids

    def __len__(self) -> int:
        return len(self._ids)

    def check(self, model: TwoTowerModel) -> None:
        if not model.needs_history:
            return
        lengths = self._dataset.user_offsets[self._ids + 1] - self._dataset.user_offsets[self._ids]
        empty = np.flatnonzero(lengths == 0)
        if len(empty):
            user = self._dataset.users["source_id"][int(self._ids[empty[0]])]
            raise ConfigError(
                f"user {user!r} has no history and the model needs one: give a history of items "
                "instead"
            )

    def queries(
        self,
        rows: slice,
        max_length: int,
        context: Context | None,
        time: int,
        event_type: str | None,
    ) -> Queries:
        user_ids = self._ids[rows]
        return queries_for_users(
            self._dataset,
            user_ids,
            max_length=max_length,
            context=context,
            times=np.full(len(user_ids), time),
            event_types=None
            if event_type is None
            else pl.Series([event_type]).new_from_index(0, len(user_ids)),
        )

    def seen(self, rows: slice) -> Exclusions:
        user_ids, offsets = self._ids[rows], self._dataset.user_offsets
        return seen_items(self._dataset, offsets[user_ids], offsets[user_ids + 1])


class _Histories:
    """B anonymous users with given histories and, perhaps, features."""

    def __init__(
        self,
        dataset: PreparedDataset,
        histories: Sequence[Sequence[int]],
        max_length: int,
        time: int,
        event_type: str | None,
        user_features: Mapping[str, Values] | None,
    ) -> None:
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        item_ids = np.array([item for history in histories for item in history], dtype=np.int64)
        _check_ids("item", item_ids, dataset.num_items)
        self.user_ids: Ints | None = None
        self._features = user_features
        self._queries: list[RecommendQuery] = [
            query_for_history(
                dataset, history, max_length=max_length, time=time, event_type=event_type
            )
            for history in np.split(item_ids, np.cumsum(lengths)[:-1])[: len(lengths)]
        ]

    def __len__(self) -> int:
        return len(self._queries)

    def check(self, model: TwoTowerModel) -> None:
        for name, values in (self._features or {}).items():
            if len(values) != len(self):
                raise ConfigError(
                    f"user feature {name!r} has {len(values)} values for {len(self)} histories: "
                    "give one for each"
                )
        if model.needs_user or not (model.reads_history or self._features is not None):
            raise ConfigError(
                "the model can encode only users it was trained on, not histories: name users, or "
                "train a model with a history tower and without user embeddings"
            )
        if not model.needs_history:
            return
        for number, query in enumerate(self._queries):
            if not len(query.item_ids):
                raise ConfigError(
                    f"history {number} is empty and the model needs one: name at least one item"
                )

    def queries(
        self,
        rows: slice,
        max_length: int,
        context: Context | None,
        time: int,
        event_type: str | None,
    ) -> Queries:
        features = None
        if self._features is not None:
            numbers = torch.arange(rows.start, rows.stop)
            features = {name: values.take(numbers) for name, values in self._features.items()}
        return pack_queries(self._queries[rows], context=context, user_features=features)

    def seen(self, rows: slice) -> Exclusions:
        seen = [query.seen_ids for query in self._queries[rows]]
        offsets = offsets_of(np.array([len(ids) for ids in seen], dtype=np.int64))
        return Exclusions(torch.from_numpy(np.concatenate(seen)), torch.from_numpy(offsets))


def _searcher(
    item_vectors: Tensor, num_items: int, is_allowed: Bools | None, index: Index | None
) -> Index:
    """The index to search: the given one, or an exact one over the allowed items."""
    if is_allowed is not None:
        if not is_allowed.any():
            raise ConfigError("no item is left to recommend: allow more items, or deny fewer")
        return ItemSubset(item_vectors, is_allowed)
    index = ExactIndex(item_vectors) if index is None else index
    if index.num_items != num_items:
        raise ConfigError(
            f"the index holds {index.num_items} items and there are {num_items} to recommend: "
            "build it over the vectors of these items, or leave it out"
        )
    return index


def _with_new_items(items: pl.DataFrame, new: NewItems | None) -> pl.DataFrame:
    if new is None:
        return items
    ids = new.items["source_id"]
    if ids.dtype != items["source_id"].dtype:
        raise ConfigError(
            f"new items have ids of type {ids.dtype} and those of the dataset are of type "
            f"{items['source_id'].dtype}: convert them"
        )
    if len(new.item_vectors) != len(ids):
        raise ConfigError(
            f"there are {len(new.item_vectors)} vectors for {len(ids)} new items: give one for each"
        )
    repeated = ids.filter(ids.is_in(items["source_id"].implode()) | ids.is_duplicated())
    if len(repeated):
        raise ConfigError(
            f"new item {repeated[0]!r} is in the catalog or listed twice: leave it out"
        )
    columns = [name for name in ("source_id", "title") if name in items.columns]
    added = new.items.select(name for name in columns if name in new.items.columns)
    return pl.concat([items.select(columns), added], how="diagonal")


def _check_ids(kind: str, ids: Ints, num: int) -> None:
    unknown = ids[(ids < 0) | (ids >= num)]
    if len(unknown):
        raise ConfigError(f"{kind} id {unknown[0]} is not in the dataset: ids are 0 to {num - 1}")
