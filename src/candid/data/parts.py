"""Interactions in parts, each with all rows of its users: one part in memory, or many on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

PART_ROWS = 2**20
"""Rows of a part on disk; more where one user has more."""

Change = Callable[[pl.DataFrame], pl.DataFrame]


class Parts(Protocol):
    """Rows in ascending order of users, in parts; no part is empty, and users are never divided."""

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""

    def frames(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Yield the parts in order, with the named columns; without names, all columns."""

    def update(self, change: Change) -> None:
        """Replace each part by ``change`` of it; a part without rows is removed.

        ``change`` keeps the order of users; it returns its argument where nothing changes.
        """

    def regroup(self, user_ids: npt.NDArray[np.int32]) -> None:
        """Replace user u by ``user_ids[u]`` and sort by the new users.

        The rows of a user keep their order.
        """


class MemoryParts:
    """All rows in one part in memory.

    Args:
        frames: yields one frame, in ascending order of the column ``user``.
    """

    def __init__(self, frames: Iterator[pl.DataFrame]) -> None:
        self._frame = next(frames)

    @property
    def num_rows(self) -> int:
        """Rows of the part."""
        return self._frame.height

    def frames(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Yield the part, with the named columns, unless it has no rows."""
        if self._frame.height:
            yield self._frame.select(columns) if columns else self._frame

    def update(self, change: Change) -> None:
        """Replace the part by ``change`` of it."""
        if self._frame.height:
            self._frame = change(self._frame)

    def regroup(self, user_ids: npt.NDArray[np.int32]) -> None:
        """Replace the users, and sort by them; the rows of a user keep their order."""
        self._frame = sort_rows(_with_users(self._frame, user_ids), [])


class StoredParts:
    """Parts as files of a folder, of which one at a time is in memory.

    Args:
        folder: empty; the caller removes it.
        frames: the parts, in ascending order of the column ``user``.
        sort: sorts the rows of files by user and yields them in parts; the rows of a user, all in
            one file, keep their order.
    """

    def __init__(
        self,
        folder: Path,
        frames: Iterable[pl.DataFrame],
        sort: Callable[[Sequence[Path], Mapping[str, pl.DataType]], Iterator[pl.DataFrame]],
    ) -> None:
        self._folder = folder
        self._sort = sort
        self._generation = 0
        self._write(frames)

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return sum(self._heights.values())

    def frames(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Yield the parts in order, with the named columns; without names, all columns."""
        for path in self._heights:
            yield _read(path, columns)

    def update(self, change: Change) -> None:
        """Replace each part by ``change`` of it; a part without rows is removed."""
        for path in list(self._heights):
            before = _read(path)
            after = change(before)
            if after is before:
                continue
            if after.height:
                _write(after, path)
                self._heights[path] = after.height
            else:
                path.unlink()
                del self._heights[path]

    def regroup(self, user_ids: npt.NDArray[np.int32]) -> None:
        """Replace the users, and sort by them; the rows of a user keep their order."""
        last, is_ascending = -1, True
        for frame in self.frames("user"):
            users = user_ids[frame["user"].to_numpy()]
            is_ascending &= bool(users[0] >= last and (users[1:] >= users[:-1]).all())
            last = int(users[-1])
        self.update(lambda frame: _with_users(frame, user_ids))
        if not is_ascending:
            files = list(self._heights)
            self._write(self._sort(files, pl.read_parquet_schema(files[0])))
            for file in files:
                file.unlink()

    def _write(self, frames: Iterable[pl.DataFrame]) -> None:
        self._generation += 1
        self._heights: dict[Path, int] = {}
        for number, frame in enumerate(frames):
            if frame.height:
                path = self._folder / f"{self._generation}-{number:06}.parquet"
                _write(frame, path)
                self._heights[path] = frame.height


def whole_users(batches: Iterable[pl.DataFrame], num_rows: int) -> Iterator[pl.DataFrame]:
    """Join batches of rows to parts of about ``num_rows`` rows that do not divide a user.

    Args:
        batches: of any size, in ascending order of the column ``user``.
        num_rows: of a part: fewer by less than the rows of one user, or more.
    """
    waiting: list[pl.DataFrame] = []
    height = 0
    for batch in batches:
        if not batch.height:
            continue
        waiting.append(batch)
        height += batch.height
        last = batch["user"][-1]
        if height < num_rows or waiting[0]["user"][0] == last:
            continue
        rows = pl.concat(waiting, rechunk=True)
        stop = int(np.searchsorted(rows["user"].to_numpy(), last))
        yield rows[:stop]
        waiting, height = [rows[stop:]], rows.height - stop
    if waiting:
        yield pl.concat(waiting, rechunk=True)


def sort_rows(frame: pl.DataFrame, keys: Sequence[pl.Expr]) -> pl.DataFrame:
    """Sort by the column ``user``, then ``keys``, empty values first; ties keep their order."""
    if keys:
        frame = frame.sort(*keys, maintain_order=True)
    # A number with the user in its high bits and the row in its low bits sorts by user and keeps
    # the order of rows. It is faster than a sort by columns. Rows fit: ``engine.MAX_ROWS``.
    packed = frame["user"].to_numpy().astype(np.int64) << 32
    packed |= np.arange(len(packed), dtype=np.int64)
    rows = pl.Series(packed).sort().to_numpy().astype(np.uint32)
    return frame.select(pl.all().gather(pl.Series(rows)))


def local_ids(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Subtract the first of ascending ids, so that counts of a part have the length of a part."""
    return ids - ids[0] if len(ids) and ids[0] else ids


def _with_users(frame: pl.DataFrame, user_ids: npt.NDArray[np.int32]) -> pl.DataFrame:
    return frame.with_columns(pl.Series("user", user_ids[frame["user"].to_numpy()]))


def _read(path: Path, columns: Sequence[str] = ()) -> pl.DataFrame:
    frame = pl.read_parquet(
        path, columns=list(columns) or None, glob=False, hive_partitioning=False
    )
    return frame.rechunk()


def _write(frame: pl.DataFrame, path: Path) -> None:
    frame.write_parquet(path, compression="lz4", statistics=False)
