"""Which interactions stay: k-core and minimum history, on dense ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def k_core(users: Ids, items: Ids, user_core: int, item_core: int) -> npt.NDArray[np.bool_]:
    """Find the largest subset where each user and each item left has enough interactions.

    Args:
        users: [E] int32, dense.
        items: [E] int32, dense.
        user_core: least interactions of a user; 0 or 1 keeps all.
        item_core: least interactions of an item.

    Returns:
        [E] bool, True = kept. The subset is unique: the order of removal does not matter.
    """
    kept = np.arange(len(users))
    while True:
        enough_user = np.bincount(users[kept])[users[kept]] >= user_core
        enough_item = np.bincount(items[kept])[items[kept]] >= item_core
        enough = enough_user & enough_item
        if enough.all():
            break
        kept = kept[enough]
    mask = np.zeros(len(users), dtype=np.bool_)
    mask[kept] = True
    return mask


def min_history(users: Ids, least: int) -> npt.NDArray[np.bool_]:
    """[E] bool, True where the user has at least ``least`` interactions."""
    return np.bincount(users)[users] >= least


def compact(ids: npt.NDArray[np.integer]) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Renumber so that every id from 0 on occurs, keeping the order.

    Returns:
        The new ids [E] int32, and for each new id the old one, int64 ascending.
    """
    present = np.zeros(int(ids.max()) + 1, dtype=np.bool_)
    present[ids] = True
    renumbered = np.cumsum(present, dtype=np.int32) - np.int32(1)
    return renumbered[ids], np.flatnonzero(present)
