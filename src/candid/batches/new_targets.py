"""New targets: those that an earlier training did not have, beside a share of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from candid.data import PreparedDataset, Role

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NewTargets:
    """The targets of a loader that trains on new ones and replays earlier ones.

    A unit (an interaction, or a window over a history) has either new targets or earlier ones as
    rows. Each epoch has every unit of new targets, and a random share of the units of earlier ones,
    another sample in each epoch. Histories are complete in both.

    Attributes:
        is_new: [E] bool, whether an earlier training did not have the interaction as a target.
        replay: share of the units of earlier targets in an epoch, from 0 to 1.
    """

    is_new: Bools
    replay: float

    def num_replayed(self, num_units: int) -> int:
        """Return how many of the units of earlier targets an epoch has."""
        return round(self.replay * num_units)


def target_parts(dataset: PreparedDataset, new: NewTargets | None) -> list[Bools]:
    """Return masks of the training targets [E]: the new and the earlier ones; without ``new`` all.

    Args:
        dataset: the prepared dataset.
        new: the new targets; None: an epoch has all targets.
    """
    is_target: Bools = np.asarray(dataset.roles) == Role.TRAIN
    if new is None:
        return [is_target]
    return [is_target & new.is_new, is_target & ~new.is_new]
