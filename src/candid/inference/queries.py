"""Single queries: the history, context and attributes of one user, as the model reads them.

The command line, the server and ``Run`` build the queries of single users here. This module and
``user_queries``, which does the same for many users of a dataset at once, alone cut a history to
the length that the model reads, encode event types, decide which items a user has already seen,
and add the context of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    pack_histories,
)
from candid.data import PreparedDataset
from candid.errors import ConfigError
from candid.features import Context, Values
from candid.features.context import context_frame
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
    is_seen = counts_as_seen(dataset, codes)
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
    is_seen = counts_as_seen(dataset, codes)
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


def counts_as_seen(dataset: PreparedDataset, codes: Ints | None) -> Bools | None:
    """Return whether interactions count as seen: [n] bool; None: all of them do.

    Args:
        dataset: the prepared dataset.
        codes: [n] int64, 1 + event type, 0 where it is unknown; None: none have event types.
    """
    is_target = dataset.is_target_event_type
    if is_target is None or codes is None:
        return None
    return np.append(True, is_target)[codes]
