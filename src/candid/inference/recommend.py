"""Top-k recommendation for users of a dataset and for given histories."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from candid.batches import Ints
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.features import Context, Values
from candid.index import ExactIndex, Exclusions, Index, LiveIndex
from candid.inference.item_subset import ItemSubset
from candid.inference.log_partition import log_partition
from candid.inference.query_set import query_set
from candid.inference.recommendations import Recommendations
from candid.inference.score_rows import ScoreRows
from candid.inference.scoring_model import ScoringModel, scores_catalog
from candid.inference.tie_order import (
    FirstSearchWithLogPartition,
    Searchable,
    SearchableWithLogPartition,
    search_with_tie_order,
    tie_ranks,
)
from candid.inference.two_tower_model import (
    StageProgress,
    TwoTowerModel,
    encode_catalog,
    inference_mode,
)

Bools = npt.NDArray[np.bool_]

DEFAULT_K: Final = 10
"""Recommendations per query, in a catalog that has so many items."""


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


def whole_k(k: object) -> int:
    """Return a number of results as an integer.

    Raises:
        ConfigError: it is not a whole number.
    """
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise ConfigError(f"k must be a whole number, got {k!r}")
    return int(k)


def recommend(
    model: TwoTowerModel | ScoringModel,
    dataset: PreparedDataset,
    *,
    user_ids: Sequence[int] | Ints | None = None,
    histories: Sequence[Sequence[int] | Ints] | None = None,
    history_times: Sequence[Sequence[int | None]] | None = None,
    k: int | None = None,
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
    role: Role | None = None,
    progress: StageProgress | None = None,
) -> Recommendations:
    """Recommend to users of the dataset, or to anonymous users with given histories.

    Items with equal scores are listed by training count, then by a hash of the source id.

    Args:
        model: encodes queries and items into vectors, or scores the whole catalog for a query
            (``ScoringModel``); runs in inference mode.
        dataset: the dataset that the model was trained on.
        user_ids: [B]; the whole history of each user in the dataset is used, including the
            held-out part.
        histories: item ids of each of B histories, earliest first; instead of ``user_ids``. A
            history may be empty if the model can encode a query without one.
        history_times: time of each interaction of the histories, microseconds since 1970-01-01
            UTC, None where unknown; None: all unknown.
        k: recommendations per query; None: ``DEFAULT_K``, or all items of a smaller catalog.
        max_length: longest history that the model reads; the most recent part is kept.
        filter_seen: leave out the items of the whole history; where interactions have event
            types, only items of target event types. All items of a given history are left out,
            because its event types are unknown.
        is_allowed: [V] bool (with n new items [V + n]), items that may be recommended, searched
            exactly; None: all items that are not retired.
        index: over the item vectors; None: exact search.
        item_vectors: [V, D] float32, from ``encode_catalog``; None: encoded here.
        context: encodes the context of queries; None for a model that reads no context.
        time: time of the queries, microseconds since 1970-01-01 UTC; None: now.
        event_type: event type to predict, part of the context; None: any.
        user_features: features of the B anonymous users, by name; None: none are known.
        new_items: items to recommend beside the catalog, with ids from V on.
        with_probabilities: also compute the softmax probability of each recommended item.
        role: recommend from the history before the first target of this role, as in an
            evaluation; None: from the whole history.
        progress: called with (stage, done, total) while items and queries are encoded.

    Returns:
        at most k items of each query, best first, with scores.

    Raises:
        ConfigError: k is larger than the catalog; an id is not in the dataset; a history is
            empty and the model needs one; the model encodes only users and histories are given;
            there is not one time for each interaction of the histories; neither or both of
            ``user_ids`` and ``histories`` are given; user features are given for users of the
            dataset, or their number is not B; no item is allowed; a new item is already in the
            catalog; the index holds another number of items; new items, an index
            or probabilities with a model that scores the catalog.
        ArtifactError: the vectors or the scores of the model are not finite.
    """
    queries = query_set(
        dataset,
        user_ids=user_ids,
        histories=histories,
        history_times=history_times,
        max_length=max_length,
        context=context,
        time=time,
        event_type=event_type,
        user_features=user_features,
        role=role,
    )
    items = _with_new_items(dataset.items, new_items)
    k = min(DEFAULT_K, items.height) if k is None else whole_k(k)
    if not 1 <= k <= items.height:
        raise ConfigError(f"k {k} must be between 1 and the {items.height} items of the catalog")
    queries.check(model)

    is_retired = _retired_items(dataset, items.height)

    @functools.cache
    def order_of_ties() -> Ints:
        counts = np.zeros(items.height, dtype=np.int64)
        counts[: dataset.num_items] = dataset.train_counts
        return tie_ranks(counts, items["source_id"])

    item_ids = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    probabilities = np.zeros((len(queries), k)) if with_probabilities else None
    with inference_mode(model):
        batches: Iterator[tuple[slice, Tensor]]
        searcher: Searchable
        if scores_catalog(model):
            catalog = torch.empty(0)
            _check_no_vectors(index, item_vectors, new_items, with_probabilities)
            _check_allowed(is_allowed, items.height)
            if is_allowed is None and is_retired is not None:
                is_allowed = ~is_retired
            searcher = ScoreRows(items.height, is_allowed)
            batches = queries.score(model, items.height, progress)
        else:
            vectors = encode_catalog(model, progress) if item_vectors is None else item_vectors
            if new_items is not None:
                vectors = torch.cat([vectors, new_items.item_vectors.to(vectors)])
            searcher = vector_searcher = _searcher(
                vectors, items.height, is_allowed, is_retired, index
            )
            catalog = vectors
            if is_retired is not None and with_probabilities:
                catalog = vectors[torch.from_numpy(~is_retired).to(vectors.device)]
            batches = queries.encode(model, vectors.device, progress)
        num_results = min(k, searcher.num_items)
        for rows, query in batches:
            seen = None
            if filter_seen:
                seen = queries.seen(rows)
                seen = Exclusions(seen.item_ids.to(query.device), seen.offsets.to(query.device))
            summing = None
            if probabilities is not None and is_allowed is None:
                # The search scores all items: the log partition is a sum over the same scores.
                summing = FirstSearchWithLogPartition(vector_searcher)
            result = search_with_tie_order(
                summing or searcher, query, num_results, seen, order_of_ties
            )
            item_ids[rows, :num_results] = result.item_ids.cpu().numpy()
            scores[rows, :num_results] = result.scores.cpu().numpy()
            if probabilities is not None:
                log_z = None if summing is None else summing.log_z
                if log_z is None:
                    log_z = log_partition(query, catalog.float())
                logits = scores[rows].astype(float) - log_z[:, None].cpu().numpy()
                probabilities[rows] = np.exp(np.minimum(logits, 0.0))
    return Recommendations(
        item_ids, scores, queries.user_ids, dataset.users, items, probabilities=probabilities
    )


def _retired_items(dataset: PreparedDataset, num_items: int) -> Bools | None:
    """Return the retired items: [num_items] bool, False for new items; None: no item is."""
    if dataset.retired_items is None:
        return None
    return np.pad(dataset.retired_items, (0, num_items - dataset.num_items))


def _searcher(
    item_vectors: Tensor,
    num_items: int,
    is_allowed: Bools | None,
    is_retired: Bools | None,
    index: Index | None,
) -> SearchableWithLogPartition:
    """Return the index to search: the given one, or an exact one over the allowed items."""
    if is_allowed is None and is_retired is not None and index is None:
        is_allowed = ~is_retired
    if is_allowed is not None:
        _check_allowed(is_allowed, num_items)
        return ItemSubset(item_vectors, is_allowed)
    index = ExactIndex(item_vectors) if index is None else index
    if index.num_items != num_items:
        raise ConfigError(
            f"the index holds {index.num_items} items and there are {num_items} to recommend: "
            "build it over the vectors of these items, or leave it out"
        )
    if is_retired is None:
        return index
    live = LiveIndex(index, item_vectors)
    live.delete(torch.from_numpy(np.flatnonzero(is_retired)))
    return live


def _check_allowed(is_allowed: Bools | None, num_items: int) -> None:
    if is_allowed is None:
        return
    if len(is_allowed) != num_items:
        raise ConfigError(
            f"is_allowed has {len(is_allowed)} entries for {num_items} items: give one for each"
        )
    if not is_allowed.any():
        raise ConfigError("no item is left to recommend: allow more items, or deny fewer")


def _check_no_vectors(
    index: Index | None,
    item_vectors: Tensor | None,
    new_items: NewItems | None,
    with_probabilities: bool,
) -> None:
    """Refuse what needs vectors, for a model that scores the catalog."""
    given = {
        "an index": index is not None,
        "item vectors": item_vectors is not None,
        "new items": new_items is not None,
        "probabilities": with_probabilities,
    }
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"the model scores the items of its dataset and has no vectors: leave out {name}"
            )


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
