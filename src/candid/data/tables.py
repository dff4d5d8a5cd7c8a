"""The tables of items and of users: titles and attributes of those with interactions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
        DataError: a file or a column does not exist.
    """
    sources = open_sources(config.path, "auto", None)
    for source in sources:
        require_columns(source, config.columns)
    return sources


def storable_columns(schema: Mapping[str, _Type]) -> list[str]:
    """Return the names of the columns that can be attributes, in order."""
    return [name for name, dtype in schema.items() if _is_storable(dtype)]


def join_table(
    source_ids: pl.Series, sources: Sequence[Source], config: TableConfig
) -> tuple[pl.DataFrame, int]:
    """Join titles and attributes to items, or attributes to users.

    Attributes keep their type, lists and arrays too. An empty field of a text format, and a NaN,
    become null.

    Args:
        source_ids: [n], ascending.
        sources: from ``open_table``.
        config: columns of the table.

    Returns:
        n rows: source_id, title if the config names one, attributes (null without a row in the
        table); and the number of ids without a row.

    Raises:
        DataError: an id is listed twice, ids do not match in type, a column has a type that
            cannot be stored, or a line does not have the fields of the header.
    """
    selected = []
    for source in sources:
        types = columns_of(source)
        _check_types(source, types, config)
        _check_agreement(source, sources[0], config)
        columns = [_id(config.id_column, source_ids.dtype).alias("source_id")]
        if config.title is not None:
            # A blank title cannot be searched for, in any format.
            columns.append(_not_blank(pl.col(config.title).cast(pl.String)).alias("title"))
        is_text = source.first_line is not None
        columns += [_attribute(name, types[name], is_text) for name in config.attributes]
        selected.append(source.frame.select(columns))
    table = collect(pl.concat(selected, how="vertical_relaxed"), sources)
    if any(table.null_count().row(0)):
        # A line that is cut short reads like one with empty fields at its end.
        check_lines(sources)
    table = table.filter(pl.col("source_id").is_not_null())
    repeated = table.filter(pl.col("source_id").is_duplicated())
    if repeated.height:
        raise DataError(
            f"{config.path} lists {config.kind} {repeated['source_id'][0]!r} more than once; "
            "keep one row"
        )
    ids = pl.DataFrame({"source_id": source_ids})
    has_row = ids["source_id"].is_in(table["source_id"].implode())
    if not has_row.any():
        raise DataError(
            f"{config.path} has no row for any {config.kind} of the interactions; check that "
            f"column {config.id_column!r} holds their ids"
        )
    joined = ids.join(table, on="source_id", how="left", maintain_order="left")
    return joined, int((~has_row).sum())


def _check_types(source: Source, types: pl.Schema, config: TableConfig) -> None:
    for column, is_id in ((config.id_column, True), (config.title, False)):
        if column is None:
            continue
        dtype = types[column]
        # An id of 1.0 is never the id 1.
        if dtype.is_nested() or dtype == pl.Binary or (is_id and dtype.is_float()):
            raise DataError(
                f"column {column!r} of {source.path} must be "
                f"{'integer or text' if is_id else 'text'}, got {dtype}; convert it or name "
                "another column"
            )
    for column in config.attributes:
        if not _is_storable(types[column]):
            raise DataError(
                f"column {column!r} of {source.path} must be numbers, text or dates, got "
                f"{types[column]}; convert it or leave it out"
            )


def _check_agreement(source: Source, first: Source, config: TableConfig) -> None:
    types, first_types = columns_of(source), columns_of(first)
    for column in config.attributes:
        # The wider of two numeric types holds both; any other pair would become text.
        both_numeric = types[column].is_numeric() and first_types[column].is_numeric()
        if types[column] != first_types[column] and not both_numeric:
            raise DataError(
                f"column {column!r} is {types[column]} in {source.path} and "
                f"{first_types[column]} in {first.path}; give it one type in all files"
            )


def _is_storable(dtype: _Type) -> bool:
    return all(leaf not in (pl.Binary, pl.Object) for leaf in _leaves(dtype))


def _leaves(dtype: _Type) -> Iterator[_Type]:
    """Yield the types that a nested type is made of."""
    if isinstance(dtype, pl.List | pl.Array):
        yield from _leaves(dtype.inner)
    elif isinstance(dtype, pl.Struct):
        for member in dtype.fields:
            yield from _leaves(member.dtype)
    else:
        yield dtype


def _id(column: str, dtype: pl.DataType) -> pl.Expr:
    """Cast ids to the type of the interactions' ids; null if the cast fails."""
    return pl.col(column).cast(pl.String).cast(dtype, strict=False)


def _attribute(column: str, dtype: pl.DataType, is_text: bool) -> pl.Expr:
    value = pl.col(column)
    if is_text:
        # Text formats write a missing value as an empty field.
        return _not_blank(value).alias(column)
    return value.fill_nan(None) if dtype.is_float() else value


def _not_blank(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)
