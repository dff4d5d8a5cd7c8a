"""Training rows: the interactions that baselines are fitted to, the same as those of a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from candid.batches import Ints
from candid.data import PreparedDataset, Role
from candid.errors import DataError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """R interactions that training may use, grouped by user, earliest first.

    These are the training targets, and the interactions that are in the history of one: the
    windows of a loader end at the user's last training target as well.

    Attributes:
        item_ids: [R] int64.
        user_ids: [R] int64, ascending.
        is_target: [R] bool, whether training has the interaction as a target; the others are
            in histories only.
        times: [R] int64 microseconds since 1970-01-01 UTC, or None.
        num_users: U.
        num_items: V.
    """

    item_ids: Ints
    user_ids: Ints
    is_target: Bools
    times: Ints | None
    num_users: int
    num_items: int

    @cached_property
    def target_counts(self) -> Floats:
        """[V] float64, the number of targets of each item."""
        targets = self.item_ids[self.is_target]
        return np.bincount(targets, minlength=self.num_items).astype(np.float64)

    def matrix(self, *, targets_only: bool = False) -> sparse.csr_array:
        """Return the items of each user: [U, V] float32 of zeros and ones.

        Args:
            targets_only: leave out interactions that are in histories only.
        """
        rows = self.is_target if targets_only else slice(None)
        users, items = self.user_ids[rows], self.item_ids[rows]
        shape = self.num_users, self.num_items
        matrix = sparse.csr_array((np.ones(len(items), np.float32), (users, items)), shape=shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix


def training_rows(dataset: PreparedDataset) -> TrainingRows:
    """Collect the interactions that training may use.

    Args:
        dataset: the prepared dataset.

    Raises:
        DataError: there is no training target.
    """
    roles = np.asarray(dataset.roles)
    is_target = roles == Role.TRAIN
    targets = np.flatnonzero(is_target)
    if len(targets) == 0:
        raise DataError(
            "the dataset has no training interaction to fit a baseline to: change its split"
        )
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    last_target = np.full(dataset.num_users, -1, dtype=np.int64)
    last_target[owners[targets]] = targets  # ascending, so that the last one stays
    events = np.flatnonzero(
        (is_target | (roles == Role.HISTORY)) & (np.arange(len(roles)) <= last_target[owners])
    )
    return TrainingRows(
        item_ids=np.asarray(dataset.item_ids)[events].astype(np.int64),
        user_ids=owners[events],
        is_target=is_target[events],
        times=None if dataset.timestamps is None else np.asarray(dataset.timestamps)[events],
        num_users=dataset.num_users,
        num_items=dataset.num_items,
    )
