"""Windows over users' sequences: the units of a batch of histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from candid.batches.config import BatchesConfig
from candid.batches.new_targets import TargetPart
from candid.batches.packing import Ints, offsets_of, ranges
from candid.batches.ranked import RangeLookup, Selected, cut_pieces, sums_of_ranges
from candid.batches.user_targets import targets_by_user
from candid.data.chunks import UserChunk, user_chunks


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

    def __getitem__(self, rows: Ints | npt.NDArray[np.bool_] | slice) -> Windows:
        return Windows(self.starts[rows], self.stops[rows], self.owners[rows], self.openings[rows])


class WindowUnits:
    """All windows of at most ``max_length + 1`` interactions over the users' sequences.

    The last window ends at the user's last target. Earlier windows precede it without a gap, and
    each shares one interaction with the next: the target of one is the first history of the other,
    so no target is lost or repeated. With ``empty_histories`` a user's earliest window also has the
    user's first target with an empty history. Windows without a target are left out.

    Windows are numbered by user, and a user's from the last one. They are computed where they are
    needed: some numbers are stored for each user, and one byte for each window if windows are left
    out.

    Args:
        part: the targets.
        config: batch settings.
    """

    def __init__(self, part: TargetPart, config: BatchesConfig) -> None:
        self.part = part
        self._user_offsets = np.asarray(part.dataset.user_offsets)
        self._max_length = config.max_length
        targets = targets_by_user(part)
        self._stops = targets.stops
        steps = np.maximum(targets.stops - self._user_offsets[:-1] - 1, 0)
        steps[targets.counts == 0] = 0
        num_windows = -(-steps // config.max_length)
        if config.windows == "last":
            num_windows = np.minimum(num_windows, 1)
        self._openings: Ints | None = None
        if config.empty_histories:
            num_windows = np.maximum(num_windows, targets.counts > 0)
            first = targets.firsts
            if part.first_new is not None and part.is_new:
                # A user's first target of all is the only one with an empty history.
                everything = targets_by_user(TargetPart(part.dataset)).firsts
                first = np.where(first == everything, first, -1)
            self._openings = np.where(targets.counts > 0, first, -1)
        self._offsets = offsets_of(num_windows)
        self._owner_of = RangeLookup(self._offsets)
        self._is_unit = self._find_units()
        self._select = None if self._is_unit is None else _selected(self._is_unit)

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self._offsets[-1]) if self._select is None else len(self._select)

    def __getitem__(self, units: Ints) -> tuple[Ints, ...]:
        """Return the fields of ``Windows`` of some windows by their numbers [W]."""
        if self._select is not None:
            units, _ = self._select(units)
        windows = self._windows(units, self._owner_of(units))
        return windows.starts, windows.stops, windows.owners, windows.openings

    def of_users(self, chunk: UserChunk) -> Windows:
        """Return the windows of some users."""
        windows = self._all_of_users(chunk)
        if self._is_unit is None:
            return windows
        first, last = self._offsets[chunk.users.start], self._offsets[chunk.users.stop]
        return windows[self._is_unit[first:last]]

    def events_of_users(self, chunk: UserChunk) -> tuple[Ints, Ints]:
        """Return the interactions that are targets of some users' windows, as rows.

        Args:
            chunk: the users.

        Returns:
            the interaction of each row, first those of empty histories, and the number of its
            window among those of the chunk: two arrays [R] int64.
        """
        windows = self.of_users(chunk)
        is_target = self.part.of_users(chunk)
        # The first interaction of a window is history only.
        lengths = windows.stops - windows.starts - 1
        events = ranges(windows.starts + 1, lengths)
        is_row = is_target[events - chunk.rows.start]
        has_opening = windows.openings >= 0
        numbers = np.repeat(np.arange(len(windows), dtype=np.int64), lengths)
        return (
            np.concatenate([windows.openings[has_opening], events[is_row]]),
            np.concatenate([np.flatnonzero(has_opening), numbers[is_row]]),
        )

    def _windows(self, numbers: Ints, owners: Ints) -> Windows:
        """Return windows by their numbers among all, also those that are left out."""
        firsts, index = self._user_offsets[owners], numbers - self._offsets[owners]
        stops = self._stops[owners] - index * self._max_length
        starts = np.maximum(stops - self._max_length - 1, firsts)
        openings = np.full_like(starts, -1)
        if self._openings is not None:
            is_earliest = numbers + 1 == self._offsets[owners + 1]
            openings = np.where(is_earliest, self._openings[owners], -1)
        return Windows(starts, stops, owners, openings)

    def _all_of_users(self, chunk: UserChunk) -> Windows:
        users = np.arange(chunk.users.start, chunk.users.stop, dtype=np.int64)
        offsets = self._offsets[chunk.users.start : chunk.users.stop + 1]
        numbers = np.arange(offsets[0], offsets[-1], dtype=np.int64)
        return self._windows(numbers, np.repeat(users, np.diff(offsets)))

    def _find_units(self) -> npt.NDArray[np.bool_] | None:
        """Return whether each window has a target; None if all have."""
        is_unit = np.ones(int(self._offsets[-1]), dtype=np.bool_)
        for chunk in user_chunks(self._user_offsets):
            windows = self._all_of_users(chunk)
            base = chunk.rows.start
            # The first interaction of a window is history only.
            sums = sums_of_ranges(
                self.part.of_users(chunk), windows.starts + 1 - base, windows.stops - base
            )
            first, last = self._offsets[chunk.users.start], self._offsets[chunk.users.stop]
            is_unit[first:last] = (sums > 0) | (windows.openings >= 0)
        return None if is_unit.all() else is_unit


def _selected(is_unit: npt.NDArray[np.bool_]) -> Selected:
    starts, lengths = cut_pieces(np.zeros(1, dtype=np.int64), np.array([len(is_unit)]))
    counts = sums_of_ranges(is_unit, starts, starts + lengths)
    return Selected(starts, lengths, counts, is_unit, True)
