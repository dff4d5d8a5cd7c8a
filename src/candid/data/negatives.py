"""Items that were shown and not chosen: from lists or rows of the source to item ids.

While interactions are sorted and filtered, an interaction's negatives travel with it in the
column ``negatives``, as the ids that items had at first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.errors import DataError

Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Listed:
    """Negatives of E interactions, flat.

    Attributes:
        rows: [M] ascending, the interaction of each.
        item_ids: [M].
    """

    rows: Rows
    item_ids: Ids

    def column(self, num_rows: int) -> pl.Series:
        """As the column ``negatives``, a list for each of E rows, null where there is none."""
        flat = pl.DataFrame({"row": self.rows, "negatives": self.item_ids})
        lists = flat.group_by("row", maintain_order=True).agg("negatives")
        every = pl.DataFrame({"row": np.arange(num_rows)})
        return every.join(lists, on="row", how="left", maintain_order="left")["negatives"]


def listed(frame: pl.DataFrame) -> Listed:
    """The column ``negatives``, flat; none where there is no such column."""
    if "negatives" not in frame.columns:
        return Listed(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))
    lists = frame["negatives"]
    lengths = lists.list.len().fill_null(0).to_numpy()
    values = lists.explode(empty_as_null=False, keep_nulls=False)
    return Listed(np.repeat(np.arange(frame.height), lengths), values.to_numpy())


def number(frame: pl.DataFrame, source_ids: pl.Series, column: str) -> tuple[pl.DataFrame, int]:
    """Replace the source ids in ``negatives`` by ids.

    Args:
        frame: with the column ``negatives``, lists of source ids.
        source_ids: of all items, the id is the place.
        column: the source's name of the column, for the message.

    Returns:
        the frame, without negatives that are no item of the interactions; and how many.

    Raises:
        DataError: there are negatives and none of them is such an item.
    """
    lists = frame["negatives"]
    lengths = lists.list.len().fill_null(0).to_numpy()
    values = lists.explode(empty_as_null=False, keep_nulls=False)
    known = pl.DataFrame(
        {"negatives": source_ids, "id": np.arange(len(source_ids), dtype=np.int32)}
    )
    flat = pl.DataFrame(
        {
            "row": np.repeat(np.arange(frame.height), lengths),
            "negatives": values.cast(source_ids.dtype, strict=False),
        }
    )
    found = flat.join(known, on="negatives", how="inner", maintain_order="left")
    if flat.height and not found.height:
        raise DataError(
            f"none of the {flat.height:,} negatives in column {column!r}, such as "
            f"{values.drop_nulls()[0]!r}, is an item of the interactions; are they written alike?"
        )
    numbered = Listed(found["row"].to_numpy(), found["id"].to_numpy())
    column_of_ids = numbered.column(frame.height).alias("negatives")
    return frame.with_columns(column_of_ids), flat.height - found.height


def attach(
    frame: pl.DataFrame, shown: npt.NDArray[np.bool_], targets: npt.NDArray[np.bool_]
) -> tuple[pl.DataFrame, int]:
    """Make rows that only say what was shown negatives of their user's next target.

    Args:
        frame: grouped by user, in order; columns user, item and perhaps negatives.
        shown: [E], which rows.
        targets: [E], the rows that can be targets.

    Returns:
        the frame with the column ``negatives``, its rows as they were; and how many of the rows
        shown are followed by no target of their user.
    """
    users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
    target_rows, shown_rows = np.flatnonzero(targets), np.flatnonzero(shown)
    place = np.searchsorted(target_rows, shown_rows)
    owner = np.append(target_rows, len(users))[place]
    followed = np.append(users, -1)[owner] == users[shown_rows]
    before = listed(frame)
    rows = np.concatenate([before.rows, owner[followed]])
    item_ids = np.concatenate([before.item_ids, items[shown_rows[followed]]])
    order = np.argsort(rows, kind="stable")
    column = Listed(rows[order], item_ids[order]).column(frame.height)
    return frame.with_columns(column.alias("negatives")), int((~followed).sum())


def packed(frame: pl.DataFrame, places: Ids) -> tuple[Ids, Rows]:
    """All negatives in one array.

    Args:
        frame: E rows with the column ``negatives``.
        places: first id of an item -> its id now, -1 where it is gone.

    Returns:
        item ids [M] int32 and offsets [E + 1] int64; what is gone is left out.
    """
    flat = listed(frame)
    item_ids = places[flat.item_ids]
    kept = item_ids >= 0
    counts = np.bincount(flat.rows[kept], minlength=frame.height)
    return item_ids[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
