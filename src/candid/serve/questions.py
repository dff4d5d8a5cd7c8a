"""From requests to what the model reads: questions, and batches of them encoded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from candid.batches import Queries, pack_histories
from candid.features import Values
from candid.features.context import context_frame
from candid.serve.parts import ServedParts

Ints = npt.NDArray[np.int64]
NOTHING: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as the model reads it.

    Attributes:
        user_id: dense id; -1 for nobody of the dataset.
        item_ids: [L] int64, the last part of the history, ids of the dataset.
        event_types: [L] int64, 1 + code of the kind of each, 0 where not known; None: none is known.
        last_time: microseconds since 1970-01-01 UTC of the last interaction; None: not known.
        last_kind: its kind; None: not known.
        features: attributes of somebody who is no user; None: nothing is said.
        time: of the question, microseconds.
        event_type: the kind asked for; None: any.
        seen: [n] int64, items that the history holds.
    """

    user_id: int
    item_ids: Ints
    event_types: Ints | None
    last_time: int | None
    last_kind: str | None
    features: Mapping[str, Any] | None
    time: int
    event_type: str | None
    seen: Ints


def asker_of_user(
    parts: ServedParts, user_id: int, time: int | None, event_type: str | None
) -> Asker:
    """A user of the dataset with the whole history there."""
    dataset = parts.dataset
    start, stop = (int(end) for end in dataset.user_offsets[user_id : user_id + 2])
    first = max(start, stop - parts.max_length)
    seen = dataset.item_ids[start:stop].astype(np.int64)
    event_types = last_kind = None
    if dataset.event_types is not None:
        codes = dataset.event_types[start:stop]
        event_types = codes[first - start :].astype(np.int64) + 1
        if stop > start:
            last_kind = dataset.event_type_names[int(codes[-1])]
        # What was only viewed may still be bought.
        if (is_target := dataset.is_target_event_type) is not None:
            seen = seen[is_target[codes]]
    has_time = dataset.timestamps is not None and stop > start
    return Asker(
        user_id=user_id,
        item_ids=dataset.item_ids[first:stop].astype(np.int64),
        event_types=event_types,
        last_time=int(dataset.timestamps[stop - 1])
        if has_time and dataset.timestamps is not None
        else None,
        last_kind=last_kind,
        features=None,
        time=_now() if time is None else time,
        event_type=event_type,
        seen=seen,
    )


def asker_of_history(
    parts: ServedParts,
    item_ids: Sequence[int],
    kinds: Sequence[str | None],
    last_time: int | None,
    features: Mapping[str, Any] | None,
    time: int | None,
    event_type: str | None,
) -> Asker:
    """Somebody with a given history, earliest first, and perhaps features.

    Items that came after training cannot be read by the model; they count as seen. Of
    interactions whose kind is given only those of a target kind do.
    """
    dataset = parts.dataset
    ids = np.array(item_ids, dtype=np.int64)
    codes = {name: code for code, name in enumerate(dataset.event_type_names)}
    event_types = np.array(
        [0 if kind is None else codes[kind] + 1 for kind in kinds], dtype=np.int64
    )
    seen = ids
    if (is_target := dataset.is_target_event_type) is not None and len(ids):
        seen = ids[(event_types == 0) | is_target[np.maximum(event_types - 1, 0)]]
    is_read = ids < dataset.num_items
    return Asker(
        user_id=-1,
        item_ids=ids[is_read][-parts.max_length :],
        event_types=event_types[is_read][-parts.max_length :],
        last_time=last_time,
        last_kind=kinds[-1] if kinds else None,
        features=features,
        time=_now() if time is None else time,
        event_type=event_type,
        seen=seen,
    )


def encoded(parts: ServedParts, askers: Sequence[Asker]) -> Tensor:
    """Query vectors of askers: [B, D] float32 on the CPU, not finite where the model fails."""
    vectors = torch.empty(len(askers), parts.dim)
    with_features = [row for row, asker in enumerate(askers) if asker.features is not None]
    without = [row for row, asker in enumerate(askers) if asker.features is None]
    with torch.inference_mode():
        for rows, has_features in ((without, False), (with_features, True)):
            if not rows:
                continue
            chosen = [askers[row] for row in rows]
            features = None
            if has_features and parts.people is not None:
                features = parts.people([asker.features or {} for asker in chosen])
            queries = _queries(parts, chosen, features)
            query = parts.model.encode_queries(queries.to(parts.model.device))
            vectors[rows] = query.float().cpu()
    return vectors


def _queries(
    parts: ServedParts, askers: Sequence[Asker], features: Mapping[str, Values] | None
) -> Queries:
    event_types = None
    if parts.dataset.event_types is not None:
        event_types = torch.from_numpy(
            np.concatenate(
                [
                    np.zeros_like(a.item_ids) if a.event_types is None else a.event_types
                    for a in askers
                ]
            )
        )
    return pack_histories(
        np.array([asker.user_id for asker in askers], dtype=np.int64),
        np.concatenate([asker.item_ids for asker in askers]),
        np.array([len(asker.item_ids) for asker in askers], dtype=np.int64),
        event_types=event_types,
        context=_context(parts, askers),
        user_features=features,
    )


def _context(parts: ServedParts, askers: Sequence[Asker]) -> Mapping[str, Values] | None:
    if parts.context is None:
        return None
    frame = context_frame(
        np.array([asker.time for asker in askers], dtype=np.int64),
        np.array([asker.last_time or 0 for asker in askers], dtype=np.int64),
        np.array([asker.last_time is not None for asker in askers]),
        pl.Series([asker.event_type for asker in askers], dtype=pl.String),
        pl.Series([asker.last_kind for asker in askers], dtype=pl.String),
    )
    return parts.context.table.encode(frame)


def _now() -> int:
    return time_ns() // 1000
