"""Query sets: many users of a dataset, or many anonymous users, encoded in batches."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from candid.batches import Ints, Queries, offsets_of
from candid.data import PreparedDataset, Role, held_out_users
from candid.errors import ConfigError, UnknownNameError
from candid.features import Context, Values
from candid.index import Exclusions
from candid.inference.queries import now_microseconds, pack_queries, query_for_history
from candid.inference.score_rows import score_batch_size, score_rows
from candid.inference.scoring_model import ScoringModel, accepts_histories
from candid.inference.two_tower_model import StageProgress, TwoTowerModel
from candid.inference.user_queries import queries_before_targets, queries_for_users, seen_items

BATCH_SIZE = 512
"""Queries encoded at once."""


class QuerySet(ABC):
    """B queries of one dataset at one time.

    Attributes:
        user_ids: [B] int64, dense ids of the users; None for anonymous users.
    """

    user_ids: Ints | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return B, the number of queries."""

    @abstractmethod
    def check(self, model: TwoTowerModel | ScoringModel) -> None:
        """Refuse queries that the model cannot encode.

        Raises:
            ConfigError: a history is empty and the model needs one, or the model can encode only
                users it was trained on.
        """

    @abstractmethod
    def pack(self, rows: slice) -> Queries:
        """Pack some queries into the tensors that a query tower reads, on the CPU."""

    @abstractmethod
    def seen(self, rows: slice) -> Exclusions:
        """Collect the items that some queries have seen, on the CPU."""

    def encode(
        self,
        model: TwoTowerModel,
        device: torch.device,
        progress: StageProgress | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Encode all queries in batches.

        Args:
            model: in inference mode.
            device: of the model.
            progress: called with ("encoding queries", done, total).

        Yields:
            rows and their query vectors [b, D] float32.
        """
        for begin in range(0, len(self), BATCH_SIZE):
            rows = slice(begin, min(begin + BATCH_SIZE, len(self)))
            yield rows, model.encode_queries(self.pack(rows).to(device)).float()
            if progress is not None:
                progress("encoding queries", rows.stop, len(self))

    def score(
        self, model: ScoringModel, num_items: int, progress: StageProgress | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Score all V items for all queries in batches.

        Args:
            model: scores the catalog.
            num_items: V.
            progress: called with ("scoring queries", done, total).

        Yields:
            rows and their scores [b, V] float32.
        """
        size = score_batch_size(num_items, BATCH_SIZE)
        for begin in range(0, len(self), size):
            rows = slice(begin, min(begin + size, len(self)))
            yield rows, score_rows(model, self.pack(rows), num_items)
            if progress is not None:
                progress("scoring queries", rows.stop, len(self))


def query_set(
    dataset: PreparedDataset,
    *,
    user_ids: Sequence[int] | Ints | None = None,
    histories: Sequence[Sequence[int] | Ints] | None = None,
    history_times: Sequence[Sequence[int | None]] | None = None,
    max_length: int,
    context: Context | None = None,
    time: int | None = None,
    event_type: str | None = None,
    user_features: Mapping[str, Values] | None = None,
    role: Role | None = None,
) -> QuerySet:
    """Build the queries of users of the dataset, or of anonymous users.

    Args:
        dataset: the dataset that the model was trained on.
        user_ids: [B] dense ids; the whole history of each user in the dataset is used.
        histories: item ids of each of B histories, earliest first; instead of ``user_ids``.
        history_times: time of each interaction of the B histories, microseconds since 1970-01-01
            UTC, None where unknown; None: all unknown.
        max_length: longest history that the model reads; the most recent part is kept.
        context: encodes the context of queries; None for a model that reads no context.
        time: time of the queries, microseconds since 1970-01-01 UTC; None: now.
        event_type: event type to predict; None: any.
        user_features: features of the B anonymous users, by name; None: none are known.
        role: end the history of each user before the first target of this role; time and event
            type are those of the target, as in an evaluation. None: the whole history.

    Raises:
        ConfigError: an id is not in the dataset; neither or both of ``user_ids`` and
            ``histories`` are given; a user has no target of ``role``, or ``role`` is given with
            histories, a time or an event type; features are given for users of the dataset, or
            their number is not B; times are given for users of the dataset, or there is not one
            for each interaction.
        UnknownNameError: the dataset has no such event type.
    """
    if event_type is not None and event_type not in dataset.event_type_names:
        raise UnknownNameError("event_type", event_type, dataset.event_type_names)
    if (user_ids is None) == (histories is None):
        raise ConfigError("give either users or histories to recommend to")
    if role is not None and not (user_ids is not None and time is None and event_type is None):
        raise ConfigError(
            "with a split, time and event type of a query are those of its target: give users, and "
            "neither a time (--at) nor an event type (--event-type)"
        )
    time = now_microseconds() if time is None else time
    if user_ids is not None:
        if user_features is not None:
            raise ConfigError(
                "user features describe anonymous users: give histories (possibly empty), not users"
            )
        if history_times is not None:
            raise ConfigError(
                "times describe given histories, and those of users are in the dataset: leave out "
                "times, or give histories"
            )
        ids = np.asarray(user_ids, dtype=np.int64)
        _check_ids("user", ids, dataset.num_users)
        if role is not None:
            return _HeldOutQueries(dataset, ids, max_length, context, role)
        return _UserQueries(dataset, ids, max_length, context, time, event_type)
    assert histories is not None
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    item_ids = np.array([item for history in histories for item in history], dtype=np.int64)
    _check_ids("item", item_ids, dataset.num_items)
    if history_times is not None and list(map(len, history_times)) != lengths.tolist():
        raise ConfigError("there is not one time for each interaction of the histories")
    for name, values in (user_features or {}).items():
        if len(values) != len(lengths):
            raise ConfigError(
                f"user feature {name!r} has {len(values)} values for {len(lengths)} histories: "
                "give one for each"
            )
    parts = np.split(item_ids, np.cumsum(lengths)[:-1])[: len(lengths)]
    return _HistoryQueries(
        dataset, parts, history_times, max_length, context, time, event_type, user_features
    )


class _UserQueries(QuerySet):
    """Users of the dataset with their whole histories."""

    def __init__(
        self,
        dataset: PreparedDataset,
        user_ids: Ints,
        max_length: int,
        context: Context | None,
        time: int,
        event_type: str | None,
    ) -> None:
        self.user_ids = self._ids = user_ids
        self._dataset, self._max_length, self._context = dataset, max_length, context
        self._time, self._event_type = time, event_type
        self._stops: Ints = dataset.user_offsets[user_ids + 1]

    def __len__(self) -> int:
        return len(self._ids)

    def check(self, model: TwoTowerModel | ScoringModel) -> None:
        if not model.needs_history:
            return
        without = self._ids[self._stops == self._dataset.user_offsets[self._ids]]
        if len(without):
            user = self._dataset.users["source_id"][int(without[0])]
            raise ConfigError(
                f"user {user!r} has no history and the model needs one: give a history of items "
                "instead"
            )

    def pack(self, rows: slice) -> Queries:
        user_ids, event_types = self._ids[rows], None
        if self._event_type is not None:
            event_types = pl.Series([self._event_type]).new_from_index(0, len(user_ids))
        return queries_for_users(
            self._dataset,
            user_ids,
            max_length=self._max_length,
            context=self._context,
            times=np.full(len(user_ids), self._time),
            event_types=event_types,
        )

    def seen(self, rows: slice) -> Exclusions:
        starts = self._dataset.user_offsets[self._ids[rows]]
        return seen_items(self._dataset, starts, self._stops[rows])


class _HeldOutQueries(_UserQueries):
    """Users of the dataset with their histories before the first target of a role."""

    def __init__(
        self,
        dataset: PreparedDataset,
        user_ids: Ints,
        max_length: int,
        context: Context | None,
        role: Role,
    ) -> None:
        super().__init__(dataset, user_ids, max_length, context, 0, None)
        targets = held_out_users(dataset, role)
        places = np.full(dataset.num_users, -1, dtype=np.int64)
        places[targets.user_ids] = np.arange(len(targets))
        places = places[user_ids]
        if (places < 0).any():
            user = dataset.users["source_id"][int(user_ids[places < 0][0])]
            raise ConfigError(
                f"user {user!r} has no {role.name.lower()} target: leave the user out"
            )
        self._stops = targets.history_stop[places]

    def pack(self, rows: slice) -> Queries:
        return queries_before_targets(
            self._dataset,
            self._ids[rows],
            self._stops[rows],
            max_length=self._max_length,
            context=self._context,
        )


class _HistoryQueries(QuerySet):
    """Anonymous users with given histories and optional features."""

    def __init__(
        self,
        dataset: PreparedDataset,
        histories: Sequence[Ints],
        times: Sequence[Sequence[int | None]] | None,
        max_length: int,
        context: Context | None,
        time: int,
        event_type: str | None,
        user_features: Mapping[str, Values] | None,
    ) -> None:
        self._context, self._features = context, user_features
        self._queries = [
            query_for_history(
                dataset,
                history,
                max_length=max_length,
                times=times_of_one,
                last_time=times_of_one[-1] if times_of_one else None,
                time=time,
                event_type=event_type,
            )
            for history, times_of_one in zip(
                histories, itertools.repeat(None) if times is None else times, strict=False
            )
        ]

    def __len__(self) -> int:
        return len(self._queries)

    def check(self, model: TwoTowerModel | ScoringModel) -> None:
        if not accepts_histories(model, with_features=self._features is not None):
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

    def pack(self, rows: slice) -> Queries:
        features = None
        if self._features is not None:
            numbers = torch.arange(rows.start, rows.stop)
            features = {name: values.take(numbers) for name, values in self._features.items()}
        return pack_queries(self._queries[rows], context=self._context, user_features=features)

    def seen(self, rows: slice) -> Exclusions:
        seen = [query.seen_ids for query in self._queries[rows]]
        offsets = offsets_of(np.array([len(ids) for ids in seen], dtype=np.int64))
        return Exclusions(torch.from_numpy(np.concatenate(seen)), torch.from_numpy(offsets))


def _check_ids(kind: str, ids: Ints, num: int) -> None:
    unknown = ids[(ids < 0) | (ids >= num)]
    if len(unknown):
        raise ConfigError(f"{kind} id {unknown[0]} is not in the dataset: ids are 0 to {num - 1}")
