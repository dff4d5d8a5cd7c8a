"""The items that may be recommended, from options of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.cli.console import counted

if TYPE_CHECKING:
    import polars as pl

    from candid.data import PreparedDataset

Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ITEM",
        help="Recommend only this item (id or title); repeatable [default: all items]",
    ),
]
AllowFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Recommend only the items of this file: a .txt file with one id a line, or a table "
        "with a column item; with --allow, those of both",
    ),
]
Deny = Annotated[
    list[str] | None,
    typer.Option(metavar="ITEM", help="Never recommend this item (id or title); repeatable"),
]
DenyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Never recommend the items of this file, in the form of --allow-file"
    ),
]


def chosen_items(
    dataset: PreparedDataset, texts: list[str] | None, path: Path | None
) -> pl.Series | None:
    """Return the source ids of items that are named one by one, in a file, or both.

    Args:
        dataset: with the items.
        texts: source ids or titles.
        path: file of source ids, as ``candid.runs.id_files.read_ids`` reads it.

    Returns:
        source ids [n] with repeats; None where neither is given.

    Raises:
        DataError: an item is unknown or of another type, or the file cannot be read.
    """
    if not texts and path is None:
        return None
    from candid.data.lookup import item_ids_of
    from candid.errors import DataError
    from candid.runs.id_files import read_ids
    from candid.runs.source_ids import dense_ids_or_unknown

    known = dataset.items["source_id"]
    chosen = known.gather(item_ids_of(dataset, texts or []))
    if path is not None:
        ids = read_ids(path, "item", known.dtype)
        is_unknown = dense_ids_or_unknown(known, ids, "item")[0] < 0
        if is_unknown.any():
            first = ids[int(is_unknown.argmax())]
            count = counted(int(is_unknown.sum()), "item")
            raise DataError(
                f"{path} names {count} that the dataset does not have, first {first!r}: remove "
                "them, or choose another file"
            )
        chosen = chosen.append(ids)
    return chosen
