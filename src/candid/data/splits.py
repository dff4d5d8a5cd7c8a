"""The role of every interaction: train, history, validation or test.

All functions take interactions grouped by user, earliest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from candid.data.dataset import Role

Roles = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]


def leave_one_out(users: Ids, targets: npt.NDArray[np.bool_] | None = None) -> Roles:
    """Each user's last is test, the second last validation; users with fewer than 3 train.

    Args:
        users: [E] int32, ascending.
        targets: [E], which interactions count; the others are history. None: all.
    """
    if targets is not None:
        roles = np.full(len(users), Role.HISTORY, dtype=np.uint8)
        roles[targets] = leave_one_out(users[targets])
        return roles
    counts = np.bincount(users)
    from_end = np.cumsum(counts)[users] - 1 - np.arange(len(users))
    roles = np.full(len(users), Role.TRAIN, dtype=np.uint8)
    long_enough = counts[users] >= 3
    roles[long_enough & (from_end == 0)] = Role.TEST
    roles[long_enough & (from_end == 1)] = Role.VALIDATION
    return roles


def temporal(timestamps: npt.NDArray[np.int64], validation: int, test: int) -> Roles:
    """Train before ``validation``, validation before ``test``, test from there on.

    Args:
        timestamps: [E] int64.
        validation: first moment of validation.
        test: first moment of test.
    """
    cuts = np.array([validation, test])
    window = np.searchsorted(cuts, timestamps, side="right")
    return np.array([Role.TRAIN, Role.VALIDATION, Role.TEST], dtype=np.uint8)[window]


def quantile_time(timestamps: npt.NDArray[np.int64], quantile: float) -> int:
    """The moment before which at most this share of the interactions lies.

    Interactions at the very moment fall behind the cut, all together.
    """
    rank = min(int(quantile * len(timestamps)), len(timestamps) - 1)
    return int(np.partition(timestamps, rank)[rank])


def sample_validation(users: Ids, roles: Roles, size: int, seed: int) -> Roles:
    """Keep the validation of ``size`` users drawn at random; that of the others is history."""
    validated = np.unique(users[roles == Role.VALIDATION])
    if size >= len(validated):
        return roles
    drawn = np.random.default_rng(seed).choice(validated, size, replace=False)
    other = (roles == Role.VALIDATION) & ~np.isin(users, drawn)
    return np.where(other, np.uint8(Role.HISTORY), roles)


@dataclass(frozen=True)
class Unseen:
    """Targets that training never met; both [E] bool, True only at validation and test rows."""

    item: npt.NDArray[np.bool_]
    user: npt.NDArray[np.bool_]


def unseen(users: Ids, items: Ids, roles: Roles) -> Unseen:
    """Find validation and test targets whose item, or whose user, has no training row."""
    trained = roles == Role.TRAIN
    target = roles >= Role.VALIDATION
    trained_items = np.bincount(items[trained], minlength=int(items.max()) + 1) > 0
    trained_users = np.bincount(users[trained], minlength=int(users.max()) + 1) > 0
    return Unseen(item=target & ~trained_items[items], user=target & ~trained_users[users])
