"""Columns of lists, whose elements become interactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from candid.data.readers import Source, collect, columns_of
from candid.errors import DataError

ROW = "_row"
"""Column with the number of the row in its file, from 0."""


def explode(source: Source, columns: Sequence[str]) -> Source:
    """Make a row of each element of the lists in ``columns``; the other columns repeat.

    A row whose lists are empty or missing gives no row.

    Args:
        source: with lists, or text with elements separated by spaces or written as ``[1, 2]``.
        columns: columns of lists, of the same length in each row; empty: ``source`` as it is.

    Returns:
        the source with the column ``ROW``.

    Raises:
        DataError: a column is not a list, or the lists of a row differ in length.
    """
    if not columns:
        return source
    types = columns_of(source)
    lists = [_as_list(column, types[column], source).alias(column) for column in columns]
    frame = source.frame.with_row_index(ROW).with_columns(lists)
    lengths = [pl.col(column).list.len().fill_null(0) for column in columns]
    differs = pl.any_horizontal(length != lengths[0] for length in lengths)
    first = collect(frame.filter(differs).head(1).select(ROW, *lengths), [source])
    if first.height:
        row, *sizes = first.row(0)
        described = ", ".join(
            f"{size} in {column!r}" for column, size in zip(columns, sizes, strict=True)
        )
        raise DataError(
            f"{source.location(row)} has lists of different lengths ({described}); give each row "
            "lists of one length"
        )
    exploded = frame.explode(list(columns), empty_as_null=False, keep_nulls=False)
    return replace(source, frame=exploded)


def _as_list(column: str, dtype: pl.DataType, source: Source) -> pl.Expr:
    value = pl.col(column)
    if isinstance(dtype, pl.List):
        return value
    if isinstance(dtype, pl.Array):
        return value.arr.to_list()
    if isinstance(dtype, pl.String):
        inner = value.str.strip_chars().str.extract(r"^[\[{(](.*)[\]})]$", 1)
        words = (
            pl.when(inner.str.contains("['\"]"))
            .then(inner.str.extract_all(r"'[^']*'|\"[^\"]*\""))
            .when(inner.str.contains(",", literal=True))
            .then(inner.str.split(","))
            .otherwise(inner.str.split(" "))
        )
        bare = words.list.eval(pl.element().str.strip_chars(" '\""))
        return pl.coalesce(bare, value.str.split(" ")).list.filter(pl.element() != "")
    raise DataError(
        f"column {column!r} of {source.path} is {dtype} and not a list; remove it from explode"
    )
