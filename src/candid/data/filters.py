"""Filters on dense ids: the k-core, the minimum history, and repeated interactions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.chunks import add_counts

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def k_core(
    pairs: Callable[[], Iterable[tuple[Ids, Ids]]],
    num_users: int,
    num_items: int,
    user_core: int,
    item_core: int,
) -> tuple[Mask, Mask]:
    """Find the largest subset in which each user and each item has enough interactions.

    It is unique, and consists of the interactions between the users and the items that remain.

    Args:
        pairs: returns the users [E] and items [E] of all interactions, in one or more parts; it is
            called once for each round of removals.
        num_users: all users are below it.
        num_items: all items are below it.
        user_core: minimum interactions of a user; 0 or 1 keeps all.
        item_core: minimum interactions of an item.

    Returns:
        [num_users] bool and [num_items] bool, whether each remains.
    """
    is_user = np.ones(num_users, dtype=np.bool_)
    is_item = np.ones(num_items, dtype=np.bool_)
    while True:
        user_counts = np.zeros(num_users, dtype=np.int64)
        item_counts = np.zeros(num_items, dtype=np.int64)
        for users, items in pairs():
            is_kept = is_user[users] & is_item[items]
            add_counts(user_counts, users[is_kept])
            add_counts(item_counts, items[is_kept])
        is_user, is_item = user_counts > 0, item_counts > 0
        has_enough_user, has_enough_item = user_counts >= user_core, item_counts >= item_core
        if has_enough_user[is_user].all() and has_enough_item[is_item].all():
            return is_user, is_item
        is_user &= has_enough_user
        is_item &= has_enough_item


def without_repetitions(
    users: Ids,
    items: Ids,
    event_types: npt.NDArray[np.uint8] | None,
    keep: Literal["first", "last"],
) -> Mask:
    """[E] bool, True for one interaction of each user-item pair.

    Args:
        users: [E].
        items: [E].
        event_types: [E], or None; a view and a purchase of the same item do not repeat each other.
        keep: which interaction of a pair.
    """
    pairs = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    if event_types is not None:
        pairs = pairs * (int(event_types.max(initial=0)) + 1) + event_types
    pair = pl.Series(pairs)
    is_kept = pair.is_first_distinct() if keep == "first" else pair.is_last_distinct()
    return is_kept.to_numpy()


def compact(ids: npt.NDArray[np.integer]) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Renumber ids from 0 without gaps, in the same order.

    Returns:
        the new ids [E] int32, and for each new id the old one, int64 ascending.
    """
    is_present = np.zeros(int(ids.max()) + 1, dtype=np.bool_)
    is_present[ids] = True
    new_ids = np.cumsum(is_present, dtype=np.int32) - np.int32(1)
    return new_ids[ids], np.flatnonzero(is_present)
