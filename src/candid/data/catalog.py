"""The tables of items and of users: titles and attributes for those that have interactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from candid.data.config import ItemTableConfig, UserTableConfig
from candid.data.readers import (
    Source,
    check_lines,
    collect,
    columns_of,
    open_sources,
    require_columns,
)
from candid.errors import DataError

TableConfig = ItemTableConfig | UserTableConfig
_Type = pl.DataType | pl.datatypes.DataTypeClass


def open_table(config: TableConfig) -> list[Source]:
    """Scan the files of a table.

    Raises:
        DataError: not there, or without the columns named.
    """
    sources = open_sources(config.path, "auto", None)
    title = [] if config.title is None else [config.title]
    for source in sources:
        require_columns(source, [config.id_column, *title, *config.attributes])
    return sources


def look_up(
    source_ids: pl.Series, sources: Sequence[Source], config: TableConfig
) -> tuple[pl.DataFrame, int]:
    """Look up title and attributes of every item, or attributes of every user.

    Attributes keep their type (lists and arrays too); what a text format leaves blank, and a
    number that is NaN, is null.

    Args:
        source_ids: [n], ascending.
        sources: from ``open_table``.
        config: which columns.

    Returns:
        n rows: source_id, title if the config names one, attributes (null where the table has
        no row), and the number of ids without a row.

    Raises:
        DataError: an id is listed twice, ids do not match in type, a column is of a type that
            cannot be kept, or a line does not have the fields of the header.
    """
    selected = []
    for source in sources:
        types = columns_of(source)
        _check_types(source, types, config)
        _check_agreement(source, sources[0], config)
        picked = [_id(config.id_column, source_ids.dtype).alias("source_id")]
        if config.title is not None:
            # Nobody can ask for a blank title, whatever the format.
            picked.append(_filled(pl.col(config.title).cast(pl.String)).alias("title"))
        is_text = source.first_line is not None
        picked += [_attribute(name, types[name], is_text) for name in config.attributes]
        selected.append(source.frame.select(picked))
    table = collect(pl.concat(selected, how="vertical_relaxed"), sources)
    if any(table.null_count().row(0)):
        # A line cut short reads as one with empty fields at its end.
        check_lines(sources)
    table = table.filter(pl.col("source_id").is_not_null())
    repeated = table.filter(pl.col("source_id").is_duplicated())
    if repeated.height:
        raise DataError(
            f"{config.path} lists {config.kind} {repeated['source_id'][0]!r} more than once; "
            "keep one row"
        )
    ids = pl.DataFrame({"source_id": source_ids})
    known = ids["source_id"].is_in(table["source_id"].implode())
    if not known.any():
        raise DataError(
            f"{config.path} has a row for none of the {config.kind}s; "
            f"is {config.id_column!r} the column with their ids?"
        )
    joined = ids.join(table, on="source_id", how="left", maintain_order="left")
    return joined, int((~known).sum())


def _check_types(source: Source, types: pl.Schema, config: TableConfig) -> None:
    for column, is_id in ((config.id_column, True), (config.title, False)):
        if column is None:
            continue
        dtype = types[column]
        # An id of 1.0 is never the id 1.
        if dtype.is_nested() or dtype == pl.Binary or (is_id and dtype.is_float()):
            raise DataError(
                f"column {column!r} of {source.path} has type {dtype}, not "
                f"{'integer or text' if is_id else 'text'}; convert it or name another column"
            )
    for column in config.attributes:
        if any(leaf in (pl.Binary, pl.Object) for leaf in _leaves(types[column])):
            raise DataError(
                f"column {column!r} of {source.path} has type {types[column]}, which says nothing "
                "of its values; convert it to numbers, text or dates, or leave it out"
            )


def _check_agreement(source: Source, first: Source, config: TableConfig) -> None:
    here, there = columns_of(source), columns_of(first)
    for column in config.attributes:
        # Of numbers the wider type holds both; anything else would turn them into text.
        both_numeric = here[column].is_numeric() and there[column].is_numeric()
        if here[column] != there[column] and not both_numeric:
            raise DataError(
                f"column {column!r} is {here[column]} in {source.path} and {there[column]} in "
                f"{first.path}; give it one type in all files"
            )


def _leaves(dtype: _Type) -> Iterator[_Type]:
    """The types that a nested type is made of."""
    if isinstance(dtype, pl.List | pl.Array):
        yield from _leaves(dtype.inner)
    elif isinstance(dtype, pl.Struct):
        for member in dtype.fields:
            yield from _leaves(member.dtype)
    else:
        yield dtype


def _id(column: str, dtype: pl.DataType) -> pl.Expr:
    """Ids of the table in the type of the interactions'; null where they cannot be."""
    return pl.col(column).cast(pl.String).cast(dtype, strict=False)


def _attribute(column: str, dtype: pl.DataType, is_text: bool) -> pl.Expr:
    value = pl.col(column)
    if is_text:
        # Text formats write a missing value as nothing between two separators.
        return _filled(value).alias(column)
    return value.fill_nan(None) if dtype.is_float() else value


def _filled(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)
