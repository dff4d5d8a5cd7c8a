"""Lists of recommended items with source ids and titles, as a frame, JSON or a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.table import Table

from candid.batches import Ints


@dataclass(frozen=True)
class Recommendations:
    """The best items of each of B queries, best first.

    Attributes:
        item_ids: [B, K] int64; -1 where fewer than K items were allowed.
        scores: [B, K] float32 logits; -inf where ``item_ids`` is -1.
        user_ids: [B] int64, or None for anonymous users.
        users: the user table of the dataset.
        items: the item table of the dataset, then the new items.
        probabilities: [B, K] float64, softmax probability of each item over the whole catalog;
            None where it was not requested.
    """

    item_ids: Ints
    scores: npt.NDArray[np.float32]
    user_ids: Ints | None
    users: pl.DataFrame
    items: pl.DataFrame
    probabilities: npt.NDArray[np.float64] | None = None
    recommended_by: pl.Series | None = None
    query_name: str = "user"

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_frame(self) -> pl.DataFrame:
        """Return one row per recommendation.

        Columns: ``query`` (source id of the user; the number of the query, from 0, for anonymous
        users), ``rank`` (from 1), ``item`` (source id), ``score``, ``title`` (only for datasets
        with titles), ``probability`` (only where it was requested; null in the list of a fallback)
        and ``recommended_by`` (only where a fallback was requested).
        """
        present = self.item_ids >= 0
        query, column = np.nonzero(present)
        names = [name for name in ("source_id", "title") if name in self.items.columns]
        items = self.items.select(names)[self.item_ids[present]]
        frame: dict[str, Any] = {
            "query": query if self.user_ids is None else self._source_ids(query),
            "rank": column + 1,
            "item": items["source_id"],
            "score": self.scores[present],
        }
        if "title" in items.columns:
            frame["title"] = items["title"]
        if self.probabilities is not None:
            probabilities = pl.Series(self.probabilities[present])
            frame["probability"] = probabilities.fill_nan(None)
        if self.recommended_by is not None:
            frame["recommended_by"] = self.recommended_by[query]
        return pl.DataFrame(frame)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one entry per query: ``user`` (named users only) and ``items``.

        ``recommended_by`` is beside them where a fallback was requested.

        An item has ``rank``, ``item``, ``title`` (only for datasets with titles), ``score`` and
        ``probability`` (only where it was requested). Items are ordered from best to worst.
        """
        entries: list[dict[str, Any]] = [{} for _ in range(len(self))]
        if self.user_ids is not None:
            sources = self._source_ids(np.arange(len(self))).to_list()
            entries = [{self.query_name: source} for source in sources]
        for entry in entries:
            entry["items"] = []
        if self.recommended_by is not None:
            for entry, maker in zip(entries, self.recommended_by.to_list(), strict=True):
                entry["recommended_by"] = maker
        query, _ = np.nonzero(self.item_ids >= 0)
        rows = (
            _for_reading(self.to_frame()).drop("query", "recommended_by", strict=False).to_dicts()
        )
        for number, row in zip(query.tolist(), rows, strict=True):
            entries[number]["items"].append(row)
        return entries

    def table(self) -> Table:
        """Return all recommendations as a table for the terminal."""
        frame = _for_reading(self.to_frame())
        if self.user_ids is not None:
            frame = frame.rename({"query": self.query_name})
        elif len(self) == 1:
            frame = frame.drop("query")
        table = Table()
        for name in frame.columns:
            is_number = name in ("query", "rank", "score", "probability")
            table.add_column(name, justify="right" if is_number else "left")
        for row in frame.iter_rows():
            table.add_row(*(_cell(value) for value in row))
        return table

    def _source_ids(self, query: Ints) -> pl.Series:
        assert self.user_ids is not None
        return self.users["source_id"][self.user_ids[query]]


def _for_reading(frame: pl.DataFrame) -> pl.DataFrame:
    """Put the title beside the item and the numbers at the end."""
    names = ("query", "rank", "item", "title", "score", "probability", "recommended_by")
    return frame.select(name for name in names if name in frame.columns)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    # A title is external data: it must not break lines or send control codes to the terminal.
    return "".join(char if char.isprintable() else " " for char in str(value))
