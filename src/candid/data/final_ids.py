"""Ids that users and items have in the dataset: without gaps, or those of an earlier dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.events import Events
from candid.data.ids import EarlierIds, append_new

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FinalIds:
    """The ids that users and items have in the dataset.

    Attributes:
        users: source id of each user, by id.
        items: source id of each item, by id.
        user_ids: user as loaded -> id, -1 without an interaction.
        item_ids: likewise for items.
        user_counts: [number of users] int64, number of interactions of each.
        retired_items: [number of items] bool; None: no item is retired.
        report: for users and for items the numbers kept, new and retired (without an interaction);
            None without an earlier dataset.
    """

    users: pl.Series
    items: pl.Series
    user_ids: npt.NDArray[np.int32]
    item_ids: npt.NDArray[np.int32]
    user_counts: npt.NDArray[np.int64]
    retired_items: Mask | None
    report: dict[str, dict[str, int]] | None


def number(events: Events, earlier: EarlierIds | None) -> FinalIds:
    """Number the users and items that have an interaction, and group the rows by user again.

    They are numbered by ascending source id. Those of an earlier dataset keep their ids, also
    without an interaction here, and new ones follow.

    Args:
        events: its parts are grouped by user in the new order.
        earlier: the ids to keep; None: without an earlier dataset.

    Raises:
        DataError: the ids of the earlier dataset are of another type.
    """
    results, report = [], {}
    for kind, source_ids, counts, kept in (
        ("user", events.users, events.user_counts, None if earlier is None else earlier.users),
        ("item", events.items, events.item_counts, None if earlier is None else earlier.items),
    ):
        present = np.flatnonzero(counts)
        now = source_ids if len(present) == len(counts) else source_ids.gather(present)
        total, ids = now, np.arange(len(now), dtype=np.int32)
        if kept is not None:
            assert earlier is not None
            total, ids = append_new(kept, now, kind, earlier.origin)
            new = len(total) - len(kept)
            report[f"{kind}s"] = {
                "kept": len(now) - new,
                "new": new,
                "retired": len(total) - len(now),
            }
        final_ids = np.full(len(counts), -1, dtype=np.int32)
        final_ids[present] = ids
        final_counts = np.zeros(len(total), dtype=np.int64)
        final_counts[ids] = counts[present]
        results.append((total, final_ids, final_counts))
    (users, user_ids, user_counts), (items, item_ids, item_counts) = results
    is_retired = item_counts == 0
    if earlier is not None:
        events.parts.regroup(user_ids)
        # Rows have the new users now.
        user_ids = np.arange(len(users), dtype=np.int32)
    return FinalIds(
        users,
        items,
        user_ids,
        item_ids,
        user_counts,
        is_retired if is_retired.any() else None,
        None if earlier is None else report,
    )
