"""Source ids of items: a two-way mapping to item ids that grows as items are added."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.errors import DataError

SourceId = int | str
Ints = npt.NDArray[np.int64]
NO_NUMBERS: Ints = np.empty(0, dtype=np.int64)
CHUNK = 8192
"""Texts converted to Python objects at a time; other threads can run between chunks."""


class SourceIds:
    """The source id of every item id; ids are appended and never removed.

    Look-ups use binary search in sorted numbers, for texts in their 64-bit hashes: a dict of
    millions of Python objects would take ten times the memory and block other threads while it
    is built.

    Args:
        built: [V], the distinct source ids of items 0..V-1.
        added: source ids of items V, V+1, …, of the type of ``built``.

    Example:
        >>> ids = SourceIds(pl.Series([20, 10]))
        >>> ids.item_ids([10, 30])
        array([ 1, -1])
    """

    def __init__(self, built: pl.Series, added: pl.Series | None = None) -> None:
        self.built = built
        self._added: list[SourceId] = [] if added is None else added.to_list()
        self._id_of = {source: len(built) + i for i, source in enumerate(self._added)}

    def __repr__(self) -> str:
        """Return the numbers of built and added ids."""
        return f"SourceIds(built={len(self.built)}, added={len(self._added)})"

    def __len__(self) -> int:
        return len(self.built) + len(self._added)

    @property
    def added(self) -> pl.Series:
        """Source ids of the items from V on."""
        return pl.Series("source_id", self._added, dtype=self.built.dtype)

    def add(self, source_ids: Sequence[SourceId]) -> None:
        """Assign the next item ids to new, distinct source ids (see ``item_ids``)."""
        for source in source_ids:
            self._id_of[source] = len(self)
            self._added.append(source)

    def item_ids(self, source_ids: Sequence[SourceId]) -> Ints:
        """Return item ids [n] int64; -1 for an unknown source id.

        Raises:
            DataError: an id has another type than the built ones.
        """
        self.to_series(source_ids)
        return self.find(source_ids)

    def find(self, source_ids: Sequence[SourceId]) -> Ints:
        """Return item ids [n] int64, -1 for an unknown source id, without checking the type."""
        item_ids = self._find_built(source_ids)
        if self._added:
            # Few items are added later, and most look-ups are of built ones.
            for i in np.flatnonzero(item_ids < 0):
                item_ids[i] = self._id_of.get(source_ids[int(i)], -1)
        return item_ids

    def source_ids(self, item_ids: Sequence[int] | Ints) -> list[SourceId]:
        """Return the source ids of known items."""
        ids = np.asarray(item_ids, dtype=np.int64)
        num_built = len(self.built)
        sources: list[SourceId] = self.built.gather(np.minimum(ids, num_built - 1)).to_list()
        for i in np.flatnonzero(ids >= num_built):
            sources[i] = self._added[ids[i] - num_built]
        return sources

    def to_series(self, source_ids: Sequence[SourceId]) -> pl.Series:
        """Return the ids as a column of the type of the built ones.

        Raises:
            DataError: an id has another type.
        """
        dtype = self.built.dtype
        expected: type = str if dtype == pl.String else int
        for source in source_ids:
            if not isinstance(source, expected) or isinstance(source, bool):
                name = "text" if expected is str else "an integer"
                raise DataError(f"item id {source!r} must be {name}, as in the data")
        try:
            return pl.Series("source_id", source_ids, dtype=dtype, strict=True)
        except (pl.exceptions.PolarsError, OverflowError, TypeError):
            raise DataError(f"item ids {list(source_ids)!r} must be {dtype}") from None

    def _find_built(self, source_ids: Sequence[SourceId]) -> Ints:
        """Return item ids [n] among the built ones; -1 for an unknown source id."""
        keys, item_ids = self._sorted
        if not len(keys) or not len(source_ids):
            return np.full(len(source_ids), -1, dtype=np.int64)
        if self.built.dtype != pl.String:
            numbers = np.array(source_ids, dtype=keys.dtype)
            positions = np.minimum(keys.searchsorted(numbers), len(keys) - 1)
            return np.where(keys[positions] == numbers, item_ids[positions], -1)
        hashes = _hash_texts(source_ids)
        first, last = keys.searchsorted(hashes), keys.searchsorted(hashes, side="right")
        # Two texts may have the same hash.
        return np.array(
            [
                next((i for i in item_ids[begin:end].tolist() if self.built[i] == text), -1)
                for text, begin, end in zip(source_ids, first.tolist(), last.tolist(), strict=True)
            ],
            dtype=np.int64,
        )

    @cached_property
    def _sorted(self) -> tuple[Ints, Ints]:
        """Return the built source ids as numbers, ascending, and their item ids."""
        is_text = self.built.dtype == pl.String
        numbers = _hash_column(self.built) if is_text else self.built.to_numpy()
        if bool((numbers[1:] >= numbers[:-1]).all()):
            return numbers, np.arange(len(numbers))
        order = np.argsort(numbers, kind="stable")
        return numbers[order], order


def _hash_column(texts: pl.Series) -> Ints:
    chunks = (texts.slice(begin, CHUNK).to_list() for begin in range(0, len(texts), CHUNK))
    return np.concatenate([NO_NUMBERS, *map(_hash_texts, chunks)])


def _hash_texts(texts: Sequence[SourceId]) -> Ints:
    """Return Python's own hashes: they are constant within a process and are not stored."""
    return np.fromiter(map(hash, texts), np.int64, len(texts))
