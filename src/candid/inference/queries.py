"""Recommendation queries: the history, context and attributes of users as the model reads them.

Evaluation, ``Run``, the command line and the server build their queries here. Only this module
cuts a history to the length that the model reads, encodes event types, decides which items a
user has already seen, and adds the context of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import time_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from candid.batches import (
    UNKNOWN_TIME,
    Ints,
    Queries,
    event_type_of,
    offsets_of,
    pack_histories,
    ranges,
    times_of,
)
from candid.data import HeldOutTargets, PreparedDataset
from candid.errors import ConfigError
from candid.features import Context, Values
from candid.features.context import context_frame, event_type_column
from candid.index import Exclusions
from candid.inference.two_tower_model import TwoTowerModel

Bools = npt.NDArray[np.bool_]
EncodeAttributes = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Values]]
"""Encodes the attributes of anonymous users into features, such as ``RunFeatures.encode_users``."""


@dataclass(frozen=True, slots=True)
class RecommendQuery:
    """One user to recommend to.

    Attributes:
        user_id: dense id; -1 for an anonymous user, who is not a user of the dataset.
        item_ids: [L] int64, the most recent part of the history, earliest first; ids of the
            dataset.
        event_types: [L] int64, 1 + code of each event type, 0 where it is unknown; None for a
            dataset without event types.
        times: [L] int64, time of each interaction, microseconds since 1970-01-01 UTC,
            ``UNKNOWN_TIME`` where it is unknown; None: all are.
        last_time: time of the last interaction, microseconds since 1970-01-01 UTC; None: unknown.
        last_event_type: event type of the last interaction; None: unknown.
        attributes: attributes of an anonymous user, by column of the user table; None: none
            are given.
        time: time of the query, microseconds since 1970-01-01 UTC.
        event_type: event type to predict; None: any.
        seen_ids: [n] int64, items of the whole history that count as seen.
    """

    user_id: int
    item_ids: Ints
    event_types: Ints | None
    times: Ints | None
    last_time: int | None
    last_event_type: str | None
    attributes: Mapping[str, Any] | None
    time: int
    event_type: str | None
    seen_ids: Ints


def query_for_user(
    dataset: PreparedDataset,
    user_id: int,
    *,
    max_length: int,
    time: int | None = None,
    event_type: str | None = None,
) -> RecommendQuery:
    """Build the query of a user of the dataset from the user's whole history.

    Args:
        dataset: the prepared dataset that the model was trained on.
        user_id: dense id.
        max_length: longest history that the model reads; the most recent part is kept.
        time: time of the query, microseconds since 1970-01-01 UTC; None: now.
        event_type: event type to predict; None: any.
    """
    start, stop = (int(end) for end in dataset.user_offsets[user_id : user_id + 2])
    item_ids = dataset.item_ids[start:stop].astype(np.int64)
    codes = times = last_event_type = last_time = None
    if dataset.event_types is not None:
        codes = dataset.event_types[start:stop].astype(np.int64) + 1
        if stop > start:
            last_event_type = dataset.event_type_names[int(codes[-1]) - 1]
    if dataset.timestamps is not None and stop > start:
        times = dataset.timestamps[max(start, stop - max_length) : stop]
        last_time = int(times[-1])
    is_seen = _is_seen(dataset, codes)
    return RecommendQuery(
        user_id=user_id,
        item_ids=item_ids[-max_length:],
        event_types=None if codes is None else codes[-max_length:],
        times=times,
        last_time=last_time,
        last_event_type=last_event_type,
        attributes=None,
        time=now_microseconds() if time is None else time,
        event_type=event_type,
        seen_ids=item_ids if is_seen is None else item_ids[is_seen],
    )


def query_for_history(
    dataset: PreparedDataset,
    item_ids: Sequence[int] | Ints,
    *,
    max_length: int,
    event_types: Sequence[str | None] | None = None,
    times: Sequence[int | None] | None = None,
    last_time: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    time: int | None = None,
    event_type: str | None = None,
) -> RecommendQuery:
    """Build the query of an anonymous user from a given history and attributes.

    Items that were added after training count as seen; the model does not read them. An
    interaction of unknown event type counts as seen.

    Args:
        dataset: the prepared dataset that the model was trained on.
        item_ids: the history, earliest first; ids from V on are items added after training.
        max_length: longest history that the model reads; the most recent part is kept.
        event_types: event type of each interaction, None where unknown; None: all unknown.
        times: time of each interaction, microseconds since 1970-01-01 UTC, None where unknown;
            None: all unknown.
        last_time: time of the last interaction, microseconds since 1970-01-01 UTC; None: unknown.
        attributes: of the user, by column of the user table; None: none are given.
        time: time of the query, microseconds since 1970-01-01 UTC; None: now.
        event_type: event type to predict; None: any.
    """
    ids = np.asarray(item_ids, dtype=np.int64)
    codes = None
    if dataset.event_types is not None:
        codes = np.zeros(len(ids), dtype=np.int64)
        if event_types is not None:
            code_of = {name: code for code, name in enumerate(dataset.event_type_names, start=1)}
            code_of_each = (0 if name is None else code_of[name] for name in event_types)
            codes = np.fromiter(code_of_each, dtype=np.int64, count=len(ids))
    is_seen = _is_seen(dataset, codes)
    is_read = ids < dataset.num_items
    time_of_each = None
    if times is not None and any(one is not None for one in times):
        known = (UNKNOWN_TIME if one is None else one for one in times)
        time_of_each = np.fromiter(known, dtype=np.int64, count=len(ids))
    return RecommendQuery(
        user_id=-1,
        item_ids=ids[is_read][-max_length:],
        event_types=None if codes is None else codes[is_read][-max_length:],
        times=None if time_of_each is None else time_of_each[is_read][-max_length:],
        last_time=last_time,
        last_event_type=event_types[-1] if event_types else None,
        attributes=attributes,
        time=now_microseconds() if time is None else time,
        event_type=event_type,
        seen_ids=ids if is_seen is None else ids[is_seen],
    )


def encode_queries(
    model: TwoTowerModel,
    queries: Sequence[RecommendQuery],
    *,
    context: Context | None = None,
    encode_attributes: EncodeAttributes | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Encode B independent queries together: [B, D] float32 on the CPU.

    The vectors are not checked: a vector is not finite where the model overflows.

    Args:
        model: in evaluation mode; this function disables gradients.
        queries: from ``query_for_user`` and ``query_for_history``, in any mix.
        context: encodes the context of queries; None for a model that reads no context.
        encode_attributes: encodes the attributes of anonymous users; None for a model that reads
            no user features.
        device: of the model; None: the CPU.

    Raises:
        ConfigError: ``queries`` is empty.
    """
    # The model looks up the features of users of the dataset by id and reads those of anonymous
    # users from the batch, so that a batch must not mix the two.
    with_attributes = [row for row, query in enumerate(queries) if query.attributes is not None]
    without = [row for row, query in enumerate(queries) if query.attributes is None]
    parts: list[tuple[list[int], Tensor]] = []
    with torch.inference_mode():
        for rows, has_attributes in ((without, False), (with_attributes, True)):
            if not rows:
                continue
            selected = [queries[row] for row in rows]
            features = None
            if has_attributes and encode_attributes is not None:
                features = encode_attributes([query.attributes or {} for query in selected])
            packed = pack_queries(selected, context=context, user_features=features)
            if device is not None:
                packed = packed.to(device)
            parts.append((rows, model.encode_queries(packed).float().cpu()))
        if not parts:
            raise ConfigError("there is no query to encode: pass at least one")
        if len(parts) == 1:
            return parts[0][1]
        vectors = torch.empty(len(queries), parts[0][1].shape[1])
        for rows, encoded in parts:
            vectors[rows] = encoded
    return vectors


def pack_queries(
    queries: Sequence[RecommendQuery],
    *,
    context: Context | None = None,
    user_features: Mapping[str, Values] | None = None,
) -> Queries:
    """Pack B queries into the flat tensors that a query tower reads, on the CPU.

    Args:
        queries: of one dataset.
        context: encodes the context of queries; None for a model that reads no context.
        user_features: of B anonymous users, by feature name; None: none are given.
    """
    codes = [query.event_types for query in queries if query.event_types is not None]
    values = None
    if context is not None:
        values = context.table.encode(
            context_frame(
                np.array([query.time for query in queries], dtype=np.int64),
                np.array([query.last_time or 0 for query in queries], dtype=np.int64),
                np.array([query.last_time is not None for query in queries], dtype=np.bool_),
                pl.Series([query.event_type for query in queries], dtype=pl.String),
                pl.Series([query.last_event_type for query in queries], dtype=pl.String),
            )
        )
    return pack_histories(
        np.array([query.user_id for query in queries], dtype=np.int64),
        np.concatenate([query.item_ids for query in queries]),
        np.array([len(query.item_ids) for query in queries], dtype=np.int64),
        event_types=torch.from_numpy(np.concatenate(codes)) if codes else None,
        times=_pack_times(queries),
        context=values,
        user_features=user_features,
        query_times=torch.tensor([query.time for query in queries], dtype=torch.int64),
    )


def queries_for_users(
    dataset: PreparedDataset,
    user_ids: Ints,
    stops: Ints | None = None,
    *,
    max_length: int,
    context: Context | None = None,
    times: Ints | None = None,
    event_types: pl.Series | None = None,
) -> Queries:
    """Pack the queries of B users of the dataset, vectorised, on the CPU.

    The result equals ``pack_queries`` over ``query_for_user`` of each user.

    Args:
        dataset: the prepared dataset.
        user_ids: [B] int64.
        stops: [B] int64, end of each history as an index into ``dataset.item_ids``; None: the
            whole history.
        max_length: longest history that the model reads; the most recent part is kept.
        context: encodes the context of queries; None for a model that reads no context.
        times: [B] int64, time of each query, microseconds since 1970-01-01 UTC; None: now.
        event_types: [B] text, event type to predict; only used with ``context``; None:
            any.
    """
    begins = dataset.user_offsets[user_ids]
    stops = dataset.user_offsets[user_ids + 1] if stops is None else stops
    starts = np.maximum(begins, stops - max_length)
    events = ranges(starts, stops - starts)
    values = None
    times = np.full(len(user_ids), now_microseconds()) if times is None else times
    if context is not None:
        has_last = stops > begins
        last = np.maximum(stops - 1, 0)
        values = context.table.encode(
            context_frame(
                times,
                times if dataset.timestamps is None else dataset.timestamps[last],
                has_last & (dataset.timestamps is not None),
                event_types,
                event_type_column(dataset, last, has_last),
            )
        )
    return pack_histories(
        user_ids,
        dataset.item_ids[events].astype(np.int64),
        stops - starts,
        event_types=event_type_of(dataset, events),
        times=times_of(dataset, events),
        context=values,
        query_times=torch.from_numpy(times),
    )


def queries_before_targets(
    dataset: PreparedDataset,
    user_ids: Ints,
    targets: Ints,
    *,
    max_length: int,
    context: Context | None = None,
) -> Queries:
    """Pack the queries of B users whose next interaction is a target.

    The time and the event type of a query are those of the target.

    Args:
        dataset: the prepared dataset.
        user_ids: [B] int64.
        targets: [B] int64, first target of each user as an index into ``dataset.item_ids``; the
            history ends before it.
        max_length: longest history that the model reads; the most recent part is kept.
        context: encodes the context of queries; None for a model that reads no context.
    """
    is_known = np.ones(len(targets), dtype=np.bool_)
    return queries_for_users(
        dataset,
        user_ids,
        targets,
        max_length=max_length,
        context=context,
        times=None if dataset.timestamps is None else dataset.timestamps[targets],
        event_types=None if context is None else event_type_column(dataset, targets, is_known),
    )


def held_out_queries(
    dataset: PreparedDataset,
    held_out: HeldOutTargets,
    *,
    max_length: int,
    batch_size: int,
    context: Context | None = None,
    share: slice = slice(None),
) -> Iterator[tuple[slice, Queries]]:
    """Pack the queries of users with held-out targets, in batches.

    The time and the event type of a query are those of the user's first target.

    Args:
        dataset: the prepared dataset.
        held_out: from ``data.held_out``.
        max_length: longest history that the model reads; the most recent part is kept.
        batch_size: queries in a batch.
        context: encodes the context of queries; None for a model that reads no context.
        share: which of the batches; by default all.

    Yields:
        the rows of ``held_out`` and their queries, one packed sequence each.
    """
    for begin in range(0, len(held_out), batch_size)[share]:
        rows = slice(begin, min(begin + batch_size, len(held_out)))
        queries = queries_before_targets(
            dataset,
            held_out.user_ids[rows],
            held_out.history_stop[rows],
            max_length=max_length,
            context=context,
        )
        yield rows, queries


def seen_items(dataset: PreparedDataset, starts: Ints, stops: Ints) -> Exclusions:
    """Collect the items that users have already seen, vectorised, on the CPU.

    Where interactions have event types, only target event types count: an item that was only
    viewed may still be bought.

    Args:
        dataset: the prepared dataset.
        starts: [B] int64, start of each history as an index into ``dataset.item_ids``.
        stops: [B] int64, its end.
    """
    lengths = stops - starts
    events, offsets = ranges(starts, lengths), offsets_of(lengths)
    if dataset.is_target_event_type is not None and dataset.event_types is not None:
        is_seen = _is_seen(dataset, dataset.event_types[events].astype(np.int64) + 1)
        if is_seen is not None:
            events, offsets = events[is_seen], offsets_of(is_seen.astype(np.int64))[offsets]
    item_ids = dataset.item_ids[events].astype(np.int64)
    return Exclusions(torch.from_numpy(item_ids), torch.from_numpy(offsets))


def _pack_times(queries: Sequence[RecommendQuery]) -> Tensor | None:
    """Return the times of all histories as in ``History``; None if all are unknown."""
    if all(query.times is None for query in queries):
        return None
    times = [
        np.full(len(query.item_ids), UNKNOWN_TIME) if query.times is None else query.times
        for query in queries
    ]
    return torch.from_numpy(np.concatenate(times))


def now_microseconds() -> int:
    """Return the current time in microseconds since 1970-01-01 UTC."""
    return time_ns() // 1000


def _is_seen(dataset: PreparedDataset, codes: Ints | None) -> Bools | None:
    """Return whether interactions with codes [n] (1 + event type, 0: unknown) count as seen.

    None: all of them do.
    """
    is_target = dataset.is_target_event_type
    if is_target is None or codes is None:
        return None
    return np.append(True, is_target)[codes]
