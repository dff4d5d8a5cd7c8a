"""The source ids that the user's own files give to items, for items that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.errors import DataError

SourceId = int | str


class SourceIds:
    """The source id of every item id; ids are added at the end and never taken away.

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

    def item_ids(self, source_ids: Sequence[SourceId]) -> npt.NDArray[np.int64]:
        """Item ids [n] int64; -1 for what is no item.

        Raises:
            DataError: one is not of the type that source ids have.
        """
        wanted = self.checked(source_ids)
        names, places = self._sorted
        at = names.search_sorted(wanted).to_numpy() if len(wanted) else np.empty(0, np.int64)
        at = np.minimum(at, len(names) - 1)
        found = np.where((names[at] == wanted).to_numpy(), places[at], -1)
        if self._added:
            # Of the added ones there are few, and most questions are about the others.
            for i in np.flatnonzero(found < 0):
                found[i] = self._id_of.get(source_ids[int(i)], -1)
        return found.astype(np.int64)

    def source_ids(self, item_ids: Sequence[int] | npt.NDArray[np.int64]) -> list[SourceId]:
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

    @cached_property
    def _sorted(self) -> tuple[pl.Series, npt.NDArray[np.int64]]:
        """Built source ids, ascending, and the item ids they belong to."""
        if self.built.is_sorted():
            return self.built, np.arange(len(self.built))
        order = self.built.arg_sort()
        return self.built.gather(order), order.to_numpy().astype(np.int64)
