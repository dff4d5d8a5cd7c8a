"""Vectorised operations on ragged arrays, and packed histories."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.batches.records import History, Queries
from candid.data import PreparedDataset
from candid.features import Values

Ints = npt.NDArray[np.int64]


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate ``arange(starts[i], starts[i] + lengths[i])`` over i: [sum of lengths] int64.

    Args:
        starts: [S] int64.
        lengths: [S] int64, at least 0.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    shift: Ints = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(total, dtype=np.int64) + shift


def offsets_of(lengths: Ints) -> Ints:
    """Return the offsets [S + 1] int64 of lengths [S]: 0, then the running sums."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def event_type_of(dataset: PreparedDataset, events: Ints) -> Tensor | None:
    """Return the event types of interactions [T] as in ``History``; None without event types."""
    if dataset.event_types is None:
        return None
    return torch.from_numpy(dataset.event_types[events].astype(np.int64) + 1)


def times_of(dataset: PreparedDataset, events: Ints) -> Tensor | None:
    """Return the times of interactions [T] as in ``History``; None for a dataset without time."""
    if dataset.timestamps is None:
        return None
    return torch.from_numpy(dataset.timestamps[events])


def negatives_of(dataset: PreparedDataset, events: Ints, max_negatives: int) -> Tensor | None:
    """Return the items shown with interactions [B] as in ``Batch.negative_ids``.

    Args:
        dataset: the prepared dataset.
        events: [B] int64, the interactions, as indices into ``dataset.item_ids``.
        max_negatives: most items of one interaction; the last ones are returned.
    """
    if dataset.negative_ids is None or dataset.negative_offsets is None:
        return None
    stops = dataset.negative_offsets[events + 1]
    starts = np.maximum(dataset.negative_offsets[events], stops - max_negatives)
    lengths = stops - starts
    width = int(lengths.max(initial=0))
    if width == 0:
        return None
    item_ids = np.full((len(events), width), -1, dtype=np.int64)
    rows = np.repeat(np.arange(len(events)), lengths)
    columns = ranges(np.zeros_like(lengths), lengths)
    item_ids[rows, columns] = dataset.negative_ids[ranges(starts, lengths)]
    return torch.from_numpy(item_ids)


def pack_histories(
    user_ids: Ints,
    item_ids: Ints,
    lengths: Ints,
    *,
    event_types: Tensor | None = None,
    times: Tensor | None = None,
    context: Mapping[str, Values] | None = None,
    user_features: Mapping[str, Values] | None = None,
    query_times: Tensor | None = None,
) -> Queries:
    """Return one query for each sequence, after its last interaction.

    Args:
        user_ids: [B].
        item_ids: [sum of lengths], the histories one after the other.
        lengths: [B], 0 for a query without a history.
        event_types: as in ``History``; None if they are not known.
        times: as in ``History``; None if they are not known.
        context: context of the B queries, or None.
        user_features: as in ``Queries``.
        query_times: ``times`` of ``Queries``; None if they are not known.
    """
    offsets = offsets_of(lengths)
    return Queries(
        user_ids=torch.from_numpy(user_ids),
        context=context,
        user_features=user_features,
        times=query_times,
        history=History(
            item_ids=torch.from_numpy(item_ids),
            offsets=torch.from_numpy(offsets),
            query_positions=torch.from_numpy(np.where(lengths > 0, offsets[1:] - 1, -1)),
            event_types=event_types,
            times=times,
        ),
    )
