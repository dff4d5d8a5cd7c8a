"""Facts of a dataset that the default settings depend on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from candid.data import PreparedDataset, Role
from candid.data.chunks import owners_of, user_chunks
from candid.data.split_config import WINDOWED

MAX_LENGTH: Final = 200

RARE_TARGETS: Final = 50
"""Mean number of targets of an item in an epoch below which most items are rare. Each has few
updates, so that the learning rate is higher; histories share less, so that fitting them in detail
helps less: more dropout and fewer epochs."""

MAX_EXAMINED: Final = 5_000_000
"""Interactions that the share of repeats is computed from, those of the first users."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the default settings of a dataset depend on.

    Attributes:
        has_order: whether the interactions of a user are ordered, by time or another column.
        has_times: whether they have times.
        num_items: V.
        num_units: units of an epoch: windows of histories, or interactions without order.
        num_targets: training targets of an epoch.
        share_repeats: share of training interactions whose item their user already had.
        num_interactions: training interactions.
        targets_of_users: [U] training targets of each user; None: unknown.
        is_split_by_time: whether the held-out interactions are those after a time.
    """

    has_order: bool
    has_times: bool
    num_items: int
    num_units: int
    num_targets: int
    share_repeats: float
    num_interactions: int
    targets_of_users: npt.NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    is_split_by_time: bool = False

    @property
    def num_users(self) -> int | None:
        """U; None: unknown."""
        return None if self.targets_of_users is None else len(self.targets_of_users)

    @property
    def targets_per_item(self) -> float:
        """Mean number of targets of an item in an epoch."""
        return self.num_targets / max(self.num_items, 1)

    @property
    def has_rare_items(self) -> bool:
        """Whether most items are targets so seldom that each has few updates."""
        return self.targets_per_item < RARE_TARGETS

    def without_order(self) -> DataFacts:
        """Return the facts of the same data with interactions as units."""
        return replace(
            self,
            has_order=False,
            num_units=self.num_interactions,
            num_targets=self.num_interactions,
        )

    def with_windows(self, max_length: int, *, last_only: bool) -> DataFacts:
        """Return the facts of the same data with other windows over the histories.

        Args:
            max_length: most targets of a window.
            last_only: whether a user has the most recent window only.
        """
        if self.targets_of_users is None or not self.has_order:
            return self
        targets = self.targets_of_users[self.targets_of_users > 0]
        if last_only:
            targets = np.minimum(targets, max_length)
        units, total = int((-(-targets // max_length)).sum()), int(targets.sum())
        return replace(self, num_units=units, num_targets=total)

    def share_of_late_targets(self, length: int) -> float:
        """Return the share of the targets that have more than ``length`` interactions before."""
        if self.targets_of_users is None or not self.num_targets or not self.has_order:
            return 0.0
        late = np.maximum(self.targets_of_users - length, 0).sum()
        return float(late) / float(self.targets_of_users.sum())

    @classmethod
    def of(cls, dataset: PreparedDataset) -> DataFacts:
        """Collect the facts of a prepared dataset."""
        has_order = dataset.timestamps is not None or bool(dataset.manifest["config"]["order"])
        targets = np.zeros(dataset.num_users, dtype=np.int64)
        for chunk in user_chunks(dataset.user_offsets):
            is_target = dataset.roles[chunk.rows] == Role.TRAIN
            owners = owners_of(dataset.user_offsets, chunk)[is_target]
            targets[chunk.users] = np.bincount(
                owners, minlength=chunk.users.stop - chunk.users.start
            )
        num_interactions = num_units = num_targets = int(targets.sum())
        if has_order:
            # The first interaction of a user has no history.
            targets = np.maximum(targets - 1, 0)
            num_targets = int(targets.sum())
            num_units = int((-(-targets // MAX_LENGTH)).sum())
        return cls(
            has_order=has_order,
            has_times=dataset.timestamps is not None,
            num_items=dataset.num_items,
            num_units=num_units,
            num_targets=num_targets,
            share_repeats=_share_of_repeats(dataset),
            num_interactions=num_interactions,
            targets_of_users=targets,
            is_split_by_time=_is_split_by_time(dataset),
        )


def _is_split_by_time(dataset: PreparedDataset) -> bool:
    split = dataset.manifest["config"].get("split") or {}
    # Where users are held out, the target follows the history as in training.
    has_windows = split.get("kind") in WINDOWED and split.get("unit") != "user"
    return dataset.timestamps is not None and has_windows


def _share_of_repeats(dataset: PreparedDataset) -> float:
    """Return the share of training targets whose item an earlier target of the user has."""
    chosen = np.flatnonzero(dataset.roles[:MAX_EXAMINED] == Role.TRAIN)
    if len(chosen) == 0:
        return 0.0
    owners = np.searchsorted(dataset.user_offsets, chosen, side="right") - 1
    item_ids = dataset.item_ids[chosen]
    pairs = owners.astype(np.int64) * (int(item_ids.max()) + 1) + item_ids
    return 1.0 - len(np.unique(pairs)) / len(pairs)
