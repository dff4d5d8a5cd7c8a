"""Parts of a batch: its queries cut by unit, so that a large batch is encoded a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.batches.records import History, Queries


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch.

    Attributes:
        rows: [b] int64, their numbers in the batch, ascending.
        queries: of these rows.
    """

    rows: Tensor
    queries: Queries


def parts_of(queries: Queries, size: int) -> Iterator[Part]:
    """Cut queries into parts of some units: histories, or rows of a batch without histories.

    Rows without a history are in the first part. A part without rows is left out.

    Args:
        queries: the whole batch, on the CPU.
        size: units of a part.
    """
    history = queries.history
    if history is None:
        for rows in torch.arange(len(queries)).split(size):
            yield Part(rows, _rows_of(queries, rows, None))
        return
    num_sequences = len(history.offsets) - 1
    for first in range(0, max(num_sequences, 1), size):
        last = min(first + size, num_sequences)
        begin, end = (int(history.offsets[sequence]) for sequence in (first, last))
        positions = history.query_positions
        is_row = (positions >= begin) & (positions < end)
        if first == 0:
            is_row |= positions < 0
        rows = is_row.nonzero()[:, 0]
        if len(rows):
            yield Part(rows, _rows_of(queries, rows, _cut(history, first, last, rows)))


def without_rows(queries: Queries) -> Queries:
    """Return no row of queries, and no history."""
    history = queries.history
    none = torch.empty(0, dtype=torch.int64)
    if history is None:
        return _rows_of(queries, none, None)
    end = len(history.offsets) - 1
    return _rows_of(queries, none, _cut(history, end, end, none))


def _rows_of(queries: Queries, rows: Tensor, history: History | None) -> Queries:
    context, features, times = queries.context, queries.user_features, queries.times
    return Queries(
        user_ids=queries.user_ids[rows],
        history=history,
        context=None if context is None else {k: v.take(rows) for k, v in context.items()},
        user_features=None if features is None else {k: v.take(rows) for k, v in features.items()},
        times=None if times is None else times[rows],
        row_numbers=rows if queries.row_numbers is None else queries.row_numbers[rows],
    )


def _cut(history: History, first: int, last: int, rows: Tensor) -> History:
    begin, end = (int(history.offsets[sequence]) for sequence in (first, last))
    positions = history.query_positions[rows]
    event_types, times = history.event_types, history.times
    return History(
        item_ids=history.item_ids[begin:end],
        offsets=history.offsets[first : last + 1] - begin,
        query_positions=torch.where(positions < 0, positions, positions - begin),
        event_types=None if event_types is None else event_types[begin:end],
        times=None if times is None else times[begin:end],
        first_sequence=history.first_sequence + first,
    )
