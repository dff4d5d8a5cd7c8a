"""New targets: those that an earlier training did not have, beside a share of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from candid.batches.packing import Ints
from candid.data import PreparedDataset, Role
from candid.data.chunks import UserChunk, owners_of

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NewTargets:
    """The targets of a loader that trains on new ones and replays earlier ones.

    A unit (an interaction, or a window over a history) has either new targets or earlier ones as
    rows. Each epoch has every unit of new targets, and a random share of the units of earlier ones,
    another sample in each epoch. Histories are complete in both.

    Attributes:
        first_new: [U] int64, the first interaction of each user, as an index into
            ``PreparedDataset.item_ids``, that an earlier training did not have as a target. All
            later ones of the user are new as well. ``user_offsets[u + 1]``: none is new.
        replay: share of the units of earlier targets in an epoch, from 0 to 1.
    """

    first_new: Ints
    replay: float

    def num_replayed(self, num_units: int) -> int:
        """Return how many of the units of earlier targets an epoch has."""
        return round(self.replay * num_units)


@dataclass(frozen=True, eq=False)
class TargetPart:
    """The training targets of a dataset: all, or the new ones, or the earlier ones.

    Attributes:
        dataset: the prepared dataset.
        first_new: as for ``NewTargets``; None: the part has all training targets.
        is_new: whether the part has the new targets, or the earlier ones.
    """

    dataset: PreparedDataset
    first_new: Ints | None = None
    is_new: bool = True

    def of_users(self, chunk: UserChunk) -> Bools:
        """Return whether each interaction of a chunk is a target of the part."""
        is_target: Bools = self.dataset.roles[chunk.rows] == Role.TRAIN
        if self.first_new is None:
            return is_target
        owners = owners_of(self.dataset.user_offsets, chunk) + chunk.users.start
        events = np.arange(chunk.rows.start, chunk.rows.stop)
        is_target &= (events >= self.first_new[owners]) == self.is_new
        return is_target


def target_parts(dataset: PreparedDataset, new: NewTargets | None) -> list[TargetPart]:
    """Return the parts of an epoch: the new targets and the earlier ones; without ``new`` all.

    Args:
        dataset: the prepared dataset.
        new: the new targets; None: an epoch has all targets.
    """
    if new is None:
        return [TargetPart(dataset)]
    return [
        TargetPart(dataset, new.first_new, is_new=True),
        TargetPart(dataset, new.first_new, is_new=False),
    ]
