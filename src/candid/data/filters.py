"""Filters on dense ids: the k-core and the minimum history."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def k_core(users: Ids, items: Ids, user_core: int, item_core: int) -> npt.NDArray[np.bool_]:
    """Find the largest subset in which each user and each item has enough interactions.

    Args:
        users: [E] int32, dense.
        items: [E] int32, dense.
        user_core: minimum interactions of a user; 0 or 1 keeps all.
        item_core: minimum interactions of an item.

    Returns:
        [E] bool, True = in the subset. It is unique: the order of removal does not matter.
    """
    rows = np.arange(len(users))
    while True:
        enough_user = np.bincount(users[rows])[users[rows]] >= user_core
        enough_item = np.bincount(items[rows])[items[rows]] >= item_core
        enough = enough_user & enough_item
        if enough.all():
            break
        rows = rows[enough]
    mask = np.zeros(len(users), dtype=np.bool_)
    mask[rows] = True
    return mask


def min_history(users: Ids, minimum: int) -> npt.NDArray[np.bool_]:
    """[E] bool, True for users with at least ``minimum`` interactions."""
    return np.bincount(users)[users] >= minimum


def compact(ids: npt.NDArray[np.integer]) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Renumber ids from 0 without gaps, in the same order.

    Returns:
        the new ids [E] int32, and for each new id the old one, int64 ascending.
    """
    is_present = np.zeros(int(ids.max()) + 1, dtype=np.bool_)
    is_present[ids] = True
    new_ids = np.cumsum(is_present, dtype=np.int32) - np.int32(1)
    return new_ids[ids], np.flatnonzero(is_present)
