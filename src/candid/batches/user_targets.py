"""Targets of each user, and single interactions as the units of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from candid.batches.new_targets import TargetPart
from candid.batches.packing import Ints
from candid.batches.ranked import RangeLookup, Selected, cut_pieces, sums_of_ranges
from candid.data import Role
from candid.data.chunks import UserChunk, user_chunks


@dataclass(frozen=True, slots=True, eq=False)
class TargetsByUser:
    """Targets of each user.

    Attributes:
        firsts: [U] int64, the first target; of a user without one the user's first interaction.
        stops: [U] int64, the interaction after the last target, or the user's first one.
        counts: [U] int64, the number of targets.
    """

    firsts: Ints
    stops: Ints
    counts: Ints


def targets_by_user(part: TargetPart) -> TargetsByUser:
    """Find the first and the last target of each user, and count them."""
    offsets = part.dataset.user_offsets
    firsts = np.array(offsets[:-1], dtype=np.int64)
    stops, counts = firsts.copy(), np.zeros_like(firsts)
    for chunk in user_chunks(offsets):
        events = np.flatnonzero(part.of_users(chunk)) + chunk.rows.start
        # The targets before each user's first interaction.
        before = np.searchsorted(events, offsets[chunk.users.start : chunk.users.stop + 1])
        counts[chunk.users] = np.diff(before)
        users = np.flatnonzero(counts[chunk.users])
        firsts[chunk.users.start + users] = events[before[users]]
        stops[chunk.users.start + users] = events[before[users + 1] - 1] + 1
    return TargetsByUser(firsts, stops, counts)


class InteractionUnits:
    """All targets, numbered in the order of the dataset.

    Some numbers are stored for each user. Where a user's targets are not adjacent, some are stored
    for every ``ranked.PIECE`` interactions as well.

    Args:
        part: the targets.
    """

    def __init__(self, part: TargetPart) -> None:
        self.part = part
        targets = targets_by_user(part)
        starts, lengths, counts = targets.firsts, targets.stops - targets.firsts, targets.counts
        self._owner_of: RangeLookup | None = None
        if not np.array_equal(lengths, counts):
            starts, lengths = cut_pieces(targets.firsts, targets.stops)
            counts = self._counts_of(starts, lengths)
            self._owner_of = RangeLookup(np.asarray(part.dataset.user_offsets))
        self._select = Selected(starts, lengths, counts, part.dataset.roles, Role.TRAIN)

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self._select)

    def __getitem__(self, units: Ints) -> tuple[Ints, Ints]:
        """Return the interactions of some units [B] and their users: two arrays [B] int64."""
        events, owners = self._select(units)
        return events, owners if self._owner_of is None else self._owner_of(events)

    def events_of_users(self, chunk: UserChunk) -> tuple[Ints, Ints]:
        """Return the targets of some users as rows: interactions and units, two [R] int64.

        Units are counted from the first one of the chunk.
        """
        events = np.flatnonzero(self.part.of_users(chunk)) + chunk.rows.start
        return events, np.arange(len(events), dtype=np.int64)

    def _counts_of(self, starts: Ints, lengths: Ints) -> Ints:
        """Return the number of targets of each piece; a piece belongs to one user."""
        counts = np.zeros_like(starts)
        for chunk in user_chunks(self.part.dataset.user_offsets):
            first, last = np.searchsorted(starts, (chunk.rows.start, chunk.rows.stop))
            begins = starts[first:last] - chunk.rows.start
            is_target = self.part.of_users(chunk)
            counts[first:last] = sums_of_ranges(is_target, begins, begins + lengths[first:last])
        return counts
