"""The tables of items and of users: titles and attributes of those with interactions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from candid.data import source_ids as ids
from candid.data.columns import RawTable, parse_ids
from candid.data.config import ItemTableConfig, UserTableConfig
from candid.data.paths import shown
from candid.data.readers import (
    Found,
    Source,
    check_lines,
    columns_of,
    find_sources,
    require_columns,
)
from candid.errors import DataError

TableConfig = ItemTableConfig | UserTableConfig
_Type = pl.DataType | pl.datatypes.DataTypeClass


NUMBER = r"^-?(?:0|[1-9]\d*)?(?:\.\d+)?(?:[eE][+-]?\d+)?$"
"""A number in a text format; 01234 is text, as a postal code is."""


@dataclass(frozen=True)
class JoinedTable:
    """A table of items or users, joined to those of the interactions.

    Attributes:
        frame: n rows: source_id, title if the config names one, attributes (null without a row in
            the table).
        without_row: number of ids of the interactions without a row in the table.
        without_interactions: number of rows of the table without an interaction, or without an id,
            left out.
    """

    frame: pl.DataFrame
    without_row: int
    without_interactions: int


def find_table(config: TableConfig) -> Found:
    """Find the files of a table.

    Raises:
        DataError: a file does not exist.
    """
    return find_sources(config.path, query=config.query)


def open_table(config: TableConfig) -> list[Source]:
    """Scan the files of a table.

    Raises:
        DataError: a file or a column does not exist.
    """
    return check_table(find_table(config).open(config.columns), config)


def check_table(sources: list[Source], config: TableConfig) -> list[Source]:
    """Return ``sources`` after a check of their columns.

    Raises:
        DataError: a column does not exist.
    """
    for source in sources:
        title = None if config.title is None else config.title
        require_columns(source, [name for name in config.columns if name != title])
        if title is not None and title not in columns_of(source).names():
            try:
                require_columns(source, [title])
            except DataError as error:
                raise DataError(
                    f"{error}; name the column of the titles with items.title (--title COLUMN), or "
                    'set it to "none" for items without titles'
                ) from None
    return sources


def storable_columns(schema: Mapping[str, _Type]) -> list[str]:
    """Return the names of the columns that can be attributes, in order."""
    return [name for name, dtype in schema.items() if _is_storable(dtype)]


def join_table(
    source_ids: pl.Series,
    sources: Sequence[Source],
    config: TableConfig,
    types: Mapping[str, pl.DataType] | None = None,
) -> JoinedTable:
    """Join titles and attributes to items, or attributes to users.

    Attributes keep their type, lists and arrays too. In text formats, a column of numbers alone
    becomes Int64 or Float64; an empty field, and a NaN, become null.

    Args:
        source_ids: [n], ascending.
        sources: with the columns that ``config`` names.
        config: columns of the table.
        types: types that attributes of text formats become, as they had in training; None: by
            their values.

    Raises:
        DataError: an id is listed twice, ids do not match in type, a column has a type that
            cannot be stored, or a line does not have the fields of the header.
    """
    raw = _select(sources, config)
    statistics = ids.statistics(pl.col("source_id"), raw.schema["source_id"])
    found = raw.run(raw.frame.select(**statistics)).to_dicts() if statistics else [{}]
    parsed = parse_ids(raw, "source_id", found[0])
    table = raw.run(raw.frame.with_columns(source_id=parsed))
    if any(table.null_count().row(0)):
        # A line that is cut short reads like one with empty fields at its end.
        check_lines(sources)
    num_rows = table.height
    table = table.filter(pl.col("source_id").is_not_null())
    if sources[0].first_line is not None:
        table = table.with_columns(
            _typed_attribute(table[name]) if types is None else _cast(table[name], types, config)
            for name in config.attributes
        )
    matched = ids.matching(pl.col("source_id"), table.schema["source_id"], source_ids.dtype)
    table = table.with_columns(source_id=matched).filter(pl.col("source_id").is_not_null())
    repeated = table.filter(pl.col("source_id").is_duplicated())
    if repeated.height:
        raise DataError(
            f"{shown(config.path)} lists {config.kind} {repeated['source_id'][0]!r} more than "
            "once; keep one row"
        )
    wanted = pl.DataFrame({"source_id": source_ids})
    has_row = wanted["source_id"].is_in(table["source_id"].implode())
    num_joined = int(has_row.sum())
    if not num_joined:
        raise DataError(
            f"{shown(config.path)} has no row for any {config.kind} of the interactions; check "
            f"that column {config.id_column!r} holds their ids"
        )
    joined = wanted.join(table, on="source_id", how="left", maintain_order="left")
    return JoinedTable(joined, len(source_ids) - num_joined, num_rows - num_joined)


def _select(sources: Sequence[Source], config: TableConfig) -> RawTable:
    """Select id, title and attributes, checked by their types."""
    schema: dict[str, pl.DataType] = {}
    selected = []
    for source in sources:
        types = columns_of(source)
        _check_types(source, types, config)
        _check_agreement(source, sources[0], config)
        widened = ids.widen(pl.col(config.id_column), types[config.id_column])
        assert widened is not None, "checked above"
        id_column, dtype = widened
        if schema.setdefault("source_id", dtype) != dtype:
            # Text compares with every type.
            id_column, schema["source_id"] = id_column.cast(pl.String), pl.String()
        columns = [id_column.alias("source_id")]
        if config.title is not None:
            # A blank title cannot be searched for, in any format.
            columns.append(_not_blank(pl.col(config.title).cast(pl.String)).alias("title"))
        is_text = source.first_line is not None
        columns += [_attribute(name, types[name], is_text) for name in config.attributes]
        selected.append(replace(source, frame=source.frame.select(columns)))
    return RawTable(selected, {"source_id": config.id_column}, schema)


def _check_types(source: Source, types: pl.Schema, config: TableConfig) -> None:
    id_type = types[config.id_column]
    if ids.widen(pl.col(config.id_column), id_type) is None:
        raise DataError(
            f"column {config.id_column!r} of {source.path} must be integer or text, got "
            f"{id_type}; convert it or name another column"
        )
    title_type = pl.String() if config.title is None else types[config.title]
    if title_type.is_nested() or title_type == pl.Binary:
        raise DataError(
            f"column {config.title!r} of {source.path} must be text, got {title_type}; convert it "
            "or name another column"
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
    refused = (pl.Binary, pl.Object, pl.Struct([]))
    # Polars panics where it joins a column of an extension type of Arrow.
    return all(leaf not in refused and not hasattr(leaf, "ext_storage") for leaf in _leaves(dtype))


def _leaves(dtype: _Type) -> Iterator[_Type]:
    """Yield the types that a nested type is made of, and structs without members."""
    if isinstance(dtype, pl.List | pl.Array):
        yield from _leaves(dtype.inner)
    elif isinstance(dtype, pl.Struct) and dtype.fields:
        for member in dtype.fields:
            yield from _leaves(member.dtype)
    else:
        yield dtype


def _attribute(column: str, dtype: pl.DataType, is_text: bool) -> pl.Expr:
    value = pl.col(column)
    if is_text:
        # Text formats write a missing value as an empty field.
        return _not_blank(value).alias(column)
    return value.fill_nan(None) if dtype.is_float() else value


def _not_blank(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)


def _typed_attribute(values: pl.Series) -> pl.Series:
    """Convert a column of a text format to Int64 or Float64 if it holds numbers alone."""
    texts = values.to_frame("text").select(
        pl.when(pl.col("text").str.to_lowercase() != "nan").then("text")
    )["text"]
    if not texts.count() or not texts.str.contains(NUMBER).all():
        return values
    for dtype in (pl.Int64, pl.Float64):
        numbers = texts.cast(dtype, strict=False)
        if numbers.null_count() == texts.null_count():
            return numbers.alias(values.name)
    return values


def _cast(values: pl.Series, types: Mapping[str, pl.DataType], config: TableConfig) -> pl.Series:
    dtype = types[values.name]
    cast = values.cast(dtype, strict=False)
    wrong = values.filter(cast.is_null() & values.is_not_null() & (values != "nan"))
    if len(wrong):
        raise DataError(
            f"column {values.name!r} of {shown(config.path)} holds {wrong[0]!r}, but it was "
            f"{dtype} in training; fix the value or leave it empty"
        )
    return cast
