"""Queries of many users of a dataset, packed together, and the items that they have seen.

The result equals that of ``queries`` for each user.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch

from candid.batches import (
    Ints,
    Queries,
    event_type_of,
    offsets_of,
    pack_histories,
    ranges,
    times_of,
)
from candid.data import HeldOutTargets, PreparedDataset
from candid.features import Context
from candid.features.context import context_frame, event_type_column
from candid.index import Exclusions
from candid.inference.queries import counts_as_seen, now_microseconds


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
        is_seen = counts_as_seen(dataset, dataset.event_types[events].astype(np.int64) + 1)
        if is_seen is not None:
            events, offsets = events[is_seen], offsets_of(is_seen.astype(np.int64))[offsets]
    item_ids = dataset.item_ids[events].astype(np.int64)
    return Exclusions(torch.from_numpy(item_ids), torch.from_numpy(offsets))
