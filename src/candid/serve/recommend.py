"""Top-k recommendations with the identifiers and titles that a person knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import time_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from rich.table import Table

from candid.batches import Ints, Queries, event_type_of, offsets_of, pack_histories, ranges
from candid.data import PreparedDataset
from candid.errors import ConfigError, UnknownNameError
from candid.evaluation import StageProgress, TwoTowerModel, encoded_catalog, inference, seen_between
from candid.features import Context, Values
from candid.index import ExactIndex, Exclusions, Index
from candid.towers import RetrievalModel

BATCH_SIZE = 512
"""Queries encoded at once."""


@dataclass(frozen=True)
class Recommendations:
    """The best items of each query, best first.

    Attributes:
        item_ids: [B, K] int64; -1 where fewer than K items were allowed.
        scores: [B, K] float32 logits; -inf where ``item_ids`` is -1.
        user_ids: [B] int64, or None where histories were typed.
        users: the dataset's users.
        items: the dataset's items, then the new ones.
    """

    item_ids: Ints
    scores: npt.NDArray[np.float32]
    user_ids: Ints | None
    users: pl.DataFrame
    items: pl.DataFrame

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_frame(self) -> pl.DataFrame:
        """One row a recommendation.

        Columns: ``query`` (0..B-1), ``user`` (source id; only for users of the dataset),
        ``rank`` (from 1), ``item`` (source id), ``title`` (only where the dataset has titles)
        and ``score``.
        """
        present = self.item_ids >= 0
        query, column = np.nonzero(present)
        items = self.items[self.item_ids[present]]
        frame: dict[str, Any] = {"query": query}
        if self.user_ids is not None:
            frame["user"] = self.users["source_id"][self.user_ids[query]]
        frame |= {"rank": column + 1, "item": items["source_id"]}
        if "title" in items.columns:
            frame["title"] = items["title"]
        return pl.DataFrame(frame | {"score": self.scores[present]})

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a query: ``user`` where there is one, and ``items`` from best to worst.

        An item has ``rank``, ``item``, ``title`` (where the dataset has titles) and ``score``.
        """
        answers: list[dict[str, Any]] = [{} for _ in range(len(self))]
        if self.user_ids is not None:
            sources = self.users["source_id"][self.user_ids].to_list()
            answers = [{"user": source} for source in sources]
        for answer in answers:
            answer["items"] = []
        for row in self.to_frame().drop("user", strict=False).to_dicts():
            answers[row.pop("query")]["items"].append(row)
        return answers

    def table(self) -> Table:
        """All recommendations, for the terminal."""
        frame = self.to_frame()
        if len(self) == 1 or self.user_ids is not None:
            frame = frame.drop("query")
        table = Table()
        for name in frame.columns:
            is_number = name in ("query", "rank", "score")
            table.add_column(name, justify="right" if is_number else "left")
        for row in frame.iter_rows():
            table.add_row(*(_cell(value) for value in row))
        return table


@dataclass(frozen=True)
class NewItems:
    """Items that the dataset does not have, to be recommended beside its own.

    Attributes:
        items: n rows; ``source_id`` of the type that the dataset's has and, where there are
            titles, ``title``.
        features: of the n items, by name, as ``run.features.item.encode`` gives them.
    """

    items: pl.DataFrame
    features: Mapping[str, Values]


def recommend(
    model: TwoTowerModel,
    dataset: PreparedDataset,
    *,
    user_ids: Sequence[int] | Ints | None = None,
    histories: Sequence[Sequence[int]] | None = None,
    k: int,
    max_length: int,
    filter_seen: bool = True,
    index: Index | None = None,
    context: Context | None = None,
    time: int | None = None,
    event_type: str | None = None,
    user_features: Mapping[str, Values] | None = None,
    new_items: NewItems | None = None,
    progress: StageProgress | None = None,
) -> Recommendations:
    """Recommend to users of the dataset, or to whoever has the given histories and features.

    Args:
        model: encodes; put in inference mode meanwhile.
        dataset: what the model was trained on.
        user_ids: [B]; each user's whole history in the dataset is used, held-out part
            included.
        histories: item ids of each of B histories, earliest first; instead of ``user_ids``. One
            may be empty where the model answers people without a history.
        k: recommendations a query.
        max_length: longest history that the model reads; the most recent part is kept.
        filter_seen: leave out what is in the history; of several kinds of interaction only those
            that are targets, so that what was viewed may still be bought. A given history says
            no kinds: all of it is left out.
        index: over the model's item vectors; None: exact search.
        context: what encodes the moment of a question for the model; None: it reads none.
        time: that moment, microseconds since 1970-01-01 UTC; None: now.
        event_type: the kind of interaction that is asked for, to ``context``; None: any.
        user_features: of the B people who have the histories, by name; None: nothing is known.
        new_items: join the catalog for this answer, with ids from V on.
        progress: called with (stage, done, in all) while items are encoded and queries asked.

    Raises:
        ConfigError: k is larger than the catalog, an id is not one of the dataset's, a
            history is empty where the model needs one, histories are given to a model that
            knows users only, neither or both of ``user_ids`` and ``histories`` are given, or
            features beside users or not of B people, new items that are none or cannot be
            encoded, or an index over another number of items.
        ArtifactError: the model's vectors are not finite.
    """
    if event_type is not None and event_type not in dataset.event_type_names:
        raise UnknownNameError("event_type", event_type, dataset.event_type_names)
    asked = _asked(dataset, user_ids, histories)
    moment = time_ns() // 1000 if time is None else time
    items = _with_new(dataset.items, new_items)
    _check(model, dataset, asked, k, items.height, knows_more=user_features is not None)
    _check_features(asked, user_features)
    found_ids = np.empty((len(asked.starts), k), dtype=np.int64)
    found_scores = np.empty((len(asked.starts), k), dtype=np.float32)
    with inference(model):
        catalog = encoded_catalog(model, progress)
        if new_items is not None:
            added = _vectors_of(model, new_items).to(catalog)
            catalog = torch.cat([catalog, added])
        index = ExactIndex(catalog) if index is None else index
        if index.num_items != items.height:
            raise ConfigError(
                f"the index holds {index.num_items} items and there are {items.height} to "
                "recommend: build it over the vectors of these items, or give none"
            )
        for begin in range(0, len(asked.starts), BATCH_SIZE):
            rows = slice(begin, begin + BATCH_SIZE)
            queries = asked.queries(rows, max_length, context, moment, event_type)
            if user_features is not None:
                chosen = torch.arange(len(asked.starts))[rows]
                known = {name: value.take(chosen) for name, value in user_features.items()}
                queries = replace(queries, user_features=known)
            query = model.encode_queries(queries.to(catalog.device))
            seen = asked.exclusions(rows, catalog.device) if filter_seen else None
            hits = index.search(query.float(), k, seen)
            found_ids[rows] = hits.item_ids.cpu().numpy()
            found_scores[rows] = hits.scores.cpu().numpy()
            if progress is not None:
                progress("asking", min(rows.stop, len(asked.starts)), len(asked.starts))
    return Recommendations(found_ids, found_scores, asked.user_ids, dataset.users, items)


@dataclass(frozen=True)
class _Asked:
    """B histories as slices of one array.

    Attributes:
        user_ids: [B], or None where there are no users.
        item_ids: what the histories are slices of.
        starts: [B].
        stops: [B].
        dataset: whose interactions the slices are of; None where histories were typed.
    """

    user_ids: Ints | None
    item_ids: npt.NDArray[np.integer[Any]]
    starts: Ints
    stops: Ints
    dataset: PreparedDataset | None = None

    def queries(
        self,
        rows: slice,
        max_length: int,
        context: Context | None,
        moment: int,
        event_type: str | None,
    ) -> Queries:
        """Pack the most recent part of some histories; without users their ids are -1."""
        starts = np.maximum(self.starts[rows], self.stops[rows] - max_length)
        lengths = self.stops[rows] - starts
        events = ranges(starts, lengths)
        item_ids = self.item_ids[events].astype(np.int64)
        nobody = np.full(len(starts), -1, dtype=np.int64)
        user_ids = nobody if self.user_ids is None else self.user_ids[rows]
        values = None
        if context is not None:
            # Where there are no users, the times of the history are not known.
            is_known = self.user_ids is not None
            values = context.asked(
                moment,
                self.starts[rows] if is_known else None,
                self.stops[rows] if is_known else None,
                len(starts),
                event_type,
            )
        kinds = None if self.dataset is None else event_type_of(self.dataset, events)
        return pack_histories(user_ids, item_ids, lengths, event_types=kinds, context=values)

    def exclusions(self, rows: slice, device: torch.device) -> Exclusions:
        starts, stops = self.starts[rows], self.stops[rows]
        if self.dataset is not None:
            seen = seen_between(self.dataset, starts, stops)
        else:
            item_ids = self.item_ids[ranges(starts, stops - starts)].astype(np.int64)
            seen = Exclusions(
                torch.from_numpy(item_ids), torch.from_numpy(offsets_of(stops - starts))
            )
        return Exclusions(seen.item_ids.to(device), seen.offsets.to(device))


def _asked(
    dataset: PreparedDataset,
    user_ids: Sequence[int] | Ints | None,
    histories: Sequence[Sequence[int]] | None,
) -> _Asked:
    if user_ids is not None and histories is None:
        users = np.asarray(user_ids, dtype=np.int64)
        _check_ids("user", users, dataset.num_users)
        offsets = dataset.user_offsets
        return _Asked(users, dataset.item_ids, offsets[users], offsets[users + 1], dataset)
    if histories is not None and user_ids is None:
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        item_ids = np.array([item for history in histories for item in history], dtype=np.int64)
        _check_ids("item", item_ids, dataset.num_items)
        offsets = offsets_of(lengths)
        return _Asked(None, item_ids, offsets[:-1], offsets[1:])
    raise ConfigError("give either users or histories to recommend to")


def _with_new(items: pl.DataFrame, new: NewItems | None) -> pl.DataFrame:
    if new is None:
        return items
    ids = new.items["source_id"]
    if ids.dtype != items["source_id"].dtype:
        raise ConfigError(
            f"new items have ids of type {ids.dtype} and the dataset of type "
            f"{items['source_id'].dtype}: convert them"
        )
    for name, values in new.features.items():
        if len(values) != len(ids):
            raise ConfigError(
                f"item feature {name!r} is of {len(values)} items and there are {len(ids)} new ones"
            )
    repeated = ids.filter(ids.is_in(items["source_id"].implode()) | ids.is_duplicated())
    if len(repeated):
        raise ConfigError(
            f"new item {repeated[0]!r} is in the catalog or listed twice: leave it out"
        )
    shown = [name for name in ("source_id", "title") if name in items.columns]
    added = new.items.select(name for name in shown if name in new.items.columns)
    return pl.concat([items.select(shown), added], how="diagonal")


def _vectors_of(model: TwoTowerModel, new: NewItems) -> torch.Tensor:
    if not isinstance(model, RetrievalModel):
        raise ConfigError("new items need a RetrievalModel, which encodes them by their features")
    return model.encode_item_values(new.features)


def _check_ids(kind: str, ids: Ints, num: int) -> None:
    unknown = ids[(ids < 0) | (ids >= num)]
    if len(unknown):
        raise ConfigError(f"{kind} id {unknown[0]} is not one of the dataset's: 0 to {num - 1}")


def _check_features(asked: _Asked, user_features: Mapping[str, Values] | None) -> None:
    if user_features is None:
        return
    if asked.user_ids is not None:
        raise ConfigError(
            "features are for people who are no users of the dataset: give histories, or none"
        )
    for name, values in user_features.items():
        if len(values) != len(asked.starts):
            raise ConfigError(
                f"user feature {name!r} is of {len(values)} people and there are "
                f"{len(asked.starts)} histories: give one for each"
            )


def _check(
    model: TwoTowerModel,
    dataset: PreparedDataset,
    asked: _Asked,
    k: int,
    num_items: int,
    knows_more: bool,
) -> None:
    if not 1 <= k <= num_items:
        raise ConfigError(f"k {k} must be between 1 and the {num_items} items of the catalog")
    in_vain = model.needs_user or not (model.reads_history or knows_more)
    if asked.user_ids is None and in_vain:
        raise ConfigError(
            "the model knows the users it was trained on, not histories: name users, or train a "
            "model with a history tower and no vectors of users"
        )
    if not model.needs_history:
        return
    empty = np.flatnonzero(asked.stops == asked.starts)
    if len(empty) == 0:
        return
    if asked.user_ids is None:
        raise ConfigError(
            f"history {empty[0]} is empty and the model answers only from histories: name at "
            "least one item"
        )
    user = dataset.users["source_id"][int(asked.user_ids[empty[0]])]
    raise ConfigError(
        f"user {user!r} has no history and the model answers only from histories: give a "
        "history of items instead"
    )


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    # A title is a guest: it may not break lines or steer the terminal.
    return "".join(mark if mark.isprintable() else " " for mark in str(value))
