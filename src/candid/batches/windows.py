"""Windows over users' sequences: the units of a batch of histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from candid.batches.config import BatchesConfig
from candid.batches.packing import Ints, ranges
from candid.data import PreparedDataset, Role


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows of interactions, each of one user.

    Attributes:
        starts: [W], the first interaction of each.
        stops: [W], the position after the last interaction of each.
        owners: [W], user ids.
        openings: [W], the interaction that is also the target of an empty history, or -1.
    """

    starts: Ints
    stops: Ints
    owners: Ints
    openings: Ints

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Ints | npt.NDArray[np.bool_]) -> Windows:
        return Windows(self.starts[rows], self.stops[rows], self.owners[rows], self.openings[rows])


def windows_of(
    dataset: PreparedDataset,
    config: BatchesConfig,
    is_target: npt.NDArray[np.bool_] | None = None,
) -> Windows:
    """Cut every user's sequence into windows of at most ``max_length + 1`` interactions.

    The last window ends at the user's last training target. Earlier windows precede it without
    a gap, and each shares one interaction with the next: the target of one is the first history
    of the other, so no target is lost or repeated. With ``empty_histories`` a user's earliest
    window also has the user's first target with an empty history.

    Args:
        dataset: the prepared dataset.
        config: batch settings.
        is_target: [E] bool, some of the training targets; None: all.
    """
    is_training = np.asarray(dataset.roles) == Role.TRAIN
    is_target = is_training if is_target is None else is_target
    events = np.flatnonzero(is_target)
    owners = np.searchsorted(dataset.user_offsets, events, side="right") - 1
    user_ids, reversed_first = np.unique(owners[::-1], return_index=True)
    stops = events[::-1][reversed_first] + 1
    starts = dataset.user_offsets[user_ids].astype(np.int64)
    steps = stops - starts - 1
    if not config.empty_histories:
        keep = steps > 0
        user_ids, starts, stops, steps = user_ids[keep], starts[keep], stops[keep], steps[keep]
    num_windows = np.ones_like(steps)
    if config.windows == "all":
        num_windows = np.maximum(num_windows, -(-steps // config.max_length))
    owners = np.repeat(user_ids, num_windows).astype(np.int64)
    index = ranges(np.zeros_like(num_windows), num_windows)
    window_stops = np.repeat(stops, num_windows) - index * config.max_length
    first = np.repeat(starts, num_windows)
    window_starts = np.maximum(window_stops - config.max_length - 1, first)
    has_target = np.add.reduceat(
        np.append(is_target, False), np.stack([window_starts + 1, window_stops], 1).ravel()
    )[::2]
    # For an empty range, reduceat returns the element at its start.
    is_trained = np.asarray(has_target, dtype=bool) & (window_stops - window_starts > 1)
    is_earliest = np.append(owners[1:] != owners[:-1], True)[: len(owners)]
    training = np.flatnonzero(is_training)
    first_targets = training[np.searchsorted(training, first)]
    is_opening = config.empty_histories & is_earliest & is_target[first_targets]
    openings = np.where(is_opening, first_targets, -1)
    return Windows(window_starts, window_stops, owners, openings)[is_trained | (openings >= 0)]


def joined(parts: list[Windows]) -> Windows:
    """Return the windows of several parts, one part after the other."""
    return Windows(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("starts", "stops", "owners", "openings")
        )
    )
