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
    lists = frame["negatives"].list.drop_nulls()
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
            f"{values[0]!r}, is an item of the interactions; are they written alike? In text, "
            "spaces stand between ids"
        )
    numbered = Listed(found["row"].to_numpy(), found["id"].to_numpy())
    column_of_ids = numbered.column(frame.height).alias("negatives")
    return frame.with_columns(column_of_ids), flat.height - found.height


def attach(
    frame: pl.DataFrame, shown: npt.NDArray[np.bool_], targets: npt.NDArray[np.bool_]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Make rows that only say what was shown negatives of their user's next target.

    An item that the user took up in between, by an interaction of any kind, or that is the
    target itself, was chosen and is no negative.

    Args:
        frame: grouped by user, in order; columns user, item and perhaps negatives.
        shown: [E], which rows.
        targets: [E], the rows that can be targets.

    Returns:
        the frame with the column ``negatives``, its rows as they were; and how many of the rows
        shown came to nothing, by reason: no target of their user follows, or it was chosen.
    """
    users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
    target_rows, shown_rows = np.flatnonzero(targets), np.flatnonzero(shown)
    place = np.searchsorted(target_rows, shown_rows)
    owner = np.append(target_rows, len(users))[place]
    followed = np.append(users, -1)[owner] == users[shown_rows]
    chosen = followed & (_next_choice(users, items, shown)[shown_rows] <= owner)
    kept = followed & ~chosen
    before = listed(frame)
    rows = np.concatenate([before.rows, owner[kept]])
    item_ids = np.concatenate([before.item_ids, items[shown_rows[kept]]])
    order = np.argsort(rows, kind="stable")
    column = Listed(rows[order], item_ids[order]).column(frame.height)
    counts = {"without_target": int((~followed).sum()), "chosen": int(chosen.sum())}
    left_out = {reason: count for reason, count in counts.items() if count}
    return frame.with_columns(column.alias("negatives")), left_out


def _next_choice(users: Ids, items: Ids, shown: npt.NDArray[np.bool_]) -> Rows:
    """[E], the row after each where its user next takes up its item; E where never."""
    num_rows = len(users)
    pairs = users.astype(np.int64) * (int(items.max()) + 1) + items
    order = np.argsort(pairs, kind="stable")
    is_choice = ~shown[order]
    here = np.where(is_choice, np.arange(num_rows), num_rows)
    # The next choice at or after each place, whoever's it is; a row is asked about as shown, so
    # that it never finds itself.
    following = np.minimum.accumulate(here[::-1])[::-1]
    found = np.append(order, num_rows)[following]
    is_same = np.append(pairs, -1)[found] == pairs[order]
    result = np.empty(num_rows, dtype=np.int64)
    result[order] = np.where(is_same, found, num_rows)
    return result


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
