"""Windows over users' sequences: the units of a batch of histories."""

from __future__ import annotations

import numpy as np

from candid.batches.config import BatchesConfig
from candid.batches.packing import Ints, ranges
from candid.data import PreparedDataset, Role


def windows_of(dataset: PreparedDataset, config: BatchesConfig) -> tuple[Ints, Ints, Ints]:
    """Windows [start, stop) of at most ``max_length + 1`` interactions, and their users.

    A window ends at a user's last training target (nothing after it can teach) and the
    earlier ones are laid end to end before it, each sharing one interaction with the next:
    the target of one is the first history of the other, so no target is lost or repeated.
    """
    is_target = np.asarray(dataset.roles) == Role.TRAIN
    events = np.flatnonzero(is_target)
    owners = np.searchsorted(dataset.user_offsets, events, side="right") - 1
    user_ids, reversed_first = np.unique(owners[::-1], return_index=True)
    stops = events[::-1][reversed_first] + 1
    starts = dataset.user_offsets[user_ids].astype(np.int64)
    steps = stops - starts - 1
    keep = steps > 0
    user_ids, starts, stops, steps = user_ids[keep], starts[keep], stops[keep], steps[keep]
    num = np.ones_like(steps) if config.windows == "last" else -(-steps // config.max_length)
    owners = np.repeat(user_ids, num).astype(np.int64)
    index = ranges(np.zeros_like(num), num)
    window_stops = np.repeat(stops, num) - index * config.max_length
    window_starts = np.maximum(window_stops - config.max_length - 1, np.repeat(starts, num))
    has_target = np.add.reduceat(
        np.append(is_target, False), np.stack([window_starts + 1, window_stops], 1).ravel()
    )[::2]
    taught = np.asarray(has_target, dtype=bool)
    return window_starts[taught], window_stops[taught], owners[taught]
