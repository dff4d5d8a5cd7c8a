"""Negatives, items that were shown and not chosen: read from lists or rows of the source.

While interactions are sorted and filtered, the negatives of an interaction are its value in the
column ``negatives``, as the item ids before filtering.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.source_ids import matching
from candid.errors import DataError

Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlatNegatives:
    """Negatives of E interactions in one array.

    Attributes:
        rows: [M] ascending, interaction of each.
        item_ids: [M].
    """

    rows: Rows
    item_ids: Ids

    def to_column(self, num_rows: int) -> pl.Series:
        """Return the column ``negatives``: a list for each of E rows, null without negatives."""
        flat = pl.DataFrame({"row": self.rows, "negatives": self.item_ids})
        lists = flat.group_by("row", maintain_order=True).agg("negatives")
        every = pl.DataFrame({"row": np.arange(num_rows)})
        return every.join(lists, on="row", how="left", maintain_order="left")["negatives"]


def flatten_negatives(frame: pl.DataFrame) -> FlatNegatives:
    """Flatten the column ``negatives``; without the column the result is empty."""
    if "negatives" not in frame.columns:
        return FlatNegatives(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))
    lists = frame["negatives"]
    lengths = lists.list.len().fill_null(0).to_numpy()
    values = lists.explode(empty_as_null=False, keep_nulls=False)
    return FlatNegatives(np.repeat(np.arange(frame.height), lengths), values.to_numpy())


class NegativeEncoder:
    """Replaces the source ids in the column ``negatives`` by ids.

    Args:
        source_ids: of all items; the position is the id.
        column: name of the column in the source, for the message.
    """

    def __init__(self, source_ids: pl.Series, column: str) -> None:
        self._column = column
        self._dtype = source_ids.dtype
        self._known = pl.DataFrame(
            {"negatives": source_ids, "id": np.arange(len(source_ids), dtype=np.int32)}
        )
        self._num_read = self._num_matched = 0
        self._example: object = None

    def encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame without negatives that are not an item of the interactions.

        Args:
            frame: with the column ``negatives``, lists of source ids.
        """
        lists = frame["negatives"].list.drop_nulls()
        lengths = lists.list.len().fill_null(0).to_numpy()
        values = lists.explode(empty_as_null=False, keep_nulls=False)
        flat = pl.DataFrame(
            {
                "row": np.repeat(np.arange(frame.height), lengths),
                "negatives": values.to_frame("id").select(
                    matching(pl.col("id"), values.dtype, self._dtype)
                )["id"],
            }
        )
        matched = flat.join(self._known, on="negatives", how="inner", maintain_order="left")
        if flat.height and not self._num_read:
            self._example = values[0]
        self._num_read += flat.height
        self._num_matched += matched.height
        encoded = FlatNegatives(matched["row"].to_numpy(), matched["id"].to_numpy())
        return frame.with_columns(encoded.to_column(frame.height).alias("negatives"))

    def count_unknown(self) -> int:
        """Return the number of negatives that were left out.

        Raises:
            DataError: there are negatives, but all of them are unknown items.
        """
        if self._num_read and not self._num_matched:
            raise DataError(
                f"column {self._column!r} has {self._num_read:,} negatives, such as "
                f"{self._example!r}, but none matches an item of the interactions; use the same "
                "item ids (separated by spaces in text files)"
            )
        return self._num_read - self._num_matched


def attach_impressions(
    frame: pl.DataFrame, is_impression: npt.NDArray[np.bool_], is_target: npt.NDArray[np.bool_]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Turn impressions into negatives of their user's next target.

    An item that the user interacts with in between, or that is the target itself, was chosen and
    does not become a negative.

    Args:
        frame: grouped by user, in order; columns user, item and optionally negatives.
        is_impression: [E], rows that only state that an item was shown.
        is_target: [E], rows that can be targets.

    Returns:
        the frame with the column ``negatives``, with the same rows; and the number of impressions
        that were left out, by reason: without a later target of their user, or chosen.
    """
    users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
    target_rows, impressions = np.flatnonzero(is_target), np.flatnonzero(is_impression)
    position = np.searchsorted(target_rows, impressions)
    owner = np.append(target_rows, len(users))[position]
    has_target = np.append(users, -1)[owner] == users[impressions]
    is_chosen = has_target & (_next_choice(users, items, is_impression)[impressions] <= owner)
    is_negative = has_target & ~is_chosen
    earlier = flatten_negatives(frame)
    rows = np.concatenate([earlier.rows, owner[is_negative]])
    item_ids = np.concatenate([earlier.item_ids, items[impressions[is_negative]]])
    order = np.argsort(rows, kind="stable")
    column = FlatNegatives(rows[order], item_ids[order]).to_column(frame.height)
    counts = {"without_target": int((~has_target).sum()), "chosen": int(is_chosen.sum())}
    return frame.with_columns(column.alias("negatives")), counts


def _next_choice(users: Ids, items: Ids, is_impression: npt.NDArray[np.bool_]) -> Rows:
    """[E], for each row the later row where its user next chooses its item; E for never."""
    num_rows = len(users)
    pairs = users.astype(np.int64) * (int(items.max()) + 1) + items
    order = np.argsort(pairs, kind="stable")
    is_choice = ~is_impression[order]
    choices = np.where(is_choice, np.arange(num_rows), num_rows)
    # The next choice at or after each position, of any pair. Only impressions are looked up, and
    # an impression is not a choice, so that a row never matches itself.
    following = np.minimum.accumulate(choices[::-1])[::-1]
    next_row = np.append(order, num_rows)[following]
    is_same = np.append(pairs, -1)[next_row] == pairs[order]
    result = np.empty(num_rows, dtype=np.int64)
    result[order] = np.where(is_same, next_row, num_rows)
    return result


def pack_negatives(frame: pl.DataFrame, new_ids: Ids) -> tuple[Ids, Rows]:
    """Pack all negatives into one array.

    Args:
        frame: E rows with the column ``negatives``.
        new_ids: item id before filtering -> item id now, -1 if the item was removed.

    Returns:
        item ids [M] int32 and offsets [E + 1] int64, without removed items.
    """
    flat = flatten_negatives(frame)
    item_ids = new_ids[flat.item_ids]
    is_present = item_ids >= 0
    counts = np.bincount(flat.rows[is_present], minlength=frame.height)
    return item_ids[is_present], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
