"""The source ids that the user's own files give to items, for items that come and go."""

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
"""Texts that are Python objects at once: other threads go on in between."""


class SourceIds:
    """The source id of every item id; ids are added at the end and never taken away.

    Looked up in sorted numbers, texts by a hash of 64 bits: a dict of millions of Python objects
    would take ten times the memory, and would hold up every other thread while it is made.

    Args:
        built: [V], the source ids of items 0..V-1, distinct.
        added: those of items V, V+1, …, of the type of ``built``.
    """

    def __init__(self, built: pl.Series, added: pl.Series | None = None) -> None:
        self.built = built
        self._added: list[SourceId] = [] if added is None else added.to_list()
        self._id_of = {source: len(built) + i for i, source in enumerate(self._added)}

    def __len__(self) -> int:
        return len(self.built) + len(self._added)

    @property
    def added(self) -> pl.Series:
        """Source ids of the items from V on."""
        return pl.Series("source_id", self._added, dtype=self.built.dtype)

    def add(self, source_ids: Sequence[SourceId]) -> None:
        """Give the next item ids to these, which are new and distinct (see ``item_ids``)."""
        for source in source_ids:
            self._id_of[source] = len(self)
            self._added.append(source)

    def item_ids(self, source_ids: Sequence[SourceId]) -> Ints:
        """Item ids [n] int64; -1 for what is no item.

        Raises:
            DataError: one is not of the type that source ids have.
        """
        self.checked(source_ids)
        return self.find(source_ids)

    def find(self, source_ids: Sequence[SourceId]) -> Ints:
        """As ``item_ids``, of ids that are known to be of the right type."""
        found = self._built_ids(source_ids)
        if self._added:
            # Of the added ones there are few, and most questions are about the others.
            for i in np.flatnonzero(found < 0):
                found[i] = self._id_of.get(source_ids[int(i)], -1)
        return found

    def source_ids(self, item_ids: Sequence[int] | Ints) -> list[SourceId]:
        """Source ids of items, all of which are in use."""
        ids = np.asarray(item_ids, dtype=np.int64)
        num_built = len(self.built)
        found: list[SourceId] = self.built.gather(np.minimum(ids, num_built - 1)).to_list()
        for i in np.flatnonzero(ids >= num_built):
            found[i] = self._added[ids[i] - num_built]
        return found

    def checked(self, source_ids: Sequence[SourceId]) -> pl.Series:
        """The ids as a column of the type of the built ones.

        Raises:
            DataError: one is not of that type.
        """
        dtype = self.built.dtype
        kind: type = str if dtype == pl.String else int
        for source in source_ids:
            if not isinstance(source, kind) or isinstance(source, bool):
                what = "text" if kind is str else "integers"
                raise DataError(f"item {source!r} cannot be: source ids here are {what}")
        try:
            return pl.Series("source_id", source_ids, dtype=dtype, strict=True)
        except (pl.exceptions.PolarsError, OverflowError, TypeError):
            raise DataError(f"an item of {list(source_ids)!r} is no {dtype}") from None

    def _built_ids(self, wanted: Sequence[SourceId]) -> Ints:
        """Item ids [n] among the built ones; -1 for what is none of them."""
        keys, places = self._sorted
        if not len(keys) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        if self.built.dtype != pl.String:
            asked = np.array(wanted, dtype=keys.dtype)
            at = np.minimum(keys.searchsorted(asked), len(keys) - 1)
            return np.where(keys[at] == asked, places[at], -1)
        asked = _hashes(wanted)
        first, last = keys.searchsorted(asked), keys.searchsorted(asked, side="right")
        # Two texts may have one hash.
        return np.array(
            [
                next((p for p in places[begin:end].tolist() if self.built[p] == text), -1)
                for text, begin, end in zip(wanted, first.tolist(), last.tolist(), strict=True)
            ],
            dtype=np.int64,
        )

    @cached_property
    def _sorted(self) -> tuple[Ints, Ints]:
        """Numbers of the built source ids, ascending, and the item ids they belong to."""
        numbers = self.built.to_numpy() if self.built.dtype != pl.String else _hashed(self.built)
        if bool((numbers[1:] >= numbers[:-1]).all()):
            return numbers, np.arange(len(numbers))
        order = np.argsort(numbers, kind="stable")
        return numbers[order], order


def _hashed(texts: pl.Series) -> Ints:
    parts = (texts.slice(at, CHUNK).to_list() for at in range(0, len(texts), CHUNK))
    return np.concatenate([NO_NUMBERS, *map(_hashes, parts)])


def _hashes(texts: Sequence[SourceId]) -> Ints:
    """Python's own hash: the same throughout a process, which is how long it is kept."""
    return np.fromiter(map(hash, texts), np.int64, len(texts))
