"""The arrays and the manifest of a dataset from its interactions, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import negatives
from candid.data.chunks import add_counts
from candid.data.config import DataConfig
from candid.data.dataset import Role
from candid.data.dataset_files import (
    ARRAYS,
    KIND,
    SCHEMA_VERSION,
    Arrays,
    ArrayStream,
    Tables,
    content_fingerprint,
)
from candid.data.event_types import target_types
from candid.data.events import Events
from candid.data.final_ids import FinalIds
from candid.data.role_assignment import iso_time, time_range
from candid.data.tables import JoinedTable, TableConfig
from candid.version import __version__

COLUMNS = {"roles": "role", "timestamps": "time", "weights": "weight", "event_types": "event_type"}
"""Array of a dataset -> column of the interactions."""


def arrays_of(events: Events, ids: FinalIds) -> dict[str, npt.NDArray[Any] | ArrayStream]:
    """Return the arrays of a dataset by the names of ``ARRAYS``, without those that it lacks."""
    parts, columns = events.parts, events.columns
    arrays: dict[str, npt.NDArray[Any] | ArrayStream] = {}

    def add(name: str, length: int, chunks: Callable[[], Iterable[npt.NDArray[Any]]]) -> None:
        arrays[name] = ArrayStream(length, np.dtype(ARRAYS[name]), chunks)

    def add_column(name: str, column: str) -> None:
        add(name, parts.num_rows, lambda: (f[column].to_numpy() for f in parts.frames(column)))

    add(
        "item_ids",
        parts.num_rows,
        lambda: (ids.item_ids[frame["item"].to_numpy()] for frame in parts.frames("item")),
    )
    arrays["user_offsets"] = np.concatenate([[0], np.cumsum(ids.user_counts)]).astype(np.int64)
    for name, column in COLUMNS.items():
        if column in columns:
            add_column(name, column)
    if "negatives" in columns:
        num_negatives = sum(len(item_ids) for item_ids, _ in _packed_negatives(events, ids))
        add(
            "negative_ids",
            num_negatives,
            lambda: (item_ids for item_ids, _ in _packed_negatives(events, ids)),
        )
        add("negative_offsets", parts.num_rows + 1, lambda: _negative_offsets(events, ids))
    if ids.retired_items is not None:
        arrays["retired_items"] = ids.retired_items
    if "place" in columns and not all(map(_is_in_order, parts.frames("user", "place"))):
        add(
            "order_ranks",
            parts.num_rows,
            lambda: map(_order_ranks, parts.frames("user", "place")),
        )
    return arrays


def manifest_of(
    events: Events,
    ids: FinalIds,
    config: DataConfig,
    facts: dict[str, Any],
    split: dict[str, Any],
    joined: tuple[JoinedTable, JoinedTable],
    arrays: Arrays,
    earlier_fingerprint: str | None,
) -> dict[str, Any]:
    """Return the manifest without files; ``joined`` are the tables of users and of items."""
    users, items = joined
    tables: Tables = {"users": users.frame, "items": items.frame}
    kept_ids = None
    if ids.report is not None:
        kept_ids = {"fingerprint": earlier_fingerprint, **ids.report}
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": content_fingerprint(arrays, tables),
        "event_types": list(events.event_types),
        "target_event_types": list(target_types(events.event_types, config)),
        "candid_version": __version__,
        **facts,
        "rows_read": events.rows_read,
        "dropped": events.dropped,
        "counts": _counts(events, ids),
        "split": split,
        "tied": events.tied,
        "time": _time_range(events),
        **_table_counts("items", items, config.items),
        **_table_counts("users", users, config.users),
        "negatives": _count_negatives(events, arrays),
        "ids_from": kept_ids,
        "files": {},
    }


def _packed_negatives(
    events: Events, ids: FinalIds
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    return (
        negatives.pack_negatives(frame, ids.item_ids) for frame in events.parts.frames("negatives")
    )


def _negative_offsets(events: Events, ids: FinalIds) -> Iterator[npt.NDArray[np.int64]]:
    start = 0
    yield np.zeros(1, dtype=np.int64)
    for item_ids, offsets in _packed_negatives(events, ids):
        yield offsets[1:] + start
        start += len(item_ids)


def _is_in_order(frame: pl.DataFrame) -> bool:
    """Whether the rows of each user have ascending places."""
    is_new = pl.col("user") != pl.col("user").shift()
    return bool(frame.select((is_new | (pl.col("place") > pl.col("place").shift())).all()).item())


def _order_ranks(frame: pl.DataFrame) -> npt.NDArray[np.int32]:
    """Place of each row among those of its user before ``keep_order``: [E], from 0."""
    users = frame["user"].to_numpy()
    order = np.lexsort((frame["place"].to_numpy(), users))
    ranks = np.empty(len(users), dtype=np.int32)
    ranks[order] = np.arange(len(users)) - np.searchsorted(users, users)
    return ranks


def _counts(events: Events, ids: FinalIds) -> dict[str, int]:
    by_role = np.zeros(len(Role), dtype=np.int64)
    users_of = dict.fromkeys((Role.TRAIN, Role.VALIDATION, Role.TEST), 0)
    train_counts = np.zeros(len(events.items), dtype=np.int64)
    for frame in events.parts.frames("user", "item", "role"):
        users, roles = frame["user"].to_numpy(), frame["role"].to_numpy()
        by_role += np.bincount(roles, minlength=len(Role))
        add_counts(train_counts, frame["item"].to_numpy()[roles == Role.TRAIN])
        for role in users_of:
            # Users ascend.
            users_of[role] += int(np.count_nonzero(np.diff(users[roles == role], prepend=-1)))
    return {
        "users": len(ids.users),
        "items": len(ids.items),
        "interactions": events.parts.num_rows,
        **{role.name.lower(): int(by_role[role]) for role in Role},
        **{f"{role.name.lower()}_users": count for role, count in users_of.items()},
        "items_trained": int((train_counts > 0).sum()),
    }


def _time_range(events: Events) -> dict[str, Any] | None:
    if "time" not in events.columns:
        return None
    first, last = time_range(events)
    return {"first": iso_time(first), "last": iso_time(last), "unit": events.time_unit}


def _table_counts(
    name: str, table: JoinedTable, config: TableConfig | None
) -> dict[str, int | None]:
    """Return the entries of the manifest about a table; None without one."""
    counts = {
        f"{name}_without_row": table.without_row,
        f"{name}_without_interactions": table.without_interactions,
    }
    return dict.fromkeys(counts) if config is None else dict(counts)


def _count_negatives(events: Events, arrays: Arrays) -> dict[str, int] | None:
    stored = arrays.get("negative_ids")
    if stored is None:
        return None
    before = sum(
        len(negatives.flatten_negatives(frame).rows) for frame in events.parts.frames("negatives")
    )
    filtered = before - len(stored)
    left_out = events.negatives_left_out | ({"of_filtered_items": filtered} if filtered else {})
    return {"stored": len(stored), **left_out}
