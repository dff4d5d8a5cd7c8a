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
    """Assign each user's last interaction to test and the second last to validation.

    Users with fewer than 3 interactions are train only.

    Args:
        users: [E] int32, ascending.
        targets: [E], interactions to assign; the others become history. None: all.
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
    """Assign train before ``validation``, validation before ``test``, and test from then on.

    Args:
        timestamps: [E] int64.
        validation: first time of validation.
        test: first time of test.
    """
    cuts = np.array([validation, test])
    window = np.searchsorted(cuts, timestamps, side="right")
    return np.array([Role.TRAIN, Role.VALIDATION, Role.TEST], dtype=np.uint8)[window]


def quantile_time(timestamps: npt.NDArray[np.int64], quantile: float) -> int:
    """Return the time before which at most this share of the interactions lies.

    All interactions at exactly that time are after the cut.
    """
    rank = min(int(quantile * len(timestamps)), len(timestamps) - 1)
    return int(np.partition(timestamps, rank)[rank])


def sample_validation(users: Ids, roles: Roles, size: int, seed: int) -> Roles:
    """Keep the validation targets of ``size`` random users; those of the others become history."""
    candidates = np.unique(users[roles == Role.VALIDATION])
    if size >= len(candidates):
        return roles
    sampled = np.random.default_rng(seed).choice(candidates, size, replace=False)
    is_other = (roles == Role.VALIDATION) & ~np.isin(users, sampled)
    return np.where(is_other, np.uint8(Role.HISTORY), roles)


@dataclass(frozen=True)
class UnseenTargets:
    """Validation and test targets without training interactions of their item or user.

    Attributes:
        item: [E] bool, True only at validation and test targets.
        user: [E] bool, likewise.
    """

    item: npt.NDArray[np.bool_]
    user: npt.NDArray[np.bool_]


def find_unseen(users: Ids, items: Ids, roles: Roles) -> UnseenTargets:
    """Find validation and test targets whose item, or whose user, has no training row."""
    trained = roles == Role.TRAIN
    target = roles >= Role.VALIDATION
    trained_items = np.bincount(items[trained], minlength=int(items.max()) + 1) > 0
    trained_users = np.bincount(users[trained], minlength=int(users.max()) + 1) > 0
    return UnseenTargets(item=target & ~trained_items[items], user=target & ~trained_users[users])
