"""The item table: titles and attributes for the items that have interactions."""

from __future__ import annotations

import polars as pl

from candid.data.readers import Source, collect, columns_of, open_sources, require_columns
from candid.data.schema import ItemTableConfig
from candid.errors import DataError


def open_items(config: ItemTableConfig) -> list[Source]:
    """Scan the files of the item table.

    Raises:
        DataError: not there, or without the columns named.
    """
    sources = open_sources(config.path, "auto", None)
    for source in sources:
        require_columns(source, _names(config))
    return sources


def item_table(
    source_ids: pl.Series, sources: list[Source], config: ItemTableConfig
) -> tuple[pl.DataFrame, int]:
    """Look up title and attributes of every item.

    Args:
        source_ids: [V], ascending.
        sources: from ``open_items``.
        config: which columns.

    Returns:
        V rows: source_id, title, attributes (null where the table has no row), and the number
        of items without a row.

    Raises:
        DataError: an item is listed twice, or ids do not match in type.
    """
    selected = []
    for source in sources:
        _check_types(source, config)
        picked = [_id(config.item, source_ids.dtype).alias("source_id")]
        if config.title is not None:
            title = pl.col(config.title).cast(pl.String)
            # Text formats write a missing value as nothing; nobody can ask for such a title.
            picked.append(pl.when(title.str.strip_chars() != "").then(title).alias("title"))
        selected.append(source.frame.select(*picked, *config.attributes))
    table = collect(pl.concat(selected, how="vertical_relaxed"), sources)
    table = table.filter(pl.col("source_id").is_not_null())
    repeated = table.filter(pl.col("source_id").is_duplicated())
    if repeated.height:
        raise DataError(
            f"{config.path} lists item {repeated['source_id'][0]!r} more than once; keep one row"
        )
    ids = pl.DataFrame({"source_id": source_ids})
    known = ids["source_id"].is_in(table["source_id"].implode())
    if not known.any():
        raise DataError(
            f"{config.path} has a row for none of the items; "
            f"is {config.item!r} the column with their ids?"
        )
    joined = ids.join(table, on="source_id", how="left", maintain_order="left")
    return joined, int((~known).sum())


def _check_types(source: Source, config: ItemTableConfig) -> None:
    types = columns_of(source)
    for column, is_id in ((config.item, True), (config.title, False)):
        if column is None:
            continue
        dtype = types[column]
        # An id of 1.0 is never the id 1.
        if dtype.is_nested() or dtype == pl.Binary or (is_id and dtype.is_float()):
            raise DataError(
                f"column {column!r} of {source.path} has type {dtype}, not "
                f"{'integer or text' if is_id else 'text'}; convert it or name another column"
            )


def _names(config: ItemTableConfig) -> list[str]:
    title = [] if config.title is None else [config.title]
    return [config.item, *title, *config.attributes]


def _id(column: str, dtype: pl.DataType) -> pl.Expr:
    """Ids of the table in the type of the interactions'; null where they cannot be."""
    return pl.col(column).cast(pl.String).cast(dtype, strict=False)
