"""Chunks of users and of interactions: passes over a whole dataset in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

CHUNK_ROWS: Final = 1 << 20
"""Interactions of a chunk. A pass needs some tens of bytes for each of them at a time."""


class UserChunk(NamedTuple):
    """Users one after the other, and their interactions."""

    users: slice
    rows: slice


def user_chunks(
    user_offsets: npt.NDArray[np.int64], num_rows: int | None = None
) -> Iterator[UserChunk]:
    """Yield all users with their interactions, in chunks of whole users.

    Args:
        user_offsets: [U + 1] int64, user u has the interactions
            ``user_offsets[u]:user_offsets[u + 1]``.
        num_rows: most interactions of a chunk, unless its only user has more; None: ``CHUNK_ROWS``.
    """
    num_rows = CHUNK_ROWS if num_rows is None else num_rows
    first, num_users = 0, len(user_offsets) - 1
    while first < num_users:
        start = int(user_offsets[first])
        last = int(np.searchsorted(user_offsets, start + num_rows, side="right")) - 1
        last = min(max(last, first + 1), num_users)
        yield UserChunk(slice(first, last), slice(start, int(user_offsets[last])))
        first = last


def row_chunks(num_rows: int) -> Iterator[slice]:
    """Yield ``num_rows`` interactions in chunks of ``CHUNK_ROWS``, one after the other."""
    for start in range(0, num_rows, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, num_rows))


def owners_of(user_offsets: npt.NDArray[np.int64], chunk: UserChunk) -> npt.NDArray[np.int64]:
    """Return the user of each interaction of a chunk, counted from its first user: int64."""
    lengths = np.diff(user_offsets[chunk.users.start : chunk.users.stop + 1])
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)


def positions_of(user_offsets: npt.NDArray[np.int64], chunk: UserChunk) -> npt.NDArray[np.int64]:
    """Return the position of each interaction of a chunk among those of its user, from 0: int64."""
    starts = user_offsets[chunk.users][owners_of(user_offsets, chunk)]
    return np.arange(chunk.rows.start, chunk.rows.stop, dtype=np.int64) - starts


def add_counts(counts: npt.NDArray[np.int64], ids: npt.NDArray[Any]) -> None:
    """Add to ``counts`` [V] how often each id occurs in ``ids``, in place."""
    if len(counts) <= 4 * len(ids):
        counts += np.bincount(ids, minlength=len(counts))
    else:
        # bincount would make an array of all V counts for few ids.
        np.add.at(counts, ids, 1)
