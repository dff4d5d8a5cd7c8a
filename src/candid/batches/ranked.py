"""Look-ups by rank: the range with a position, and the selected entry of an array with a rank."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from candid.batches.packing import Ints, offsets_of

PIECE: Final = 64
"""Most entries of a piece in which selected entries are counted anew at each look-up."""
_TRIES: Final = 3
"""Steps from the first range of a bucket before the rest is found by binary search."""


class RangeLookup:
    """The range in which a position is, for S ranges one after the other.

    A table of the range at every few positions leaves few to be compared; binary search over all
    ranges takes several times as long, because each of its steps reads other memory. The table has
    4 to 8 bytes for each range.

    Args:
        offsets: [S + 1] int64, range s has the positions ``offsets[s]:offsets[s + 1]``.
    """

    def __init__(self, offsets: Ints) -> None:
        self._offsets = offsets
        num_positions, num_ranges = int(offsets[-1]), len(offsets) - 1
        self._shift = 0
        while num_positions >> self._shift > 2 * num_ranges + 1:
            self._shift += 1
        firsts = np.arange((num_positions >> self._shift) + 1, dtype=np.int64) << self._shift
        table = np.searchsorted(offsets, firsts, side="right") - 1
        self._table = table.astype(np.int32 if num_ranges < 2**31 else np.int64)

    def __call__(self, positions: Ints) -> Ints:
        """Return the range of each position [B]: [B] int64; an empty range has none."""
        ranges: Ints = self._table[positions >> self._shift].astype(np.int64)
        later = np.flatnonzero(self._offsets[ranges + 1] <= positions)
        for _ in range(_TRIES):
            if len(later) == 0:
                return ranges
            ranges[later] += 1
            later = later[self._offsets[ranges[later] + 1] <= positions[later]]
        if len(later):
            ranges[later] = np.searchsorted(self._offsets, positions[later], side="right") - 1
        return ranges


class Selected:
    """The entries of an array that have one value, by their rank among each other.

    The array is divided into pieces, and the number of selected entries before each piece is
    stored. In a piece whose entries are all selected, the rank gives the entry. Other pieces have
    at most ``PIECE`` entries, which are read at each look-up.

    Args:
        starts: [P] int64, the first entry of each piece, ascending.
        lengths: [P] int64, the number of entries of each piece.
        counts: [P] int64, the number of selected entries of each piece.
        values: the array.
        value: of the selected entries.

    Raises:
        ValueError: a piece of more than ``PIECE`` entries has entries that are not selected.
    """

    def __init__(
        self, starts: Ints, lengths: Ints, counts: Ints, values: npt.NDArray[Any], value: int
    ) -> None:
        self._starts = starts
        self._offsets = offsets_of(counts)
        self._values, self._value = np.asarray(values), value
        self._is_whole = bool((lengths == counts).all())
        if not self._is_whole and int(lengths.max()) > PIECE:
            raise ValueError(f"pieces must have at most {PIECE} entries, got {lengths.max()}")
        self._piece_of = RangeLookup(self._offsets)

    def __len__(self) -> int:
        """Return the number of selected entries."""
        return int(self._offsets[-1])

    def __call__(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Return the entry at each rank [B], and its piece: two arrays [B] int64."""
        pieces = self._piece_of(ranks)
        within, starts = ranks - self._offsets[pieces], self._starts[pieces]
        if self._is_whole:
            return starts + within, pieces
        width = min(PIECE, len(self._values))
        # A row of the view begins before a piece that ends with the array.
        views = np.minimum(starts, len(self._values) - width)
        is_selected = sliding_window_view(self._values, width)[views] == self._value
        before = starts - views
        if before.any():
            is_selected &= np.arange(width) >= before[:, None]
        # Counted by bytes of 8 entries, then within one byte: several times as fast as by entries.
        packed = np.packbits(is_selected, axis=1)
        byte = np.zeros_like(ranks)
        total, passed = np.zeros_like(ranks), np.zeros_like(ranks)
        for count in np.bitwise_count(packed).T:
            total += count
            is_before = total <= within
            byte += is_before
            passed[is_before] = total[is_before]
        bits = packed[np.arange(len(ranks)), byte]
        return views + 8 * byte + _PLACES[bits, within - passed], pieces


def cut_pieces(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Cut ranges into pieces of at most ``PIECE`` entries.

    Args:
        starts: [S] int64, the first entry of each range.
        stops: [S] int64, the entry after the last one of each range.

    Returns:
        starts and lengths of the pieces: two arrays [P] int64. An empty range has no piece.
    """
    num_pieces = -(-(stops - starts) // PIECE)
    first_piece = offsets_of(num_pieces)[:-1]
    number = np.arange(int(num_pieces.sum()), dtype=np.int64) - np.repeat(first_piece, num_pieces)
    piece_starts = np.repeat(starts, num_pieces) + PIECE * number
    return piece_starts, np.minimum(np.repeat(stops, num_pieces) - piece_starts, PIECE)


def sums_of_ranges(values: npt.NDArray[Any], starts: Ints, stops: Ints) -> Ints:
    """Return the sum of the values of each range, 0 for an empty one: [S] int64.

    Args:
        values: [N] bool or integer.
        starts: [S] int64, the first entry of each range, from 0 to N.
        stops: [S] int64, the entry after the last one, ``starts <= stops <= N``.
    """
    bounds = np.stack([starts, stops], axis=1).ravel()
    padded = np.append(values, values.dtype.type(0))
    sums = np.add.reduceat(padded, bounds, dtype=np.int64)[::2] if len(bounds) else starts[:0]
    # For an empty range, reduceat returns the entry at its start.
    return np.where(stops > starts, sums, 0)


def _places_of_bits() -> Ints:
    """Return the place of the r-th set bit of each byte, from the highest one: [256, 8] int64."""
    is_set = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(bool)
    return np.argsort(~is_set, axis=1, kind="stable").astype(np.int64)


_PLACES = _places_of_bits()
